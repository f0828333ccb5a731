"""How the cost of a training step grows along an axis: a curve for each candidate, its fit, where curves cross.

Point by point all candidates are measured by turns (``bench.interleave``), each in a process of its own, begun anew
for the point; on a machine with many cores several points get ready side by side. They come in an order that covers the
range early: when the time is up before the last of them, there are curves that are coarser, and not ones that end. What
fails at a point has the reason there, and goes on at the others.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bareconv import host
from bareconv.bench import process
from bareconv.bench.axes import AXES, Axis, covering
from bareconv.bench.crossover import compare
from bareconv.bench.deadline import Deadline
from bareconv.bench.estimates import median, noise
from bareconv.bench.growth import fit
from bareconv.bench.interleave import Candidate, Limits, Listener, Side, at_once, interleave, prepare_all
from bareconv.bench.peers import CHECKED_STEPS, catalog, check
from bareconv.bench.process import StoppedError
from bareconv.bench.synthetic import ImageFile, lies_in_memory
from bareconv.bench.workload import Workload
from bareconv.errors import BareconvError
from bareconv.report.format import bytes_, count, counted

POINT_SHARE = 3.0  # times its share of the time that is left, a point may take
READY = 0.75  # of that, for getting ready
LEAST_SECONDS = 10.0  # for a point, where there are so many: processes take their time to start
LEAST_READY = 2.0  # times what getting ready took at an earlier point, likewise
LEAST_MEASURING = 0.5  # seconds, for each candidate

TIME_WAS_UP = "the time was up"  # which is no failure: the curves are coarser
NO_TIME = f"not measured: {TIME_WAS_UP} before it"
STOPPED = "not measured: stopped by request"


def measure_sweep(
    axis: str,
    values: Sequence[float],
    workload: Workload,
    candidates: Sequence[Candidate],
    deadline: Deadline,
    listener: Listener,
    limits: Limits | None = None,
    *,
    folder: Path | None = None,
    on_point: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The ``sweep`` object of a result: ``candidates`` on ``workload`` with each of ``values`` on the axis so named.

    Ends by the deadline, and when the listener says so, with what there is by then. ``folder``: where files are written
    while it lasts, by default the system's folder for them. ``on_point`` is told in a line what came of each point.
    Raises UsageError where there is no such axis, or it has no such value.
    """
    way = AXES[axis]
    for value in values:
        way.check(value)
    together = at_once(candidates)
    with tempfile.TemporaryDirectory(prefix="bareconv-", dir=folder) as name, ThreadPoolExecutor(together) as pool:
        sweep = _Sweep(way, workload, candidates, deadline, listener, limits or Limits(), Path(name), pool)
        order = covering(values)
        # Of images there may be more than memory: one point's are written, and read, at a time.
        at_a_time = 1 if axis == "images" else max(1, together // len(candidates))
        for place in range(0, len(order), at_a_time):
            if deadline.passed or listener.should_stop():
                break
            group = order[place : place + at_a_time]
            sweep.group(group, len(order) - place)
            for value in group:
                on_point(sweep.said(value))
        return sweep.record(order)


@dataclass
class _Point:
    """A value that is being measured: a side for each candidate; ``error``: why there are none, or no more samples."""

    value: float
    folder: Path
    sides: list[Side] = field(default_factory=list)
    error: str | None = None


class _Sweep:
    """The points so far; ``points[value]`` has one for each candidate, as a result has it."""

    def __init__(
        self,
        axis: Axis,
        workload: Workload,
        candidates: Sequence[Candidate],
        deadline: Deadline,
        listener: Listener,
        limits: Limits,
        folder: Path,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.pool = pool
        self.axis, self.workload, self.candidates = axis, workload, candidates
        self.deadline, self.listener, self.limits, self.folder = deadline, listener, limits, folder
        self.points: dict[float, list[dict[str, Any]]] = {}
        self.sides: list[Side | None] = [None] * len(candidates)  # that had figures last, for what they tell
        self.getting_ready: list[tuple[float, int]] = []  # seconds, of so many points
        self.file: ImageFile | None = None
        self.notes: list[str] = []

    def group(self, values: Sequence[float], left: int) -> None:
        """Measure all candidates at each of these values, the first of ``left`` that are to come."""
        end = self._end(len(values), left)
        points = [_Point(value, self.folder / f"point-{number}") for number, value in enumerate(values)]
        try:
            self._get_ready(points, end)
            for number, point in enumerate(points):
                if point.sides and point.error is None:
                    point.error = self._measured(point, end, left - number, left - len(points))
        finally:
            list(self.pool.map(Side.finish, [side for point in points for side in point.sides]))
            for point in points:
                shutil.rmtree(point.folder, ignore_errors=True)
                self._keep(point)

    def _keep(self, point: _Point) -> None:
        """What came of it, as a result has it."""
        sides = [*point.sides, *[None] * (len(self.candidates) - len(point.sides))]
        self.points[point.value] = [self._point(point.value, side, point.error) for side in sides]
        for place, side in enumerate(point.sides):
            if side.rate is not None:
                self.sides[place] = side

    def _end(self, points: int, left: int) -> Deadline:
        """The end of the next ``points`` of ``left``, all in all: rather few points than many that are not ready."""
        fair = POINT_SHARE * points / (left + (POINT_SHARE - 1) * points) * self.deadline.left
        longest = max((seconds for seconds, _ in self.getting_ready), default=0.0)
        clock = self.deadline.clock
        return Deadline(min(clock() + max(fair, LEAST_SECONDS, LEAST_READY * longest), self.deadline.at), clock)

    def _get_ready(self, points: Sequence[_Point], end: Deadline) -> None:
        """Fill the points' ``sides``, or their ``error`` says why there are none."""
        title = " and ".join(f"{self.axis.noun} {self.axis.said(point.value)}" for point in points)
        listener = _Named(self.listener, title)
        for point in points:
            try:
                point.error = self._written(point, end, listener)
            except BareconvError as problem:
                point.error = str(problem)
            except OSError as problem:
                point.error = f"{problem.filename or point.folder}: {problem.strerror or problem}"
        begun, ready = self.deadline.clock(), end.part(READY)
        there = [point for point in points if point.error is None]
        jobs = [(self.axis.candidate(one, point.value), point.folder) for point in there for one in self.candidates]
        checks = 1 if all(candidate.ours for candidate in self.candidates) else CHECKED_STEPS
        sides: list[Side] = []
        try:
            prepare_all(self.pool, jobs, sides, ready, checks, listener, self.limits)
        except StoppedError:
            for point in there:
                point.error = STOPPED
        else:
            if there:
                self.getting_ready.append((self.deadline.clock() - begun, len(there)))
        finally:
            for number, side in enumerate(sides):
                there[number // len(self.candidates)].sides.append(side)

    def _written(self, point: _Point, end: Deadline, listener: Listener) -> str | None:
        """Write a point's job into its folder; returns why there is none."""
        workload = self.axis.at(self.workload, point.value)
        point.folder.mkdir()
        if workload.train_images is not None:
            reason = self._write_images(workload, end, listener)
            if reason is not None:
                return reason
        workload.write(point.folder, self.file)
        return None

    def _measured(self, point: _Point, end: Deadline, left: int, unready: int) -> str | None:
        """Measure one of ``left`` points, of which so many are not ready; returns why there are no more samples."""
        for side, candidate in zip(point.sides, self.candidates, strict=True):
            if not candidate.ours:
                check(side, point.sides, _precision(candidate, self.workload))
        until = self._until(end, left, unready)
        title = f"{self.axis.noun} {self.axis.said(point.value)}"
        listener = _Named(self.listener, title)
        listener.measuring(f"Measuring {title}", until.left)
        interleave([side for side in point.sides if side.alive], until, listener)
        return STOPPED if listener.should_stop() else NO_TIME

    def _until(self, end: Deadline, left: int, unready: int) -> Deadline:
        """How long to measure now: a fair share of what getting the others ready will leave."""
        taken, ready = (sum(column) for column in zip(*self.getting_ready, strict=True))
        ahead = unready * taken / ready
        fair = max((self.deadline.left - ahead) / left, LEAST_MEASURING * len(self.candidates))
        clock = self.deadline.clock
        return Deadline(min(clock() + fair, end.at), clock)

    def _write_images(self, workload: Workload, end: Deadline, listener: Listener) -> str | None:
        """The images of this point, of which those of an earlier one are there; returns why they are not all there."""
        images = workload.train_images
        assert images is not None
        if self.file is None:
            self.file = workload.image_file(self.folder, self.folder.parent)
            if lies_in_memory(self.folder):
                self.notes.append(f"{self.folder.parent} lies in memory: the images were read from there, not a disk.")
        done = 0

        def tell(now: int, total: int) -> None:
            nonlocal done
            done = now
            listener.stage(f"Writing image {count(now)} of {count(total)}")

        if not self.file.grow(images, tell, lambda: end.passed or listener.should_stop()):
            return (
                STOPPED
                if listener.should_stop()
                else f"{TIME_WAS_UP} when {counted(done, 'image')} {'was' if done == 1 else 'were'} written"
            )
        size, memory = images * self.file.image_bytes, host.memory_bytes()
        if memory is not None and size > memory:
            self.notes.append(
                f"{count(images)} images take {bytes_(size)}, more than the memory of {bytes_(memory)}: on the CPU a "
                "part of each batch is read from the disk."
            )
        return None

    def _point(self, value: float, side: Side | None, error: str | None) -> dict[str, Any]:
        """The point of a candidate, of which a side without figures has a reason of its own, or that of all."""
        point: dict[str, Any] = {"value": self.axis.number(value), "error": None}
        if side is None or side.rate is None:
            return {**point, "error": (side.error if side is not None else None) or error or NO_TIME}
        samples = side.samples
        return {
            **point,
            "images_per_second": dataclasses.asdict(side.rate),
            "step_seconds": dataclasses.asdict(median(_step_seconds(samples.seconds, samples.steps))),
            "stable": noise(samples.rates).stable,
            "samples": vars(samples),
            "peak_memory_bytes": side.memory["peak"],
        }

    def said(self, value: float) -> str:
        """What came of a point, in a line."""
        found = []
        for name, point in zip(names(self._heads()), self.points[value], strict=True):
            rate = point.get("images_per_second")
            found.append(f"{name} {rate['value']:,.0f} images/s" if rate else f"{name}: {point['error']}")
        return f"{self.axis.noun} {self.axis.said(value)}: {'; '.join(found)}"

    def _heads(self) -> list[dict[str, Any]]:
        """Each curve without its points."""
        heads = []
        for candidate, side in zip(self.candidates, self.sides, strict=True):
            device = candidate.options.get("device", "cpu")
            own_threads = device == "cpu" and self.axis.name != "threads"
            heads.append(
                {
                    "name": side.engine if side is not None and candidate.ours else candidate.name,
                    "variant": candidate.variant,
                    "ours": candidate.ours,
                    "device": device,
                    "precision": _precision(candidate, self.workload),
                    "threads": self.workload.threads if own_threads else None,
                }
            )
        return heads

    def record(self, values: Sequence[float]) -> dict[str, Any]:
        """The ``sweep`` object, with a point for each of ``values``."""
        missing = STOPPED if self.listener.should_stop() else NO_TIME
        curves = []
        for place, head in enumerate(self._heads()):
            points = [
                self.points[value][place] if value in self.points else self._point(value, None, missing)
                for value in sorted(values)
            ]
            steps = {
                float(point["value"]): _step_seconds(point["samples"]["seconds"], point["samples"]["steps"])
                for point in points
                if point["error"] is None
            }
            found = fit(steps, self.axis.powers)
            curves.append({**head, "points": points, "fit": found and found.record(self.axis.formula(found))})
        return {
            "axis": self.axis.name,
            "model": self.workload.model,
            "batch_size": self.workload.batch_size,
            "image_shape": list(self.workload.image_shape),
            "curves": curves,
            "crossovers": crossovers(self.axis, curves),
            "notes": self.notes,
        }


def is_of_time(error: str) -> bool:
    """Whether a point's error is only that there was no time for it."""
    return TIME_WAS_UP in error or error == STOPPED


def peer_candidate(name: str, python: str, device: str, workload: Workload) -> Candidate:
    """Another library on a device, in the variant that is fast on most workloads and takes no compiling."""
    peer = catalog(device, workload.precision)[name]
    compiled = {one for one, options in peer.variants.items() if options.get("mode") == "compile"}
    variants = [one for one in peer.variants if one not in compiled] or list(peer.variants)
    wanted = ("graph", "channels_last")  # the first is of a GPU
    variant = max(variants, key=lambda one: [word in one for word in wanted])
    command, variables = process.foreign_command(python, peer.module), process.environment(workload.threads)
    return Candidate(name, command, peer.variants[variant], variables, False, variant)


class _Named(Listener):
    """Another listener, told at which point it is."""

    def __init__(self, listener: Listener, title: str) -> None:
        self.listener, self.title = listener, title

    def stage(self, text: str) -> None:
        self.listener.stage(f"{text}, {self.title}")

    def measuring(self, text: str, seconds: float) -> None:
        self.listener.measuring(text, seconds)

    def block(self, side: Side, left: float) -> None:
        self.listener.block(side, left)

    def should_stop(self) -> bool:
        return self.listener.should_stop()


def crossovers(axis: Axis, curves: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ``crossovers`` of a result: of every two curves that share a point, from the samples of their points."""
    called, found = names(curves), []
    curves_of_rates = [
        {float(point["value"]): rates(point["samples"]) for point in curve["points"] if point["error"] is None}
        for curve in curves
    ]
    for first, second in itertools.combinations(range(len(curves)), 2):
        compared = compare(curves_of_rates[first], curves_of_rates[second])
        if compared is None:
            continue
        texts = compared.text(called[first], called[second], axis.said, axis.in_a_sentence)
        for crossing, text in zip(compared.crossings, texts, strict=True):
            places = {
                "ahead_below": (first, second)[crossing.ahead_below],
                "ahead_above": (first, second)[crossing.ahead_above],
            }
            found.append({**dataclasses.asdict(crossing), **places, "text": text})
    return found


def names(curves: Sequence[dict[str, Any]]) -> list[str]:
    """What to call each curve in a sentence: by what tells it from the others, "the GPU", "plan on the CPU"."""
    labels = [f"{curve['name']} {curve['variant']}".strip() for curve in curves]
    places = [_device(curve["device"], curves) for curve in curves]
    if len(set(places)) == 1:
        called = labels
    elif len(set(labels)) == 1:
        called = places
    else:
        called = [f"{label} on {place}" for label, place in zip(labels, places, strict=True)]
    precisions: dict[str, set[str]] = {}
    for name, curve in zip(called, curves, strict=True):
        precisions.setdefault(name, set()).add(curve["precision"])
    return [
        f"{name} in {curve['precision']}" if len(precisions[name]) > 1 else name
        for name, curve in zip(called, curves, strict=True)
    ]


def _device(name: str, curves: Sequence[dict[str, Any]]) -> str:
    if name == "cpu":
        return "the CPU"
    several = len({curve["device"] for curve in curves} - {"cpu"}) > 1
    return name if several else "the GPU"


def _precision(candidate: Candidate, workload: Workload) -> str:
    return str(candidate.options.get("precision", workload.precision))


def _step_seconds(seconds: Sequence[float], steps: Sequence[int]) -> list[float]:
    return [one / number for one, number in zip(seconds, steps, strict=True)]


def rates(samples: dict[str, Any]) -> list[float]:
    """Images a second of each block."""
    return [images / seconds for images, seconds in zip(samples["images"], samples["seconds"], strict=True)]

"""Our engines beside other libraries: the same model, weights, data and batches, measured by turns.

A peer is measured as it would be used by somebody who knows it: the best of its variants, found by trying each briefly;
and as it comes, where that is something else. A candidate whose first losses are not ours has computed something else:
its time is not shown.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bareconv.bench import process
from bareconv.bench.deadline import Deadline
from bareconv.bench.estimates import median, ratio
from bareconv.bench.interleave import (
    GPU_BYTES,
    Candidate,
    Limits,
    Listener,
    Samples,
    Side,
    at_once,
    interleave,
    prepare_all,
)
from bareconv.bench.parity import TOLERANCE
from bareconv.bench.process import StoppedError
from bareconv.bench.steady import Measured, throughput
from bareconv.bench.workers.lock import LOCK
from bareconv.bench.workload import Workload
from bareconv.device import all_devices
from bareconv.errors import BareconvError, UsageError

CHECKED_STEPS = 5
TRY_SECONDS = 1.0  # of a variant, at most
TRY_LEAST, TRY_STEPS = 0.2, 30  # seconds and steps, that are enough for it
LEAST_SECONDS = 20.0  # for what gets ready at a time, where there are so many: rather few of them than none
# Seconds, with less of which left to get ready nothing is begun that compiles or searches for long: on a GPU it
# measures many kernels to find the best.
COMPILING = {"cpu": 15.0, "cuda": 60.0}
READY_TO_COMPARE = 0.7  # of the time, that getting ready may take
DEFAULT_NAME = "default"  # the variant that is how a peer comes
LAYOUTS = ("nchw", "channels_last")
MODES = ("graph", "compile")  # of PyTorch on a GPU, the most promising first; the last is a graph too
EVERY_MODE = ("graph", "eager", "compile")  # a graph does what eager does, but for Python's time
GPU_SCAN = 32  # steps in one call of JAX's

TUNED = {
    f"{layout} {mode}": {"layout": layout, "mode": mode, "fused": True, "mallopt": True}
    for mode in ("eager", "compile")  # compiling takes long: first what takes no time
    for layout in LAYOUTS
}
DEFAULT = {"layout": "nchw", "mode": "eager", "fused": False, "mallopt": False}

# Which of XLA's libraries compute what: by default, YNNPACK convolutions, Eigen products. Products by YNNPACK, with
# what can be fused to them, make a training step on a CPU up to three times as fast; no YNNPACK is between the two.
_LIBRARIES = "--xla_cpu_experimental_ynn_fusion_type="
_YNNPACK = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("DOT", "ELTWISE", "REDUCE"))


@dataclass(frozen=True)
class Peer:
    """A library: the package that is looked for, the module that serves it, its variants by name.

    ``default``: the options of how it comes, measured beside the best of several variants. ``chooses``: while it gets
    ready it measures which of its algorithms is the fastest, for which no other variant may be at work.
    """

    package: str
    module: str
    variants: Mapping[str, Mapping[str, Any]]
    default: Mapping[str, Any] | None = None
    chooses: bool = False


def _jax(device: str, layout: str, steps: int = 1, xla: str = "", tuned: bool = True) -> dict[str, Any]:
    return {"device": device, "layout": layout, "mode": "jit", "steps": steps, "xla": xla, "tuned": tuned}


def _tinygrad(device: str) -> Peer:
    variants = {
        "jit": {"device": device, "mode": "jit", "beam": 0},
        "jit search": {"device": device, "mode": "compile", "beam": 2},
    }
    as_it_comes = {"device": device, "mode": "eager", "beam": 0}
    return Peer("tinygrad", "bareconv.bench.workers.tinygrad", variants, as_it_comes)


PEERS = {
    "pytorch": Peer("torch", "bareconv.bench.workers.pytorch", TUNED, DEFAULT),
    "jax": Peer(
        "jax",
        "bareconv.bench.workers.jax",
        {
            "nhwc ynnpack": _jax("cpu", "nhwc", xla=_LIBRARIES + _YNNPACK),
            "nchw ynnpack": _jax("cpu", "nchw", xla=_LIBRARIES + _YNNPACK),
            "nhwc ynnpack scan": _jax("cpu", "nhwc", steps=4, xla=_LIBRARIES + _YNNPACK),
            "nhwc eigen": _jax("cpu", "nhwc", xla=_LIBRARIES),
            "nhwc": _jax("cpu", "nhwc"),
        },
        _jax("cpu", "nhwc", tuned=False),
    ),
    "tinygrad": _tinygrad("cpu"),
    "dezero": Peer("dezero", "bareconv.bench.workers.dezero", {"": {}}),
    "numpy": Peer("numpy", "bareconv.bench.workers.numpy", {"": {}}),
}


def catalog(device: str, precision: str, modes: Sequence[str] = MODES) -> Mapping[str, Peer]:
    """The peers there are on a device ("cpu", "cuda:0") in a precision, by name; ``modes``: of PyTorch on a GPU."""
    if device == "cpu":
        return PEERS
    eager = {"device": device, "layout": "nchw", "mode": "eager", "tuned": False}
    return {
        "pytorch": Peer(
            "torch",
            "bareconv.bench.workers.pytorch_cuda",
            cuda_variants(device, precision, modes),
            {**eager, "mixed": "autocast" if precision == "bfloat16" else None},
            chooses=True,
        ),
        "jax": Peer(
            "jax",
            "bareconv.bench.workers.jax",
            {
                f"{layout} scan": _jax(device, layout, GPU_SCAN)  # a call for each step takes Python's time, too
                for layout in ("nhwc", "nchw")
            },
            _jax(device, "nhwc", tuned=False),
        ),
        "tinygrad": _tinygrad(device),
    }


def cuda_variants(device: str, precision: str, modes: Sequence[str] = EVERY_MODE) -> dict[str, dict[str, Any]]:
    """PyTorch's variants on a GPU: modes, layouts and, in bfloat16, both ways to mix it with float32."""
    return {
        " ".join(filter(None, (layout, mode, mixed))): {
            "device": device,
            "layout": layout,
            "mode": mode,
            "mixed": mixed,
        }
        for mode in modes
        for mixed in (("autocast", "copy") if precision == "bfloat16" else (None,))
        for layout in LAYOUTS
    }


@dataclass(frozen=True)
class Found:
    """Which peers there are, by name, with the interpreter that has each; and why the others are absent."""

    pythons: dict[str, str]
    absent: dict[str, str]


def find(names: Sequence[str], python: str | None, device: str = "cpu", precision: str = "float32") -> Found:
    """Look for peers in ``python``, where it is given, and in this interpreter.

    Raises UsageError where a name is unknown, or ``python`` is no interpreter.
    """
    pythons = [sys.executable] if python is None else [_interpreter(python), sys.executable]
    found, known = Found({}, {}), catalog(device, precision)
    for name in names:
        if name not in PEERS:
            raise UsageError(f"peer {name!r}: expected one of {', '.join(PEERS)}")
        if name not in known:
            found.absent[name] = "it is measured on the CPU only"
            continue
        package = known[name].package
        having = next((path for path in pythons if _has(path, package)), None)
        if having is not None:
            found.pythons[name] = having
        else:
            found.absent[name] = f"{package} is not installed for {' or '.join(pythons)}"
    return found


def _interpreter(python: str) -> str:
    path = shutil.which(python)  # a link stays one: that is how a virtual environment knows itself
    if path is None:
        raise UsageError(f"--python {python}: there is no program of that name; expected a Python, such as bin/python")
    if not _has(path, "sys"):
        raise UsageError(f"--python {python}: that program is no Python; expected one, such as bin/python")
    return os.path.abspath(path)


def _has(python: str, package: str) -> bool:
    code = "import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]) is not None)"
    try:
        # What it prints, for another program may end well whatever it is asked.
        done = subprocess.run([python, "-c", code, package], capture_output=True, timeout=30, check=False)
        return done.returncode == 0 and done.stdout.split() == [b"True"]
    except (OSError, subprocess.TimeoutExpired):
        return False


@dataclass
class Compared(Measured):
    """What came of a workload; ``tries``: the variants of which the best is measured, as they were tried briefly."""

    device: str = "cpu"
    tries: dict[str, list[Side]] = field(default_factory=dict)

    @property
    def ours(self) -> Side | None:
        """The engine that the others are compared with: the first that has figures."""
        return next((side for side in self.sides if side.candidate.ours and side.rate is not None), None)

    def beside(self, side: Side) -> Samples | None:
        """Our engine's blocks that were taken by turns with a side's; None where there are none, or it is ours."""
        return None if self.ours in (None, side) else self.ours.samples


@dataclass(frozen=True)
class Question:
    """What is to be compared: our ``engines`` and the ``peers`` on one workload."""

    workload: Workload
    engines: Sequence[Candidate]
    peers: Found


def compare(
    questions: Sequence[Question],
    deadline: Deadline,
    listener: Listener,
    *,
    compiled: bool = True,
    limits: Limits | None = None,
    device: str = "cpu",
    kept: contextlib.ExitStack | None = None,
) -> list[Compared]:
    """Measure our engines and the peers on each question's workload, by turns, until the deadline.

    Most of the time is for getting ready and trying variants: what is not ready then is not measured, and says so. The
    candidates of all questions get ready together, where the device has the memory for it; then one question is
    measured after another.
    ``compiled``: try the variants that compile, too. ``device``: where the peers compute, as the engines do.
    ``kept``: until it is closed the sides that were measured stay ready, for other measurements of the same workload;
    without it they end here.
    """
    done: list[Compared] = []
    while len(done) < len(questions) and not (done and listener.should_stop()):
        rest = questions[len(done) :]
        chosen = rest[: _at_a_time(rest, device)]
        part = deadline.part(len(chosen) / len(rest))
        done += _compare(chosen, part, listener, compiled, limits or Limits(), device, kept)
    return done


def _at_a_time(questions: Sequence[Question], device: str) -> int:
    """How many of the questions, one at least: every library's best, and how it comes, wait till the last is done."""
    free = next((one.free_bytes() for one in all_devices() if one.name == device), None)
    waiting = itertools.accumulate(len(one.engines) + 2 * len(one.peers.pythons) for one in questions)
    return max(1, sum(free is None or number * GPU_BYTES <= free for number in waiting))


def _compare(
    questions: Sequence[Question],
    deadline: Deadline,
    listener: Listener,
    compiled: bool,
    limits: Limits,
    device: str,
    kept: contextlib.ExitStack | None,
) -> list[Compared]:
    """``compare`` of questions whose candidates get ready together."""
    ready = deadline.part(READY_TO_COMPARE)
    together = at_once([one for question in questions for one in question.engines], device)
    with contextlib.ExitStack() as own:
        stack = own if kept is None else kept
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bareconv-")))
        pool = stack.enter_context(ThreadPoolExecutor(together))
        getting_ready = _GettingReady(root / "alone", listener, limits, pool, together)
        tryings = []
        for number, question in enumerate(questions):
            folder = root / str(number)
            folder.mkdir()
            dataset = question.workload.write(folder)
            compared = Compared(question.workload, dataset.name, len(dataset.train), device=device)
            tryings.append(_Trying(compared, question, folder, listener, limits, compiled))
        every = [one.compared for one in tryings]
        stack.callback(lambda: list(pool.map(Side.close, [side for one in every for side in one.sides])))
        try:
            getting_ready.engines(tryings, ready)
            getting_ready.peers(tryings, ready)
            for number, compared in enumerate(every):
                part = deadline.part(1 / (len(every) - number))
                listener.measuring(f"Measuring {compared.workload.title}", part.left)
                interleave([side for side in compared.sides if side.alive], part, listener)
                compared.stopped = listener.should_stop()
        except StoppedError:
            for compared in every:
                compared.stopped = True
        finally:
            for compared in every:
                for side in compared.sides:
                    side.settle()
    return every


class _GettingReady:
    """Prepares candidates of several questions, as many side by side as there is room for."""

    def __init__(self, lock: Path, listener: Listener, limits: Limits, pool: ThreadPoolExecutor, together: int) -> None:
        self.lock, self.listener, self.limits, self.pool, self.together = lock, listener, limits, pool, together

    def engines(self, tryings: Sequence[_Trying], deadline: Deadline) -> None:
        """Ours, all of them."""
        sides: list[Side] = []
        jobs = [(one, trying.folder) for trying in tryings for one in trying.question.engines]
        try:
            prepare_all(self.pool, jobs, sides, deadline, CHECKED_STEPS, self.listener, self.limits)
        finally:
            for trying in tryings:
                trying.compared.sides += [side for side in sides if side.folder == trying.folder]
        for trying in tryings:
            for side in trying.compared.sides:
                trying.check(side)

    def peers(self, tryings: Sequence[_Trying], deadline: Deadline) -> None:
        """All within the time until ``deadline``, the first of every peer first; what compiles, last.

        As many as get ready side by side do, and are then tried one by one. What is not ready has its share of the
        time, where that is enough for anything at all.
        """
        rows = [
            [(trying, one) for one in candidates] for trying in tryings for candidates in trying.candidates_by_peer()
        ]
        every = [one for column in itertools.zip_longest(*rows) for one in column if one is not None]
        waves = list(self._waves(every))
        for trying in tryings:
            trying.seconds = min(TRY_SECONDS, deadline.left / (4 * max(1, len(every))))
        try:
            for place, wave in enumerate(waves):
                share = deadline.part(_share(waves[place:], deadline))
                least = min(deadline.clock() + LEAST_SECONDS, deadline.at)
                self._wave(wave, Deadline(max(share.at, least), deadline.clock), deadline)
        finally:
            for trying in tryings:
                trying.keep_the_best()

    def _wave(self, wave: Sequence[tuple[_Trying, Candidate]], share: Deadline, deadline: Deadline) -> None:
        wanted = _wanted(wave)
        if deadline.left < wanted:
            for trying, candidate in wave:
                trying.leave_out(candidate, f"{wanted:.0f} s are wanted, and {deadline.left:.0f} s were left")
            return
        for (trying, _), side in zip(wave, self._ready(wave, share), strict=True):
            trying.take(side)

    def _waves(self, candidates: Sequence[tuple[_Trying, Candidate]]) -> Iterator[list[tuple[_Trying, Candidate]]]:
        """Those that get ready side by side: who chooses algorithms by their times, beside its own kind alone."""

        def kind(one: tuple[_Trying, Candidate]) -> tuple[bool, bool]:
            trying, candidate = one
            return _compiles(candidate), not trying.chooses(candidate)

        for _, of_one_kind in itertools.groupby(sorted(candidates, key=kind), key=kind):
            alike = list(of_one_kind)
            yield from (alike[start : start + self.together] for start in range(0, len(alike), self.together))

    def _ready(self, wave: Sequence[tuple[_Trying, Candidate]], deadline: Deadline) -> list[Side]:
        """A side for each; StoppedError, where the listener says so, having ended them all."""
        sides: list[Side] = []
        lock = {LOCK: str(self.lock)}  # only while they get ready: the folder does not last
        jobs = [
            (
                dataclasses.replace(one, environment={**one.environment, **lock}) if trying.chooses(one) else one,
                trying.folder,
            )
            for trying, one in wave
        ]
        try:
            prepare_all(self.pool, jobs, sides, deadline, CHECKED_STEPS, self.listener, self.limits)
        except StoppedError:
            for side in sides:
                side.close()
            raise
        for side, (trying, candidate) in zip(sides, wave, strict=True):
            side.candidate = candidate
            trying.check(side)
        return sides


class _Trying:
    """Tries the variants of a question's peers; leaves the best of each, and its default, ready to be measured."""

    def __init__(
        self,
        compared: Compared,
        question: Question,
        folder: Path,
        listener: Listener,
        limits: Limits,
        compiled: bool,
    ) -> None:
        self.compared, self.question, self.folder = compared, question, folder
        self.listener, self.limits, self.compiled = listener, limits, compiled
        self.seconds = TRY_SECONDS
        self._known = catalog(compared.device, compared.workload.precision)
        self._best: dict[str, Side] = {}  # by peer
        self._defaults: dict[str, Side] = {}

    def candidates_by_peer(self) -> Iterator[list[Candidate]]:
        """Each peer's default and its variants."""
        workload = self.compared.workload
        for name, python in self.question.peers.pythons.items():
            peer = self._known[name]
            command, environment = process.foreign_command(python, peer.module), process.environment(workload.threads)
            if len(peer.variants) > 1:
                self.compared.tries[name] = []
            options = dict(peer.variants) if peer.default is None else {DEFAULT_NAME: peer.default, **peer.variants}
            every = [Candidate(name, command, chosen, environment, False, what) for what, chosen in options.items()]
            yield [one for one in every if self.compiled or not _compiles(one)]

    def chooses(self, candidate: Candidate) -> bool:
        """Whether it measures which of its algorithms is the fastest, while it gets ready."""
        return self._known[candidate.name].chooses

    def check(self, side: Side) -> None:
        """Hold a side's first losses to those of ours."""
        check(side, self.compared.sides, self.compared.workload.precision)

    def take(self, side: Side) -> None:
        """Keep one that is ready, or has an error: of several variants the best so far."""
        name = side.candidate.name
        if side.candidate.variant == DEFAULT_NAME:
            self._defaults[name] = side
        elif name in self.compared.tries:
            self._try(side)
            self.compared.tries[name].append(side)
            self._best[name] = self._better(self._best.get(name), side)
        else:
            self._best[name] = side

    def leave_out(self, candidate: Candidate, why: str) -> None:
        """One that could not get ready: the time is better spent on measuring the others."""
        side = Side(candidate, self.folder, self.limits)
        side.fail(BareconvError(f"there was no time to compile it: {why}"), "interrupted")
        self.take(side)

    def keep_the_best(self) -> None:
        """The sides that are left of each peer are the comparison's."""
        for name in self.question.peers.pythons:
            both = (self._best.get(name), self._defaults.get(name))
            self.compared.sides += [side for side in both if side is not None]

    def _try(self, side: Side) -> None:
        """Take a block or three, which are kept as the try's own samples."""
        if side.alive:
            self.listener.stage(f"Trying {side.candidate.label}")
            for _ in range(3):
                if side.alive:
                    side.run(self._a_third(side))
            side.tried, side.samples = side.samples, Samples()

    def _a_third(self, side: Side) -> float:
        """Seconds of a block of a try."""
        return min(self.seconds, max(TRY_LEAST, TRY_STEPS * side.step_seconds)) / 3

    def _better(self, best: Side | None, side: Side) -> Side:
        """The faster of the two stays ready, the other ends; one that failed is no rival.

        They were tried one after the other, and the machine may have been busy with something else at the time of one:
        what decides is how fast they are by turns.
        """
        if best is not None and side.alive and best.alive:
            for rival in (side, best, best, side):
                if rival.alive:
                    rival.run(self._a_third(rival))
        if best is None or not side.alive or not best.alive:
            winner = best if best is not None and not side.alive else side
        else:
            winner = max(best, side, key=lambda one: sum(one.samples.images) / sum(one.samples.seconds))
        for tried in (best, side):
            if tried is not None:
                tried.samples = Samples()
        for one in (best, side):
            if one is not None and one is not winner:
                one.close()
        return winner


def _wanted(wave: Sequence[tuple[_Trying, Candidate]]) -> float:
    """Seconds, with less of which left a wave is not begun."""
    trying, first = wave[0]
    return COMPILING[trying.compared.device.partition(":")[0]] if _compiles(first) else 0.0


def _share(waves: Sequence[Sequence[tuple[_Trying, Candidate]]], deadline: Deadline) -> float:
    """Of the time that is left, what is for the first wave: none is kept for others that would not be begun with it."""
    everyone = sum(map(len, waves))
    later = [wave for wave in waves[1:] if deadline.left * len(wave) / everyone >= _wanted(wave)]
    return len(waves[0]) / (len(waves[0]) + sum(map(len, later)))


def _compiles(candidate: Candidate) -> bool:
    return bool(candidate.options.get("mode") == "compile")


def check(side: Side, sides: Sequence[Side], precision: str) -> None:
    """Hold a side's first losses to those of ours, the first that has some: what differs is not shown."""
    ours = next((one for one in sides if one.candidate.ours and one.error is None), None)
    if side.error is not None or ours is side:
        return
    if ours is None:
        side.fail(BareconvError("none of our engines took the first steps, whose losses it should agree with"))
        return
    tolerance = TOLERANCE[precision]
    pairs = zip(ours.losses, side.losses, strict=True)
    side.loss_difference = max(abs(theirs - own) / max(abs(own), 1e-12) for own, theirs in pairs)
    if side.loss_difference > tolerance:
        message = f"its first {len(side.losses)} losses differ from ours by up to {side.loss_difference:.1e}"
        side.fail(BareconvError(f"{message} (tolerance {tolerance:g}): it computes something else"), "disagrees")


def record(compared: Compared, absent: Mapping[str, str]) -> dict[str, Any]:
    """The ``peers`` entry of a result for one workload."""
    workload = compared.workload
    return {
        "model": workload.model,
        "batch_size": workload.batch_size,
        "precision": workload.precision,
        "device": compared.device,
        "data": compared.data,
        "train_images": compared.images,
        "checked_steps": CHECKED_STEPS,
        "tolerance": TOLERANCE[workload.precision],
        "ours": compared.ours.candidate.name if compared.ours else None,
        "candidates": [_candidate(side, compared) for side in compared.sides],
        "absent": dict(absent),
    }


def _candidate(side: Side, compared: Compared) -> dict[str, Any]:
    candidate, ours = side.candidate, compared.beside(side)
    entry: dict[str, Any] = {
        "name": candidate.name,
        "variant": candidate.variant,
        "ours": candidate.ours,
        "options": candidate.options,
        "status": side.status,
        "error": side.error,
        "first_losses": side.losses if all(map(math.isfinite, side.losses)) else [],
        "loss_difference": side.loss_difference,
    }
    if side.rate is not None:
        entry["throughput"] = throughput(side, compared.workload.threads)
        if ours is not None:
            entry["ratio"] = dataclasses.asdict(ratio(ours.rates, side.samples.rates))
    for tries in compared.tries.values():
        if side in tries:
            entry["tries"] = [_try(one) for one in tries]
    return entry


def _try(side: Side) -> dict[str, Any]:
    tried = side.tried.rates
    return {
        "variant": side.candidate.variant,
        "options": side.candidate.options,
        "status": side.status,
        "error": side.error,
        "images_per_second": median(tried).value if tried else None,
        "compile_seconds": side.compile_seconds,
    }

"""The whole benchmark of this machine: every part of it, one after another, within one budget.

Each part has a share of the time that is left, so that what one does not need goes to those after it. What was measured
is handed on after every part, and is kept when the rest is cut short.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bareconv.bench.axes import AXES
from bareconv.bench.clocks import measure_clocks
from bareconv.bench.deadline import Deadline
from bareconv.bench.depth import measure_depth
from bareconv.bench.energy import AtRest, measure_energies
from bareconv.bench.interleave import Candidate, Listener, Side, our_candidate
from bareconv.bench.learning import measure_learning
from bareconv.bench.peers import Compared, Found, Question, compare, record
from bareconv.bench.process import StoppedError, TimeUpError
from bareconv.bench.steady import Measured, measure, run_record
from bareconv.bench.sweep import measure_sweep
from bareconv.bench.workload import Workload
from bareconv.device import CpuDevice, Device
from bareconv.errors import BareconvError
from bareconv.report.ratios import rate_of
from bareconv.training.precision import stored

# Of the time that is left when a part begins, beside the parts after it. Energy and learning come right after the
# peers: they go on in the processes that these have left ready. The layers come when all is compiled, which takes
# longer than they have. Clocks need enough for two whole starts on each device; sweeps are the last, because they can
# do with any time, and so have all that is left over.
SHARES = {"throughput": 3.0, "peers": 12.0, "energy": 5.0, "learning": 3.4, "layers": 2.0, "clocks": 2.5, "sweep": 5.0}
LAST_WITH_SIDES = "learning"
OF_A_GPU = 1.5  # times as much of a part's time as the CPU has: libraries have more to get ready there
PARTS = tuple(SHARES)
SWEEPS = ("batch_size", "width")  # along which a GPU may overtake a CPU

Record = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """A device that takes part, in these precisions, and the peers that are there on it in each of them."""

    device: Device
    precisions: tuple[str, ...]
    peers: Mapping[str, Found]

    @property
    def is_cpu(self) -> bool:
        """Whether it is the CPU."""
        return isinstance(self.device, CpuDevice)


class Watching(Listener):
    """Also told which part of the suite begins, and by when it ends."""

    def begins_part(self, name: str, deadline: Deadline) -> None:
        """A part begins."""


@dataclass
class Suite:
    """What to measure: ``workloads`` on ``places`` by ``engines``, of which the first is ours at its best.

    ``parts``: which of ``PARTS``; ``sweeps``: along which of ``AXES``. ``notes``: what a reader should know, as it
    comes up; ``failed``: whether something of ours, or of a peer that is there, could not be measured.
    """

    workloads: Sequence[Workload]
    places: Sequence[Place]
    engines: Sequence[str]
    parts: Sequence[str] = PARTS
    sweeps: Sequence[str] = SWEEPS
    compiled: bool = True
    notes: list[str] = field(default_factory=list)
    failed: bool = False
    _ready: dict[tuple[Workload, str], list[Side]] = field(default_factory=dict)  # by workload and device
    _kept: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)  # until it is closed, these are

    def run(self, deadline: Deadline, listener: Watching, on_part: Callable[[Record], None]) -> Record:
        """Measure every part until the deadline; ``on_part`` gets the schema's parts so far after each.

        What fails is in the notes; Ctrl-C, which the listener tells of, ends it after the block at hand.
        """
        made: Record = {"runs": []}
        with self._kept:
            self._measure(deadline, listener, made, on_part)
        return made

    def _measure(self, deadline: Deadline, listener: Watching, made: Record, on_part: Callable[[Record], None]) -> None:
        methods = {name: getattr(self, f"_{name}") for name in PARTS}
        for name in self._order():
            if listener.should_stop():
                break
            if PARTS.index(name) > PARTS.index(LAST_WITH_SIDES):
                self._kept.close()
            waiting = [other for other in self._order() if PARTS.index(other) >= PARTS.index(name)]
            part = deadline.part(SHARES[name] / sum(SHARES[other] for other in waiting))
            listener.begins_part(name, part)
            try:
                methods[name](part, listener, made)
            except StoppedError:
                pass
            except TimeUpError as error:
                self.notes.append(f"{name}: {error}.")
            except BareconvError as error:
                self._fail(f"{name}: {error}")
            on_part(made)

    def _order(self) -> list[str]:
        """The parts that there is something to do for."""
        wanted = [name for name in PARTS if name in self.parts]
        if "peers" in wanted:  # beside which our engines are measured; by turns with each other, in the sweep
            wanted = [name for name in wanted if name != "throughput"]
        return wanted

    def _fail(self, note: str) -> None:
        self.failed = True
        self.notes.append(f"{note}.")

    def _candidates(self, workload: Workload, engines: Sequence[str]) -> list[Candidate]:
        """Ours on every device in every precision."""
        return [
            our_candidate(engine, place.device.name, workload.threads, precision)
            for place in self.places
            for precision in place.precisions
            for engine in self._engines(precision)
            if engine in engines
        ]

    def _engines(self, precision: str) -> list[str]:
        """Those that compute in it: but for the plan, in the model's own precisions alone."""
        return [name for name in self.engines if name == "plan" or stored(precision) == precision]

    def _each(
        self, deadline: Deadline, jobs: Sequence[tuple[Any, ...]], *, by_precision: bool = False
    ) -> Iterator[tuple[Any, Deadline]]:
        """Every job, of which a place is the last, with its share of the time that is left.

        ``by_precision``: as large a share for each of the place's precisions.
        """
        places = [job[-1] for job in jobs]
        sizes = [(1.0 if one.is_cpu else OF_A_GPU) * (len(one.precisions) if by_precision else 1) for one in places]
        for number, job in enumerate(jobs):
            yield job, deadline.part(sizes[number] / sum(sizes[number:]))

    def _layers(self, deadline: Deadline, listener: Watching, made: Record) -> None:
        made["rooflines"] = []
        for (place,), part in self._each(deadline, [(place,) for place in self.places]):
            chosen = [dataclasses.replace(one, precision=p) for one in self.workloads for p in place.precisions]
            threads = self.workloads[0].threads
            drawn = measure_depth(chosen, place.device.name, self.engines, threads, part, listener)
            self.notes += drawn.pop("notes", [])
            made["rooflines"].append(drawn)

    def _throughput(self, deadline: Deadline, listener: Watching, made: Record) -> None:
        for number, workload in enumerate(self.workloads):
            part = deadline.part(1 / (len(self.workloads) - number))
            measured = measure(workload, self._candidates(workload, self.engines), part, listener)
            self._keep(measured, made)

    def _peers(self, deadline: Deadline, listener: Watching, made: Record) -> None:
        made["peers"] = []
        jobs = [(workload, place) for workload in self.workloads for place in self.places]
        for (workload, place), part in self._each(deadline, jobs, by_precision=True):
            questions = [self._question(dataclasses.replace(workload, precision=p), place) for p in place.precisions]
            done = compare(
                *(questions, part, listener), compiled=self.compiled, device=place.device.name, kept=self._kept
            )
            for question, compared in zip(questions, done, strict=False):  # fewer, where it was stopped
                made["peers"].append(record(compared, question.peers.absent))
                self._ready[question.workload, place.device.name] = _fastest(compared)
                self._keep(compared, made)

    def _question(self, workload: Workload, place: Place) -> Question:
        ours = [our_candidate(name, place.device.name, workload.threads) for name in self._engines(workload.precision)]
        return Question(workload, ours, place.peers[workload.precision])

    def _keep(self, measured: Measured, made: Record) -> None:
        """Our engines' runs, and what went wrong."""
        for side in measured.sides:
            title = f"{measured.workload.title}, {_label(side)}"
            if side.error is not None and side.status != "interrupted":  # that is said where its figure would be
                self.notes.append(f"{title}: {side.error}.")
                self.failed |= side.status != "unsupported"
            if side.candidate.ours and (run := run_record(measured, side)) is not None:
                made["runs"].append(run)

    def _clocks(self, deadline: Deadline, listener: Watching, made: Record) -> None:
        made["clocks"] = []
        jobs = [(workload, place) for workload in self.workloads for place in self.places]
        for (workload, place), part in self._each(deadline, jobs):
            chosen = dataclasses.replace(workload, precision=place.precisions[0])
            rate = rate_of(
                made["runs"],
                device=place.device.name,
                engine=self.engines[0],
                model=chosen.model,
                batch_size=chosen.batch_size,
                precision=chosen.precision,
            )
            clocks = measure_clocks(chosen, place.device, self.engines[0], part, listener, rate=rate)
            if clocks is not None:
                where = f"Clocks of {chosen.title}, {place.device.name}"
                self.notes += [f"{where}: {note}" for note in clocks.pop("notes", [])]
                made["clocks"].append(clocks)

    def _sweep(self, deadline: Deadline, listener: Watching, made: Record) -> None:
        made["sweeps"] = []
        models = {workload.model: workload for workload in self.workloads}.values()
        jobs = [(workload, AXES[axis]) for workload in models for axis in self.sweeps]
        for place, (workload, axis) in enumerate(jobs):
            if listener.should_stop():
                break
            points = [len(one.values) for _, one in jobs[place:]]
            part = deadline.part(points[0] / sum(points))
            candidates = self._candidates(workload, self.engines[:1])
            made["sweeps"].append(measure_sweep(axis.name, axis.values, workload, candidates, part, listener))

    def _learning(self, deadline: Deadline, listener: Watching, made: Record) -> None:
        made["learning"] = []
        jobs = [(workload, place) for workload in self.workloads for place in self.places]
        for (workload, place), part in self._each(deadline, jobs):
            chosen = dataclasses.replace(workload, precision=place.precisions[0])
            ours, *others = [our_candidate(name, place.device.name, chosen.threads) for name in self.engines]
            ready = self._ready.get((chosen, place.device.name), [])
            rivals = [side.candidate for side in ready if not side.candidate.ours]
            # What is fast comes far in little time, and leaves the rest of it to those after it.
            candidates = [ours, *rivals[:1], *others, *rivals[1:]]
            made["learning"].append(measure_learning(chosen, candidates, part, listener, ready=ready))

    def _energy(self, deadline: Deadline, listener: Watching, made: Record) -> None:
        """Of our engine everywhere, then of each place's fastest rival: a figure is whole, or none."""
        made["energy"] = []
        at_rest = {place.device.name: AtRest() for place in self.places}

        def measured(workload: Workload, place: Place, candidates: Sequence[Candidate], ready: Sequence[Side]) -> None:
            device = place.device
            made["energy"] += measure_energies(
                workload, candidates, device, deadline, listener, ready=ready, at_rest=at_rest[device.name]
            )

        jobs = [(*job, self._ready.get((job[0], job[1].device.name), [])) for job in self._in_each_precision()]
        for workload, place, ready in jobs:
            measured(workload, place, [our_candidate(self.engines[0], place.device.name, workload.threads)], ready)
        for workload, place, ready in jobs:
            measured(workload, place, [side.candidate for side in ready if not side.candidate.ours][:1], ready)

    def _in_each_precision(self) -> list[tuple[Workload, Place]]:
        """The workloads in all precisions of every place."""
        return [
            (dataclasses.replace(workload, precision=precision), place)
            for workload in self.workloads
            for place in self.places
            for precision in place.precisions
        ]


def _label(side: Side) -> str:
    """A candidate with where it ran, where that is known."""
    options = side.candidate.options
    where = [str(options[key]) for key in ("device", "precision") if key in options]
    return " ".join([side.candidate.label, *where]) if side.candidate.ours else side.candidate.label


def _fastest(compared: Compared) -> list[Side]:
    """The fastest first: our engines, and of each peer the side that trains the most images a second; others end."""
    rates = sorted(
        ((side.rate.value, side) for side in compared.sides if side.rate is not None), key=lambda pair: pair[0]
    )
    fastest = {side.candidate.name: side for _, side in rates}  # of one name, the last
    for side in compared.sides:
        if side not in fastest.values():
            side.close()
    return [side for _, side in reversed(rates) if side in fastest.values()]

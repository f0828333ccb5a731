"""Many workloads on one GPU in little time: candidates get ready side by side, and are measured one after another.

Getting ready takes a process, PyTorch's start and its compiler much longer than measuring takes the GPU, and most of
it is the CPU's work. So all contests' candidates get ready at once, as many as there are cores, and wait, stopped.
Nothing gets ready while something is measured.

There are two rounds. In the first, contest by contest, what needs no compiler is tried briefly, and of each of
PyTorch's modes the fastest variant is measured by turns with our engines: few take part, so that a block is long beside
what begins and ends it. In the second come the variants that torch.compile makes: they get ready together, and each
contest is measured anew, our engines, the fastest so far and what was compiled. After every measurement the contest is
handed on, so that whoever ends the program keeps what was done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bareconv.bench import process
from bareconv.bench.deadline import Deadline
from bareconv.bench.estimates import median
from bareconv.bench.interleave import (
    SHORTEST,
    Candidate,
    Limits,
    Listener,
    Samples,
    Side,
    interleave,
    our_candidate,
)
from bareconv.bench.peers import CHECKED_STEPS, EVERY_MODE, Compared, Found, catalog, check
from bareconv.bench.process import StoppedError
from bareconv.bench.workers.lock import LOCK
from bareconv.bench.workload import Workload
from bareconv.errors import BareconvError, UsageError

FIRST_SHARE = 0.5  # of the whole time, that the candidates of the first round may take to get ready
TRY_SHARE = 0.25  # of a measurement's time, that comes before it, for trying variants: at least a block of each
PAUSE = 1.0  # seconds between two contests, in which the result is written
PATIENCE = Limits(prepare=float("inf"), answer=10.0)  # the time of everything is what bounds getting ready

Say = Callable[[str], None]


@dataclass(frozen=True)
class Times:
    """Seconds: ``budget`` of everything; ``first`` and ``second`` of measuring one contest in that round.

    A contest that has no second round is measured for as long as one. Trying variants comes on top, see ``TRY_SHARE``.
    """

    budget: float
    first: float = 4.0
    second: float = 6.0

    def __post_init__(self) -> None:
        for name in ("budget", "first", "second"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} {getattr(self, name)}: expected more than 0 seconds")


@dataclass
class Contest(Compared):
    """One workload: our ``engines``, the ``rivals``, and those that have to be compiled first, ``late``.

    ``sides``, once variants were tried: our engines, and of each mode the best. ``first_only``: those not in the second
    round.
    """

    engines: list[Side] = field(default_factory=list)
    rivals: list[Side] = field(default_factory=list)
    late: list[Side] = field(default_factory=list)
    first_only: list[Side] = field(default_factory=list)

    @property
    def everyone(self) -> list[Side]:
        """All of them."""
        return [*self.engines, *self.rivals, *self.late]

    def beside(self, side: Side) -> Samples | None:
        samples, ours = super().beside(side), self.ours
        return ours.tried if samples is not None and ours is not None and side in self.first_only else samples

    def settle(self, late: bool = False) -> None:
        """Put our engines and the best of each mode into ``sides``, with the tries that it is the best of."""
        self.tries = {}
        for side in [*self.rivals, *(self.late if late else [])]:
            self.tries.setdefault(f"{side.candidate.name} {side.candidate.options.get('mode', '')}", []).append(side)
        self.sides = [*self.engines, *map(_best, self.tries.values())]


def contest(
    workload: Workload,
    device: str,
    engines: Sequence[str],
    peers: Found,
    folder: Path,
    variants: Sequence[str] = ("*",),
    *,
    compiled: bool = True,
    compile_threads: int = 1,
    limits: Limits | None = None,
) -> Contest:
    """A contest on a workload, whose files it writes into ``folder``; nothing is started yet.

    ``variants``: patterns of the variants that take part ("channels_last *"). ``compiled``: with those that compile.
    ``compile_threads``: of each process that compiles.
    """
    folder.mkdir()
    dataset = workload.write(folder)
    environment = {
        **process.environment(workload.threads),
        LOCK: str(folder.parent / "alone"),
        "TORCHINDUCTOR_COMPILE_THREADS": str(compile_threads),
    }
    candidates = [our_candidate(engine, device, workload.threads) for engine in dict.fromkeys(engines)]
    for name, python in peers.pythons.items():
        peer = catalog(device, workload.precision, EVERY_MODE)[name]
        command = process.foreign_command(python, peer.module)
        candidates += [
            Candidate(name, command, options, environment, False, variant)
            for variant, options in peer.variants.items()
            if any(fnmatchcase(variant, pattern) for pattern in variants) and (compiled or not _compiles(options))
        ]
    sides = [Side(candidate, folder, limits or PATIENCE) for candidate in candidates]
    return Contest(
        *(workload, dataset.name, len(dataset.train)),
        device=device,
        engines=[side for side in sides if side.candidate.ours],
        rivals=[side for side in sides if not side.candidate.ours and not _compiles(side.candidate.options)],
        late=[side for side in sides if _compiles(side.candidate.options)],
    )


def compete(
    contests: Sequence[Contest],
    times: Times,
    parallel: int,
    on_result: Callable[[Contest], None],
    say: Say = lambda text: None,
) -> None:
    """Measure all contests within ``times.budget``; ``on_result`` gets each after every measurement of it.

    ``parallel``: how many candidates get ready at once. What is not ready in time has that for its error.
    """
    begun = time.monotonic()
    end, stop = begun + times.budget, threading.Event()
    # A candidate ends with the thread that started it (see workers.serving), so that this pool outlives them all.
    with ThreadPoolExecutor(parallel) as pool:
        ready = _GetReady(pool, stop, say)
        try:
            first = [side for one in contests for side in [*one.engines, *one.rivals]]
            ready(first, begun + FIRST_SHARE * times.budget)
            for one in contests:
                say(f"{_title(one)}: measuring")
                _first_round(one, times.first if one.late else times.second)
                on_result(one)
            list(pool.map(Side.close, [side for one in contests for side in _not_again(one)]))
            late = list(_by_turns([one.late for one in contests]))
            ready(late, end - sum(times.second + PAUSE for one in contests if one.late))
            for one in contests:
                if one.late:
                    say(f"{_title(one)}: measuring with what was compiled")
                    _second_round(one, times.second)
                    on_result(one)
        finally:
            stop.set()
            list(pool.map(Side.close, [side for one in contests for side in one.everyone]))


class _GetReady:
    """Prepares candidates, as many at once as the pool has threads; what is not ready in time gets an error."""

    def __init__(self, pool: ThreadPoolExecutor, stop: threading.Event, say: Say) -> None:
        self.pool, self.stop, self.say = pool, stop, say

    def __call__(self, sides: Sequence[Side], until: float) -> None:
        if sides:
            self.say(f"{len(sides)} candidates get ready, in {max(0.0, until - time.monotonic()):.0f} s at most")
            list(self.pool.map(lambda side: self._one(side, until), sides))

    def _one(self, side: Side, until: float) -> None:
        begun = time.monotonic()
        if self.stop.is_set() or begun >= until:
            side.fail(BareconvError("the time was up before it could get ready"), "interrupted")
            return
        try:
            side.prepare(CHECKED_STEPS, 0.0, lambda: self.stop.is_set() or time.monotonic() >= until)
        except StoppedError:
            waited = time.monotonic() - begun
            side.fail(BareconvError(f"was not ready after {waited:.0f} s, when the time was up"), "interrupted")
        outcome = side.error or f"ready after {time.monotonic() - begun:.0f} s"
        self.say(f"{side.folder.name}, {side.candidate.label}: {outcome}")


def _title(one: Contest) -> str:
    return f"{one.workload.title}, {one.workload.precision}"


def _compiles(options: Any) -> bool:
    return bool(options.get("mode") == "compile")


def _check(sides: Sequence[Side], one: Contest) -> None:
    """Whether they agree with ours; where ours failed, with nobody."""
    if any(side.error is None for side in one.engines):
        for side in sides:
            check(side, one.engines, one.workload.precision)


def _measure(sides: Sequence[Side], seconds: float) -> None:
    """By turns, those that can be."""
    taking = [side for side in sides if side.alive]
    interleave(taking, Deadline.after(seconds), Listener())
    for side in taking:
        side.look_at_memory()


def _first_round(one: Contest, seconds: float) -> None:
    """Try the rivals; our engines and the fastest rival of each mode by turns."""
    _check([*one.engines, *one.rivals], one)
    deadline = Deadline.after(TRY_SHARE * seconds)
    for side in one.rivals:  # however slow it is
        if side.alive:
            side.run(SHORTEST, SHORTEST)
    interleave([side for side in one.rivals if side.alive], deadline, Listener())
    for side in one.rivals:
        side.tried, side.samples = side.samples, Samples()
    one.settle()
    _measure(one.sides, seconds)
    if any(side.error is not None and side.tried.seconds for side in one.sides):
        one.settle()  # who failed only now leaves its place to the next
        for side in one.sides:
            side.samples = Samples()
        _measure(one.sides, seconds)
    for side in one.engines:
        side.tried = side.samples
    _name_unmeasured(one)


def _second_round(one: Contest, seconds: float) -> None:
    """Our engines, the fastest rival so far and what was compiled; the others' figures stay those of the first."""
    again = [side for side in [*one.engines, *one.rivals] if side.alive]
    _check(one.late, one)
    if any(side.alive for side in one.late):
        one.first_only = [side for side in one.rivals if side not in again]
        for side in again:
            side.samples = Samples()
        _measure([*again, *one.late], seconds)
        for side in one.late:
            side.tried = side.samples
    one.settle(late=True)
    _name_unmeasured(one)


def _name_unmeasured(one: Contest) -> None:
    """Whoever the time did not reach has no figures, and says so."""
    for side in one.sides:
        if side.error is None and not side.samples.seconds:
            side.status = "interrupted"


def _not_again(one: Contest) -> list[Side]:
    """Who is not measured in a second round: all, or all but our engines and the fastest rival."""
    measured = [side for side in one.sides if side.rate is not None and not side.candidate.ours]
    again = [*one.engines, *([_fastest(measured)] if measured else [])] if one.late else []
    return [side for side in [*one.engines, *one.rivals] if side not in again]


def _fastest(sides: Sequence[Side]) -> Side:
    """Of some that have figures."""
    return max(sides, key=lambda side: 0.0 if side.rate is None else side.rate.value)


def _best(sides: Sequence[Side]) -> Side:
    """Of those that have not failed one that was measured, if there is any, else the one that was tried the fastest."""

    def rank(side: Side) -> tuple[bool, float]:
        if side.error is not None:
            return False, -1.0
        return bool(side.samples.seconds), median(side.tried.rates).value if side.tried.rates else 0.0

    return max(sides, key=rank)


def _by_turns(queues: Sequence[Sequence[Side]]) -> Iterator[Side]:
    """The first of each, then the second of each, and so on."""
    for place in range(max(map(len, queues), default=0)):
        for queue in queues:
            if place < len(queue):
                yield queue[place]

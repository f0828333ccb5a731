"""Candidates measured by turns: one runs at a time, in short blocks, in an order that drift hits alike.

The passes go A B C, C B A, A B C, ...: over each two, every candidate has the same mean moment, so that a machine that
becomes slower or faster while it is measured moves all medians alike, and their ratios not at all. It ends when every
median is known well enough, or the time is up, and says which.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bareconv import host
from bareconv.bench import process
from bareconv.bench.deadline import Deadline
from bareconv.bench.estimates import Estimate, median
from bareconv.bench.process import StoppedError, Worker, WorkerError
from bareconv.device import all_devices
from bareconv.errors import BareconvError

BLOCKS = 20  # for each candidate, where the time is enough for blocks of some length
FEWEST = 3  # blocks of a measurement that was stopped by request: of fewer, the median says nothing
ENOUGH = 10  # blocks, before a median may count as known
NARROW = 0.01  # half of an interval over its median: narrower than that, it is known well enough
READY = 0.5  # of the time, that getting ready may take
WARM_UP, WARM_UP_SHARE = 2.0, 0.05  # seconds of steps before the first block, at most; and of the time that is left
SHORTEST, LONGEST = 0.02, 1.0  # seconds of a block
AT_ONCE = 16  # candidates that get ready at a time, at most; for each there is a core, for those of a CPU two
GPU_BYTES = 3 << 29  # of a GPU, that each may need by the time that it is ready
LEAD = 0.1  # seconds before a block: the caches become its candidate's own, the threads of the one before fall asleep


@dataclass(frozen=True)
class Limits:
    """How long a candidate may take before it counts as hung, in seconds."""

    prepare: float = 180.0  # start, imports, compilation, first steps, warming up
    answer: float = 2.0  # beyond ten times what a block should take


@dataclass(frozen=True)
class Candidate:
    """Something to measure: what it is called, how its process is started, and its ``options`` (see ``workers``).

    ``ours``: one of our engines. ``variant``: what tells it from others of that name ("channels_last eager").
    """

    name: str
    command: Sequence[str]
    options: Mapping[str, Any]
    environment: Mapping[str, str]
    ours: bool = False
    variant: str = ""

    @property
    def label(self) -> str:
        """Name and variant."""
        return f"{self.name} {self.variant}".strip()


def our_candidate(engine: str, device: str, threads: int, precision: str | None = None) -> Candidate:
    """One of our engines on a device. ``precision``: where it is not the workload's."""
    options = {"engine": engine, "device": device}
    return Candidate(
        name=engine,
        command=process.our_command("bareconv.bench.workers.ours"),
        options=options if precision is None else {**options, "precision": precision},
        environment=process.with_this_package(process.environment(threads)),
        ours=True,
    )


@dataclass
class Samples:
    """The blocks of a candidate."""

    seconds: list[float] = field(default_factory=list)  # by the device's own clock, where it has one
    wall_seconds: list[float] = field(default_factory=list)
    begun: list[float] = field(default_factory=list)  # seconds since 1970
    steps: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)

    def add(self, answer: Mapping[str, Any]) -> None:
        """One more block, as the process told it."""
        self.seconds.append(float(answer["seconds"]))
        self.wall_seconds.append(float(answer.get("wall_seconds", answer["seconds"])))
        self.begun.append(time.time() - self.wall_seconds[-1])  # the answer comes as soon as the block is done
        self.steps.append(int(answer["steps"]))
        self.images.append(int(answer["images"]))

    @property
    def rates(self) -> list[float]:
        """Images a second, block by block."""
        return [images / seconds for images, seconds in zip(self.images, self.seconds, strict=True)]


class Side:
    """A candidate with its process and what came of it. ``error`` says why it has no figures; None where it has."""

    def __init__(self, candidate: Candidate, folder: Path, limits: Limits) -> None:
        self.candidate, self.folder, self.limits = candidate, folder, limits
        self.samples, self.tried = Samples(), Samples()  # ``tried``: from a brief try, before it was chosen
        self.error: str | None = None
        self.status = "measured"  # or what is wrong: unsupported, failed, disagrees, interrupted
        self.stopped: str | None = None  # why there are no more blocks: narrow, budget, request
        self.engine = candidate.name  # the one that runs, which may be another than the one asked for
        self.losses: list[float] = []  # of the first steps
        self.loss_difference: float | None = None  # from ours, the largest relative one
        self.versions: dict[str, str] = {}
        self.flags: dict[str, str] = {}  # effective settings, as the candidate's library tells them
        self.warmed_up = False  # whether its steps had become steady before the first block
        self.step_seconds = self.compile_seconds = self.warm_up_seconds = 0.0
        self.memory: dict[str, int] = {}
        self._worker: Worker | None = None

    @property
    def alive(self) -> bool:
        """Whether it can be measured."""
        return self._worker is not None and self.error is None

    @property
    def is_narrow(self) -> bool:
        """Whether there are blocks enough for a median that is known within ``NARROW``."""
        return len(self.samples.seconds) >= ENOUGH and median(self.samples.rates).width <= NARROW

    @property
    def rate(self) -> Estimate | None:
        """Images a second; None where there is an error, or no block."""
        return median(self.samples.rates) if self.samples.seconds and self.error is None else None

    def prepare(
        self, checks: int, warm_up: float, should_stop: Callable[[], bool], deadline: Deadline | None = None
    ) -> None:
        """Start the process and take its first steps; what fails is in ``error``. Raises StoppedError.

        What is not ready by the deadline is ended, and has that for its error.
        """
        begun = time.monotonic()
        left = math.inf if deadline is None else deadline.left
        if left <= 0:
            self.fail(BareconvError("the time was up before it could get ready"), "interrupted")
            return
        try:
            self._worker = Worker(self.candidate.command, self.candidate.environment, self.folder)
            answer = self._worker.ask(
                "prepare",
                min(self.limits.prepare, left),
                should_stop,
                folder=str(self.folder),
                options=dict(self.candidate.options),
                checks=checks,
                warm_up=warm_up,
            )
        except WorkerError as error:
            if deadline is not None and deadline.passed:
                waited = time.monotonic() - begun
                self.fail(BareconvError(f"was not ready after {waited:.0f} s, when the time was up"), "interrupted")
            else:
                self.fail(error)
            return
        self._begin(answer, time.monotonic() - begun)

    def restart(self, checks: int, should_stop: Callable[[], bool], deadline: Deadline) -> None:
        """Take the first steps again, from the first weights, in the process that there is; its samples are gone.

        What fails is in ``error``. Raises StoppedError.
        """
        assert self._worker is not None
        begun, self.samples = time.monotonic(), Samples()
        try:
            answer = self._worker.ask("restart", min(self.limits.prepare, deadline.left), should_stop, checks=checks)
        except WorkerError as error:
            if deadline.passed:
                self.fail(BareconvError("the time was up before it could begin again"), "interrupted")
            else:
                self.fail(error)
            return
        self._begin(answer, time.monotonic() - begun)

    def _begin(self, answer: Mapping[str, Any], seconds: float) -> None:
        """What the process told of its first steps, for which it took so long."""
        self.losses, self.versions = answer["losses"], answer["versions"]
        self.engine = answer.get("engine") or self.engine
        self.flags, self.warmed_up = answer.get("flags", {}), bool(answer.get("warmed_up"))
        self.step_seconds, self.compile_seconds = answer["step_seconds"], answer["compile_seconds"]
        self.warm_up_seconds = max(0.0, seconds - self.compile_seconds)
        if not all(map(math.isfinite, self.losses)):
            self.fail(BareconvError("its loss is not finite: a smaller --lr may help"))

    def expected(self, block: float, lead: float) -> float:
        """Seconds that a block with its lead should take."""
        return sum(max(part, self.step_seconds) for part in (block, lead) if part)

    def run(self, block: float, lead: float = 0.0) -> None:
        """One block more; what fails is in ``error``."""
        self._run(10 * self.expected(block, lead) + self.limits.answer, seconds=block, lead=lead)

    def _run(self, patience: float, **message: Any) -> None:
        assert self._worker is not None
        try:
            answer = self._worker.ask("run", patience, **message)
        except WorkerError as error:
            self.fail(error)
            return
        if not math.isfinite(answer["loss"]):
            self.fail(BareconvError("its loss did not stay finite: a smaller --lr may help"))
            return
        self.samples.add(answer)
        self.step_seconds = self.samples.seconds[-1] / self.samples.steps[-1]

    def advance(self, steps: int) -> bool:
        """A block of so many steps; False where that fails, which is in ``error``."""
        self._run(10 * steps * self.step_seconds + self.limits.answer, steps=steps)
        return self.alive

    def ask_accuracy(self) -> tuple[float, float] | None:
        """(accuracy on the test images, seconds that finding it took); None where that fails, which is in ``error``."""
        assert self._worker is not None
        try:
            answer = self._worker.ask("accuracy", self.limits.prepare)
        except WorkerError as error:
            self.fail(error)
            return None
        return float(answer["accuracy"]), float(answer["seconds"])

    def look_at_memory(self) -> None:
        """Ask for the memory; what fails is in ``error``."""
        if self._worker is not None and self.error is None:
            try:
                self.memory = self._worker.ask("memory", self.limits.answer)
            except WorkerError as error:
                self.fail(error)

    def settle(self) -> None:
        """Ask for the memory: there is nothing more to measure here. The process stays."""
        self.look_at_memory()
        if self.error is None and not self.samples.seconds:
            self.status = "interrupted"

    def finish(self) -> None:
        """``settle``, and end the process. Whatever was measured stays."""
        self.settle()
        self.close()

    def fail(self, error: BareconvError, status: str = "failed") -> None:
        """Nothing of this candidate is shown but ``error``."""
        self.error = str(error)
        self.status = "unsupported" if isinstance(error, WorkerError) and error.unsupported else status
        self.close()

    def close(self) -> None:
        """End the process, if there is one."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def alive_one(candidate: Candidate, sides: Sequence[Side]) -> Side | None:
    """The candidate's side of these, where it has one that can be measured."""
    return next((side for side in sides if side.alive and side.candidate == candidate), None)


class Listener:
    """Told how a measurement goes on; asked whether to stop."""

    def stage(self, text: str) -> None:
        """Something begins that cannot be counted."""

    def measuring(self, text: str, seconds: float) -> None:
        """A measurement begins that is to take so long."""

    def block(self, side: Side, left: float) -> None:
        """A block is done; ``left`` seconds of the measurement remain."""

    def should_stop(self) -> bool:
        """Whether to stop after the block at hand."""
        return False


def interleave(sides: Sequence[Side], deadline: Deadline, listener: Listener) -> None:
    """Measure by turns until every median is narrow, or the deadline; a block that would not end in time is not begun.

    Each candidate gets at least one block, unless the time is up before, though a single step of it may take longer.
    One that fails drops out, and the others have its time. Stops early where the listener says so: who has hardly begun
    then has no figure. ``stopped`` of every side says which it was.
    """
    block = min(max(deadline.left / (BLOCKS * max(len(sides), 1)), SHORTEST), LONGEST)
    lead = min(LEAD, block / 4) if len(sides) > 1 else 0.0
    reason = _blocks(sides, deadline, listener, block, lead)
    for side in sides:
        side.stopped = reason
        if reason == "request" and side.alive and len(side.samples.seconds) < FEWEST:
            side.fail(BareconvError(f"it was stopped before there were {FEWEST} blocks"), "interrupted")


def _blocks(sides: Sequence[Side], deadline: Deadline, listener: Listener, block: float, lead: float) -> str:
    """Measure; returns why it ended."""
    first = next(iter(sides), None)
    for side in turns(sides):
        if listener.should_stop():
            return "request"
        taken = len(side.samples.seconds)
        if side is first and taken >= ENOUGH and taken % 2 == 0 and all(one.is_narrow for one in sides if one.alive):
            return "narrow"
        if deadline.passed or (taken and side.expected(block, lead) > deadline.left):
            return "budget"
        side.run(block, lead)
        listener.block(side, deadline.left)
    return "budget"


def turns(sides: Sequence[Side]) -> Iterator[Side]:
    """A B C, C B A, ..., those that are alive, for as long as there is one."""
    order = list(sides)
    while any(side.alive for side in order):
        for side in order:
            if side.alive:
                yield side
        order.reverse()


def prepare(
    candidate: Candidate,
    folder: Path,
    deadline: Deadline,
    checks: int,
    listener: Listener,
    limits: Limits,
    warm_up: float | None = None,
) -> Side:
    """A side that is ready to be measured by the deadline, or has an error.

    ``warm_up``: seconds of steps at most, in place of a share of the time. Raises StoppedError, having ended the
    process.
    """
    listener.stage(f"Starting {candidate.label}")
    side = Side(candidate, folder, limits)
    if warm_up is None:
        warm_up = min(WARM_UP, WARM_UP_SHARE * deadline.left)
    try:
        side.prepare(checks, warm_up, listener.should_stop, deadline)
    except BaseException:
        side.close()
        raise
    return side


def at_once(candidates: Sequence[Candidate], device: str = "cpu") -> int:
    """How many such candidates get ready side by side on this machine; ``device``: of those that do not say.

    With few cores one after another takes no longer; on a CPU each has threads of its own, and on a GPU its memory.
    """
    devices = [str(one.options.get("device", device)) for one in candidates]
    cores = host.allowed_cores()
    wanted = sum(2 if one == "cpu" else 1 for one in devices)
    most = min(AT_ONCE, cores * len(devices) // max(1, wanted)) if cores >= 4 else 1
    for one in all_devices():
        free = one.free_bytes() if one.name in devices else None
        most = most if free is None else min(most, free // GPU_BYTES)
    return max(1, most)


def prepare_all(
    pool: ThreadPoolExecutor,
    jobs: Sequence[tuple[Candidate, Path]],
    into: list[Side],
    deadline: Deadline,
    checks: int,
    listener: Listener,
    limits: Limits,
    warm_up: float | None = None,
) -> None:
    """Append a side for each candidate with the folder of its job, in their order, ready or with an error.

    They get ready on the pool's threads, as many at a time as it has; it must outlive the sides, for a process ends
    with the thread that started it. Nothing should be measured meanwhile. StoppedError where the listener says so: then
    there are those that were ready.
    """
    asked = [pool.submit(prepare, one, folder, deadline, checks, listener, limits, warm_up) for one, folder in jobs]
    stopped: StoppedError | None = None
    for one in asked:
        try:
            into.append(one.result())
        except StoppedError as error:
            stopped = error
    if stopped is not None:
        raise stopped

"""A program: kernels bound to memory, in stages that threads go through together.

A stage is a list of calls over one range: the images of the batch, or a fixed number of parameters. Each worker has a
fixed slice of the range and goes through it in chunks, all calls of the stage for one chunk before the next, so that
what one call writes the next finds in the cache. Stages that follow each other without a wait form a segment: a worker
takes a round of images through all of them before the next round. Where a stage needs what other workers have written,
all wait for each other before it.

The whole step is one call into machine code for each worker; this file writes that code too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bareconv.kernels.cpu.clock import tick_seconds
from bareconv.kernels.cpu.kernel import SLOTS, Frame, Kernel
from bareconv.kernels.cpu.workers import SPINS, Workers

WHOLE = 1 << 40  # more images than there will be: all of a worker's slice at once


@dataclass(frozen=True)
class Address:
    """Where an operand is: ``base``, bytes from image to image and from worker to worker.

    ``local`` LOCAL_TO_CALL or LOCAL_TO_ROUND: what is there begins with the first image of the call, or of the round.
    """

    base: int = 0
    image: int = 0
    worker: int = 0
    local: int = 0


@dataclass(frozen=True)
class Call:
    """A kernel and where its operands are."""

    kernel: Kernel
    operands: dict[str, Address]


@dataclass
class Stage:
    """Calls over one range. ``extent`` None: the batch's images; a number: so many, dealt out in units of ``grain``.

    Stages of one ``segment`` number follow each other and share extent, grain and ``round``; the first may wait.
    """

    calls: list[Call] = field(default_factory=list)
    extent: int | None = None
    chunk: int = 1
    grain: int = 1
    wait: bool = False  # for all workers, before it begins
    segment: int = 0
    round: int = WHOLE  # images that go through the segment together


@dataclass(frozen=True)
class Run(Kernel):
    """The code that goes through a program, as worker ``worker``.

    Not a kernel over data, but compiled and kept like one. ``begin`` is the number of waits that the barrier has seen
    before; the table is what ``Program`` lays out. Without ``timed`` it looks at no clock.
    """

    timed: bool = True

    def write(self, k: Frame) -> None:
        from bareconv.kernels.cpu.emit import I64, Value, Variable

        b = k.b
        stages, workers, images, stage_table, call_table, barrier, ticks, tick_pitch = (
            k.table.load(i) for i in range(HEADER_WORDS)
        )
        turn, stage_at = b.pointer(barrier, I64), b.pointer(stage_table, I64)
        call_at, my_ticks = b.pointer(call_table, I64), b.pointer(ticks + k.worker * tick_pitch, I64)
        restore = b.flush_denormals()
        waits, clock = b.variable(k.begin), b.variable(b.clock if self.timed else b.index(0))

        def spent(number: Value) -> None:
            """What has passed since the last time counts for call ``number``; 0 is waiting."""
            if not self.timed:
                return
            now = b.clock
            my_ticks.store(my_ticks.load(number) + (now - clock.value), number)
            clock.value = now

        def below(variable: Variable, limit: Value) -> Callable[[], Value]:
            return lambda: variable.value < limit

        def missing(goal: Value) -> Callable[[], Value]:
            return lambda: turn.load_shared() < goal

        s = b.variable(b.index(0))
        for _ in b.repeat_while(below(s, stages)):
            at = s.value * STAGE_WORDS
            extent, grain, wait, size, count = (stage_at.load(at + i) for i in range(5))
            with b.when(wait > 0):
                # Every worker adds one; all go on when they have. The count never goes back, so that none can miss it.
                turn.add_shared(1)
                waits.value = waits.value + 1
                goal, spins = waits.value * workers, b.variable(b.index(0))
                for _ in b.repeat_while(missing(goal)):
                    spins.value = spins.value + 1
                    b.pause()
                    with b.when(spins.value > SPINS):
                        b.give_way()
                spent(b.index(0))
            total = b.select(extent < 0, images, extent)
            units = (total + grain - 1) // grain
            start = b.variable(b.minimum(units * k.worker // workers * grain, total))
            high = b.minimum(units * (k.worker + 1) // workers * grain, total)
            for _ in b.repeat_while(below(start, high)):
                last = b.minimum(start.value + size, high)
                for part in b.range(0, count):
                    chunk, calls, first = (stage_at.load((s.value + part) * STAGE_WORDS + i) for i in range(5, 8))
                    begin = b.variable(start.value)
                    for _ in b.repeat_while(below(begin, last)):
                        end = b.minimum(begin.value + chunk, last)
                        for c in b.range(0, calls):
                            number = first + c
                            function, operands = (call_at.load(number * CALL_WORDS + i) for i in range(CALL_WORDS))
                            b.call(function, [b.opaque(operands), begin.value, end, k.worker, start.value])
                            spent(number + 1)
                        begin.value = end
                start.value = last
            s.value = s.value + count
        restore()


class Program:
    """Stages laid out in memory, and the threads that run them. ``addresses``: of the compiled kernels.

    Not for several callers at a time.
    """

    def __init__(self, stages: Sequence[Stage], addresses: Mapping[Kernel, int], run: Run, threads: Workers) -> None:
        self.stages, self.threads = list(stages), threads
        calls = [call for stage in stages for call in stage.calls]
        self.calls = calls
        self.operand_tables = [_operand_table(call) for call in calls]
        self._call_table = np.array(
            [
                (addresses[call.kernel], table.ctypes.data)
                for call, table in zip(calls, self.operand_tables, strict=True)
            ],
            dtype=np.int64,
        ).reshape(-1, CALL_WORDS)
        first, rows = 0, []
        for stage in stages:
            extent = -1 if stage.extent is None else stage.extent
            together = sum(other.segment == stage.segment for other in stages)
            calls_here = len(stage.calls)
            rows.append((extent, stage.grain, stage.wait, stage.round, together, stage.chunk, calls_here, first))
            first += len(stage.calls)
        self._stage_table = np.array(rows, dtype=np.int64).reshape(-1, STAGE_WORDS)
        self._barrier = np.zeros(8, np.int64)  # a cache line of its own
        pitch = -(-(len(calls) + 1) // 8) * 8
        self.ticks: NDArray[np.int64] = np.zeros((threads.count, pitch), np.int64)
        self._header = np.array(
            [
                *(len(rows), threads.count, 0, self._stage_table.ctypes.data, self._call_table.ctypes.data),
                *(self._barrier.ctypes.data, self.ticks.ctypes.data, self.ticks.strides[0]),
            ],
            dtype=np.int64,
        )
        self._table = self._header.ctypes.data
        self._function = addresses[run]

    def run(self, images: int) -> None:
        """Go through all stages once, for a batch of that many images."""
        self._header[_IMAGES] = images
        waits_so_far = int(self._barrier[0]) // self.threads.count
        self.threads.run(self._function, self._table, waits_so_far)

    def run_by(self, function: int) -> None:
        """Go through the stages by that code from now on: the address of another ``Run``."""
        self._function = function

    def seconds(self) -> list[float]:
        """Of every call, since the last ``clear_ticks``: the mean over the workers; waiting comes first."""
        return (self.ticks[:, : len(self.calls) + 1].mean(axis=0) * tick_seconds()).tolist()

    def clear_ticks(self) -> None:
        self.ticks[...] = 0


HEADER_WORDS, STAGE_WORDS, CALL_WORDS, _IMAGES = 8, 8, 2, 2


def _operand_table(call: Call) -> NDArray[np.int64]:
    """The addresses of a call's operands, as ``kernel.Operand`` reads them; those that it does without are zeros."""
    unknown = set(call.operands) - set(call.kernel.operands)
    assert not unknown, f"{type(call.kernel).__name__} has no operand {', '.join(sorted(unknown))}"
    table = np.zeros((len(call.kernel.operands), SLOTS), np.int64)
    for i, name in enumerate(call.kernel.operands):
        if name in call.operands:
            at = call.operands[name]
            table[i] = (at.base, at.image, at.worker, at.local)
    return table

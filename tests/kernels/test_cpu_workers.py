"""Threads: all of them work, asleep or awake, all of them end, and an interruption leaves none behind."""

from __future__ import annotations

import gc
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any, ClassVar

import numpy as np
import pytest

from bareconv.errors import BareconvError
from bareconv.kernels.cpu import workers as module
from bareconv.kernels.cpu.clock import tick_seconds
from bareconv.kernels.cpu.jit import compile_kernels
from bareconv.kernels.cpu.kernel import Frame, Kernel
from bareconv.kernels.cpu.program import Address, Call, _operand_table
from bareconv.kernels.cpu.target import host_target
from bareconv.kernels.cpu.workers import Workers


@dataclass(frozen=True)
class Sign(Kernel):
    """Every worker's words: how often it was called, and the numbers of the last call."""

    operands: ClassVar[tuple[str, ...]] = ("words",)

    def write(self, k: Frame) -> None:
        from bareconv.kernels.cpu.emit import I64

        words = k.operand("words", I64).base
        words.store(words.load() + 1)
        for i, number in enumerate((k.begin, k.end, k.worker, k.round), start=1):
            words.store(number, i)


class Work:
    """Pieces of work for ``count`` workers; ``words[worker]`` is what that one has signed."""

    def __init__(self, count: int) -> None:
        self.words = np.full((count, 8), -1, np.int64)
        self.words[:, 0] = 0
        kernel = Sign(host_target())
        self.function = compile_kernels([kernel]).addresses[kernel]
        address = Address(self.words.ctypes.data, 0, self.words.strides[0])
        self._table = _operand_table(Call(kernel, {"words": address}))
        self.table = self._table.ctypes.data

    def give(self, workers: Workers, first: int) -> None:
        workers.run(self.function, self.table, first)

    def check(self, pieces: int, first: int) -> None:
        """Each worker did every piece once; the last one began with ``first``."""
        expected = [[pieces, first, 0, worker, 0] for worker in range(len(self.words))]
        assert self.words[:, :5].tolist() == expected


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("bareconv worker")}


def end(mine: set[threading.Thread]) -> bool:
    """Whether these threads end within a few seconds."""
    for thread in mine:
        thread.join(5.0)
    return not any(thread.is_alive() for thread in mine)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_worker_has_its_number(count: int) -> None:
    """In many short pieces, one right after the other; with more workers than cores too."""
    workers, work = Workers(count), Work(count)
    for piece in range(1000 // count):
        work.give(workers, 7 * piece)
        work.check(piece + 1, 7 * piece)
    workers.close()


def test_far_more_workers_than_cores() -> None:
    workers, work = Workers(16), Work(16)
    for piece in range(20):
        work.give(workers, piece)
        work.check(piece + 1, piece)
    workers.close()


@pytest.mark.parametrize("lookout", [0, 200, module.LOOKOUT])
def test_work_after_a_pause(monkeypatch: pytest.MonkeyPatch, lookout: int) -> None:
    """Asleep, awake, or just about to fall asleep: pauses of about as long as the lookout, and longer ones."""
    monkeypatch.setattr(module, "LOOKOUT", lookout)
    drawn, workers, work = np.random.default_rng(lookout), Workers(3), Work(3)
    for piece in range(300):
        pause = float(drawn.choice([0.0, 1e-5, 1e-4, 1e-3, 3e-3]) * drawn.random())
        until = time.perf_counter() + pause
        if piece % 2:
            time.sleep(pause)
        while time.perf_counter() < until:  # with the GIL, which a worker needs to fall asleep
            pass
        work.give(workers, piece)
        work.check(piece + 1, piece)
    workers.close()


def test_after_a_long_pause_no_worker_takes_processor_time() -> None:
    workers, work = Workers(3), Work(3)
    work.give(workers, 1)
    time.sleep(0.3)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1
    work.give(workers, 2)
    work.check(2, 2)
    workers.close()


def test_two_sets_of_workers() -> None:
    """Neither does the other's work."""
    sets = [(Workers(count), Work(count)) for count in (2, 3)]
    for piece in range(50):
        for workers, work in sets:
            work.give(workers, piece)
    for workers, work in sets:
        work.check(50, 49)
        workers.close()


@pytest.mark.parametrize("lookout", [0, module.LOOKOUT], ids=["asleep", "awake"])
@pytest.mark.parametrize("pieces", [0, 1])
def test_close_ends_the_threads(monkeypatch: pytest.MonkeyPatch, pieces: int, lookout: int) -> None:
    """Once and for all, before any work or after it."""
    monkeypatch.setattr(module, "LOOKOUT", lookout)
    before, workers, work = threads(), Workers(4), Work(4)
    mine = threads() - before
    assert len(mine) == 3
    for piece in range(pieces):
        work.give(workers, piece)
    time.sleep(0.005)
    workers.close()
    workers.close()
    assert end(mine)
    with pytest.raises(BareconvError, match="closed"):
        work.give(workers, 0)
    assert work.words[:, 0].tolist() == [pieces] * 4


def test_threads_end_with_their_owner() -> None:
    before, workers, work = threads(), Workers(3), Work(3)
    work.give(workers, 0)
    mine = threads() - before
    assert len(mine) == 2
    del workers
    gc.collect()
    assert end(mine)


class Interrupt:
    """Raises KeyboardInterrupt at operation number ``at`` of those that see to a piece of work, and ``again`` later.

    A trace function is called before each operation of the interpreter: a signal is noticed between two of them.
    """

    def __init__(self, at: int, again: int | None = None) -> None:
        self.left, self.again, self.raised = at, again, False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        outside = (Workers.run.__code__, Workers._finish.__code__)
        inside = frame.f_code.co_filename == module.__file__ and frame.f_code not in outside
        frame.f_trace_opcodes, frame.f_trace_lines = inside, False
        if inside and event in ("call", "opcode") and self.left >= 0:
            self.left -= 1
            if self.left < 0:
                self.raised = True
                self.left, self.again = -1 if self.again is None else self.again, None
                raise KeyboardInterrupt
        return self


def interrupted(workers: Workers, work: Work, at: int, again: int | None = None) -> bool:
    """A piece of work with an interruption; False where it was done before. In a thread of its own: should it hang."""
    outcome: list[bool] = []

    def caller() -> None:
        interrupt = Interrupt(at, again)
        sys.settrace(interrupt)
        try:
            work.give(workers, at)
            outcome.append(interrupt.raised)
        except KeyboardInterrupt:
            outcome.append(True)
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=caller, daemon=True)
    thread.start()
    thread.join(10.0)
    assert outcome, f"interrupted at operation {at}, the workers wait for ever"
    return outcome[0]


@pytest.mark.parametrize("lookout", [0, module.LOOKOUT], ids=["asleep", "awake"])
def test_an_interruption_leaves_all_workers_idle_and_usable(monkeypatch: pytest.MonkeyPatch, lookout: int) -> None:
    """At any moment of a piece of work: all of it is done, by everyone once, before the caller hears of it."""
    monkeypatch.setattr(module, "LOOKOUT", lookout)
    workers, work, at = Workers(3), Work(3), 0
    while interrupted(workers, work, at):
        work.check(2 * at + 1, at)
        work.give(workers, -at)
        work.check(2 * at + 2, -at)
        if lookout == 0:
            time.sleep(2e-4)
        at += 1
    assert at > 100
    workers.close()


def test_a_second_interruption_while_the_first_is_seen_to() -> None:
    workers, work, at = Workers(3), Work(3), 0
    while interrupted(workers, work, at, again=at // 2):
        work.check(at + 1, at)
        at += 1
    assert at > 100
    workers.close()


def test_an_error_reaches_the_caller_after_the_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised once, between what the helpers are told and what the caller does itself."""
    workers, work = Workers(3), Work(3)
    serve, told = module._Worker.serve, list[int]()

    def fails(worker: module._Worker, lookout: int) -> None:
        if lookout == 0 and not told:
            told.append(1)
            raise KeyboardInterrupt
        serve(worker, lookout)

    monkeypatch.setattr(module._Worker, "serve", fails)
    with pytest.raises(KeyboardInterrupt):
        work.give(workers, 5)
    work.check(1, 5)
    work.give(workers, 6)
    work.check(2, 6)
    workers.close()


def test_a_tick_is_less_than_a_microsecond() -> None:
    assert 0.0 < tick_seconds() < 1e-6

"""Threads: all of them work, all of them end, and Ctrl-C leaves none of them behind."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kernel_harness import Block

from bareconv.errors import BareconvError
from bareconv.kernels.cpu import workers as workers_module
from bareconv.kernels.cpu.clock import FUNCTION, tick_seconds
from bareconv.kernels.cpu.dense import ColumnSums
from bareconv.kernels.cpu.elementwise import Elementwise
from bareconv.kernels.cpu.jit import compile_kernels
from bareconv.kernels.cpu.kernel import LOCAL_TO_CALL, LOCAL_TO_ROUND, Kernel
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.program import Address, Call, Program, Run, Stage
from bareconv.kernels.cpu.target import host_target
from bareconv.kernels.cpu.workers import Workers


class Python:
    """Python for machine code to call: ``work(table, first, worker)``."""

    def __init__(self, work: Callable[[int, int, int], object]) -> None:
        def called(table: int | None, first: int, _: int, worker: int, __: int) -> None:
            work(table or 0, first, worker)

        self._kept: Any = FUNCTION(called)
        self.address = int(ctypes.cast(self._kept, ctypes.c_void_p).value or 0)


def ours() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("bareconv worker")}


def end(threads: set[threading.Thread]) -> bool:
    """Whether they all end within a few seconds."""
    for thread in threads:
        thread.join(5.0)
    return not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("pause", [0.0, 0.2], ids=["at once", "after they fell asleep"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_worker_has_its_number(count: int, pause: float) -> None:
    workers, seen = Workers(count), list[tuple[int, int, int]]()
    work = Python(lambda *call: seen.append(call))
    for turn in range(4):
        seen.clear()
        workers.run(work.address, 1234, turn)
        assert sorted(seen) == [(1234, turn, worker) for worker in range(count)]
        time.sleep(pause)
    workers.close()


@pytest.mark.parametrize("count", [2, 12])
def test_many_pieces_of_work(count: int) -> None:
    """Each done once by each, all before ``run`` returns: whether the workers were awake, asleep or in between."""
    workers, done = Workers(count), np.zeros(count, np.int64)
    drawn = np.random.default_rng(0)

    def work(table: int, first: int, worker: int) -> None:
        done[worker] += 1

    code = Python(work)
    for turn in range(150):
        workers.run(code.address, 0, 0)
        assert (done == turn + 1).all()
        if turn % 10 == 0:
            time.sleep(drawn.uniform(0.0, 0.02))
    workers.close()


@pytest.mark.parametrize("where", ["announce", "serve", "wait_until_done"])
def test_ctrl_c_leaves_no_worker_behind(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes between two pieces of machine code: what was begun is finished, once, and so is the next work."""
    workers, seen, pressed = Workers(3), list[int](), list[int]()
    work = Python(lambda table, first, worker: seen.append(worker))
    post, main = workers_module._Post, threading.current_thread()
    before = getattr(post, where)

    def interrupted(self: Any, *arguments: Any, **named: Any) -> Any:
        if not pressed and threading.current_thread() is main:
            pressed.append(1)
            raise KeyboardInterrupt
        return before(self, *arguments, **named)

    monkeypatch.setattr(post, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        workers.run(work.address, 0, 0)
    assert sorted(seen) == [0, 1, 2]
    workers.run(work.address, 0, 0)
    assert sorted(seen) == [0, 0, 1, 1, 2, 2]
    workers.close()


def test_close_ends_the_threads() -> None:
    before = ours()
    workers = Workers(4)
    threads = ours() - before
    assert len(threads) == 3
    workers.close()
    workers.close()
    assert end(threads)
    with pytest.raises(BareconvError, match="closed"):
        workers.run(0, 0, 0)


def test_threads_end_with_what_has_them() -> None:
    before = ours()
    workers = Workers(3)
    workers.run(Python(lambda *call: None).address, 0, 0)
    threads = ours() - before
    del workers
    gc.collect()
    assert len(threads) == 2
    assert end(threads)


def copied(plane: Plane) -> Kernel:
    return Elementwise(host_target(), "copy", plane, plane, plane)


@pytest.mark.parametrize("count", [1, 2, 3, 16])
@pytest.mark.parametrize("images", [1, 2, 7])
def test_a_program_of_stages(count: int, images: int) -> None:
    """Every image once, whoever does it; also with more threads than images, or than cores."""
    plane, total = Plane(1, 1, 32), Block(32, count)
    x, y = Block(32, images), Block(32, images)
    x.data[...] = np.arange(32 * images).reshape(images, 32)
    total.data[...] = 0.0
    copy, sums = copied(plane), ColumnSums(host_target(), 32)
    own = Address(total.address.base, 0, total.address.image)
    stages = [
        Stage([Call(copy, {"a": x.address, "y": y.address})], chunk=2, segment=0),
        Stage([Call(sums, {"y": y.address, "sums": own})], chunk=3, wait=True, segment=1),
        Stage([Call(copy, {"a": y.address, "y": x.address})], extent=images, grain=1, wait=True, segment=2),
    ]
    run, workers = Run(host_target()), Workers(count)
    program = Program(stages, compile_kernels([copy, sums, run]).addresses, run, workers)
    for turn in range(20):
        program.run(images)
        assert np.array_equal(y.data, x.data)
        expected = (turn + 1) * np.arange(32 * images).reshape(images, 32).sum(axis=0)
        assert np.array_equal(total.data.sum(axis=0), expected)
    assert len(program.seconds()) == 4
    assert all(time >= 0.0 for time in program.seconds())
    program.clear_ticks()
    assert not any(program.seconds())
    workers.close()


def test_what_is_local_starts_with_each_call_or_round() -> None:
    """Two stages of a segment, two images a round: what lies between them is as large as a round, for each worker."""
    plane, run, workers = Plane(1, 1, 8), Run(host_target()), Workers(2)
    x, y, round_, chunk = Block(8, 7), Block(8, 7), Block(32, 2), Block(8, 2)
    x.data[...] = np.arange(56.0).reshape(7, 8)
    to_round = Address(round_.address.base, 32, round_.address.image, LOCAL_TO_ROUND)
    to_call = Address(chunk.address.base, 32, chunk.address.image, LOCAL_TO_CALL)
    copy = copied(plane)
    stages = [
        Stage([Call(copy, {"a": x.address, "y": to_call}), Call(copy, {"a": to_call, "y": to_round})], round=2),
        Stage([Call(copy, {"a": to_round, "y": y.address})], chunk=2, round=2),
    ]
    program = Program(stages, compile_kernels([copy, run]).addresses, run, workers)
    program.run(7)
    workers.close()
    assert np.array_equal(y.data, x.data)
    # Worker 0 has images 0 to 2, worker 1 the others: in the last round one, and two.
    assert np.array_equal(round_.data[:, :8], x.data[[2, 5]])
    assert np.array_equal(round_.data[:, 8:16], x.data[[1, 6]])
    assert np.isnan(round_.data[:, 16:]).all()
    assert np.array_equal(chunk.data, x.data[[2, 6]])


def test_an_operand_that_a_kernel_does_not_have_is_a_mistake() -> None:
    plane, run, workers = Plane(1, 1, 8), Run(host_target()), Workers(1)
    copy = copied(plane)
    with pytest.raises(AssertionError, match="Elementwise has no operand weight"):
        Program([Stage([Call(copy, {"weight": Address()})])], compile_kernels([copy, run]).addresses, run, workers)
    workers.close()


def test_a_tick_is_less_than_a_microsecond() -> None:
    assert 0.0 < tick_seconds() < 1e-6

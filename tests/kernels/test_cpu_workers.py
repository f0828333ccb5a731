"""Threads: all of them work, all of them end, and what goes wrong in one is heard of."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
from kernel_harness import Block

from bareconv.errors import BareconvError
from bareconv.kernels.cpu.dense import ColumnSums
from bareconv.kernels.cpu.elementwise import Elementwise
from bareconv.kernels.cpu.jit import compile_kernels
from bareconv.kernels.cpu.kernel import Kernel
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.program import Address, Call, Program, Run, Stage
from bareconv.kernels.cpu.target import host_target
from bareconv.kernels.cpu.workers import Workers, tick_seconds


def threads() -> int:
    return sum(thread.name.startswith("bareconv worker") for thread in threading.enumerate())


def ended(count: int) -> bool:
    """Whether within a few seconds no more than ``count`` of our threads are left."""
    until = time.monotonic() + 5.0
    while threads() > count and time.monotonic() < until:
        time.sleep(0.01)
    return threads() <= count


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_worker_has_its_number(count: int) -> None:
    workers = Workers(count)
    for _ in range(3):
        seen: list[int] = []
        workers.run(seen.append)
        assert sorted(seen) == list(range(count))
    workers.close()


@pytest.mark.parametrize("guilty", [0, 1, 2])
def test_an_error_reaches_the_caller(guilty: int) -> None:
    """After all have finished; and the workers go on."""
    workers, finished = Workers(3), list[int]()

    def work(number: int) -> None:
        if number == guilty:
            raise ValueError(f"worker {number}")
        time.sleep(0.02)
        finished.append(number)

    for _ in range(3):
        finished.clear()
        with pytest.raises(ValueError, match=f"worker {guilty}"):
            workers.run(work)
        assert sorted(finished) == sorted({0, 1, 2} - {guilty})
    workers.run(finished.append)
    assert len(finished) == 5
    workers.close()


def test_close_ends_the_threads() -> None:
    before = threads()
    workers = Workers(4)
    assert threads() == before + 3
    workers.close()
    workers.close()
    assert ended(before)
    with pytest.raises(BareconvError, match="closed"):
        workers.run(lambda number: None)


def test_threads_end_with_what_has_them() -> None:
    before = threads()
    workers = Workers(3)
    workers.run(lambda number: None)
    del workers
    gc.collect()
    assert ended(before)


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
        Stage([Call(copy, {"a": x.address, "y": y.address})], chunk=2),
        Stage([Call(sums, {"y": y.address, "sums": own})], chunk=3, wait=True),
        Stage([Call(copy, {"a": y.address, "y": x.address})], extent=images, grain=1, wait=True),
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


def test_what_is_local_starts_with_each_chunk() -> None:
    """A chunk of images for each worker, not an array for all."""
    plane, run, workers = Plane(1, 1, 8), Run(host_target()), Workers(2)
    x, y, between = Block(8, 5), Block(8, 5), Block(16, 2)
    x.data[...] = np.arange(40.0).reshape(5, 8)
    local = Address(between.address.base, 8 * 4, between.address.image, local=True)
    copy = copied(plane)
    stage = Stage([Call(copy, {"a": x.address, "y": local}), Call(copy, {"a": local, "y": y.address})], chunk=2)
    program = Program([stage], compile_kernels([copy, run]).addresses, run, workers)
    program.run(5)
    workers.close()
    assert np.array_equal(y.data, x.data)
    assert np.array_equal(between.data[0], x.data[:2].ravel()), "worker 0 has images 0 and 1"


def test_an_operand_that_a_kernel_does_not_have_is_a_mistake() -> None:
    plane, run, workers = Plane(1, 1, 8), Run(host_target()), Workers(1)
    copy = copied(plane)
    with pytest.raises(AssertionError, match="Elementwise has no operand weight"):
        Program([Stage([Call(copy, {"weight": Address()})])], compile_kernels([copy, run]).addresses, run, workers)
    workers.close()


def test_a_tick_is_less_than_a_microsecond() -> None:
    assert 0.0 < tick_seconds() < 1e-6

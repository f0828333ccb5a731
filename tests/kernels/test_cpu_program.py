"""Programs: which calls are made, by whom, in what order, and after whom; against a simulation in plain Python."""

from __future__ import annotations

import itertools
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_harness import Block, filled
from numpy.typing import NDArray

from bareconv.kernels.cpu.dense import ColumnSums
from bareconv.kernels.cpu.elementwise import Elementwise
from bareconv.kernels.cpu.jit import compile_kernels
from bareconv.kernels.cpu.kernel import LOCAL_TO_CALL, LOCAL_TO_ROUND, Frame, Kernel
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.program import Address, Call, Program, Run, Stage
from bareconv.kernels.cpu.target import host_target
from bareconv.kernels.cpu.workers import Workers

COUNTS = (1, 2, 3, 5)
LOG = 6 * 4096  # words of a worker's log
Line = tuple[int, int, int, int, int]  # call, begin, end, worker, round


@pytest.fixture(scope="module")
def teams() -> Iterator[dict[int, Workers]]:
    """Workers, by how many they are."""
    made = {count: Workers(count) for count in COUNTS}
    yield made
    for workers in made.values():
        workers.close()


def program_of(stages: Sequence[Stage], workers: Workers) -> Program:
    run = Run(host_target())
    kernels = [run, *(call.kernel for stage in stages for call in stage.calls)]
    return Program(stages, compile_kernels(kernels).addresses, run, workers)


@dataclass(frozen=True)
class Note(Kernel):
    """A line in the worker's log: ``number``, the call's numbers, the count ``before``; then one more is ``done``."""

    operands: ClassVar[tuple[str, ...]] = ("number", "log", "before", "done")

    def write(self, k: Frame) -> None:
        from bareconv.kernels.cpu.emit import I64

        number, log, before, done = (k.operand(name, I64).base for name in self.operands)
        at = log.load()
        for i, word in enumerate((number.load(), k.begin, k.end, k.worker, k.round, before.load_shared()), start=1):
            log.store(word, at + i)
        log.store(at + 6)
        done.add_shared(1)


@dataclass
class Part:
    """A segment to try: for each of its stages (chunk, calls)."""

    stages: list[tuple[int, int]]
    extent: int | None = None
    grain: int = 1
    round: int = 1 << 40
    wait: bool = False


@dataclass
class Noted:
    """The program of these segments, with a note for a kernel; what it does, and what it should."""

    parts: list[Part]
    workers: Workers
    stages: list[Stage] = field(default_factory=list)
    stretches: list[int] = field(default_factory=list)  # of each call: how many waits there are before it

    def __post_init__(self) -> None:
        calls = sum(count for part in self.parts for _, count in part.stages)
        self.log = np.zeros((self.workers.count, LOG), np.int64)
        self.numbers, self.counts = np.arange(calls), np.zeros(len(self.parts) + 2, np.int64)
        note, stretch = Note(host_target()), 0
        for segment, part in enumerate(self.parts):
            stretch += part.wait
            for i, (chunk, count) in enumerate(part.stages):
                made = [self._call(note, len(self.stretches) + c, stretch) for c in range(count)]
                self.stretches += [stretch] * count
                wait = part.wait and i == 0
                self.stages.append(Stage(made, part.extent, chunk, part.grain, wait, segment, part.round))
        self.program = program_of(self.stages, self.workers)

    def _call(self, note: Note, number: int, stretch: int) -> Call:
        counts = [Address(self.counts[i:].ctypes.data) for i in (stretch, stretch + 1)]
        operands = {
            "number": Address(self.numbers[number:].ctypes.data),
            "log": Address(self.log.ctypes.data, 0, self.log.strides[0]),
            "before": counts[0],
            "done": counts[1],
        }
        return Call(note, operands)

    def run(self, images: int) -> list[list[Line]]:
        """What each worker noted. Every call came after all those before the last wait."""
        self.log[:, 0] = 0
        self.counts[...] = 0
        self.program.run(images)
        lines = [log[1 : 1 + log[0]].reshape(-1, 6) for log in self.log]
        for line in np.concatenate(lines):
            assert line[5] == self.counts[self.stretches[line[0]]], f"{line} began before others were done"
        return [[tuple(line) for line in mine[:, :5].tolist()] for mine in lines]

    def expected(self, images: int) -> list[list[Line]]:
        return [list(self._lines(images, worker)) for worker in range(self.workers.count)]

    def _lines(self, images: int, worker: int) -> Iterator[Line]:
        first = 0
        for part in self.parts:
            total = images if part.extent is None else part.extent
            units, workers = -(-total // part.grain), self.workers.count
            low, high = (min(units * w // workers * part.grain, total) for w in (worker, worker + 1))
            for start in range(low, high, part.round):
                number, last = first, min(start + part.round, high)
                for chunk, count in part.stages:
                    for begin in range(start, last, chunk):
                        for call in range(number, number + count):
                            yield call, begin, min(begin + chunk, last), worker, start
                    number += count
            first += sum(count for _, count in part.stages)


PARTS = st.builds(
    Part,
    st.lists(st.tuples(st.sampled_from((1, 2, 3, 7, 1 << 40)), st.integers(1, 3)), min_size=1, max_size=3),
    st.none() | st.integers(1, 50),
    st.sampled_from((1, 4, 16)),
    st.sampled_from((1, 3, 6, 14, 1 << 40)),
    st.booleans(),
)


@settings(max_examples=60)
@given(parts=st.lists(PARTS, min_size=1, max_size=4), count=st.sampled_from(COUNTS), images=st.integers(1, 33))
@example(  # rounds of several stages, the last one short; a fixed extent between; waits
    parts=[
        Part([(2, 2), (3, 1), (1 << 40, 1)], round=6),
        Part([(1 << 40, 1)], extent=40, grain=16, wait=True),
        Part([(1, 1), (4, 1)], round=4, wait=True),
    ],
    count=2,
    images=31,
)
@example(
    parts=[Part([(1, 1)]), Part([(1, 1)], wait=True)], count=5, images=2
)  # workers without images wait all the same
def test_the_calls_are_those_of_the_simulation(
    teams: dict[int, Workers], parts: list[Part], count: int, images: int
) -> None:
    """Also of a short batch after a whole one, and of the same once more."""
    noted = Noted(parts, teams[count])
    for size in (images, max(1, images // 3), images):
        assert noted.run(size) == noted.expected(size)


@pytest.mark.parametrize("count", COUNTS)
def test_every_image_is_done_once(count: int, teams: dict[int, Workers]) -> None:
    """Whatever the number of workers: the simulation's own check."""
    noted = Noted([Part([(3, 1), (2, 1)], round=6)], teams[count])
    for images in (1, 4, 23):
        found = noted.run(images)
        for call in (0, 1):
            ranges = [range(line[1], line[2]) for line in itertools.chain(*found) if line[0] == call]
            assert sorted(itertools.chain(*ranges)) == list(range(images))


def test_workers_wait_for_the_slowest(teams: dict[int, Workers]) -> None:
    """A wait after each of many short stages, with the order of arrival left to chance."""
    noted = Noted([Part([(1, 1)], wait=True) for _ in range(40)], teams[5])
    for _ in range(30):
        assert noted.run(7) == noted.expected(7)


def test_an_interruption_before_anything_was_done_leaves_no_one_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers agree how many waits there have been."""
    workers = Workers(3)
    noted = Noted([Part([(1, 1)]), Part([(1, 1)], wait=True)], workers)
    assert noted.run(5) == noted.expected(5)

    def interrupted(*_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workers, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            noted.run(5)
    found: list[list[list[Line]]] = []
    thread = threading.Thread(target=lambda: found.append(noted.run(5)), daemon=True)
    thread.start()
    thread.join(10.0)
    assert found == [noted.expected(5)]
    workers.close()


def copied(plane: Plane) -> Kernel:
    return Elementwise(host_target(), "copy", plane, plane, plane)


def values(images: int, elements: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((images, elements)).astype(np.float32)


def local(block: Block, elements: int, kind: int) -> Address:
    """Images of so many elements, for each worker an array of the block full."""
    return Address(block.address.base, elements * block.dtype.itemsize, block.address.image, kind)


def test_what_is_local_begins_with_each_call_or_each_round(teams: dict[int, Workers]) -> None:
    copy = copied(Plane(1, 1, 8))
    x, y, of_call, of_round = filled(values(5, 8)), Block(8, 5), Block(2 * 8, 1), Block(4 * 8, 1)
    here, there = local(of_call, 8, LOCAL_TO_CALL), local(of_round, 8, LOCAL_TO_ROUND)
    stages = [
        Stage([Call(copy, {"a": x.address, "y": here}), Call(copy, {"a": here, "y": there})], chunk=2, round=4),
        Stage([Call(copy, {"a": there, "y": y.address})], chunk=3, round=4),
    ]
    program_of(stages, teams[1]).run(5)
    assert np.array_equal(y.data, x.data)
    # Calls for images 0 and 1, 2 and 3, and 4; rounds of images 0 to 3, and 4.
    assert np.array_equal(of_call.data[0].reshape(2, 8), x.data[[4, 3]])
    assert np.array_equal(of_round.data[0].reshape(4, 8), x.data[[4, 1, 2, 3]])


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("chunk", "size"), [(1, 1), (2, 6), (3, 6), (4, 4)])
def test_each_worker_has_what_is_local_to_itself(chunk: int, size: int, count: int, teams: dict[int, Workers]) -> None:
    """Through memory of a few images and back, nothing beyond it touched; after a wait the sums of all of it."""
    images, elements = 29, 24
    x, y, sums = filled(values(images, elements)), Block(elements, images), Block(elements, count, gap=8)
    of_call, of_round = Block(chunk * elements, count, gap=9), Block(size * elements, count, gap=9)
    here, there = local(of_call, elements, LOCAL_TO_CALL), local(of_round, elements, LOCAL_TO_ROUND)
    copy = copied(Plane(1, 1, elements))
    own = Address(sums.address.base, 0, sums.address.image)
    stages = [
        Stage([Call(copy, {"a": x.address, "y": here}), Call(copy, {"a": here, "y": there})], chunk=chunk, round=size),
        Stage([Call(copy, {"a": there, "y": y.address})], chunk=1 << 40, round=size),
        Stage([Call(ColumnSums(host_target(), elements), {"y": y.address, "sums": own})], wait=True, segment=1),
    ]
    sums.data[...] = 0.0
    blocks = (x, y, sums, of_call, of_round)
    before = [block.snapshot() for block in blocks]
    program_of(stages, teams[count]).run(images)
    assert np.array_equal(y.data, x.data)
    for block, snapshot in zip(blocks, before, strict=True):
        assert not block.changed_outside(snapshot, range(block.images), 0).size
    np.testing.assert_allclose(sums.data.sum(axis=0), x.data.sum(axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", COUNTS)
def test_the_same_bits_every_time(count: int, teams: dict[int, Workers]) -> None:
    """A worker's images are its own whoever is faster: sums are taken in one order."""
    x, sums = filled(values(37, 24)), Block(24, count)
    own = Address(sums.address.base, 0, sums.address.image)
    program = program_of(
        [Stage([Call(ColumnSums(host_target(), 24), {"y": x.address, "sums": own})], chunk=2)], teams[count]
    )
    found = set()
    for _ in range(50):
        sums.data[...] = 0.0
        program.run(37)
        found.add(sums.data.tobytes())
    assert len(found) == 1


def test_time_is_told_of_every_call(teams: dict[int, Workers]) -> None:
    noted = Noted([Part([(1, 2)]), Part([(1, 1)], wait=True)], teams[2])
    noted.program.clear_ticks()
    begun = time.perf_counter()
    for _ in range(20):
        noted.run(40)
    passed = time.perf_counter() - begun
    seconds = noted.program.seconds()
    assert len(seconds) == 4
    assert all(one > 0.0 for one in seconds)
    assert sum(seconds) < passed
    noted.program.clear_ticks()
    assert noted.program.seconds() == [0.0] * 4


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="elsewhere than on x86 nothing changes")
def test_numbers_too_small_to_be_normal_are_zero_within_and_only_there(teams: dict[int, Workers]) -> None:
    plane = Plane(1, 1, 8)
    a, b, y = (filled(np.full((4, 8), value, np.float32)) for value in (1e-30, 1e-10, 1.0))
    multiply = Elementwise(host_target(), "multiply", plane, plane, plane)
    program_of([Stage([Call(multiply, {"a": a.address, "b": b.address, "y": y.address})])], teams[2]).run(4)
    assert not y.data.any()
    assert (a.data * b.data).all()


def test_an_operand_that_a_kernel_does_not_have_is_a_mistake(teams: dict[int, Workers]) -> None:
    with pytest.raises(AssertionError, match="Elementwise has no operand weight"):
        program_of([Stage([Call(copied(Plane(1, 1, 8)), {"weight": Address()})])], teams[1])

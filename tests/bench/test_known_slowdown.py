"""A slowdown that was planted is found, and none is invented: real measurements, laid side by side by ``bench diff``.

The machine may be busy with anything else meanwhile. What makes a verdict possible then is that the blocks are of one
step each, shorter than the system's own turns, so that most are not interrupted; and that they are taken by turns.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from pathlib import Path
from statistics import median

import pytest

from bareconv.bench import environment, process, results
from bareconv.bench.deadline import Deadline
from bareconv.bench.diff import Source, diff
from bareconv.bench.interleave import Candidate, Limits, Listener, Samples, Side, prepare, turns
from bareconv.bench.steady import Measured, run_record
from bareconv.bench.workload import Workload

SLOWDOWN = 0.25  # of a step
ROUNDS, PAIRS = 4, 5  # of processes, and of pairs that each measures: 20 with a slowdown, and 20 without
BLOCKS = 100  # of one step, for each result
LONGER = 5  # times as many, where a slowdown is ambiguous: what ``bench diff`` advises then
TRIES = 3  # of all of this: of the verdicts of one, two, three tries at most one in 40 may be wrong
ONE_STEP = 1e-6  # seconds that a block takes at least

WORK = Workload("lenet5", (28, 28, 1), batch_size=32, threads=1)


def worker(pause: float) -> Candidate:
    """The plan, whose every step sleeps that long."""
    return Candidate(
        name="plan",
        command=[sys.executable, str(Path(__file__).with_name("slowed_worker.py"))],
        options={"engine": "plan", "device": "cpu", "pause": pause},
        environment=process.with_this_package(process.environment(WORK.threads)),
        ours=True,
    )


class Bench:
    """Starts workers, measures them by turns, and writes a result of each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.written = folder, 0
        self.sides: list[Side] = []
        self.environment = environment.describe()
        dataset = WORK.write(folder)
        self.measured = Measured(WORK, dataset.name, len(dataset.train))

    def start(self, pause: float = 0.0) -> Side:
        side = prepare(worker(pause), self.folder, Deadline.after(60), 1, Listener(), Limits())
        assert side.error is None
        self.sides.append(side)
        return side

    def stop(self) -> None:
        while self.sides:
            self.sides.pop().close()

    def measure(self, sides: list[Side], blocks: int = BLOCKS) -> list[Source]:
        """Blocks by turns; a result of each side, as it was read from its file."""
        for side in sides:
            side.samples = Samples()
        for side in itertools.islice(turns(sides), len(sides) * blocks):
            side.run(ONE_STEP, lead=ONE_STEP)
        return [self.result(side) for side in sides]

    def result(self, side: Side) -> Source:
        side.look_at_memory()
        assert side.error is None
        record = run_record(self.measured, side)
        assert record is not None
        path = self.folder / f"{self.written}.json"
        self.written += 1
        results.write(results.new("bench run", {}, runs=[record], environment=self.environment), path)
        return Source(path, results.read(path))


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.stop()


def verdict(before: Source, after: Source) -> str:
    (found,) = diff([before], [after])["measurements"]
    assert found["by_turns"]
    return found["verdict"]


def measured_once(bench: Bench) -> tuple[Counter[str], Counter[str]]:
    """20 verdicts on what is alike, and 20 on what was slowed down."""
    alike: Counter[str] = Counter()
    slowed: Counter[str] = Counter()
    for _ in range(ROUNDS):
        plain, again = bench.start(), bench.start()
        bench.measure([plain])
        slow = bench.start(SLOWDOWN * median(plain.samples.seconds))
        for _ in range(PAIRS):
            first, second, third = bench.measure([plain, again, slow])
            alike[verdict(first, second)] += 1
            found = verdict(first, third)
            if found == "ambiguous":
                found = verdict(*bench.measure([plain, slow], LONGER * BLOCKS))
            slowed[found] += 1
        bench.stop()
    return alike, slowed


@pytest.mark.slow
def test_a_planted_slowdown_is_found_and_none_invented(bench):
    alike: Counter[str] = Counter()
    slowed: Counter[str] = Counter()
    for tries in range(1, TRIES + 1):
        for whole, part in zip((alike, slowed), measured_once(bench), strict=True):
            whole.update(part)
        assert alike.total() == slowed.total() == tries * ROUNDS * PAIRS
        missed, invented = slowed.total() - slowed["slower"], alike["slower"] + alike["faster"]
        if missed + invented <= tries:
            return
    pytest.fail(f"{slowed} where there is a slowdown, {alike} where there is none")

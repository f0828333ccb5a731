"""Turns, blocks, the budget, and candidates that fail while others go on."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bench_stand_ins import LOSSES, QUICK, stand_in

from bareconv.bench.interleave import Budget, Listener, Side, interleave, prepare, turns
from bareconv.bench.process import REMOVED, THREADS, StoppedError, Worker, WorkerError, environment, our_command
from bareconv.bench.workload import Workload
from bareconv.errors import UsageError


class Heard(Listener):
    """Remembers the blocks; stops after ``most`` of them."""

    def __init__(self, most=10**6):
        self.blocks, self.left, self.most = [], [], most

    def block(self, side, left):
        self.blocks.append(side.candidate.name)
        self.left.append(left)

    def should_stop(self):
        return len(self.blocks) >= self.most


@pytest.fixture
def ready(tmp_path):
    """Prepares candidates; their processes end with the test."""
    sides = []

    def ready(*candidates):
        made = [prepare(one, tmp_path, Budget(1.0), 5, Listener(), QUICK) for one in candidates]
        sides.extend(made)
        return made

    yield ready
    for side in sides:
        side.close()


def test_turns_go_forwards_and_backwards(ready):
    sides = ready(*map(stand_in, "ABC"))
    names = [side.candidate.name for side in itertools.islice(turns(sides), 12)]
    assert "".join(names) == "ABCCBAABCCBA"


def test_who_drops_out_is_passed_over(ready):
    sides = ready(*map(stand_in, "ABC"))
    taking = turns(sides)
    first = [next(taking) for _ in range(4)]
    first[1].fail(WorkerError("gone"))
    assert "".join(side.candidate.name for side in [*first, *itertools.islice(taking, 5)]) == "ABCCAACCA"


def test_a_measurement_by_turns_ends_in_time(ready):
    sides, heard = ready(stand_in("A"), stand_in("B", step=0.004)), Heard()
    begun = time.monotonic()
    interleave(sides, 1.0, heard)
    assert time.monotonic() - begun < 1.3
    assert "".join(heard.blocks).startswith("ABBAABBA")
    assert heard.left == sorted(heard.left, reverse=True)
    for side, rate in zip(sides, (2000, 1000), strict=True):
        side.finish()
        assert len(side.samples.seconds) >= 5
        assert side.rate is not None
        assert side.rate.value == pytest.approx(rate)
        assert side.memory == {"baseline": 1000, "peak": 3000}
        assert (side.status, side.error) == ("measured", None)


def test_a_slow_candidate_gets_one_block_and_no_more(ready):
    (side,) = ready(stand_in("slow", step=0.4))
    begun = time.monotonic()
    interleave([side], 0.5, Listener())
    assert time.monotonic() - begun < 0.8
    assert side.samples.steps == [1]


def test_a_request_to_stop_keeps_what_was_measured(ready):
    sides = ready(stand_in("A"), stand_in("B"))
    interleave(sides, 8.0, Heard(most=3))
    for side in sides:
        side.finish()
    assert [len(side.samples.seconds) for side in sides] == [1, 2]
    assert all(side.rate is not None for side in sides)


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        ("die at run", r"its process ended \(exit code 3\): something broke"),
        ("killed at run", r"its process ended \(SIGKILL \(out of memory\?\)\)"),
        ("hang at run", "gave no answer within .* s and was ended"),
        ("babble at run", "gave an answer that is none: 'hello'"),
    ],
)
def test_the_others_go_on(trouble, error, ready):
    bad, good = ready(stand_in("bad", trouble), stand_in("good"))
    interleave([bad, good], 1.4, Listener())
    good.finish()
    assert bad.status == "failed"
    assert bad.rate is None
    with pytest.raises(WorkerError, match=error):
        raise WorkerError(bad.error)
    assert good.error is None
    assert len(good.samples.seconds) > 3


@pytest.mark.parametrize(
    ("trouble", "status"),
    [("die at prepare", "failed"), ("cannot prepare", "unsupported"), ("babble at prepare", "failed")],
)
def test_what_fails_before_it_begins(trouble, status, ready):
    (side,) = ready(stand_in("bad", trouble))
    assert side.error
    assert (side.status, side.alive) == (status, False)


def test_a_loss_that_is_not_finite(ready):
    first, later = ready(stand_in("bad", losses=[float("nan")] * 5), stand_in("bad", losses=[*LOSSES, float("inf")]))
    assert "not finite" in first.error
    interleave([later], 0.2, Listener())
    assert "did not stay finite" in later.error
    assert later.rate is None


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(WorkerError, match="nowhere: cannot be started"):
        Worker(["./nowhere"], {}, tmp_path)


def test_stopping_while_it_prepares(tmp_path):
    side = Side(stand_in("slow", "hang at prepare"), tmp_path, QUICK)
    begun = time.monotonic()
    with pytest.raises(StoppedError):
        side.prepare(5, 0.1, lambda: True)
    side.close()
    assert time.monotonic() - begun < 2


def test_the_budget():
    with pytest.raises(UsageError, match="budget 0: expected more than 0"):
        Budget(0)

    class Warmed:
        warm_up_seconds = 3.0

    assert Budget(10).left([Warmed()]) == 7  # type: ignore[list-item]
    assert Budget(10).left([Warmed()] * 3) == 5  # type: ignore[list-item]


def test_the_environment(monkeypatch):
    monkeypatch.chdir("/")
    variables = dict.fromkeys([*REMOVED, *THREADS, "HOME"], "9") | {"PYTHONPATH": "tmp"}
    made = environment(3, variables)
    assert not set(REMOVED) & set(made)
    assert {made[name] for name in THREADS} == {"3"}
    assert (made["HOME"], made["PYTHONPATH"]) == ("9", "/tmp")


def _state(pid):
    """A process's state as the system gives it: "R", "S", "T" (stopped), "Z" (ended); "" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_who_is_not_asked_is_stopped(ready):
    (side,) = ready(stand_in("A"))
    deadline = time.monotonic() + 5
    while _state(side._worker.process.pid) != "T" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _state(side._worker.process.pid) == "T"
    side.run(0.05)
    assert side.error is None


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process that its parent has ended")
def test_a_worker_ends_with_its_parent(tmp_path):
    code = """
import os, sys
from pathlib import Path
from bareconv.bench.process import *
worker = Worker(our_command("bareconv.bench.workers.ours"), with_this_package(environment(1)), Path(sys.argv[1]))
try:
    worker.ask("memory", 60)
except WorkerError:
    print(worker.process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    deadline = time.monotonic() + 5
    while _state(int(done.stdout)) not in ("", "Z") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _state(int(done.stdout)) in ("", "Z")


def test_our_worker_speaks_the_protocol(tmp_path):
    """A real engine: its losses are the trainer's own, its blocks as long as asked for."""
    from bareconv import optim
    from bareconv.bench.process import with_this_package
    from bareconv.training import Settings, Trainer

    work = Workload("mlp", (6, 6, 1), batch_size=8, seed=3)
    dataset = work.write(tmp_path)
    settings = Settings(epochs=8, batch_size=8, schedule=optim.Constant(), engine="reference", seed=3)
    trainer = Trainer(work.network(), dataset, optim.SGD(work.lr, 0.9), settings, "cpu")
    expected, _ = trainer.train_steps(0, 3)
    options = {"engine": "reference", "device": "cpu"}
    with Worker(our_command("bareconv.bench.workers.ours"), with_this_package(environment(1)), tmp_path) as worker:
        ready = worker.ask("prepare", 60, folder=str(tmp_path), options=options, checks=3, warm_up=0.05)
        assert ready["losses"] == expected
        assert ready["compile_seconds"] >= 0
        assert "bareconv" in ready["versions"]
        block = worker.ask("run", 60, seconds=0.1, lead=0.02)
        assert block["seconds"] >= 0.1
        assert block["images"] == 8 * block["steps"]
        assert worker.ask("run", 60, steps=300)["steps"] == 300  # more than an epoch, and than all that are written
        memory = worker.ask("memory", 60)
        assert 0 < memory["baseline"] < memory["peak"]
        with pytest.raises(WorkerError, match="KeyError"):
            worker.ask("dance", 60)
        assert worker.ask("run", 60, steps=2)["steps"] == 2

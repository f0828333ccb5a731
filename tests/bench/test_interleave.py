"""Turns, blocks, the budget, and candidates that fail while others go on."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from bench_stand_ins import LOSSES, QUICK, stand_in

from bareconv import host
from bareconv.bench import interleave as interleave_module
from bareconv.bench.deadline import Deadline
from bareconv.bench.estimates import ratio
from bareconv.bench.interleave import (
    ENOUGH,
    Candidate,
    Listener,
    Side,
    at_once,
    interleave,
    our_candidate,
    prepare,
    prepare_all,
    turns,
)
from bareconv.bench.process import REMOVED, THREADS, StoppedError, Worker, WorkerError, environment, our_command
from bareconv.bench.workload import Workload


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
        made = [prepare(one, tmp_path, Deadline.after(10.0), 5, Listener(), QUICK) for one in candidates]
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
    interleave(sides, Deadline.after(1.0), heard)
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
    interleave([side], Deadline.after(0.5), Listener())
    assert time.monotonic() - begun < 0.8
    assert side.samples.steps == [1]


def test_a_request_to_stop_keeps_what_was_measured(ready):
    sides = ready(stand_in("A"), stand_in("B"))
    interleave(sides, Deadline.after(8.0), Heard(most=7))
    for side in sides:
        side.finish()
    assert [len(side.samples.seconds) for side in sides] == [3, 4]
    assert all(side.rate is not None for side in sides)


def test_who_has_hardly_begun_when_it_is_stopped_has_no_figure(ready):
    sides = ready(stand_in("A"), stand_in("B"))
    interleave(sides, Deadline.after(8.0), Heard(most=5))
    for side in sides:
        side.finish()
    assert [side.rate is not None for side in sides] == [True, False]
    assert (sides[1].status, sides[1].error) == ("interrupted", "it was stopped before there were 3 blocks")


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
    interleave([bad, good], Deadline.after(1.4), Listener())
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
    interleave([later], Deadline.after(0.2), Listener())
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


class Fake(Side):
    """A side on a clock that it moves on itself: each block takes what ``times`` says."""

    def __init__(self, name, clock, times, folder):
        super().__init__(stand_in(name), folder, QUICK)
        self.clock, self.times, self.step_seconds = clock, iter(times), 0.001

    @property
    def alive(self):
        return self.error is None

    def run(self, block, lead=0.0):
        taken = next(self.times)
        self.clock[0] += taken
        self.samples.add({"seconds": taken, "wall_seconds": taken, "steps": 10, "images": 40})


def measured_on(clock, seconds, *sides):
    heard = Heard()
    interleave(sides, Deadline.after(seconds, lambda: clock[0]), heard)
    return heard


def test_it_ends_when_every_median_is_narrow(tmp_path):
    clock = [0.0]
    calm = Fake("calm", clock, itertools.repeat(0.01), tmp_path)
    restless = Fake("restless", clock, itertools.cycle([0.010, 0.0104, 0.0097, 0.0102]), tmp_path)
    measured_on(clock, 1000.0, calm, restless)
    assert calm.stopped == restless.stopped == "narrow"
    assert len(calm.samples.seconds) == len(restless.samples.seconds) > ENOUGH
    assert restless.is_narrow
    assert clock[0] < 5


def test_it_ends_with_the_time_and_says_so(tmp_path):
    clock = [0.0]
    wild = Fake("wild", clock, itertools.cycle([0.1, 0.3, 0.2, 0.5]), tmp_path)
    heard = measured_on(clock, 8.0, wild)
    assert wild.stopped == "budget"
    assert not wild.is_narrow
    assert 7.0 < clock[0] < 8.5
    assert heard.left == sorted(heard.left, reverse=True)


def test_a_drift_hits_both_alike(tmp_path):
    """A machine that becomes slower all the time: by turns A B B A the ratio of medians hardly sees it."""
    clock = [0.0]

    def slower(factor):
        while True:
            yield factor * 0.05 * (1 + 0.3 * clock[0])

    one, other = Fake("one", clock, slower(1.0), tmp_path), Fake("other", clock, slower(2.0), tmp_path)
    measured_on(clock, 10.0, one, other)
    assert one.samples.seconds[-1] > 1.6 * one.samples.seconds[0]
    found = ratio(one.samples.rates, other.samples.rates)
    assert found.value == pytest.approx(2.0, rel=0.03)


def test_nothing_is_begun_when_the_time_is_up(tmp_path):
    clock = [5.0]
    side = Fake("late", clock, itertools.repeat(0.01), tmp_path)
    deadline = Deadline(5.0, lambda: clock[0])
    interleave([side], deadline, Listener())
    assert (side.stopped, side.samples.seconds) == ("budget", [])
    side.prepare(5, 0.1, lambda: False, deadline)
    assert (side.status, side.error) == ("interrupted", "the time was up before it could get ready")


def test_what_is_not_ready_in_time(tmp_path):
    begun = time.monotonic()
    side = prepare(stand_in("slow", "hang at prepare"), tmp_path, Deadline.after(0.3), 5, Listener(), QUICK)
    assert time.monotonic() - begun < 2
    assert (side.status, side.error) == ("interrupted", "was not ready after 0 s, when the time was up")


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
        assert isinstance(ready["warmed_up"], bool)
        assert (ready["flags"]["precision"], ready["flags"]["threads"]) == ("float32", "1")
        block = worker.ask("run", 60, seconds=0.1, lead=0.02)
        assert block["wall_seconds"] >= block["seconds"]
        assert block["seconds"] >= 0.1
        assert block["images"] == 8 * block["steps"]
        assert worker.ask("run", 60, steps=300)["steps"] == 300  # more than an epoch, and than all that are written
        memory = worker.ask("memory", 60)
        assert 0 < memory["baseline"] < memory["peak"]
        with pytest.raises(WorkerError, match="KeyError"):
            worker.ask("dance", 60)
        assert worker.ask("run", 60, steps=2)["steps"] == 2


@pytest.mark.parametrize(
    ("cores", "device", "free", "expected"),
    [
        (2, "cpu", None, 1),
        (3, "cpu", None, 1),
        (16, "cpu", None, 8),
        (2, "cuda:0", 80 << 30, 1),
        (8, "cuda:0", 80 << 30, 8),
        (64, "cuda:0", 80 << 30, 16),
        (16, "cuda:0", 7 << 30, 4),  # each needs memory of the GPU
        (16, "cuda:0", 1 << 30, 1),
    ],
)
def test_how_many_get_ready_side_by_side(cores, device, free, expected, monkeypatch):
    there = [
        SimpleNamespace(name="cpu", free_bytes=lambda: None),
        SimpleNamespace(name="cuda:0", free_bytes=lambda: free),
    ]
    monkeypatch.setattr(interleave_module, "all_devices", lambda: there)
    monkeypatch.setattr(host, "allowed_cores", lambda: cores)
    assert at_once([our_candidate("plan", device, 1)]) == expected
    assert at_once([Candidate("other", [], {}, {})], device) == expected


def test_only_those_of_a_cpu_take_two_cores(monkeypatch):
    monkeypatch.setattr(host, "allowed_cores", lambda: 16)
    monkeypatch.setattr(interleave_module, "all_devices", list)
    of_all = [our_candidate("plan", device, 1) for device in ("cpu", "cuda:0", "cuda:0")]
    assert at_once(of_all) == 12  # three sets of four, which take 16 cores


def test_side_by_side_in_their_order(tmp_path, monkeypatch):
    """Each waits for the others: one after another, none would get ready."""
    together, prepare_one = threading.Barrier(3, timeout=10), interleave_module.prepare

    def meeting(candidate, *arguments):
        together.wait()
        time.sleep(0.2 if candidate.name == "A" else 0)  # the first is the last to be ready
        return prepare_one(candidate, *arguments)

    monkeypatch.setattr(interleave_module, "prepare", meeting)
    sides: list[Side] = []
    with ThreadPoolExecutor(3) as pool:
        jobs = [(stand_in(name), tmp_path) for name in "ABC"]
        prepare_all(pool, jobs, sides, Deadline.after(20.0), 5, Listener(), QUICK)
        alive = [(side.candidate.name, side.alive) for side in sides]
        for side in sides:
            side.close()
    assert alive == [("A", True), ("B", True), ("C", True)]

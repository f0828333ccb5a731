"""Three clocks: phases that add up to what is seen from outside, caches that are empty and then not, deadlines."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
from gpu_stand_in import StandInPlan, install

import bareconv
from bareconv import host
from bareconv.bench import clocks, process, steady
from bareconv.bench.clocks import measure_clocks, see, training_size
from bareconv.bench.deadline import Deadline
from bareconv.bench.estimates import Estimate
from bareconv.bench.interleave import Listener
from bareconv.bench.process import StoppedError, WorkerError
from bareconv.bench.workers import journey
from bareconv.bench.workload import Workload
from bareconv.device import get_device
from bareconv.kernels.cache import cache_folder

SCHEMA = json.loads((Path(bareconv.__file__).parent / "bench/result.schema.json").read_text())
ORDER = ["start", "import", "data", "model", "transfer", "compile", "first step", "training", "evaluation", "end"]


def conforms(record) -> Any:
    jsonschema.Draft202012Validator({"$ref": "#/$defs/clocks", "$defs": SCHEMA["$defs"]}).validate(record)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    return record


def kept_kernels():
    folder = cache_folder()
    return sorted(folder.iterdir()) if folder.exists() else []


def test_a_real_training():
    """Three steps of the mlp and the evaluation on all of MNIST's test images, in two real processes."""
    kept, begun = kept_kernels(), time.perf_counter()
    work = Workload("mlp", (28, 28, 1), batch_size=64, threads=1)
    found = measure_clocks(work, get_device("cpu"), "plan", Deadline.after(120), Listener(), epochs=2, rate=8.5)
    elapsed = time.perf_counter() - begun
    record = conforms(found)
    cold, warm = record["cold"], record["warm"]
    assert cold["whole_seconds"] + warm["whole_seconds"] < elapsed
    for one in (cold, warm):
        phases = {phase["name"]: phase["seconds"] for phase in one["phases"]}
        assert list(phases) == ORDER
        assert sum(phases.values()) == pytest.approx(one["whole_seconds"], rel=0.05)
        assert abs(one["unexplained"]) < 0.05
        for name in set(ORDER) - {"transfer", "model"}:
            assert phases[name] > 0
        assert phases["import"] > 10 * phases["transfer"]
    assert cold["compiled"] > 0  # nothing was found, though this session has kernels of the mlp perhaps
    assert warm["compiled"] == 0
    compiling = [next(p["seconds"] for p in one["phases"] if p["name"] == "compile") for one in (cold, warm)]
    assert compiling[0] > 2 * compiling[1]
    assert kept_kernels() == kept
    assert (record["epochs"], record["train_images"], record["batch_size"], record["threads"]) == (1, 192, 64, 1)
    assert record["steady_seconds"] == pytest.approx(192 / 8.5)
    assert 0.02 < record["test_accuracy"] < 0.9
    assert record["notes"] == [
        "1 epoch of 192 images instead of 2 epochs of 59,968 images, for the budget was not enough for more."
    ]


def test_images_drawn_at_random_go_through_a_file(tmp_path):
    """As many as the workload has, labels among its ten classes; and their accuracy means nothing."""
    work = Workload("mlp", (6, 5, 2), batch_size=16)
    path, count = clocks._write_data(work, tmp_path)
    assert path is not None
    assert count == len(work.dataset().train)
    loaded = bareconv.data.load(path)
    np.testing.assert_array_equal(loaded.train.images, work.dataset().train.images)
    assert loaded.classes == 10
    assert loaded.test is not None


@pytest.mark.parametrize(
    ("epochs", "affordable", "expected"),
    [
        (3, 1e9, (3, 1024)),
        (3, 3 * 1024, (3, 1024)),
        (3, 3 * 1024 - 1, (2, 1024)),
        (3, 1024, (1, 1024)),
        (3, 1023, (1, 960)),
        (3, 130, (1, 128)),
        (3, 1, (1, 128)),
        (1, 64.5, (1, 128)),
    ],
)
def test_as_much_as_there_is_time_for(epochs, affordable, expected):
    assert training_size(1024, 64, epochs, affordable) == expected


# Processes that stand in for a training

PROGRAM = """
import json, sys, time
time.sleep(0.15)
begun = time.clock_gettime(time.CLOCK_MONOTONIC) if sys.platform == "linux" else time.time()
time.sleep(0.3)
phases = dict.fromkeys(["import", "data", "model", "transfer", "compile", "first step", "evaluation"], 0.02)
phases["training"] = 0.06
print(json.dumps({"begun": begun, "phases": list(phases.items()), "ended": begun + 0.3, "compiled": 4}), flush=True)
print("a library says something", file=sys.stderr)
time.sleep(0.1)
"""


def stand_in(program):
    return [sys.executable, "-S", "-c", program]


def test_what_is_seen_from_outside(tmp_path):
    """Before the first line 0.15 s, after the last 0.1 s; of 0.3 s between them the phases know of 0.2 s."""
    seen = see(stand_in(PROGRAM), dict(os.environ), tmp_path, Deadline.after(30))
    record = seen.record()
    phases = {phase["name"]: phase["seconds"] for phase in record["phases"]}
    assert list(phases) == ORDER
    assert phases["start"] >= 0.15
    assert phases["end"] >= 0.1
    assert sum(phases.values()) == pytest.approx(record["whole_seconds"] - 0.1)
    assert record["unexplained"] == pytest.approx(0.1 / record["whole_seconds"])
    assert record["compiled"] == 4


def told(**changes):
    journeys = {kind: {"whole_seconds": 2.0, "phases": [], "compiled": 0, "unexplained": 0.0} for kind in clocks.KINDS}
    journeys["cold"]["compiled"] = 9
    for name, value in changes.items():
        kind, _, key = name.partition("_")
        journeys[kind][key] = value
    return {"epochs": 3, "train_images": 512, **journeys}


@pytest.mark.parametrize(
    ("changes", "starts"),
    [
        ({}, []),
        ({"cold_unexplained": 0.05, "warm_unexplained": -0.05}, []),
        ({"cold_unexplained": 0.0712}, ["The phases of the cold training leave 7.1% of its time unexplained"]),
        ({"warm_unexplained": -0.2}, ["The phases of the warm training leave -20.0% of its time unexplained"]),
        ({"warm_compiled": 2}, ["The warm training compiled 2 kernels that the cold one had"]),
    ],
)
def test_notes(changes, starts):
    notes = clocks._notes(told(**changes), 3, 512)
    assert len(notes) == len(starts)
    assert all(note.startswith(start) for note, start in zip(notes, starts, strict=True))


def test_what_is_not_ready_in_time_is_ended(tmp_path):
    program = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    begun = time.monotonic()
    with pytest.raises(WorkerError, match="was not ready when the time was up"):
        see(stand_in(program), dict(os.environ), tmp_path, Deadline.after(0.4))
    assert time.monotonic() - begun < 2
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_who_asks_to_stop_is_heard(tmp_path):
    begun = time.monotonic()
    with pytest.raises(StoppedError):
        see(stand_in("import time; time.sleep(60)"), dict(os.environ), tmp_path, Deadline.after(60), lambda: True)
    assert time.monotonic() - begun < 2


def test_a_training_that_fails_says_why(tmp_path):
    with pytest.raises(WorkerError, match="ended with exit code 1: ValueError: no such thing"):
        see(stand_in("raise ValueError('no such thing')"), dict(os.environ), tmp_path, Deadline.after(30))
    program = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(WorkerError, match="ended with exit code -9: it said nothing"):
        see(stand_in(program), dict(os.environ), tmp_path, Deadline.after(30))


@pytest.fixture
def quick(monkeypatch):
    """Journeys of ``program`` instead of trainings."""

    def replace(program):
        monkeypatch.setattr(process, "our_command", lambda module: stand_in(program))
        return functools.partial(
            measure_clocks, Workload("mlp", (6, 6, 1), batch_size=16, threads=1), get_device("cpu"), "plan"
        )

    return replace


def test_the_cold_one_is_told_of_where_the_warm_one_is_not_ready(quick):
    """Only the first finds the cache empty: this program makes the folder, and is slow where it is there."""
    program = """
import os, time
folder = os.environ["BARECONV_CACHE_DIR"]
time.sleep(60 * os.path.exists(folder))
os.makedirs(folder)
print('{"begun": 0, "phases": [], "ended": 0}')
"""
    with pytest.raises(WorkerError, match=r"the warm training was not ready .* \(the cold one took 0\.\d+ s\)"):
        quick(program)(Deadline.after(0.8), Listener(), rate=1e6)


def test_all_caches_are_the_journeys_own(quick, tmp_path):
    names = ("BARECONV_CACHE_DIR", "CUPY_CACHE_DIR", "CUDA_CACHE_PATH")
    program = f"""
import os, sys
for name in {names}:
    assert not os.path.exists(os.environ[name]), name
    assert os.path.dirname(os.environ[name]) == os.getcwd(), name
sys.exit("all of them")
"""
    with pytest.raises(WorkerError, match="the cold training ended with exit code 1: all of them"):
        quick(program)(Deadline.after(30), Listener(), rate=1e6)


def test_stopped(quick):
    class Stops(Listener):
        def should_stop(self):
            return True

    assert quick("import time; time.sleep(60)")(Deadline.after(60), Stops(), rate=1e6) is None


def test_the_steady_rate_where_it_is_not_known(quick, monkeypatch):
    """It has its share of the time; without one there is no training."""
    asked = []

    def measure(workload, candidates, deadline, listener):
        asked.append((candidates[0].name, deadline.left))
        return SimpleNamespace(sides=[SimpleNamespace(rate=rate, error="it failed", status="failed")])

    monkeypatch.setattr(steady, "measure", measure)
    rate = None
    with pytest.raises(WorkerError, match="the steady rate could not be measured: it failed"):
        quick("pass")(Deadline.after(40), Listener())
    rate = Estimate(2000.0, 1990.0, 2010.0)
    phases = [[name, 0.0] for name in clocks._PHASES]
    answer = {"begun": 0, "phases": phases, "ended": 0, "compiled": 0, "engine": "plan", "precision": "float32"}
    program = f"print({json.dumps({**answer, 'threads': 1, 'accuracy': 0.1})!r})"
    record = quick(program)(Deadline.after(40), Listener(), epochs=2)
    assert asked == [("plan", pytest.approx(10, abs=0.5))] * 2
    assert record["steady_seconds"] == pytest.approx(2 * 2048 / 2000)
    assert record["test_accuracy"] is None  # labels drawn at random


# The journey itself


def test_phases_of_a_gpu(monkeypatch, digits):
    """What is rehearsed belongs to the first step, what is compiled in steps and predictions to compiling."""
    gpu = install(monkeypatch)
    monkeypatch.setattr(bareconv.device, "get_device", lambda name: gpu)
    monkeypatch.setattr(host, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(bareconv.data, "mnist", lambda: digits)
    clock = SimpleNamespace(now=0.0)
    moments = []

    def now():
        moments.append([entry[0] for entry in gpu.log])
        return clock.now

    def taking(method, seconds, compiling):
        """``method``, for which ``seconds`` pass, of which some go into compiling."""

        def slower(self, *arguments, **more):
            if method is not prepare or not self.compiled:  # what is prepared stays so
                clock.now += seconds
                self.compile_seconds += compiling
            return method(self, *arguments, **more)

        return slower

    monkeypatch.setattr(journey, "now", now)
    prepare = StandInPlan.prepare
    monkeypatch.setattr(StandInPlan, "prepare", taking(prepare, 16.0, 0.0))
    monkeypatch.setattr(StandInPlan, "predict", taking(StandInPlan.predict, 5.0, 4.0))
    monkeypatch.setattr(StandInPlan, "steps", taking(StandInPlan.steps, 1.0, 0.25))
    options = {
        "model": "mlp",
        "device": "cuda:0",
        "engine": "plan",
        "precision": "tf32",
        "data": None,
        "epochs": 2,
        "train_images": 320,
        "batch_size": 64,
        "seed": 0,
        "threads": 1,
        "lr": 0.01,
        "momentum": 0.9,
    }
    phases = journey.Phases()
    came = journey.travel(options, phases)
    assert (came["engine"], came["precision"]) == ("plan", "tf32")
    assert came["iterations"] == 10
    assert 0 <= came["accuracy"] <= 1
    launches = [entry for entry in gpu.log if entry[0] in ("rehearse", "launch")]
    begun, first, last, ended = moments[-4:]  # what was done by then
    assert "rehearse" not in begun
    assert "launch" not in begun
    assert first.count("rehearse") == 3
    assert 1 <= first.count("launch") <= 2  # the first, and the next, which is under way
    assert sum(steps for kind, _, steps in launches[3 : 3 + first.count("launch")]) <= 2
    assert "predict" not in last
    assert last.count("launch") == len(launches) - 3
    assert "predict" in ended
    calls_first, calls = 3 + first.count("launch"), len(launches)
    predictions = ended.count("predict")
    assert phases.seconds["first step"] == pytest.approx(0.75 * calls_first)
    assert phases.seconds["training"] == pytest.approx(0.75 * (calls - calls_first))
    assert phases.seconds["evaluation"] == pytest.approx(1.0 * predictions)
    assert phases.seconds["compile"] == pytest.approx(16 + 0.25 * calls + 4.0 * predictions)

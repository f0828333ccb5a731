"""Measuring the depth: in a process of its own, by the deadline, whatever that process does."""

from __future__ import annotations

import contextlib
import json
import sys
import time

import pytest

from bareconv.bench import process, results
from bareconv.bench.deadline import Deadline
from bareconv.bench.depth import UNREADY, Effort, measure_depth
from bareconv.bench.interleave import Listener
from bareconv.bench.roofline import cuda
from bareconv.bench.workers import depth as worker
from bareconv.bench.workload import Workload
from bareconv.device import CudaDevice

MLP = Workload("mlp", (6, 6, 1), 8)
LITTLE = Effort(memory_bytes=1 << 20, least_steps=1)

# A process that answers at once, or does what the name of a workload's model says: hangs, or dies.
PROGRAM = """
import json, os, sys, time
trouble = json.loads(sys.argv[1])
for line in sys.stdin:
    message = json.loads(line)
    do = message["do"]
    if do == "quit":
        break
    what = trouble.get(message.get("engine", f"{do} {message['threads']}" if "threads" in message else do), "")
    if what == "die":
        print("something broke", file=sys.stderr)
        sys.exit(3)
    if what == "hang":
        time.sleep(60)
    if what == "cannot":
        answer = {"error": "there is no such thing", "unsupported": True}
    elif do == "begin":
        answer = {}
    elif do == "ceilings":
        answer = {"ceilings": [{"name": "memory", "per_second": 1e9, "unit": "byte", "how": "it was",
                                "threads": message["threads"]}]}
    else:
        seen = [one["threads"] for one in message["ceilings"]]
        answer = {"step": {"model": message["workload"]["model"], "batch_size": 8, "precision": "float32",
                           "engine": what or message["engine"], "step_seconds": 1.0 + sum(seen), "launches": []}}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def stand_in(monkeypatch):
    def use(**trouble):
        told = json.dumps({name.replace("_", " "): what for name, what in trouble.items()})
        monkeypatch.setattr(process, "our_command", lambda module: [sys.executable, "-S", "-c", PROGRAM, told])

    return use


class Told(Listener):
    """Remembers the stages; stops when there have been so many."""

    def __init__(self, most=1000):
        self.stages, self.most = [], most

    def stage(self, text):
        self.stages.append(text)

    def should_stop(self):
        return len(self.stages) >= self.most


def measured(seconds=20.0, engines=("plan", "reference"), workloads=(MLP,), threads=2, listener=None):
    begun = time.monotonic()
    found = measure_depth(workloads, "cpu", engines, threads, Deadline.after(seconds), listener or Told(), LITTLE)
    assert time.monotonic() - begun < seconds + 1.0
    results.validate(results.new("it", {}, rooflines=[found]))
    return found


def test_ceilings_and_steps(stand_in):
    stand_in()
    listener = Told()
    found = measured(threads=3, listener=listener)
    assert [one["threads"] for one in found["ceilings"]] == [3, 1, 2]
    assert [step["engine"] for step in found["steps"]] == ["plan", "reference"]
    assert {step["step_seconds"] for step in found["steps"]} == {4.0}  # they are given the ceilings of their threads
    assert (found["device"], found["threads"]) == ("cpu", 3)
    assert "notes" not in found
    title = "The parts of a step: mlp, batch 8, float32, plan"
    assert listener.stages[:4] == ["Ceilings of 3 threads", "Ceilings of 1 thread", "Ceilings of 2 threads", title]


def test_what_hangs_is_ended_by_the_deadline(stand_in):
    stand_in(reference="hang")
    found = measured(1.5)
    assert [step["engine"] for step in found["steps"]] == ["plan"]
    assert found["notes"] == [f"mlp, batch 8, float32, reference: {UNREADY}."]


def test_the_rest_is_measured_where_something_dies(stand_in):
    stand_in(ceilings_1="die", plan="die", tuned="cannot")
    found = measured(engines=("plan", "tuned", "reference"))
    assert [one["threads"] for one in found["ceilings"]] == [2]
    assert [step["engine"] for step in found["steps"]] == ["reference"]
    assert found["notes"] == [
        "Ceilings of 1 thread: its process ended (exit code 3): something broke.",
        "mlp, batch 8, float32, plan: its process ended (exit code 3): something broke.",
        "mlp, batch 8, float32, tuned: there is no such thing.",
    ]


def test_another_engine_than_the_one_asked_for_is_told(stand_in):
    stand_in(plan="tuned")
    found = measured(engines=("plan",))
    (note,) = found["notes"]
    assert note == "mlp, batch 8, float32, plan: it is not there; what was measured is mlp, batch 8, float32, tuned."


@pytest.mark.parametrize(("most", "ceilings", "steps"), [(1, 0, 0), (3, 2, 0), (4, 2, 1)])
def test_a_stop_keeps_what_there_is(stand_in, most, ceilings, steps):
    stand_in()
    found = measured(listener=Told(most))
    assert (len(found["ceilings"]), len(found["steps"])) == (ceilings, steps)
    assert found["notes"] == ["Stopped early by request: what was not measured by then is missing."]


def test_no_time_at_all(stand_in):
    stand_in()
    found = measured(0.01)
    assert (found["ceilings"], found["steps"]) == ([], [])
    assert len(found["notes"]) == 4
    assert all(note.endswith(f": {UNREADY}.") for note in found["notes"])


def test_engines_have_their_own_precision_once(stand_in, monkeypatch):
    """bfloat16 is the plan's; of others there is float32 where that is asked for as well."""
    stand_in()
    low = Workload("mlp", (6, 6, 1), 8, "bfloat16")
    listener = Told()
    measured(workloads=(MLP, low), listener=listener)
    jobs = [stage.rpartition("float32, ")[2].rpartition("bfloat16, ")[2] for stage in listener.stages[2:]]
    assert jobs == ["plan", "reference", "plan"]
    listener = Told()
    measured(workloads=(low,), listener=listener)
    assert len(listener.stages) == 4


def test_for_real(monkeypatch):
    """Ceilings, and the mlp's step of two engines; nothing that steers a BLAS gets through to the process."""
    monkeypatch.setenv("OPENBLAS_CORETYPE", "nonsense")
    seen, environment = [], process.environment

    def remembered(threads):
        seen.append(environment(threads))
        return seen[-1]

    monkeypatch.setattr(process, "environment", remembered)
    found = measured(60.0, threads=1)
    (variables,) = seen
    assert "OPENBLAS_CORETYPE" not in variables
    assert variables["OMP_NUM_THREADS"] == "1"
    assert {"FMA float32", "L1 cache", "launch"} <= {one["name"] for one in found["ceilings"]}
    assert {one["threads"] for one in found["ceilings"]} == {1}
    assert [step["engine"] for step in found["steps"]][-1] == "reference"
    for step in found["steps"]:
        work = sum(one["flops"] for one in step["launches"])
        assert work == pytest.approx(8 * MLP.network().flops())
        assert any(one["share"] > 0 for one in step["launches"])


def test_a_workload_that_there_is_no_engine_for():
    """The process says why, and goes on."""
    found = measured(15.0, engines=("plan",), workloads=(Workload("mlp", (6, 6, 1), 8, "tf32"),), threads=1)
    (note,) = found["notes"]
    assert note.startswith("mlp, batch 8, tf32, plan: precision tf32: only the plan on a CUDA GPU computes in it")


def test_the_ceilings_of_a_gpu(monkeypatch):
    """What its kernels measure, and products by its library: a stand-in, of which nothing is computed."""
    from bareconv.bench.roofline import gemm
    from bareconv.bench.roofline.records import Ceiling
    from bareconv.plan.cuda import runtime

    class Gpu(CudaDevice):
        def __init__(self):
            self.name = "cuda:0"

        def activate(self):
            return contextlib.nullcontext()

        def reset_peak_memory(self):
            asked.append("reset")

    asked: list[str] = []
    monkeypatch.setattr(worker, "get_device", lambda name: Gpu())
    monkeypatch.setattr(runtime, "GpuRuntime", lambda device: device)
    measure = lambda runtime, effort: {"FFMA": Ceiling("FFMA", 1.0, "FLOP", "")}  # noqa: E731
    monkeypatch.setattr(cuda, "measure_ceilings", measure)
    product = lambda device, precision, *more: Ceiling(gemm.GEMM[precision], 1.0, "FLOP", "")  # noqa: E731
    monkeypatch.setattr(gemm, "matrix_product", product)
    found = worker.ceilings("cuda", 1, ["bfloat16", "float64"], 1.0, 0)
    assert [one["name"] for one in found["ceilings"]] == ["FFMA", "SGEMM", "DGEMM"]
    assert asked == ["reset"]

"""The roofline of a small step, with a CPU that stands in for a GPU: its parts, its arithmetic, its form."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from bench_stand_ins import tiny
from cuda_host import needs_compiler
from cuda_stand_in import StandIn
from gpu_stand_in import StandInGpu

from bareconv.bench import results, roofline
from bareconv.bench.deadline import Deadline
from bareconv.bench.roofline import Ceiling, cuda, steps
from bareconv.bench.roofline.cuda import CACHE, Effort
from bareconv.bench.roofline.records import LAUNCH, MEMORY
from bareconv.bench.workload import Workload
from bareconv.device import get_device
from bareconv.errors import UsageError
from bareconv.kernels.cuda import driver
from bareconv.kernels.cuda.kernel import Kernel
from bareconv.kernels.cuda.limits import GENERATIONS, H100, Limits
from bareconv.nn import models
from bareconv.optim import SGD
from bareconv.plan.cuda.plan import CudaPlan
from bareconv.plan.cuda.record import Recorded

SMALL = Limits("sm_90", 1, 232448, 1 << 18)
LITTLE = Effort(iterations=1, memory_bytes=1 << 16, passes=2, launches=4, warm_up=0.0)
GIVEN = {
    "FFMA": Ceiling("FFMA", 1e12, "FLOP", ""),
    "mma.sync tf32": Ceiling("mma.sync tf32", 2e12, "FLOP", ""),
    "mma.sync bf16": Ceiling("mma.sync bf16", 4e12, "FLOP", ""),
    MEMORY: Ceiling(MEMORY, 1e9, "byte", ""),
    CACHE: Ceiling(CACHE, 2e9, "byte", ""),
    LAUNCH: Ceiling(LAUNCH, 1e6, "launch", ""),
}


def kernel(flops: float, moved: float, precision: int = 2, source: str = "correlate.cu") -> Kernel:
    return Kernel(source, "it", (("PRECISION", precision),), (1, 1, 1), 32, 0, (), flops, moved)


HOPPERS = ["wgmma bf16"] if SMALL.capability == 90 else []


@needs_compiler
def test_ceilings():
    found = cuda.measure_ceilings(StandIn(SMALL), LITTLE)
    assert list(found) == ["FFMA", "mma.sync tf32", "mma.sync bf16", *HOPPERS, MEMORY, CACHE, LAUNCH]
    assert all(one.per_second > 0 and one.name == name for name, one in found.items())
    assert "MiB" in found[MEMORY].how
    assert "2 times in a launch" in found[CACHE].how
    old = cuda.measure_ceilings(StandIn(replace(GENERATIONS[0], multiprocessors=1, cache_bytes=1 << 18)), LITTLE)
    assert list(old) == ["FFMA", MEMORY, CACHE, LAUNCH]


def test_what_bounds_a_launch():
    runtime = StandIn(H100)
    half = H100.cache_bytes / 2
    assert cuda.least_seconds(kernel(4e12, 1.0), GIVEN, runtime) == ("mma.sync bf16", 1.0)
    assert cuda.least_seconds(kernel(4e12, 1.0, precision=1), GIVEN, runtime) == ("mma.sync tf32", 2.0)
    assert cuda.least_seconds(kernel(4e12, 1.0, source="head.cu"), GIVEN, runtime) == ("FFMA", 4.0)
    assert cuda.least_seconds(kernel(0.0, half), GIVEN, runtime) == (CACHE, half / 2e9)
    assert cuda.least_seconds(kernel(0.0, half + 1), GIVEN, runtime) == (MEMORY, (half + 1) / 1e9)
    group = replace(kernel(4e12, 1.0), specific=True)
    given = {**GIVEN, "wgmma bf16": Ceiling("wgmma bf16", 8e12, "FLOP", "")}
    assert cuda.least_seconds(group, given, runtime) == ("wgmma bf16", 0.5)
    turing = StandIn(GENERATIONS[0])
    assert cuda.least_seconds(kernel(4e12, 1.0), GIVEN, turing) == ("FFMA", 4.0)


@needs_compiler
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step(precision):
    workload = Workload("small", (8, 8, 1), 4, precision)
    step = cuda.measure_step(workload, get_device("cpu"), GIVEN, StandIn(SMALL), repeats=1, steps=1)
    assert (step["model"], step["batch_size"], step["precision"]) == ("small", 4, precision)
    assert step["step_seconds"] > 0
    every = step["launches"]
    operations = {one["operation"] for one in every}
    assert operations >= {"forward", "update"}
    assert any("dX" in what for what in operations)
    assert any("dW" in what for what in operations)
    known, found = step["memory"]["predicted"], step["memory"]["measured"]
    assert {name: found[name] for name in known} == known
    assert known["parameters"] == known["optimizer"] == 4 * workload.network().body.parameter_count()
    assert known["data"] == 2048 * (64 + 4)
    assert {one["phase"] for one in every} == {"forward", "backward", "update"}
    for one in every:
        assert one["share"] == pytest.approx(one["least_seconds"] / one["seconds"])
        assert one["ceiling"] in GIVEN
    # A convolution of 8 x 8 x 1 to 16 and one of 4 x 4 x 16 to 32, 3 x 3 each, and a dense layer: all of it is there.
    forward = sum(one["flops"] for one in every if one["phase"] == "forward")
    assert forward >= 2 * 4 * (64 * 9 * 16 + 16 * 9 * 16 * 32)
    made = roofline.groups(step)
    assert sum(group.launches for group in made) == len(every)
    assert sum(group.seconds for group in made) == pytest.approx(sum(one["seconds"] for one in every))
    assert [group.seconds for group in made] == sorted((group.seconds for group in made), reverse=True)
    record = roofline.record(get_device("cpu"), GIVEN, [step])
    results.validate(json.loads(json.dumps(results.new("it", {}, rooflines=[record]))))
    text = roofline.table(record)
    assert f"small, batch 4, {precision}: " in text
    assert "memory 1.00 GB/s" in text
    assert len(text.splitlines()) == 2 + len(made)


@needs_compiler
def test_a_step_by_a_deadline():
    """When it has passed, as few steps and launches as there can be."""
    timed = []

    class Counting(StandIn):
        def time(self, launch, repeats):
            timed.append(repeats)
            return super().time(launch, repeats)

    runtime = Counting(SMALL)
    passed = Deadline(0.0, lambda: 1.0)
    step = cuda.measure_step(Workload("mlp", (4, 4, 1), 4), get_device("cpu"), GIVEN, runtime, deadline=passed)
    assert set(timed) == {2}
    assert step["step_seconds"] > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [models.mlp, models.lenet5, models.basic, tiny])
def test_what_launches_are_for(make, precision):
    """Of every weight there is a gradient; whatever makes a gradient of its input is dX; nothing is other."""
    optimizer = SGD(0.01, momentum=0.9)
    plan = CudaPlan(make(), optimizer, 64, precision=precision, runtime=StandIn(H100))
    items = [item for item in plan._lowered(64, True).record.items if isinstance(item, Recorded)]
    found = {cuda.operation_of(item) for item in items}
    assert found >= {"forward", "update"}
    assert "other" not in found
    for item in items:
        written = [name for name, place in item.operands.items() if place is not None]
        what = cuda.operation_of(item)
        if item.phase == "backward":
            passed_on = item.kernel.name in ("stem_backward_a", "copy", "add")
            assert ("dX" in what) == (passed_on or "dx" in written), item.kernel.name
            weights = [name for name in written if "partial" in name or name in ("parts", "dgamma") or "state1" in name]
            assert ("dW" in what) == bool(weights), item.kernel.name


def test_the_reference_on_a_gpu(monkeypatch):
    """Layer by layer through the device's marks, beside what a GPU's units do; a stand-in computes."""
    device = StandInGpu()
    monkeypatch.setattr(driver, "device_limits", lambda index: H100)
    ceilings = [*GIVEN.values(), Ceiling("DGEMM", 5e11, "FLOP", "")]
    workload = Workload("lenet5", (28, 28, 1), 8)
    step = steps.measure_step(workload, "reference", device, ceilings, Deadline(0.0, lambda: 1.0), least=1)
    assert (step["engine"], step["precision"]) == ("reference", "float32")
    parts = {(one["node"], one["operation"]): one for one in step["launches"]}
    # 31 MFLOP at 1 TFLOP/s take less than 0.2 MB at 2 GB/s, which half of the cache holds.
    assert parts["conv2", "dW"]["ceiling"] == CACHE
    assert parts["conv2", "dW"]["least_seconds"] == parts["conv2", "dW"]["bytes"] / 2e9
    assert {one["ceiling"] for one in step["launches"]} <= {"FFMA", CACHE, "none"}
    assert sum(one["flops"] for one in step["launches"]) == 8 * workload.network().flops()
    double = steps.measure_step(
        Workload("lenet5", (28, 28, 1), 8, "float64"), "reference", device, ceilings, Deadline(0.0, lambda: 1.0), 1
    )
    assert cuda.roof({one.name: one for one in ceilings}, H100).bound("float64", 5e11, 0) == ("DGEMM", 1.0)
    assert double["precision"] == "float64"


@needs_compiler
def test_a_step_that_is_no_graph(monkeypatch):
    monkeypatch.setattr("bareconv.plan.cuda.plan.CudaPlan.why_not_captured", "a reason")
    with pytest.raises(UsageError, match="small, batch 4: a step is no graph: a reason"):
        cuda.measure_step(Workload("small", (8, 8, 1), 4), get_device("cpu"), GIVEN, StandIn(SMALL))


@pytest.mark.cuda
def test_on_a_gpu():
    """Ceilings that a GPU can have, and a step below them."""
    from bareconv.device import CudaDevice
    from bareconv.plan.cuda.runtime import GpuRuntime

    device = get_device("cuda")
    assert isinstance(device, CudaDevice)
    with device.activate():
        ceilings = cuda.measure_ceilings(GpuRuntime(device), Effort(warm_up=0.05))
    assert ceilings["FFMA"].per_second > 1e12
    assert ceilings[CACHE].per_second > ceilings[MEMORY].per_second > 1e11
    step = cuda.measure_step(Workload("basic", (28, 28, 1), 256, "bfloat16"), device, ceilings)
    assert all(0 < one["share"] < 1.5 for one in step["launches"])


def test_a_row_of_steps_is_long_enough_though_the_time_be_up():
    """What a row takes beside its steps would else count as theirs."""
    none, much = Deadline(0.0, lambda: 1.0), Deadline(1e6, lambda: 0.0)
    assert cuda._within(none, 1e-3, 1024, 50) == (50, 2)
    assert cuda._within(none, 1e-3, 20, 50) == (20, 2)  # of an epoch that has no more
    assert cuda._within(much, 1e-3, 1024, 50) == (1024, 50)

"""Ceilings of a CPU, what bounds a part, and steps on it taken apart: against work that was counted by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from bench_stand_ins import tiny

from bareconv import host, nn
from bareconv.bench import results
from bareconv.bench.deadline import Deadline
from bareconv.bench.roofline import Ceiling, by_operation, cpu, groups, memory, record, remarks, table
from bareconv.bench.roofline.gemm import matrix_product
from bareconv.bench.roofline.layers import measure_reference, measure_tuned
from bareconv.bench.roofline.pace import Pace, alternate
from bareconv.bench.roofline.plan import measure_plan
from bareconv.bench.roofline.records import MEMORY, NONE, NOT_MEASURED, Roof
from bareconv.bench.roofline.steps import measure_step
from bareconv.bench.workload import Workload
from bareconv.device import CpuDevice, get_device
from bareconv.nn import models
from bareconv.optim import SGD
from bareconv.training import Settings, Trainer, why_no_plan

planned = pytest.mark.skipif(why_no_plan() is not None, reason="there is no plan on this machine")

LITTLE = cpu.CpuEffort(seconds=0.001, gemm_sizes=(16, 32), memory_bytes=1 << 19)
CACHES = [host.Cache(1, 1 << 14, 1), host.Cache(2, 1 << 16, 1), host.Cache(3, 1 << 17, 2)]
GIVEN = [
    Ceiling("FMA float32", 1e9, "FLOP", "", 1),
    Ceiling("L1 cache", 4e9, "byte", "", 1),
    Ceiling("L2 cache", 2e9, "byte", "", 1),
    Ceiling(MEMORY, 1e9, "byte", "", 1),
    Ceiling("launch", 1e6, "launch", "", 1),
    Ceiling("FMA float32", 7e9, "FLOP", "", 2),
]
QUICK = Pace(Deadline(0.0, lambda: 1.0), least=1)  # it has passed


@pytest.fixture
def caches(monkeypatch):
    monkeypatch.setattr(host, "caches", lambda: CACHES)
    monkeypatch.setattr(host, "affinity_cores", lambda: 2)


@pytest.fixture
def trainer_of(digits):
    def make(model="lenet5", device="cpu", batch_size=8, **more):
        model = models.by_name(model, (28, 28, 1)) if isinstance(model, str) else model
        settings = Settings(batch_size=batch_size, **{"engine": "reference", "threads": 1, **more})
        return Trainer(model, digits.take(40), SGD(0.01, momentum=0.9), settings, device)

    return make


def roof(caches=((("L1 cache"), 1 << 14), ("L2 cache", 1 << 20))):
    return Roof({one.name: one for one in GIVEN if one.threads == 1}, {"float32": "FMA float32"}, caches)


# Ceilings


@planned
def test_ceilings(caches):
    found = list(cpu.measure_ceilings(2, ["float32", "float64"], LITTLE))
    names = ["FMA float32", "FMA float64", "L1 cache", "L2 cache", "L3 cache", MEMORY, "launch", "SGEMM", "DGEMM"]
    assert [one.name for one in found] == names
    assert all(one.per_second > 0 and one.threads == 2 for one in found)
    by_name = {one.name: one for one in found}
    assert "8.00 KiB a thread" in by_name["L1 cache"].how  # half of it is filled
    assert "256 KiB a thread, 4 times the last cache" in by_name[MEMORY].how
    assert "16 x 16" in by_name["SGEMM"].how or "32 x 32" in by_name["SGEMM"].how
    results.validate(results.new("it", {}, rooflines=[record(get_device("cpu"), found, [], threads=2)]))


@planned
def test_memory_that_the_last_cache_would_hold(caches):
    """With little memory to go through, the ceiling says that it may be the cache's; with less, there is none."""

    def of_memory(most):
        effort = cpu.CpuEffort(0.001, (16,), most)
        return [one.how for one in cpu.measure_ceilings(1, [], effort) if one.name == MEMORY]

    (how,) = of_memory(100 << 10)
    assert "no more than the last cache of 128 KiB holds" in how
    assert of_memory(64 << 10) == []  # as much as is to stay in the last cache


def test_ceilings_without_a_compiler(caches, monkeypatch):
    monkeypatch.setattr(cpu, "why_no_plan", lambda: "a reason")
    found = {one.name: one for one in cpu.measure_ceilings(2, ["float32"], LITTLE)}
    assert list(found) == [MEMORY, "SGEMM"]
    assert "NumPy's copy of 256 KiB, 4 times the last cache" in found[MEMORY].how
    assert cpu.roof(found.values(), 2).units["float32"] == "SGEMM"


def test_matrix_products_are_by_the_devices_clock():
    class Slow(CpuDevice):
        def seconds_between(self, marks):
            return [0.5 for _ in itertools.pairwise(marks)]

    found = matrix_product(Slow(), "float64", (8,), 0.0)
    assert (found.name, found.per_second) == ("DGEMM", 2 * 8**3 / 0.5)


@pytest.mark.parametrize(
    ("most", "counts"), [(1, [1]), (2, [2, 1]), (3, [3, 1, 2]), (8, [8, 1, 2, 4]), (12, [12, 1, 2, 4, 8])]
)
def test_thread_counts(most, counts):
    assert cpu.thread_counts(most) == counts


# What bounds


def test_what_bounds_a_part(caches):
    """Half of a cache holds what is used together: 8 KiB of the first, 512 KiB of the second."""
    given = roof()
    assert given.bound("float32", 2e9, 1.0) == ("FMA float32", 2.0)
    assert given.bound("float32", 1.0, 8192.0) == ("L1 cache", 8192 / 4e9)
    assert given.bound("float32", 1.0, 8193.0) == ("L2 cache", 8193 / 2e9)
    assert given.bound("float32", 1.0, 1e6, together=1000.0) == ("L1 cache", 1e6 / 4e9)
    assert given.bound("float32", 1.0, 1e6) == (MEMORY, 1e6 / 1e9)
    assert given.bound("float32", 0.0, 0.0) == (NONE, 0.0)
    assert given.bound("float64", 1e9, 0.0) == (NOT_MEASURED, 0.0)
    assert given.start() == ("launch", 1e-6)
    # A cache that was not measured bounds nothing, rather than memory, which is slower.
    assert roof([("L0 cache", 1 << 30)]).bound("float32", 0.0, 100.0) == (NOT_MEASURED, 0.0)
    found = cpu.roof(GIVEN, 2)
    assert found.ceilings["FMA float32"].per_second == 7e9
    assert list(found.caches) == [("L1 cache", 2.0**15), ("L2 cache", 2.0**17), ("L3 cache", 2.0**17)]


# Pace


def test_steps_with_and_without_marks_take_turns():
    now, taken = [0.0], []

    def take(kind, seconds):
        def step(number):
            taken.append((kind, number))
            now[0] += seconds
            return seconds

        return step

    warmed = []
    pace = Pace(Deadline.after(100.0, lambda: now[0]), least=1)
    times = alternate(take("plain", 4.0), take("marked", 5.0), 7, pace, lambda: warmed.append(len(taken)))
    assert times == {"step_seconds": 4.0, "marked_seconds": 5.0, "marks_cost": pytest.approx(0.25)}
    assert warmed == [6]  # three pairs: a fifth of the time
    assert [number for _, number in taken] == [i % 7 for i in range(len(taken))]
    kinds = [kind for kind, _ in taken[6:]]
    assert kinds[:4] == ["plain", "marked", "marked", "plain"]
    assert 100 <= now[0] < 110


def test_many_short_steps_are_enough():
    now = [0.0]

    def step(number):
        now[0] += 0.001
        return 0.001

    pace = Pace(Deadline.after(100.0, lambda: now[0]))
    assert alternate(step, lambda number: step(number), 7, pace, lambda: None)["marks_cost"] == 0
    assert 1 <= now[0] < 1.1


def test_marks_that_cost_much_are_told():
    step = {"model": "mlp", "batch_size": 8, "precision": "float32", "launches": []}
    found = {
        "device": "cpu",
        "steps": [{**step, "marks_cost": 0.31}, {**step, "marks_cost": 0.09}],
        "notes": ["A note."],
    }
    assert remarks(found) == [
        "A note.",
        "mlp, batch 8, float32, on cpu: to time its parts made the step 31% slower, so that their times are not to be "
        "trusted.",
    ]


# Steps


class Ticking(CpuDevice):
    """Its clock moves by 1 s from mark to mark."""

    def __init__(self):
        super().__init__()
        self.marks = 0

    def mark(self):
        self.marks += 1
        return self.marks

    def seconds_between(self, marks):
        return [float(later - earlier) for earlier, later in itertools.pairwise(marks)]


def test_the_reference_part_by_part(trainer_of):
    """lenet5 on 8 images: each part one tick; its work by hand."""
    trainer = trainer_of(device=Ticking())
    found = measure_reference(trainer, roof(), QUICK)
    launches = found["launches"]
    parts = {(one["node"], one["operation"]): one for one in launches}
    assert {one["seconds"] for one in launches} == {1.0}
    assert found["step_seconds"] == 1.0
    weighted = ["conv1", "conv2", "dense1", "dense2", "dense3"]
    assert [node for node, what in parts if what == "dW"] == weighted[::-1]
    assert [node for node, what in parts if what == "dX" and node in weighted] == weighted[:0:-1]
    assert [one["operation"] for one in launches if one["node"] in ("images", "parameters")] == ["batch", "update"]
    # Everything but what no backward is needed of: conv1 has a dW and no dX, and nothing is before it.
    assert found["marked_seconds"] == len(launches) + 1

    assert parts["conv2", "dX"]["flops"] == parts["conv2", "forward"]["flops"] == 8 * 2 * 100 * 16 * 150
    assert parts["dense3", "dW"]["flops"] == 8 * 2 * 84 * 10
    assert math.fsum(one["flops"] for one in launches) == 8 * trainer.model.flops()
    assert parts["conv1", "forward"]["bytes"] == 4 * (8 * (784 + 784 * 6) + 156)
    assert parts["conv1", "dW"]["bytes"] == 4 * (8 * (784 + 784 * 6) + 156)
    assert parts["relu1", "forward"]["bytes"] == 4 * 8 * 2 * 784 * 6
    assert parts["relu1", "dX"]["bytes"] == 4 * 8 * 3 * 784 * 6
    assert parts["pool1", "forward"]["bytes"] == 8 * (4 * (784 + 196) * 6 + 196 * 6)
    assert parts["flatten1", "forward"]["bytes"] == 0
    assert parts["loss", "dX"]["bytes"] == 4 * 8 * 20
    assert parts["images", "batch"]["bytes"] == 8 * 784 * 5
    weights = trainer.model.body.parameter_count()
    assert parts["parameters", "update"]["bytes"] == 4 * 5 * weights  # gradient; weight and velocity, read and written
    conv = parts["conv2", "forward"]
    assert (conv["ceiling"], conv["least_seconds"]) == ("FMA float32", conv["flops"] / 1e9)
    assert conv["share"] == conv["least_seconds"] / conv["seconds"]


def test_batch_norms_and_sums(trainer_of):
    """A batch norm's backward is one; a sum reads two arrays and writes one."""
    found = measure_reference(trainer_of(tiny((28, 28, 1)), device=Ticking()), roof(), QUICK)
    parts = {(one["node"], one["operation"]): one for one in found["launches"]}
    numbers = 8 * 26 * 26 * 4
    assert parts["norm1", "forward"]["bytes"] == 4 * (2 * numbers + 8)
    assert parts["norm1", "dX + dW"]["bytes"] == 4 * (3 * numbers + 12)
    assert parts["residual1.add", "forward"]["bytes"] == 3 * 4 * 8 * 13 * 13 * 6


@planned
def test_the_plan_call_by_call(trainer_of):
    """lenet5 on 8 images: its work by hand, whichever kernels there are; the parts add up to a step."""
    trainer = trainer_of(engine="plan")
    before = memory.predicted(trainer)
    assert trainer.optimizer.step == 0
    found = measure_plan(trainer, trainer.engine, roof(), QUICK)
    trainer.engine.plan.close()
    launches = found["launches"]
    assert math.fsum(one["seconds"] for one in launches) == pytest.approx(found["marked_seconds"])
    assert all(one["seconds"] > 0 for one in launches if one["phase"] in ("forward", "backward", "update"))
    assert math.fsum(one["flops"] for one in launches) == pytest.approx(8 * trainer.model.flops(), rel=1e-12)
    parts = {(one.node, one.operation): one for one in by_operation({"launches": launches})}
    conv1, conv2 = "conv1 + relu1 + pool1", "conv2 + relu2 + pool2"
    assert parts[conv1, "forward"].flops == 8 * 2 * 784 * 6 * 25
    assert parts[conv1, "forward"].bytes == 8 * (4 * 784 + 5 * 196 * 6) + 4 * (150 + 6)
    assert sum(one.flops for (node, _), one in parts.items() if node == conv2) == 3 * 8 * 2 * 100 * 16 * 150
    assert not any(one.flops for (node, what), one in parts.items() if node == conv1 and what == "dX")
    assert parts["dense1 + relu3", "dW + update"].flops == 8 * 2 * 400 * 120
    # The inputs, the gradient, and weights with their velocity, read and written.
    assert parts["dense1 + relu3", "dW + update"].bytes == 4 * (8 * (400 + 120) + 4 * 400 * 120)
    assert parts["images", "batch"].bytes == 8 * 784 * 5
    assert {"waiting", "rest"} <= set(parts["between layers", "other"].kernels)
    assert {what for _, what in parts} >= {"batch", "forward", "dX", "dW", "update", "other"}
    for one in launches:
        assert one["share"] == (one["least_seconds"] / one["seconds"] if one["seconds"] else 0)
    after = memory.measured(trainer, 10**9)
    assert {name: after[name] for name in before} == before
    assert sum(after.values()) == 10**9


@planned
def test_clocks_change_nothing(trainer_of):
    """With and without them the same losses; without, none of the calls' times moves."""
    trainers = [trainer_of(engine="plan") for _ in range(2)]
    plan = trainers[1].engine.plan
    losses = []
    for number, trainer in enumerate(trainers):
        trainer.engine.plan.time_calls(number == 0)
        trainer.engine.plan.clear_times()
        losses.append([float(trainer.train_step(step)[0]) for step in range(3)])
    assert losses[0] == losses[1]
    assert sum(plan.seconds()) == 0 < sum(trainers[0].engine.plan.seconds())
    plan.time_calls(True)
    trainers[1].train_step(3)
    assert len(plan.seconds()) == len(plan.explain().rows) + 1
    assert sum(plan.seconds()) > 0
    for trainer in trainers:
        trainer.engine.plan.close()


@planned
def test_what_a_kernel_does_otherwise_is_said(trainer_of):
    """What is skipped, because a relu or a pool stopped it, counts nevertheless; how much is executed is in ``how``."""
    trainer = trainer_of(engine="plan")
    found = measure_plan(trainer, trainer.engine, roof(), QUICK)
    trainer.engine.plan.close()
    (sparse,) = [one for one in found["launches"] if one["kernel"] == "SparseBackward"]
    assert sparse["operation"] == "dX + dW"
    assert sparse["flops"] == 2 * 8 * 2 * 100 * 16 * 150
    assert sparse["how"].endswith("; executes 12% of these operations")  # half of the pooled pixels, a quarter of all


@planned
def test_what_has_no_kernel_is_a_part_as_well(trainer_of):
    layers = [nn.Conv2d(4, 3), nn.Conv2d(8, 3, groups=2), nn.GELU(), nn.Flatten(), nn.Dense(10)]
    trainer = trainer_of(nn.Model(layers, (28, 28, 1)), engine="plan")
    found = measure_plan(trainer, trainer.engine, roof(), QUICK)
    trainer.engine.plan.close()
    parts = {(one["node"], one["operation"]): one for one in found["launches"] if one["kernel"] == "Python"}
    assert set(parts) == {(name, what) for name in ("conv2", "gelu1") for what in ("forward", "dX + dW")}
    assert all(one["seconds"] > 0 for one in parts.values())
    work = 8 * 2 * 24 * 24 * 8 * 18
    assert (parts["conv2", "forward"]["flops"], parts["conv2", "dX + dW"]["flops"]) == (work, 2 * work)
    assert math.fsum(one["flops"] for one in found["launches"]) == pytest.approx(8 * trainer.model.flops(), rel=1e-12)


@pytest.mark.parametrize("make", [lambda: "mlp", lambda: tiny((28, 28, 1))], ids=["mlp", "tiny"])
@pytest.mark.parametrize("engine", ["plan", "reference"])
def test_all_of_the_formulas_work_is_there(trainer_of, make, engine):
    trainer = trainer_of(make(), engine=engine)
    if engine == "plan":
        if why_no_plan() is not None:
            pytest.skip("there is no plan on this machine")
        found = measure_plan(trainer, trainer.engine, roof(), QUICK)
        trainer.engine.plan.close()
    else:
        found = measure_reference(trainer, roof(), QUICK)
    assert math.fsum(one["flops"] for one in found["launches"]) == pytest.approx(8 * trainer.model.flops(), rel=1e-12)


def test_the_tuned_engine(trainer_of):
    trainer = trainer_of(engine="tuned", device=Ticking())
    found = measure_tuned(trainer, trainer.engine, roof(), QUICK)
    assert [(one["node"], one["seconds"]) for one in found["launches"]] == [
        ("images", 1.0),
        ("all layers", 1.0),
        ("parameters", 1.0),
    ]
    assert found["launches"][1]["flops"] == 8 * trainer.model.flops()


# Memory


@pytest.mark.parametrize("model", [lambda: models.lenet5(), lambda: tiny((28, 28, 1))], ids=["lenet5", "tiny"])
@pytest.mark.parametrize("engine", ["reference", "tuned"])
def test_memory_is_predicted_from_one_and_two_images(trainer_of, model, engine):
    """Exactly what is found after steps; running statistics stay as they were."""
    trainer = trainer_of(model(), engine=engine)
    statistics = {name: array.copy() for name, array in trainer.model.buffers().items()}
    before = memory.predicted(trainer)
    for name, array in trainer.model.buffers().items():
        np.testing.assert_array_equal(array, statistics[name])
    for step in range(2):
        trainer.train_step(step)
    after = memory.measured(trainer, 10**9)
    assert {name: after[name] for name in before} == before


# All of it


@pytest.mark.parametrize("engine", ["plan", "reference"])
def test_a_step(engine):
    """What is measured fits the schema; marks cost little, or the record says so."""
    ceilings = [Ceiling(**{**vars(one), "threads": 1}) for one in GIVEN[:5]]
    workload = Workload("mlp", (8, 8, 1), 8)
    step = measure_step(workload, engine, get_device("cpu"), ceilings, Deadline.after(0.3))
    assert (step["model"], step["batch_size"], step["precision"]) == ("mlp", 8, "float32")
    found = record(get_device("cpu"), ceilings, [step], threads=1)
    results.validate(results.new("it", {}, rooflines=[found]))
    assert step["marks_cost"] == pytest.approx(step["marked_seconds"] / step["step_seconds"] - 1)
    assert step["marks_cost"] < 0.1 or any("not to be trusted" in text for text in remarks(found))
    held = step["memory"]["measured"]
    assert held["parameters"] == held["optimizer"] == 4 * workload.network().body.parameter_count()
    assert step["memory"]["predicted"]["data"] == held["data"] == 2048 * (64 + 4)
    title = f"mlp, batch 8, float32{'' if step['engine'] == 'plan' else ', reference'}: "
    assert title in table(found)
    assert sum(group.launches for group in groups(step)) == len(step["launches"])

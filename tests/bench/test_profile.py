"""Profiles and memory of the reference: against a clock and a model of which everything is known; and of the others."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from bareconv import nn
from bareconv.bench.profile import WARM_UP, _rest, memory, profile, remark
from bareconv.device import CpuDevice
from bareconv.nn import models
from bareconv.optim import SGD, Adam, RMSprop
from bareconv.training import ENGINES, Settings, Trainer, why_no_plan

LENET5 = ["conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "flatten1"]
LENET5 += ["dense1", "relu3", "dense2", "relu4", "dense3", "loss"]


@pytest.fixture
def trainer_of(digits):
    def make(model="lenet5", device="cpu", batch_size=20, images=50, optimizer=None, precision="float32", **more):
        model = models.by_name(model, (28, 28, 1), 10, 0) if isinstance(model, str) else model
        settings = Settings(batch_size=batch_size, precision=precision, **{"engine": "reference", **more})
        return Trainer(model, digits.take(images, 30), optimizer or SGD(0.05, momentum=0.9), settings, device)

    return make


class Ticking(CpuDevice):
    """Its clock moves by 1 s from mark to mark in the first profiled step, by 10 s in the second, ..."""

    def __init__(self, *ticks):
        super().__init__()
        self.ticks, self.marks, self.waits = list(ticks), 0, 0

    def mark(self):
        self.marks += 1
        return self.marks

    def synchronize(self):
        self.waits += 1

    def seconds_between(self, marks):
        tick = self.ticks.pop(0)
        return [tick * (later - earlier) for earlier, later in itertools.pairwise(marks)]


def test_operations_are_the_layers_and_the_loss(trainer_of, device):
    phases, operations = profile(trainer_of(device=device), 2)
    assert [operation["name"] for operation in operations] == LENET5
    assert operations[0]["type"] == "Conv2d"
    assert operations[-1]["type"] == "SoftmaxCrossEntropy"
    assert [operation["output_shape"] for operation in operations[:3]] == [[28, 28, 6], [28, 28, 6], [14, 14, 6]]
    assert phases["profiled_steps"] == 2
    assert all(phases[name] > 0 for name in ("batch", "forward", "backward", "update"))
    assert all(operation["forward_seconds"] > 0 for operation in operations)
    assert all(operation["backward_seconds"] > 0 for operation in operations)


def test_phases_hold_their_operations(trainer_of, device):
    """Of a single step, nothing is in two places; what is in none, the counting of hits, is little."""
    phases, operations = profile(trainer_of(device=device), 1)
    for phase in ("forward", "backward"):
        total = sum(operation[f"{phase}_seconds"] for operation in operations)
        assert 0 < total <= phases[phase] * (1 + 1e-9)


def test_every_interval_goes_where_it_belongs(trainer_of):
    """Each operation one tick; forward has one more for the hits, backward one for what follows the last layer."""
    device = Ticking(1.0)
    phases, operations = profile(trainer_of(device=device), 1)
    assert phases == {"batch": 1, "forward": 14, "backward": 14, "update": 1, "profiled_steps": 1}
    assert {operation["forward_seconds"] for operation in operations} == {1}
    assert {operation["backward_seconds"] for operation in operations} == {1}
    assert device.waits >= WARM_UP


def test_medians_of_the_steps_after_the_warm_up(trainer_of):
    device = Ticking(1.0, 1000.0, 10.0)
    phases, operations = profile(trainer_of(device=device), 3)
    assert phases["batch"] == phases["update"] == 10
    assert operations[4]["forward_seconds"] == 10
    assert device.ticks == []


def test_layers_below_the_first_weights_have_no_backward(trainer_of):
    """mlp begins with a flatten: nothing below needs a gradient."""
    _, operations = profile(trainer_of("mlp", Ticking(1.0)), 1)
    assert [(o["name"], o["backward_seconds"]) for o in operations] == [
        ("flatten1", 0),
        ("dense1", 1),
        ("relu1", 1),
        ("dense2", 1),
        ("loss", 1),
    ]


def test_flops_by_hand(trainer_of):
    """Multiply-adds count two; dW as much as forward; dX as much again, but not of the first layer with weights."""
    trainer = trainer_of(batch_size=20)
    _, operations = profile(trainer, 1)
    work = {
        "conv1": 28 * 28 * 6 * 25,
        "conv2": 10 * 10 * 16 * 25 * 6,
        "dense1": 400 * 120,
        "dense2": 120 * 84,
        "dense3": 84 * 10,
    }
    for operation in operations:
        name = operation["name"]
        assert operation["forward_flops"] == 2 * 20 * work.get(name, 0)
        assert operation["backward_flops"] == 2 * 20 * work.get(name, 0) * (1 if name == "conv1" else 2)
    total = sum(operation["forward_flops"] + operation["backward_flops"] for operation in operations)
    assert total == 20 * trainer.model.flops()


def test_flops_of_grouped_strided_convolutions(trainer_of):
    """conv2: 4 groups of 2 channels to 2, on every other pixel: 13 x 13 x 8 outputs of 9 x 2 taps."""
    layers = [nn.Conv2d(8, 3), nn.Conv2d(8, 3, stride=2, padding=1, groups=4), nn.Flatten(), nn.Dense(10)]
    _, operations = profile(trainer_of(nn.Model(layers, (28, 28, 1))), 1)
    conv2 = operations[1]
    assert conv2["output_shape"] == [13, 13, 8]
    assert conv2["forward_flops"] == 20 * 2 * 13 * 13 * 8 * 18
    assert conv2["backward_flops"] == 2 * conv2["forward_flops"]


def test_shortcuts_and_sums_are_told_apart(trainer_of):
    layers = [
        nn.Conv2d(4, 3, stride=2),
        nn.Residual(nn.Conv2d(4, 3, padding=1), nn.Conv2d(4, 1)),
        nn.GlobalAvgPool(),
        nn.Dense(10),
    ]
    phases, operations = profile(trainer_of(nn.Model(layers, (28, 28, 1)), Ticking(1.0)), 1)
    names = ["conv1", "residual1.shortcut", "residual1.body", "residual1.add", "globalavg1", "dense1", "loss"]
    assert [operation["name"] for operation in operations] == names
    assert {operation["backward_seconds"] for operation in operations} == {1}
    assert phases["forward"] == 8


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", [lambda: SGD(0.1), lambda: SGD(0.1, momentum=0.9), lambda: Adam(0.1)])
def test_parameters_stay_as_they_are(trainer_of, rule, device, engine):
    trainer = trainer_of("mlp", device, optimizer=rule(), engine=engine)
    trainer.run()
    before = {key: device.to_host(value).copy() for key, value in trainer.model.parameters().items()}
    loss, seconds = list(trainer.history.loss), trainer.history.train_seconds
    profile(trainer, 3)
    memory(trainer, 0)
    for key, value in trainer.model.parameters().items():
        np.testing.assert_array_equal(device.to_host(value), before[key], key)
    assert trainer.history.loss == loss
    assert trainer.history.train_seconds == seconds


@pytest.mark.parametrize(("precision", "size"), [("float32", 4), ("float64", 8)])
def test_memory_by_hand(trainer_of, precision, size, device):
    """lenet5 on a batch of 20. For backward a conv keeps its im2col matrix, a relu its output, a pool a byte for each
    window, a dense its input: that of the first is the second pool's output, the others' are the relus' outputs."""
    trainer = trainer_of(device=device, optimizer=Adam(0.01), precision=precision)
    trainer.run()
    parts = memory(trainer, 10**9)
    parameters = 25 * 6 + 6 + 150 * 16 + 16 + 400 * 120 + 120 + 120 * 84 + 84 + 84 * 10 + 10
    assert parts["parameters"] == parts["gradients"] == parameters * size
    assert parts["optimizer"] == 2 * parameters * size
    convs = 28 * 28 * 25 + 10 * 10 * 150
    relus = 28 * 28 * 6 + 10 * 10 * 16 + 120 + 84
    windows = 14 * 14 * 6 + 5 * 5 * 16
    assert parts["activations"] == 20 * ((convs + relus + 5 * 5 * 16) * size + windows)
    assert parts["data"] == 50 * (784 + 4) + 30 * 784
    assert parts["overhead"] == 10**9 - sum(value for key, value in parts.items() if key != "overhead")
    assert sum(parts.values()) == 10**9


def test_memory_counts_buffers_and_the_prepared_batch(trainer_of):
    """Full batch: the images once as bytes, once as floats. Running statistics are part of the model."""
    layers = [nn.Flatten(), nn.BatchNorm(), nn.Dense(10)]
    parts = memory(trainer_of(nn.Model(layers, (28, 28, 1)), batch_size=50, optimizer=SGD(0.1)), 0)
    assert parts["parameters"] == 4 * (2 * 784 + 2 * 784 + 7840 + 10)
    assert parts["gradients"] == 4 * (2 * 784 + 7840 + 10)
    assert parts["optimizer"] == 0
    assert parts["data"] == 50 * (784 + 4) + 30 * 784 + 50 * 784 * 4
    assert parts["activations"] == 4 * (50 * 784 + 784 + 50 * 784)  # xhat, 1 / deviation; the dense's input
    assert parts["overhead"] == 0  # never below


def test_a_prepared_batch_that_a_layer_keeps_counts_once(trainer_of):
    """Full batch: the first dense keeps a view of the prepared images, which are data already."""
    layers = [nn.Flatten(), nn.Dense(10), nn.ReLU(), nn.Dense(10)]
    parts = memory(trainer_of(nn.Model(layers, (28, 28, 1)), batch_size=50, optimizer=SGD(0.1)), 0)
    assert parts["data"] == 50 * (784 + 4) + 30 * 784 + 50 * 784 * 4
    assert parts["activations"] == 4 * 50 * 10  # the relu's output, which the second dense keeps too


# --- The other engines ------------------------------------------------------------------------------------------------

planned = pytest.mark.skipif(why_no_plan() is not None, reason="there is no plan on this machine")


@planned
def test_a_plans_operations_are_what_runs_as_one(trainer_of):
    """Names are those of the layers, in their order; pixels are the batch's, and updates nobody's."""
    phases, operations = profile(trainer_of(engine="plan"), 2)
    names = ["conv1 + relu1 + pool1", "conv2 + relu2 + pool2", "dense1 + relu3", "dense2 + relu4", "dense3", "loss"]
    assert [operation["name"] for operation in operations] == names
    assert operations[0]["type"] == "Conv2d + ReLU + MaxPool2d"
    assert operations[-1]["type"] == "SoftmaxCrossEntropy"
    assert [operation["output_shape"] for operation in operations[:3]] == [[14, 14, 6], [5, 5, 16], [120]]
    assert all(operation["forward_seconds"] > 0 for operation in operations)
    assert all(operation["backward_seconds"] > 0 for operation in operations[:-1])
    assert operations[0]["forward_flops"] == 20 * 2 * 28 * 28 * 6 * 25
    assert phases["profiled_steps"] == 2


@planned
def test_a_plans_phases_are_a_step(trainer_of, monkeypatch):
    """Phases hold their operations, and with what is left over they are the median step, by the clock."""
    ticks = iter([0.0, 0.1] * WARM_UP + [0.0, 3.0, 0.0, 9.0, 0.0, 2.0])
    trainer = trainer_of(engine="plan")
    trainer.engine.prepare()
    monkeypatch.setattr("bareconv.bench.profile.time.perf_counter", lambda: next(ticks))
    explain = trainer.engine.plan.explain

    def explained():
        """As if its calls had taken 11.2 of the 14 s."""
        found = explain()
        share = 11.2 / sum(row.seconds for row in found.rows)
        rows = tuple(dataclasses.replace(row, seconds=row.seconds * share) for row in found.rows)
        return dataclasses.replace(found, rows=rows)

    trainer.engine.plan.explain = explained
    phases, operations = profile(trainer, 3)
    assert phases["other"] == pytest.approx(3.0 * 0.2)
    assert sum(phases[name] for name in ("batch", "forward", "backward", "update", "other")) == pytest.approx(3.0)
    for phase in ("forward", "backward"):
        assert sum(operation[f"{phase}_seconds"] for operation in operations) == pytest.approx(phases[phase])


@planned
def test_what_has_no_kernel_has_no_time_of_its_own(trainer_of):
    layers = [nn.Flatten(), nn.Dense(8), nn.GELU(), nn.Dense(10)]
    trainer = trainer_of(nn.Model(layers, (28, 28, 1)), engine="plan")
    phases, operations = profile(trainer, 2)
    assert [operation["name"] for operation in operations] == ["dense1", "dense2", "loss"]
    assert phases["other"] > 0
    assert "no kernel for gelu1:" in (remark(trainer) or "")


@planned
@pytest.mark.parametrize("more", [{"clip_norm": 1.0}, {"optimizer": RMSprop(0.01, momentum=0.5)}])
def test_an_update_beside_the_plan(trainer_of, more):
    trainer = trainer_of("mlp", engine="plan", **more)
    trainer.run()
    phases, _ = profile(trainer, 2)
    assert phases["update"] > 0


def test_the_tuned_engine_has_no_times_of_forward_and_backward(trainer_of):
    trainer = trainer_of(engine="tuned")
    phases, operations = profile(trainer, 2)
    assert set(phases) == {"batch", "forward_backward", "update", "profiled_steps"}
    assert all(seconds > 0 for seconds in phases.values())
    assert operations == []
    assert "no times of each" in (remark(trainer) or "")
    assert remark(trainer_of()) is None


@pytest.mark.parametrize("engine", ["plan", "tuned"])
@pytest.mark.parametrize("batch_size", [20, 50])
def test_memory_of_an_engine_is_what_it_says(trainer_of, engine, batch_size):
    trainer = trainer_of(engine=engine, batch_size=batch_size)
    trainer.run()
    parts, kept = memory(trainer, 10**9), trainer.engine.kept_bytes()
    assert parts["activations"] == kept["activations"] > batch_size * 14 * 14 * 6 * 4
    assert parts["gradients"] == kept["gradients"] > 0
    assert parts["parameters"] == parts["optimizer"] == 4 * trainer.model.body.parameter_count()
    assert parts["data"] == 50 * (784 + 4) + 30 * 784 + kept.get("data", 0)
    assert sum(parts.values()) == 10**9


@pytest.mark.parametrize(
    ("step", "rest"), [(1.0, 0.25), (0.75 * (1 + 1e-9), 0.0), (0.5, 0.0)], ids=["some", "rounding", "they overlap"]
)
def test_what_the_phases_leave_of_a_step(step, rest):
    """A remainder of rounding would make a speed-up of any size."""
    assert _rest(step, {"forward": 0.25, "backward": 0.5}) == rest

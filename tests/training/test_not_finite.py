"""A loss that is not finite: the step and the first layer are named, however late it is noticed."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from bareconv import nn, optim
from bareconv.errors import BareconvError, NotFiniteError
from bareconv.optim import SGD, Adam, Constant
from bareconv.training import ReferenceEngine, Settings, Trainer, loop
from bareconv.training.engine import StepByStep


def planting(optimizer: Any, parameter, at, value=np.inf):
    """The optimizer; with its ``at``-th update ``trainer_of`` sets the first number of ``parameter`` to ``value``."""
    optimizer.planted = parameter, at, value
    return optimizer


def trainer_of(model, data, optimizer, device="cpu", **settings):
    wanted = Settings(**{"batch_size": 16, "epochs": 60, "seed": 3, "schedule": Constant(), **settings})
    trainer: Any = Trainer(model, data, optimizer, wanted, device)
    train = trainer.engine.train
    trainer.engine.many_steps = False  # the culprit is planted between steps
    trainer.engine.train_steps = functools.partial(StepByStep.train_steps, trainer.engine)

    def planted(batch, lr):
        result = train(batch, lr)
        parameter, at, value = getattr(optimizer, "planted", ("", 0, 0))
        if optimizer.step == at:
            model.parameters()[parameter].reshape(-1)[0] = value
        return result

    trainer.engine.train = planted
    return trainer


def failing(trainer):
    with pytest.raises(NotFiniteError) as caught:
        trainer.run()
    return caught.value


@pytest.fixture
def one_window_an_epoch(monkeypatch):
    """Losses are read when 64 steps are done, or the epoch is: the steps after the culprit are taken as well."""
    monkeypatch.setattr(loop, "REPORT_SECONDS", 1e9)


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("conv1.weight", "conv1"),
        ("norm1.gamma", "norm1"),
        ("norm1.beta", "norm1"),
        ("dense1.weight", "dense1"),
        ("dense2.bias", "dense2"),
    ],
)
@pytest.mark.parametrize("rule", [lambda: SGD(0.05), lambda: SGD(0.05, momentum=0.9), lambda: Adam(0.01)])
@pytest.mark.usefixtures("one_window_an_epoch")
def test_the_layer_is_named(make_model, squares, parameter, layer, rule, device, engine):
    optimizer = planting(rule(), parameter, at=9)
    error = failing(trainer_of(make_model(), squares, optimizer, device, engine=engine))
    assert (error.step, error.layer) == (9, layer)
    assert "at step 9 (epoch 2): the first output that is not finite is that of layer " + layer in str(error)


# 16: seven steps an epoch; 1: 103, of which a window reads 64 at a time.
@pytest.mark.parametrize(("size", "per_epoch"), [(16, 7), (1, 103), (103, 1)])
@pytest.mark.parametrize("at", [1, 6, 7, 8, 63, 64, 65, 69, 70, 71, 102, 103, 104, 128, 190])
@pytest.mark.usefixtures("one_window_an_epoch")
def test_the_step_is_named(make_model, squares, size, per_epoch, at, engine):
    """Around the ends of windows, of snapshots and of epochs."""
    optimizer = planting(SGD(0.001, momentum=0.9), "dense1.bias", at=at)
    data = dataclasses.replace(squares, test=None)  # or the evaluation after an epoch notices first
    trainer = trainer_of(make_model(), data, optimizer, epochs=200, batch_size=size, engine=engine)
    error = failing(trainer)
    assert (error.step, error.layer) == (at, "dense1")
    assert f"at step {at} (epoch {at // per_epoch + 1})" in str(error)
    assert trainer.step <= at
    assert np.isfinite(trainer.history.loss).all()


@pytest.mark.parametrize("report_seconds", [0.0, 1e9])
def test_the_state_is_kept_every_64_steps(make_model, squares, monkeypatch, report_seconds):
    """Copying it costs time; more often would slow every training down, less often the explanation."""
    monkeypatch.setattr(loop, "REPORT_SECONDS", report_seconds)
    trainer: Any = trainer_of(make_model(), squares, SGD(0.01), batch_size=1, epochs=2, engine="reference")
    kept, keep = [], trainer._take_snapshot

    def watched(step):
        kept.append(step)
        keep(step)

    trainer._take_snapshot = watched
    trainer.run()
    assert kept == ([0, 64, 128, 192] if report_seconds == 0 else [0, 64, 167])


@pytest.mark.parametrize("at", [3, 20, 68, 69, 100])
@pytest.mark.parametrize(
    "rule", [lambda: SGD(0.05, momentum=0.9), lambda: Adam(0.01), lambda: optim.RMSprop(0.001, momentum=0.5)]
)
@pytest.mark.usefixtures("one_window_an_epoch")
def test_the_way_back_is_exact(make_model, squares, rule, at, engine, monkeypatch):
    """When the culprit's forward is watched, weights, running statistics and the optimizer's state are, bit for bit,
    those of a training that took these steps and no more."""

    def planted():
        optimizer = planting(rule(), "dense2.bias", at=at, value=np.nan)
        return trainer_of(make_model(), squares.take(96), optimizer, batch_size=3, engine=engine)

    def state(trainer):
        arrays = {**trainer.model.state(), **trainer.optimizer.state()}
        return {key: value.copy() for key, value in arrays.items()}

    reference = planted()
    for step in range(at):
        reference.train_step(step)
    expected = state(reference)

    trainer, seen = planted(), []
    forward = ReferenceEngine.forward

    def watched(self, x, labels, step, watch=None):
        if watch is not None:
            seen.append((step, trainer.optimizer.step, state(trainer)))
        return forward(self, x, labels, step, watch)

    monkeypatch.setattr(ReferenceEngine, "forward", watched)
    failing(trainer)
    ((step, updates, found),) = seen
    assert step == updates == at
    assert any(key.startswith("norm1.mean") for key in found)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        np.testing.assert_array_equal(value, expected[key], key)


@pytest.mark.usefixtures("one_window_an_epoch")
def test_an_optimizer_that_has_steps_behind_it(make_model, squares, engine):
    """A second training goes on with Adam's own count of steps, also on the way back."""
    optimizer = Adam(0.01)
    model = make_model()
    trainer_of(model, squares, optimizer, epochs=1, engine=engine).run()
    optimizer = planting(optimizer, "conv1.weight", at=7 + 5)
    error = failing(trainer_of(model, squares, optimizer, engine=engine))
    assert (error.step, error.layer) == (5, "conv1")
    assert optimizer.step == 12


def test_exploding(make_model, squares, device, engine):
    """The step of the error is the first whose loss, read step by step, is not finite."""

    def exploding(place):
        model = nn.Model([nn.Flatten(), nn.Dense(8), nn.Dense(8), nn.Dense(4)], (8, 8, 1))  # no relus to die
        return trainer_of(model, squares, SGD(1e4), place, engine=engine)

    reference = exploding("cpu")
    losses = [float(reference.train_step(step)[0]) for step in range(21)]
    first = next(step for step, loss in enumerate(losses) if not np.isfinite(loss))
    assert first > 1
    error = failing(exploding(device))
    assert error.step == first
    message = str(error)
    assert message.startswith(f"the loss became nan at step {first} (epoch {first // 7 + 1}): ")
    assert message.endswith("; a smaller learning rate (now 10000) or clipping the gradient may help")
    assert "\n" not in message
    assert len(message) < 250
    assert isinstance(error, BareconvError)
    assert error.exit_code == 1


def test_a_block_names_its_inner_layer(squares, engine):
    def conv():
        return nn.Conv2d(4, 3, padding=1, bias=False)

    block = nn.Residual(nn.Sequential([conv(), nn.BatchNorm(), nn.ReLU(), conv(), nn.BatchNorm()]))
    model = nn.Model([conv(), block, nn.GlobalAvgPool(), nn.Dense(4)], (8, 8, 1))
    optimizer = planting(SGD(0.01), "residual1.body.norm2.gamma", at=2)
    error = failing(trainer_of(model, squares, optimizer, engine=engine))
    assert (error.step, error.layer) == (2, "residual1.body.norm2")


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_last_update_of_an_epoch(make_model, squares, epochs, engine):
    """All losses are finite; what the last update left is not. The evaluation notices, not the result's reader."""
    optimizer = planting(SGD(0.05), "dense1.weight", at=7)
    error = failing(trainer_of(make_model(), squares, optimizer, epochs=epochs, engine=engine))
    assert (error.step, error.layer) == (6, "dense1")
    message = "the loss on the test images became nan after step 6 (epoch 1): the first output that is not finite is "
    assert str(error).startswith(message + "that of layer dense1; a smaller learning rate (now 0.05)")


def test_nothing_in_the_outputs(make_model, squares, engine):
    """A loss that only once was not finite cannot be explained, and is not blamed on a layer."""
    trainer = trainer_of(make_model(), squares, SGD(0.01), engine=engine)
    train = trainer.engine.train
    trainer.engine.many_steps = False  # the culprit is planted between steps
    trainer.engine.train_steps = functools.partial(StepByStep.train_steps, trainer.engine)

    def once(batch, lr):
        loss, hits = train(batch, lr)
        return (loss * np.float32("nan") if batch.step == 2 else loss), hits

    trainer.engine.train = once
    error = failing(trainer)
    assert (error.step, error.layer) == (2, "loss")
    assert "at step 2 (epoch 1): all outputs are finite" in str(error)

"""Engines behind one step: what they compute is what the reference computes, and each says what it is."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from bareconv import host, nn, optim
from bareconv.errors import ShapeError, UsageError
from bareconv.optim import SGD, Adam, AdamW, RMSprop
from bareconv.training import (
    ENGINES,
    EngineSettings,
    PlanEngine,
    ReferenceEngine,
    Settings,
    Trainer,
    TunedEngine,
    make_engine,
    why_no_plan,
)

planned = pytest.mark.skipif(why_no_plan() is not None, reason="there is no plan on this machine")


def trained(make_model, data, engine, optimizer=None, **settings):
    wanted = Settings(
        **{"batch_size": 16, "epochs": 2, "seed": 3, "precision": "float64", **settings, "engine": engine}
    )
    trainer = Trainer(make_model(), data, optimizer or SGD(0.05, momentum=0.9), wanted, "cpu")
    trainer.run()
    return trainer


def assert_alike(ours, theirs, rtol=1e-9):
    """Losses, hits, weights, running statistics and the optimizer's state."""
    np.testing.assert_allclose(ours.history.loss, theirs.history.loss, rtol=rtol)
    assert ours.history.correct == theirs.history.correct
    assert ours.history.test_loss == pytest.approx(theirs.history.test_loss, rel=rtol)
    assert ours.optimizer.step == theirs.optimizer.step
    for part in ("model", "optimizer"):
        state, expected = getattr(ours, part).state(), getattr(theirs, part).state()
        assert state.keys() == expected.keys()
        for key, value in state.items():
            np.testing.assert_allclose(value, expected[key], rtol=100 * rtol, atol=rtol, err_msg=key)


@pytest.mark.parametrize(
    "settings",
    [
        {},  # the last batch of an epoch is short; there is dropout
        {"batch_size": 103},  # everything at once
        {"batch_size": 500},
        {"batch_size": 1, "epochs": 1},
        {"label_smoothing": 0.2},
        {"clip_norm": 0.3},
        {"threads": 1},
        {"threads": 3},
        {"schedule": optim.Constant(), "evaluate_every": 2},
    ],
    ids=str,
)
def test_the_reference_is_what_an_engine_computes(make_model, squares, engine, settings):
    assert_alike(
        trained(make_model, squares, engine, **settings), trained(make_model, squares, "reference", **settings)
    )


@pytest.mark.parametrize(
    "rule",
    [
        lambda: SGD(0.05),
        lambda: SGD(0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
        lambda: RMSprop(0.003, momentum=0.5, weight_decay=1e-3),
        lambda: Adam(0.01, weight_decay=1e-3),
        lambda: AdamW(0.01, weight_decay=1e-2),
    ],
)
def test_every_update_rule(make_model, squares, engine, rule):
    ours, theirs = (trained(make_model, squares, name, rule()) for name in (engine, "reference"))
    assert_alike(ours, theirs, rtol=1e-8)


def test_float32_at_a_small_rate(make_model, squares, engine):
    """At full speed a relu that rounding tips over zero would be amplified."""
    few = dataclasses.replace(squares, test=None)
    ours, theirs = (
        trained(make_model, few, name, SGD(0.0005, momentum=0.9), precision="float32") for name in (engine, "reference")
    )
    np.testing.assert_allclose(ours.history.loss, theirs.history.loss, rtol=1e-4)
    for key, value in ours.model.parameters().items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, theirs.model.parameters()[key], rtol=1e-2, atol=1e-4, err_msg=key)


def test_weights_may_be_changed_between_steps(make_model, squares, engine):
    """In place or by others in their stead: the next step and prediction are those of the new weights."""

    def changed(name):
        trainer = trained(make_model, squares, name, epochs=1)
        state = {key: value * 0.5 for key, value in trainer.model.state().items()}
        trainer.model.load_state(state)
        trainer.model.parameters()["dense2.bias"][...] += 0.25
        losses, _ = trainer.train_steps(0, 3)
        return losses, trainer.engine.predict(squares.test.images)

    for ours, theirs in zip(changed(engine), changed("reference"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8)


def test_predicting_before_and_without_training(make_model, squares, engine):
    """Engines of their own, for an evaluation; the number of images is any."""
    ours, theirs = (make_engine(name, make_model().to("cpu", "float64"), SGD(0.1)) for name in (engine, "reference"))
    for count in (1, 2, 37, 103):
        images = squares.train.images[:count]
        np.testing.assert_allclose(ours.predict(images), theirs.predict(images), rtol=1e-9, atol=1e-12)
    with pytest.raises(ShapeError):
        ours.predict(np.zeros((2, 7, 8, 1), np.uint8))


def test_what_an_engine_says_of_itself(make_model, squares, engine):
    trainer = trained(make_model, squares, engine, threads=1)
    made = trainer.engine
    assert made.name == engine
    assert made.description.startswith(engine)
    assert made.device is trainer.device
    assert made.threads == (host.blas_threads() if engine == "reference" else 1)
    assert (made.compile_seconds > 0) == (engine == "plan")
    assert made.compiled >= 0
    if engine != "reference":
        assert "1 thread)" in made.description
    kept = made.kept_bytes()
    assert kept["gradients"] > 0
    assert engine == "reference" or kept["activations"] > 16 * 6 * 6 * 4


def test_the_default_is_the_first_that_runs():
    assert Settings.engine == ENGINES[0] == "plan"


@planned
def test_who_takes_the_place_of_whom(make_model, monkeypatch):
    """Without llvmlite the tuned engine; elsewhere than on a CPU the reference, which is asked for by no name."""
    model, rule = make_model(), SGD(0.1)
    assert type(make_engine("plan", model, rule)) is PlanEngine
    monkeypatch.setattr("bareconv.training.engines.why_no_plan", lambda *_: "llvmlite is not there")
    assert type(make_engine("plan", model, rule)) is TunedEngine
    for name in ENGINES:
        elsewhere: Any = object()
        assert type(make_engine(name, model, rule, EngineSettings(), elsewhere)) is ReferenceEngine
    with pytest.raises(UsageError, match="^engine 'steam': expected plan, tuned, reference$"):
        make_engine("steam", model, rule)


def test_why_there_is_no_plan(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert why_no_plan() == "llvmlite is not installed: pip install llvmlite"


@planned
def test_a_vector_unit_that_is_not_there_is_a_reason(monkeypatch):
    monkeypatch.setenv("BARECONV_SIMD", "MMX")
    reason = why_no_plan()
    assert reason is not None
    assert reason.startswith("vector unit MMX: this processor offers ")


def test_compiling_is_told(make_model, squares, tmp_path, monkeypatch):
    """One call before each kernel that is in no cache, and one at the end; a second engine has nothing to compile."""
    if why_no_plan() is not None:
        pytest.skip("there is no plan on this machine")
    monkeypatch.setenv("BARECONV_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("bareconv.kernels.cpu.jit._loaded", {})
    told: list[tuple[int, int]] = []
    model = nn.Model([nn.Flatten(), nn.Dense(5), nn.ReLU(), nn.Dense(4)], (8, 8, 1))
    engine = make_engine("plan", model, SGD(0.1), EngineSettings(4, threads=1))
    assert engine.compiled == engine.compile_seconds == 0
    engine.prepare(lambda done, total: told.append((done, total)))
    assert told == [(done, len(told) - 1) for done in range(len(told))]
    assert engine.compiled == len(told) - 1 > 3
    assert engine.compile_seconds > 0
    again = make_engine("plan", model, SGD(0.1), EngineSettings(4, threads=1))
    again.prepare(lambda done, total: told.append((done, total)))
    assert again.compiled == 0
    assert len(told) == engine.compiled + 1

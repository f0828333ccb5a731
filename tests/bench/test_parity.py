"""The parity proof: nothing where there is nothing, and every planted difference, however small, found."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bareconv.bench import environment, results
from bareconv.bench.parity import TOLERANCE, parity
from bareconv.nn import models
from bareconv.optim import SGD, Constant
from bareconv.training import ENGINES, Settings, Trainer


@pytest.fixture(scope="module")
def described():
    return environment.describe()


@pytest.fixture
def side(digits):
    """A new trainer; ten steps an epoch, two epochs."""

    def make(precision="float32", model="mlp", device="cpu", seed=0, lr=0.05, **settings):
        wanted = Settings(
            precision=precision, batch_size=32, epochs=2, seed=seed, **{"engine": "reference", **settings}
        )
        data = digits if model == "mlp" else digits.take(64)
        network = models.by_name(model, (28, 28, 1), 10, seed)
        return Trainer(network, data, SGD(lr, momentum=0.9), wanted, device)

    return make


def spoilt(trainer, spoil):
    """``trainer`` with ``spoil(gradients, step)`` after every backward."""
    backward, steps = trainer.engine.backward, iter(range(10**6))

    def wrong(watch=None):
        backward(watch)
        spoil(trainer.model.gradients(), next(steps))

    trainer.engine.backward = wrong
    return trainer


def scale(factor, name=""):
    def spoil(gradients, step):
        for key, gradient in gradients.items():
            if key.startswith(name):
                gradient *= factor

    return spoil


def assert_valid(proof, described):
    result = results.new("compare", {}, parity=[proof], environment=described)
    results.validate(result)
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(("model", "steps"), [("mlp", 20), ("lenet5", 4)])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_identical_sides_do_not_differ_at_all(side, described, model, steps, precision):
    proof = parity(side(precision, model), side(precision, model), steps)
    assert proof["loss_difference"] == proof["weight_difference"] == [0.0] * steps
    assert proof["max_loss_difference"] == proof["final_weight_difference"] == 0
    assert proof["passed"] is True
    assert proof["steps"] == steps
    assert proof["model"] == model
    assert proof["reference"] == proof["candidate"] == f"cpu {precision}"
    assert proof["tolerance"] == {"float64": 1e-9, "float32": 1e-3}[precision]
    assert_valid(proof, described)


def test_both_sides_are_trained(side):
    """By just so many steps: the same as without a proof."""
    reference, candidate, alone = side(), side(), side()
    parity(reference, candidate, 5)
    for step in range(5):
        alone.train_step(step)
    for key, value in alone.model.parameters().items():
        np.testing.assert_array_equal(reference.model.parameters()[key], value)
        np.testing.assert_array_equal(candidate.model.parameters()[key], value)


@pytest.mark.parametrize(("model", "steps"), [("mlp", 20), ("lenet5", 4)])
def test_rounding_passes(side, described, model, steps):
    proof = parity(side("float64", model), side("float32", model), steps)
    assert proof["passed"]
    assert proof["precision"] == "float32"  # the coarser
    assert proof["tolerance"] == TOLERANCE["float32"]
    assert proof["reference"] == "cpu float64"
    assert proof["candidate"] == "cpu float32"
    assert 0 < proof["max_loss_difference"] < 1e-5
    assert 0 < proof["final_weight_difference"] < 1e-4
    assert_valid(proof, described)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("model", ["mlp", "lenet5"])
def test_devices_agree(side, described, model, precision):
    proof = parity(side(precision, model), side(precision, model, "cuda"), 4)
    assert proof["passed"], proof
    assert proof["candidate"] == f"cuda:0 {precision}"
    assert_valid(proof, described)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("factor", [1.01, 0.99, -1.0, 32.0])
def test_a_wrong_gradient_fails(side, precision, factor):
    """A hundredth too much; the wrong sign; not divided by N."""
    proof = parity(side(precision), spoilt(side(precision), scale(factor)), 20)
    assert not proof["passed"]
    assert proof["loss_difference"][0] == 0  # the first loss is that of the same weights
    assert proof["weight_difference"][0] > 0
    assert proof["max_loss_difference"] == max(proof["loss_difference"])


@pytest.mark.parametrize("name", ["dense1.weight", "dense1.bias", "dense2.weight", "dense2.bias"])
def test_the_wrong_tensor_is_named(side, name):
    """One tensor's gradient a millionth too large, in float64: the first update shows where."""
    proof = parity(side("float64"), spoilt(side("float64"), scale(1 + 1e-6, name)), 1)
    assert proof["worst_tensor"] == name
    proof = parity(side("float64"), spoilt(side("float64"), scale(1 + 1e-4, name)), 20)
    assert not proof["passed"]


@pytest.mark.parametrize("other", [{"seed": 1}, {"lr": 0.051}, {"label_smoothing": 0.01}, {"schedule": Constant()}])
def test_another_training_fails(side, other):
    assert not parity(side(), side(**other), 20)["passed"]


def test_differences_by_hand(side):
    """|a - b| / |a| of the losses and the largest ||a - b|| / ||a|| of the tensors, step by step."""
    proof = parity(side("float64"), side("float64", lr=0.06), 3)
    a, b = side("float64"), side("float64", lr=0.06)
    for step in range(3):
        losses = [float(trainer.train_step(step)[0]) for trainer in (a, b)]
        assert proof["loss_difference"][step] == pytest.approx(abs(losses[0] - losses[1]) / losses[0], rel=1e-12)
        norms = {
            key: np.sqrt(((value - b.model.parameters()[key]) ** 2).sum() / (value**2).sum())
            for key, value in a.model.parameters().items()
        }
        assert proof["weight_difference"][step] == pytest.approx(max(norms.values()), rel=1e-12)
    assert proof["worst_tensor"] == max(norms, key=lambda key: norms[key])
    assert proof["final_weight_difference"] == proof["weight_difference"][-1]


def test_one_wrong_step_is_enough(side):
    """A loss that is off by a hundredth once, with weights that agree before and after."""
    candidate = side()
    forward = candidate.engine.forward

    def once_wrong(x, labels, step, watch=None):
        loss, correct = forward(x, labels, step, watch)
        return loss * (1.01 if step == 4 else 1), correct

    candidate.engine.forward = once_wrong
    proof = parity(side(), candidate, 10)
    assert np.flatnonzero(proof["loss_difference"]).tolist() == [4]
    assert proof["max_loss_difference"] == pytest.approx(0.01, rel=1e-4)
    assert not proof["passed"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_finite_fails(side, described, value, step, which):
    """Also after steps that agreed, on either side; and the result can still be written."""

    def spoil(gradients, now):
        if now == step:
            gradients["dense2.bias"][0] = value

    sides = [side(), side()]
    spoilt(sides[which], spoil)
    proof = parity(sides[0], sides[1], 20)
    assert not proof["passed"]
    assert proof["loss_difference"][: step + 1] == [0.0] * (step + 1)
    assert proof["steps"] == len(proof["weight_difference"]) == step + 2  # the update of that step shows in the next
    assert proof["weight_difference"][step] == proof["max_loss_difference"] == 1e9
    assert_valid(proof, described)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_both_not_finite_fail_too(side, described, value):
    """Two sides that are wrong in the same way prove nothing."""
    proof = parity(spoilt(side(), scale(value)), spoilt(side(), scale(value)), 5)
    assert not proof["passed"]
    assert_valid(proof, described)


def test_early_stop(side, described):
    told: list[int] = []
    proof = parity(side(), side(), 20, told.append, lambda: len(told) == 3)
    assert told == [1, 2, 3]
    assert proof["steps"] == len(proof["loss_difference"]) == len(proof["weight_difference"]) == 3
    assert proof["passed"]
    assert_valid(proof, described)
    at_once = parity(side(), side(), 20, should_stop=lambda: True)
    assert at_once["steps"] == 1
    assert_valid(at_once, described)


def test_no_more_steps_than_there_are(side):
    told: list[int] = []
    assert parity(side(), side(), 100, told.append)["steps"] == 20
    assert told == list(range(1, 21))


def test_coarser_products_get_their_own_tolerance(side, monkeypatch):
    """A GPU that is allowed tf32 says so, and is not measured by float32's tolerance."""
    reference, candidate = side(), side()
    monkeypatch.setattr(type(candidate.device), "effective_precision", lambda self, dtype: "tf32")
    proof = parity(reference, candidate, 2)
    assert proof["candidate"] == "cpu tf32"
    assert (proof["precision"], proof["tolerance"]) == ("tf32", 5e-2)


@pytest.mark.parametrize("engine", ENGINES[:-1])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_engines_are_named_where_one_is_not_the_reference(side, described, engine, precision):
    other = side(precision, engine=engine, lr=0.05 / 200)
    proof = parity(side(precision, lr=0.05 / 200), other, 10)
    assert proof["reference"] == f"cpu {precision} reference"
    assert proof["candidate"] == f"cpu {precision} {other.engine.name}"
    assert proof["passed"]
    assert_valid(proof, described)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_is_wrong_fails(side, engine):
    """A hundredth more of the learning rate is a gradient that is wrong by that."""
    wrong = side("float64", engine=engine)
    wrong.optimizer.lr *= 1.01
    assert not parity(side("float64"), wrong, 10)["passed"]

"""Layers and blocks: what they own, what they keep, what they say when they do not fit."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from bareconv import nn
from bareconv.bench.gradients import check_layer, layer_cases
from bareconv.errors import BareconvError, ShapeError, UsageError
from bareconv.nn.layer import Drawing


def built(layer, shape, seed=0):
    stack = nn.Sequential([layer])
    stack.build(shape, "", Drawing(seed))
    return stack


@pytest.mark.parametrize("case", layer_cases().items(), ids=layer_cases())
def test_gradients(case, device):
    """Every layer's backward against central differences of its forward, in float64, on every device."""
    name, (make, shape) = case
    check = check_layer(name, make(), shape, device)
    assert check.checked >= 12
    assert check.passed, check


@pytest.mark.parametrize("case", layer_cases().items(), ids=layer_cases())
def test_float32_throughout(case, rng):
    _, (make, shape) = case
    stack = built(make(), shape[1:])
    y = stack.forward(rng.standard_normal(shape).astype(np.float32), training=True)
    dx = stack.backward(rng.standard_normal(y.shape).astype(np.float32))
    arrays = [y, dx, *(g for leaf in stack.leaves() for g in leaf.grads.values())]
    arrays += [b for leaf in stack.leaves() for b in leaf.buffers.values()]
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}
    assert y.shape == (shape[0], *stack.out_shape)
    for leaf in stack.leaves():
        assert {k: g.shape for k, g in leaf.grads.items()} == {k: p.shape for k, p in leaf.params.items()}


@pytest.mark.parametrize("case", layer_cases().items(), ids=layer_cases())
def test_configuration_rebuilds_the_layer(case, rng):
    _, (make, shape) = case
    layer = make()
    config = json.loads(json.dumps(layer.config()))
    again = nn.layer_from_config(config)
    assert again.config() == layer.config()
    x = rng.standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(built(layer, shape[1:]).forward(x), built(again, shape[1:]).forward(x))


@pytest.mark.parametrize("config", [{"type": "Conv3d"}, {"type": "Dense", "widgets": 3}, {}])
def test_unknown_configuration(config):
    with pytest.raises(BareconvError, match="Conv3d|widgets|None"):
        nn.layer_from_config(config)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nn.Conv2d(4, 5), (4, 7, 1), "layer conv1 .*input 4 x 7 x 1: a window of 5 x 5 does not fit an image of 4 x 7"),
        (nn.Conv2d(4, 3), (9,), r"layer conv1 .*input 9: expected an image \(H, W, C\)"),
        (nn.Dense(4), (3, 3, 2), "layer dense1 .*input 3 x 3 x 2: expected features.*Flatten"),
        (nn.MaxPool2d(2, padding=2), (8, 8, 1), "layer pool1 .*padding of at most half the kernel"),
        (nn.Conv2d(6, 3, groups=4), (8, 8, 6), "layer conv1 .*6 input channels and 6 filters.*4 groups"),
        (nn.Dropout(1.0), (3,), "layer dropout1: dropout of 1.0; expected at least 0 and less than 1"),
        (nn.Conv2d(4, 0), (8, 8, 1), "kernel .*expected both at least 1"),
        (
            nn.Residual(nn.Conv2d(4, 3)),
            (8, 8, 4),
            r"layer residual1 .*body gives \(6, 6, 4\), the shortcut \(8, 8, 4\)",
        ),
        (nn.Residual(nn.Conv2d(4, 9)), (8, 8, 4), "layer residual1.body .*a window of 9 x 9 does not fit"),
        (nn.Dense(3, init="glorious"), (4,), "initialisation 'glorious': expected he, xavier"),
    ],
)
def test_what_does_not_fit_is_named(layer, shape, message):
    with pytest.raises((ShapeError, UsageError), match=message):
        built(layer, shape)


def test_backward_needs_a_forward(rng):
    stack = built(nn.Dense(2), (3,))
    x = rng.standard_normal((4, 3)).astype(np.float32)
    stack.forward(x)  # evaluation keeps nothing
    with pytest.raises(BareconvError, match="layer dense1: backward needs one forward"):
        stack.backward(np.ones((4, 2), np.float32))
    stack.forward(x, training=True)
    stack.backward(np.ones((4, 2), np.float32))
    with pytest.raises(BareconvError, match="dense1"):
        stack.backward(np.ones((4, 2), np.float32))


def test_first_weights_get_no_dx(rng):
    """Nothing below the first layer with weights learns: its dX is not computed, nor anything before it."""
    stack = nn.Sequential([nn.MaxPool2d(2), nn.Conv2d(3, 3), nn.ReLU(), nn.Flatten(), nn.Dense(2)])
    stack.build((8, 8, 2), "", Drawing(0))
    seen = {}
    y = stack.forward(rng.standard_normal((2, 8, 8, 2)).astype(np.float32), training=True)
    stack.backward(np.ones_like(y), need_dx=False, watch=lambda phase, layer, dx: seen.update({layer.name: dx}))
    assert list(seen) == ["dense1", "flatten1", "relu1", "conv1"]
    assert seen["conv1"] is None
    assert seen["relu1"] is not None


def test_dropout_is_off_in_evaluation(rng):
    x = rng.standard_normal((3, 50)).astype(np.float32)
    stack = built(nn.Dropout(0.5), (50,))
    np.testing.assert_array_equal(stack.forward(x), x)
    first, same, other = (stack.forward(x, training=True, step=step) for step in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    assert 0.3 < (first == 0).mean() < 0.7


def test_two_dropout_layers_draw_apart(rng):
    stack = nn.Sequential([nn.Dropout(0.5), nn.Dropout(0.5)])
    stack.build((1000,), "", Drawing(0))
    kept = (stack.forward(np.ones((1, 1000), np.float32), training=True) != 0).mean()
    assert 0.2 < kept < 0.3  # a quarter; the same mask twice would keep a half


def test_batch_norm_runs_its_statistics(rng):
    stack = built(nn.BatchNorm(momentum=0.25), (3,))
    (leaf,) = stack.leaves()
    mean, var = np.zeros(3), np.ones(3)
    for step in range(4):
        x = rng.normal(2.0, 3.0, (10, 3)).astype(np.float32)
        stack.forward(x, training=True, step=step)
        mean = 0.75 * mean + 0.25 * x.mean(axis=0)
        var = 0.75 * var + 0.25 * x.var(axis=0, ddof=1)
    np.testing.assert_allclose(leaf.buffers["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(leaf.buffers["var"], var, rtol=1e-5)
    x = rng.standard_normal((5, 3)).astype(np.float32)
    np.testing.assert_allclose(stack.forward(x), (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)


def test_residual_leaves_what_its_body_kept(rng):
    """The body ends in a relu, which keeps its output: adding the shortcut in place would spoil its gradient."""
    block = built(nn.Residual(nn.Sequential([nn.Dense(6), nn.ReLU()])), (6,))
    x, dy = (rng.standard_normal((4, 6)).astype(np.float32) for _ in range(2))
    dense = next(leaf for leaf in block.leaves() if isinstance(leaf, nn.Dense))
    z = x @ dense.params["weight"]
    np.testing.assert_allclose(block.forward(x, training=True), np.maximum(z, 0) + x, rtol=1e-5)
    expected = dy + (dy * (z > 0)) @ dense.params["weight"].T
    np.testing.assert_allclose(block.backward(dy), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape", "fan_in", "fan_out"),
    [(nn.Conv2d(64, 3), (8, 8, 32), 288, 576), (nn.Dense(200), (500,), 500, 200)],
)
def test_initialisation(layer, shape, fan_in, fan_out):
    def weights(scheme):
        layer.init = scheme
        layer.params.clear()
        (leaf,) = built(layer, shape).leaves()
        assert leaf.params["weight"].dtype == np.float32
        return leaf.params["weight"], leaf.params["bias"]

    he, bias = weights("he")
    assert he.std() == pytest.approx(math.sqrt(2 / fan_in), rel=0.02)
    assert abs(he.mean()) < 3 * he.std() / math.sqrt(he.size)
    assert not bias.any()
    xavier, _ = weights("xavier")
    bound = math.sqrt(6 / (fan_in + fan_out))
    assert 0.99 * bound < np.abs(xavier).max() <= bound
    assert xavier.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    uniform, bias = weights("uniform(0.5)")
    assert 0.49 < np.abs(uniform).max() <= 0.5
    assert bias.any()
    zeros, _ = weights("zeros")
    assert not zeros.any()


def test_initial_weights_depend_on_seed_and_layer_only():
    def draw(seed):
        stack = nn.Sequential([nn.Dense(5), nn.Dense(5)])
        stack.build((5,), "", Drawing(seed))
        return [leaf.params["weight"] for leaf in stack.leaves()]

    (a, b), (again, _), (other, _) = draw(1), draw(1), draw(2)
    np.testing.assert_array_equal(a, again)
    assert (a != b).all()
    assert (a != other).all()

"""The gradient checks are checked themselves: each planted mistake is found, and no kink is taken for one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bareconv import nn, ops
from bareconv.bench import gradients
from bareconv.bench.gradients import TOLERANCE, Check, check_all, check_layer, check_model, layer_cases
from bareconv.device import get_device

CASES = layer_cases()
LOSSES = ["softmax cross-entropy", "softmax cross-entropy, smoothed"]


@pytest.fixture(scope="module")
def cpu():
    return get_device("cpu")


def check(case, device, seed=0):
    make, shape = CASES[case]
    return check_layer(case, make(), shape, device, seed)


# --- What is checked -------------------------------------------------------------------------------------------------


def test_every_kind_of_layer_is_checked():
    """A layer that is added to ``nn`` must be added to the cases."""

    def kinds(layer):
        yield type(layer)
        for inner in [*getattr(layer, "layers", ()), getattr(layer, "body", None), getattr(layer, "shortcut", None)]:
            if inner is not None:
                yield from kinds(inner)

    checked = {kind for make, _ in CASES.values() for kind in kinds(make())}
    assert checked == {
        value for value in vars(nn).values() if isinstance(value, type) and issubclass(value, nn.Layer)
    } - {nn.Layer}


def test_all_are_reported(device):
    checks = list(check_all(device, "mlp"))
    assert [check.name for check in checks] == [*CASES, *LOSSES, "model mlp"]
    assert {check.device for check in checks} == {device.name}
    assert all(check.passed for check in checks)
    assert {check.tolerance for check in checks} == {1e-6}


def test_input_and_every_parameter_are_checked(cpu):
    """Twelve derivatives of each tensor, or as many as it has: of a conv 336 inputs, 108 weights, 3 biases."""
    assert check("conv", cpu).checked == 12 + 12 + 3
    assert check("relu", cpu).checked == 12
    assert check("batch norm of features", cpu).checked == 12 + 5 + 5
    assert check_model("mlp", cpu).checked == 4 * 4


@pytest.mark.parametrize("error", [math.nan, math.inf, 1.01e-6])
def test_what_does_not_pass(error):
    assert not Check("a layer", "cpu", error, 12).passed
    assert Check("a layer", "cpu", 1e-6, 12).passed


# --- Planted mistakes ------------------------------------------------------------------------------------------------


def scaled(which, factor=1.001):
    """One of the results of a backward a thousandth too large; ``which`` is None where there is only one."""

    def plant(right):
        def wrong(*args, **kwargs):
            result = right(*args, **kwargs)
            if which is None:
                return result * factor
            return tuple(part * factor if i == which and part is not None else part for i, part in enumerate(result))

        return wrong

    return plant


def assigning_conv_backward(right):
    """dX by assignment where windows overlap and it must add."""

    def wrong(dy, w, x_shape, window, groups=1):
        N, P, Q, K = dy.shape
        (ph, pw), (_, H, W, C) = window.padding, x_shape
        dx = np.zeros((N, H + 2 * ph, W + 2 * pw, C))
        for r, s in window.taps:
            dx[window.tap(r, s, (P, Q))] = dy @ w[r, s].T
        return window.crop(dx)

    return wrong


def first_group_alone(right):
    """The weights of two groups' six filters, of which the last three get no gradient."""

    def wrong(*args):
        dw, db = right(*args)
        dw[..., 3:] = 0
        return dw, db

    return wrong


def assigning_pool_backward(right):
    def wrong(dy, where, x_shape, window):
        (ph, pw), (N, H, W, C) = window.padding, x_shape
        dx = np.zeros((N, H + 2 * ph, W + 2 * pw, C))
        for tap, (r, s) in enumerate(window.taps):
            place = dx[window.tap(r, s, dy.shape[1:3])]
            np.copyto(place, dy, where=where == tap)
        return window.crop(dx)

    return wrong


def batch_norm_without_the_variance(right):
    """dX as if the variance did not depend on x."""

    def wrong(dy, xhat, inv_std, gamma):
        _, dgamma, dbeta = right(dy, xhat, inv_std, gamma)
        M = dy.size // dy.shape[-1]
        return gamma * inv_std * (dy - dbeta / M), dgamma, dbeta

    return wrong


def batch_norm_without_the_mean(right):
    def wrong(dy, xhat, inv_std, gamma):
        _, dgamma, dbeta = right(dy, xhat, inv_std, gamma)
        M = dy.size // dy.shape[-1]
        return gamma * inv_std * (dy - xhat * dgamma / M), dgamma, dbeta

    return wrong


def gelu_without_the_inner_derivative(right):
    def wrong(dy, x):
        return dy * 0.5 * (1.0 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    return wrong


MISTAKES = {
    "conv: dX": ("conv2d_input_gradient", scaled(None), "conv"),
    "conv: dW": ("conv2d_weight_gradient", scaled(0), "conv"),
    "conv: db": ("conv2d_weight_gradient", scaled(1), "conv"),
    "conv: dW of one group": ("conv2d_weight_gradient", first_group_alone, "conv, groups"),
    "conv: dX assigned": ("conv2d_input_gradient", assigning_conv_backward, "conv"),
    "conv: dX assigned, strided": ("conv2d_input_gradient", assigning_conv_backward, "conv, overlapping strides"),
    "conv: dX assigned, dilated": ("conv2d_input_gradient", assigning_conv_backward, "conv, dilated"),
    "dense: dX": ("dense_input_gradient", scaled(None), "dense"),
    "dense: dW": ("dense_weight_gradient", scaled(0), "dense"),
    "dense: db": ("dense_weight_gradient", scaled(1), "dense"),
    "max pool": ("max_pool_backward", scaled(None), "max pool"),
    "max pool: assigned": ("max_pool_backward", assigning_pool_backward, "max pool, overlapping"),
    "global max pool": ("max_pool_backward", scaled(None), "global max pool"),
    "average pool": ("avg_pool_backward", scaled(None), "average pool"),
    "average pool: a sum": ("avg_pool_backward", scaled(None, 9.0), "average pool, overlapping"),
    "relu: everywhere": ("relu_backward", lambda right: lambda dy, y: dy, "relu"),
    "relu": ("relu_backward", scaled(None), "relu"),
    "leaky relu: no leak": ("leaky_relu_backward", lambda right: lambda dy, x, slope: dy * (x > 0), "leaky relu"),
    "gelu": ("gelu_backward", gelu_without_the_inner_derivative, "gelu"),
    "batch norm: dX": ("batch_norm_backward", scaled(0), "batch norm"),
    "batch norm: dgamma": ("batch_norm_backward", scaled(1), "batch norm"),
    "batch norm: dbeta": ("batch_norm_backward", scaled(2), "batch norm"),
    "batch norm: no variance": ("batch_norm_backward", batch_norm_without_the_variance, "batch norm"),
    "batch norm: no mean": ("batch_norm_backward", batch_norm_without_the_mean, "batch norm of features"),
    "dropout: not scaled": ("dropout_backward", lambda right: lambda dy, mask: dy * (mask > 0), "dropout"),
    "dropout: not dropped": ("dropout_backward", lambda right: lambda dy, mask: dy / 0.6, "dropout"),
    "residual: its body": ("batch_norm_backward", scaled(0), "residual"),
    "residual: its shortcut": ("conv2d_weight_gradient", scaled(0), "residual with shortcut"),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_operation_is_found(mistake, monkeypatch, cpu):
    name, plant, case = mistake
    assert check(case, cpu).passed
    monkeypatch.setattr(ops, name, plant(getattr(ops, name)))
    found = check(case, cpu)
    assert not found.passed
    assert found.error > 100 * TOLERANCE


METHODS: dict[str, Any] = {
    "flatten": (nn.Flatten, "_dx", lambda self, dy, saved: dy.reshape(saved[0][::-1]).transpose(), "flatten"),
    "global average pool": (
        nn.GlobalAvgPool,
        "_dx",
        lambda self, dy, saved: np.broadcast_to(dy[:, None, None], saved[0]),
        "global average pool",
    ),
    "residual: no shortcut": (
        nn.Residual,
        "backward",
        lambda self, dy, need_dx=True, watch=None: self.body.backward(dy, need_dx, watch),
        "residual",
    ),
}


@pytest.mark.parametrize("mistake", METHODS.values(), ids=METHODS)
def test_a_wrong_layer_is_found(mistake, monkeypatch, cpu):
    kind, name, wrong, case = mistake
    monkeypatch.setattr(kind, name, wrong)
    assert not check(case, cpu).passed


def test_dropout_that_draws_anew_is_found(monkeypatch, cpu):
    """Forward must drop the same numbers whenever the step is the same, or its differences are noise."""
    rng, right = np.random.default_rng(0), ops.dropout_mask
    monkeypatch.setattr(ops, "dropout_mask", lambda x, p, seed, step, layer: right(x, p, int(rng.integers(99)), 0, 0))
    assert not check("dropout", cpu).passed


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (lambda p, t: (p - t) / len(p) ** 2, LOSSES),  # divided by N twice
        (lambda p, t: p - t, LOSSES),  # not at all
        (lambda p, t: (p - (t == t.max(axis=1, keepdims=True))) / len(p), LOSSES[1:]),  # the smoothing forgotten
    ],
)
def test_a_wrong_loss_is_found(wrong, found, monkeypatch, cpu):
    monkeypatch.setattr(ops, "softmax_cross_entropy_backward", wrong)
    checks = {check.name: check.passed for check in check_all(cpu, "mlp")}
    assert [name for name in LOSSES if not checks[name]] == found
    assert not checks["model mlp"]
    assert all(checks[name] for name in CASES)


@pytest.mark.parametrize("name", ["mlp", "lenet5"])
def test_a_wrong_model_is_found(name, monkeypatch, cpu):
    """A single tensor, the first layer's bias, in a whole model."""
    backward = nn.Model.backward

    def wrong(self, dlogits, need_dx=False, watch=None):
        dx = backward(self, dlogits, need_dx, watch)
        next(leaf for leaf in self.leaves() if leaf.params).grads["bias"] *= 1.001
        return dx

    monkeypatch.setattr(nn.Model, "backward", wrong)
    assert not check_model(name, cpu).passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_fails(value, monkeypatch, cpu):
    monkeypatch.setattr(ops, "relu_backward", lambda dy, y: np.full_like(dy, value))
    found = check("relu", cpu)
    assert not found.passed
    assert not math.isfinite(found.error)


# --- Kinks -----------------------------------------------------------------------------------------------------------

KINKED = [name for name in CASES if "max" in name or "relu" in name or name == "residual"]


@pytest.mark.parametrize("seed", range(1, 26))
def test_kinks_are_no_mistakes(seed, cpu):
    assert len(KINKED) == 7
    for case in KINKED:
        found = check(case, cpu, seed)
        assert found.passed, found
    for name in ("mlp", "lenet5"):
        found = check_model(name, cpu, seed)
        assert found.passed, found


def compared(f, x, gradient, device):
    return gradients._compare("one tensor", device, f, [(x, gradient)], 6, np.random.default_rng(0))


@pytest.mark.parametrize("distance", [9e-6, 2e-6, 5e-7])
def test_a_kink_within_the_first_difference(distance, device):
    """relu at numbers so close to 0 that h = 1e-5 steps over the kink: a smaller h tells, and a mistake stays one."""
    host = distance * np.array([1.0, -1.0, 1.5, -1.5, 1.1, -1.1]) + [0, 0, 0, 0, 1, -1]
    x = device.asarray(host)

    def f():
        return device.xp.maximum(x, 0.0).sum()

    slope = (f() - f()) + device.asarray((host > 0).astype(float))
    assert abs(gradients._slope(f, x, 0, 1e-5) - 1) > 1e-3  # the kink is met
    assert compared(f, x, slope, device).passed
    assert not compared(f, x, slope * 1.001, device).passed
    assert not compared(f, x, 1 - slope, device).passed
    np.testing.assert_array_equal(device.to_host(x), host)  # put back


def test_a_tie_that_changes_hands(cpu):
    """The maximum of two numbers 3e-6 apart."""
    x = np.array([1.0, 1.0 - 3e-6, 0.2])
    assert compared(lambda: x.max(), x, np.array([1.0, 0.0, 0.0]), cpu).passed
    assert not compared(lambda: x.max(), x, np.array([0.5, 0.5, 0.0]), cpu).passed


def test_slope_of_a_cubic(cpu):
    """(x^3)' = 3 x^2, and the central difference is off by h^2."""
    x = np.array([0.7, 2.0])
    slope = gradients._slope(lambda: (x**3).sum(), x, 1, 1e-3)
    assert slope == pytest.approx(12.0 + 1e-6, abs=1e-9)
    assert x.tolist() == [0.7, 2.0]


def test_small_gradients_are_measured_by_their_own_size(cpu):
    """An error of a thousandth in a tensor of small derivatives is no smaller an error."""
    x = np.array([0.3, -0.4, 0.5])

    def f():
        return 1e-4 * (x**2).sum()

    assert compared(f, x, 2e-4 * x, cpu).passed
    assert not compared(f, x, 2.002e-4 * x, cpu).passed


def test_half_of_those_checked_are_large(rng):
    """Of ten thousand derivatives of which 48 are not zero, chance alone would hardly ever meet one."""
    gradient = np.zeros(10_000)
    gradient[rng.choice(10_000, 48, replace=False)] = rng.uniform(-5, 5, 48)
    for _ in range(20):
        chosen = gradients._choose(gradient, 12, rng)
        assert len(chosen) == 12
        assert np.count_nonzero(gradient[chosen]) >= 6
        assert np.count_nonzero(gradient[chosen]) < 12


def test_all_of_a_small_tensor_is_checked(rng):
    for size in (1, 3, 12):
        assert sorted(gradients._choose(np.arange(float(size)), 12, rng)) == list(range(size))

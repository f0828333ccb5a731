"""Activations: the array forms against the loops, the kink at 0, and numbers far out."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest

from bareconv.ops import activation as act


class Activation(NamedTuple):
    forward: object
    backward: object  # of (dy, x)
    naive: object
    backward_naive: object


def leaky(slope):
    return Activation(
        lambda x: act.leaky_relu_forward(x, slope),
        lambda dy, x: act.leaky_relu_backward(dy, x, slope),
        lambda x: act.leaky_relu_naive(x, slope),
        lambda dy, x: act.leaky_relu_backward_naive(dy, x, slope),
    )


ACTIVATIONS = {
    "relu": Activation(
        act.relu_forward,
        lambda dy, x: act.relu_backward(dy, act.relu_forward(x)),  # it needs the output alone
        act.relu_naive,
        act.relu_backward_naive,
    ),
    "leaky relu": leaky(0.01),
    "leaky relu, slope 0.3": leaky(0.3),
    "gelu": Activation(act.gelu_forward, act.gelu_backward, act.gelu_naive, act.gelu_backward_naive),
}
each = pytest.mark.parametrize("f", ACTIVATIONS.values(), ids=ACTIVATIONS)


@each
@pytest.mark.parametrize("shape", [(1,), (4, 3), (2, 3, 5, 2), (0, 3)], ids=str)
def test_array_form_is_the_loops(f, shape, device, rng):
    x, dy = 3.0 * rng.standard_normal(shape), rng.standard_normal(shape)
    y, dx = f.forward(device.asarray(x)), f.backward(device.asarray(dy), device.asarray(x))
    np.testing.assert_allclose(device.to_host(y), f.naive(x), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(device.to_host(dx), f.backward_naive(dy, x), rtol=1e-12, atol=1e-13)
    assert y.shape == dx.shape == shape


@each
def test_loops_have_the_numerical_gradient(f, rng, numerical_gradient):
    x, dy = 2.0 * rng.standard_normal(200), rng.standard_normal(200)
    x[np.abs(x) < 1e-3] = 0.5  # away from the kink
    expected = numerical_gradient(lambda: (f.naive(x) * dy).sum(), x)
    np.testing.assert_allclose(f.backward_naive(dy, x), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "derivative"), [("relu", 0.0), ("leaky relu", 0.01), ("leaky relu, slope 0.3", 0.3), ("gelu", 0.5)]
)
def test_at_zero(name, derivative, device):
    """f(0) = 0, and of the two derivatives of a kink the left one is taken, at both zeros."""
    f = ACTIVATIONS[name]
    x, dy = np.array([0.0, -0.0, 0.0]), np.array([1.0, 2.0, -3.0])
    np.testing.assert_array_equal(device.to_host(f.forward(device.asarray(x))), 0.0)
    np.testing.assert_array_equal(f.naive(x), 0.0)
    np.testing.assert_allclose(f.backward_naive(dy, x), derivative * dy, rtol=1e-15)
    dx = f.backward(device.asarray(dy), device.asarray(x))
    np.testing.assert_allclose(device.to_host(dx), derivative * dy, rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "left"), [("relu", 0.0), ("leaky relu", 0.01), ("leaky relu, slope 0.3", 0.3), ("gelu", 0.0)]
)
def test_far_out_it_is_two_straight_lines(name, left, dtype, device):
    """x on the right, left * x on the left; nothing overflows, or the warning would be an error here."""
    f = ACTIVATIONS[name]
    x = np.array([20.0, 1e2, 1e4, 1e6, 1e9], dtype=dtype)
    ones = np.ones_like(x)
    for sign, slope in ((1, 1.0), (-1, left)):
        y, dx = f.forward(device.asarray(sign * x)), f.backward(device.asarray(ones), device.asarray(sign * x))
        np.testing.assert_allclose(device.to_host(y), sign * slope * x, rtol=1e-6)
        np.testing.assert_allclose(device.to_host(dx), slope * ones, rtol=1e-6)


def test_gelu_is_the_published_formula(device):
    """Its constants written out once more: the loops share theirs with the array form."""
    x = np.array([-3.0, -1.0, -0.1, 0.5, 1.0, 2.0])
    expected = [0.5 * v * (1.0 + math.tanh(0.7978845608028654 * (v + 0.044715 * v**3))) for v in x]
    assert expected[4] == pytest.approx(0.841191990608276)  # as every library has it
    np.testing.assert_allclose(device.to_host(act.gelu_forward(device.asarray(x))), expected, rtol=1e-13)
    np.testing.assert_allclose(act.gelu_naive(x), expected, rtol=1e-14)


def test_gelu_is_close_to_x_times_the_normal_distribution(device):
    """What the tanh form stands for; Hendrycks and Gimpel give no bound, the largest distance is 5e-4."""
    x = np.linspace(-6.0, 6.0, 1001)
    exact = np.array([v * 0.5 * (1.0 + math.erf(v / math.sqrt(2.0))) for v in x])
    np.testing.assert_allclose(device.to_host(act.gelu_forward(device.asarray(x))), exact, atol=5e-4, rtol=0)


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_is_kept_and_nothing_is_overwritten(f, dtype, device, rng):
    x, dy = (rng.standard_normal((3, 4)).astype(dtype) for _ in range(2))
    on_device = device.asarray(x.copy()), device.asarray(dy.copy())
    y, dx = f.forward(on_device[0]), f.backward(on_device[1], on_device[0])
    assert y.dtype == dx.dtype == f.naive(x).dtype == f.backward_naive(dy, x).dtype == dtype
    np.testing.assert_allclose(device.to_host(y), f.naive(x.astype(np.float64)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(device.to_host(dx), f.backward_naive(dy, x.astype(np.float64)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(device.to_host(on_device[0]), x)
    np.testing.assert_array_equal(device.to_host(on_device[1]), dy)


@each
def test_nan_shows(f, device):
    """A layer must not turn a NaN into a number: a run that has diverged has to be seen."""
    x = np.array([1.0, np.nan, -1.0])
    for y in (device.to_host(f.forward(device.asarray(x))), f.naive(x)):
        np.testing.assert_array_equal(np.isnan(y), [False, True, False])

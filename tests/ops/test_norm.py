"""Batch normalisation: the array form against the loops, the loops against differences, and awkward channels."""

from __future__ import annotations

import numpy as np
import pytest

from bareconv.ops.norm import (
    batch_norm_backward,
    batch_norm_backward_naive,
    batch_norm_forward,
    batch_norm_inference,
    batch_norm_naive,
)

EPS = 1e-5
SHAPES = [(6, 3), (2, 1), (1, 4), (3, 4, 5, 2), (1, 2, 1, 3), (2, 7, 3)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def draw(rng, shape):
    """(x, gamma, beta, dy); every channel has its own mean and spread."""
    C = shape[-1]
    x = rng.standard_normal(shape) * rng.uniform(0.5, 3.0, C) + rng.uniform(-2.0, 2.0, C)
    return x, rng.standard_normal(C), rng.standard_normal(C), rng.standard_normal(shape)


def over_batch(x):
    """The axes that statistics go over: all but the last."""
    return tuple(range(x.ndim - 1))


@each_shape
def test_array_form_is_the_loops(shape, device, rng):
    x, gamma, beta, dy = draw(rng, shape)
    x_, gamma_, beta_, dy_ = (device.asarray(a) for a in (x, gamma, beta, dy))
    y, xhat, inv_std, mean, var = batch_norm_forward(x_, gamma_, beta_, EPS)
    np.testing.assert_allclose(device.to_host(y), batch_norm_naive(x, gamma, beta, EPS), rtol=1e-11, atol=1e-12)
    gradients = batch_norm_backward(dy_, xhat, inv_std, gamma_)
    for ours, naive in zip(gradients, batch_norm_backward_naive(dy, x, gamma, EPS), strict=True):
        np.testing.assert_allclose(device.to_host(ours), naive, rtol=1e-9, atol=1e-11)
    # What the running statistics are made of: the mean, and the variance of the population.
    np.testing.assert_allclose(device.to_host(mean), x.mean(axis=over_batch(x)), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(device.to_host(var), x.var(axis=over_batch(x)), rtol=1e-12, atol=1e-14)


@each_shape
def test_loops_have_the_numerical_gradient(shape, rng, numerical_gradient):
    x, gamma, beta, dy = draw(rng, shape)
    eps = 1e-2  # with a batch of one or two numbers, 1e-5 bends y too much for differences
    for which, gradient in zip((x, gamma, beta), batch_norm_backward_naive(dy, x, gamma, eps), strict=True):
        expected = numerical_gradient(lambda: (batch_norm_naive(x, gamma, beta, eps) * dy).sum(), which)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_each_channel_gets_mean_beta_and_deviation_gamma(device, rng):
    x, gamma, beta, _ = draw(rng, (8, 5, 4, 3))
    y = device.to_host(batch_norm_forward(device.asarray(x), device.asarray(gamma), device.asarray(beta), 0.0)[0])
    np.testing.assert_allclose(y.mean(axis=(0, 1, 2)), beta, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(y.std(axis=(0, 1, 2)), np.abs(gamma), rtol=1e-10)


@pytest.mark.parametrize("shape", [(64, 5), (8, 6, 5, 3)], ids=str)
def test_the_gradient_of_x_has_no_part_along_the_mean_or_the_deviation(shape, device, rng):
    """y does not change when a constant is added to a channel, nor (eps aside) when it is scaled."""
    x, gamma, beta, dy = (device.asarray(a) for a in draw(rng, shape))
    _, xhat, inv_std, _, _ = batch_norm_forward(x, gamma, beta, 1e-14)
    dx = batch_norm_backward(dy, xhat, inv_std, gamma)[0]
    assert float(abs(dx).max()) > 1e-2
    np.testing.assert_allclose(device.to_host(dx.sum(axis=over_batch(dx))), 0.0, atol=1e-12)
    np.testing.assert_allclose(device.to_host((dx * x).sum(axis=over_batch(dx))), 0.0, atol=1e-11)


@each_shape
def test_inference_is_the_formula(shape, device, rng):
    x, gamma, beta, _ = draw(rng, shape)
    mean, var = rng.standard_normal(shape[-1]), rng.uniform(0.1, 2.0, shape[-1])
    expected = np.empty_like(x)
    for index in np.ndindex(*shape):
        c = index[-1]
        expected[index] = gamma[c] * (x[index] - mean[c]) / (var[c] + EPS) ** 0.5 + beta[c]
    x_, gamma_, beta_, mean_, var_ = (device.asarray(a) for a in (x, gamma, beta, mean, var))
    y = batch_norm_inference(x_, gamma_, beta_, mean_, var_, EPS)
    np.testing.assert_allclose(device.to_host(y), expected, rtol=1e-11, atol=1e-12)


def test_inference_with_the_statistics_of_the_batch_is_training(device, rng):
    x, gamma, beta, _ = (device.asarray(a) for a in draw(rng, (4, 3, 5, 2)))
    y, _, _, mean, var = batch_norm_forward(x, gamma, beta, EPS)
    inference = batch_norm_inference(x, gamma, beta, mean, var, EPS)
    np.testing.assert_allclose(device.to_host(inference), device.to_host(y), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, -3.0])
def test_a_constant_channel_becomes_beta(constant, dtype, device, rng):
    """Its variance is 0: eps keeps the quotient finite. The rounding of its mean must not be blown up either."""
    x, gamma, beta, dy = (a.astype(dtype) for a in draw(rng, (4, 3, 3, 2)))
    x[..., 0] = constant
    x_, gamma_, beta_, dy_ = (device.asarray(a) for a in (x, gamma, beta, dy))
    y, xhat, inv_std, _, var = batch_norm_forward(x_, gamma_, beta_, EPS)
    dx, dgamma, dbeta = (device.to_host(a) for a in batch_norm_backward(dy_, xhat, inv_std, gamma_))
    tolerance = 1e-3 if dtype == np.float32 else 1e-11
    np.testing.assert_allclose(device.to_host(y)[..., 0], beta[0], rtol=0, atol=tolerance)
    assert 0.0 <= float(var[0]) < tolerance
    assert abs(dgamma[0]) < 10 * tolerance
    for a in (dx, dgamma, dbeta):
        assert np.isfinite(a).all()
    # The mean's path is all that is left of dx: gamma/sqrt(eps) (dy - mean dy).
    expected = gamma[0] / EPS**0.5 * (dy[..., 0] - dy[..., 0].mean())
    np.testing.assert_allclose(dx[..., 0], expected, rtol=1e-3, atol=1e-2 * np.abs(expected).max())


def test_a_batch_of_one_number_is_beta_and_has_no_gradient(device, rng):
    x, gamma, beta, dy = (device.asarray(a) for a in draw(rng, (1, 4)))
    y, xhat, inv_std, _, _ = batch_norm_forward(x, gamma, beta, EPS)
    np.testing.assert_array_equal(device.to_host(y)[0], device.to_host(beta))
    np.testing.assert_array_equal(device.to_host(batch_norm_backward(dy, xhat, inv_std, gamma)[0]), 0.0)


@pytest.mark.parametrize("shape", [(256, 3), (16, 8, 8, 3)], ids=str)
def test_float32_stays_float32_and_is_accurate(shape, device, rng):
    """Far from 0, too: E[x^2] - E[x]^2 would have no correct digit left."""
    x, gamma, beta, dy = (a.astype(np.float32) for a in draw(rng, shape))
    x += np.float32(1000.0)
    x_, gamma_, beta_, dy_ = (device.asarray(a) for a in (x, gamma, beta, dy))
    forward = batch_norm_forward(x_, gamma_, beta_, EPS)
    backward = batch_norm_backward(dy_, forward[1], forward[2], gamma_)
    inference = batch_norm_inference(x_, gamma_, beta_, forward[3], forward[4], EPS)
    assert {a.dtype for a in (*forward, *backward, inference)} == {np.dtype(np.float32)}
    x, gamma, beta, dy = (a.astype(np.float64) for a in (x, gamma, beta, dy))
    np.testing.assert_allclose(device.to_host(forward[0]), batch_norm_naive(x, gamma, beta, EPS), rtol=0, atol=5e-3)
    np.testing.assert_allclose(device.to_host(forward[4]), x.var(axis=over_batch(x)), rtol=1e-3)
    naive = batch_norm_backward_naive(dy, x, gamma, EPS)
    for ours, expected in zip(backward, naive, strict=True):
        np.testing.assert_allclose(device.to_host(ours), expected, rtol=0, atol=5e-3 * max(1.0, np.abs(expected).max()))


def test_nothing_is_overwritten(device, rng):
    arrays = draw(rng, (3, 2, 2, 2))
    x, gamma, beta, dy = on_device = [device.asarray(a.copy()) for a in arrays]
    _, xhat, inv_std, mean, var = batch_norm_forward(x, gamma, beta, EPS)
    kept = [device.to_host(a).copy() for a in (xhat, inv_std)]
    batch_norm_backward(dy, xhat, inv_std, gamma)
    batch_norm_inference(x, gamma, beta, mean, var, EPS)
    for before, after in zip([*arrays, *kept], [*on_device, xhat, inv_std], strict=True):
        np.testing.assert_array_equal(device.to_host(after), before)

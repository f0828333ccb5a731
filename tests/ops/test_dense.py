"""The dense layer: the array form against the loops, the loops against differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bareconv.ops.dense import dense_backward, dense_backward_naive, dense_forward, dense_naive

# N, F, K; the last is many rows and few outputs, which has a product of its own
SHAPES = [(1, 1, 1), (5, 3, 4), (2, 7, 1), (1, 6, 5), (16, 40, 10), (260, 3, 2)]


def draw(rng, N, F, K):
    return [rng.standard_normal(shape) for shape in ((N, F), (F, K), (K,), (N, K))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_array_form_is_the_loops(shape, device, rng):
    x, w, b, dy = draw(rng, *shape)
    x_, w_, b_, dy_ = (device.asarray(a) for a in (x, w, b, dy))
    np.testing.assert_allclose(device.to_host(dense_forward(x_, w_, b_)), dense_naive(x, w, b), rtol=1e-12, atol=1e-13)
    for ours, naive in zip(dense_backward(dy_, x_, w_), dense_backward_naive(dy, x, w), strict=True):
        assert ours is not None
        np.testing.assert_allclose(device.to_host(ours), naive, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_loops_have_the_numerical_gradient(shape, rng, numerical_gradient):
    x, w, b, dy = draw(rng, *shape)
    for which, gradient in zip((x, w, b), dense_backward_naive(dy, x, w), strict=True):
        expected = numerical_gradient(lambda: (dense_naive(x, w, b) * dy).sum(), which)
        np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-8)


def test_without_a_bias(device, rng):
    x, w, _, _ = draw(rng, 3, 4, 5)
    y = dense_forward(device.asarray(x), device.asarray(w), None)
    np.testing.assert_allclose(device.to_host(y), dense_naive(x, w, None), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(device.to_host(y), dense_naive(x, w, np.zeros(5)), rtol=1e-13, atol=1e-14)


def test_the_first_layer_needs_no_dx(device, rng):
    x, w, _, dy = draw(rng, 3, 4, 5)
    dx, dw, db = dense_backward(device.asarray(dy), device.asarray(x), device.asarray(w), need_dx=False)
    assert dx is None
    _, dw_naive, db_naive = dense_backward_naive(dy, x, w)
    np.testing.assert_allclose(device.to_host(dw), dw_naive, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(device.to_host(db), db_naive, rtol=1e-13, atol=1e-14)


def test_float32_stays_float32_and_is_accurate(device, rng):
    x, w, b, dy = draw(rng, 8, 50, 6)
    x_, w_, b_, dy_ = (device.asarray(a, np.float32) for a in (x, w, b, dy))
    ours = dense_forward(x_, w_, b_), *dense_backward(dy_, x_, w_)
    for a, naive in zip(ours, (dense_naive(x, w, b), *dense_backward_naive(dy, x, w)), strict=True):
        assert a is not None
        assert a.dtype == np.float32
        np.testing.assert_allclose(device.to_host(a), naive, rtol=1e-4, atol=1e-4)


def test_nothing_is_overwritten(device, rng):
    arrays = draw(rng, 3, 4, 5)
    x, w, b, dy = on_device = [device.asarray(a.copy()) for a in arrays]
    dense_forward(x, w, b)
    dense_backward(dy, x, w)
    for before, after in zip(arrays, on_device, strict=True):
        np.testing.assert_array_equal(device.to_host(after), before)


@given(N=st.integers(1, 9), F=st.integers(1, 9), K=st.integers(1, 9))
def test_adjoint(N, F, K, device):
    """X -> X W is linear in X and in W, so <dY, X W> = <dX, X> = <dW, W> over any shape."""
    x, w, _, dy = draw(np.random.default_rng(0), N, F, K)
    x_, w_, dy_ = (device.asarray(a) for a in (x, w, dy))
    product = (device.to_host(dense_forward(x_, w_, None)) * dy).sum()
    dx, dw, _ = dense_backward(dy_, x_, w_)
    assert dx is not None
    assert (device.to_host(dx) * x).sum() == pytest.approx(product, rel=1e-10, abs=1e-11)
    assert (device.to_host(dw) * w).sum() == pytest.approx(product, rel=1e-10, abs=1e-11)

"""Dropout: a mask that is a function of (seed, step, layer), the same on every device, and right on average."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bareconv import random
from bareconv.ops.dropout import dropout_backward, dropout_forward, dropout_mask, dropout_mask_naive

PLACE = {"seed": 7, "step": 12, "layer": 3}


def mask_on(device, shape, p, dtype=np.float64, **place):
    mask = dropout_mask(device.xp.zeros(shape, dtype=dtype), p, **{**PLACE, **place})
    assert mask.dtype == dtype
    assert mask.shape == shape
    return device.to_host(mask)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1,), (5, 7), (2, 4, 3, 5), (0, 4)], ids=str)
def test_every_device_draws_the_mask_of_the_loops(shape, p, dtype, device):
    expected = dropout_mask_naive(np.zeros(shape, dtype=dtype), p, **PLACE)
    assert expected.dtype == dtype
    np.testing.assert_array_equal(mask_on(device, shape, p, dtype), expected)


def test_the_mask_is_a_function_of_its_place(device):
    """The same again for the same (seed, step, layer), in either precision; unrelated for any other."""
    shape = (40, 50)
    mask = mask_on(device, shape, 0.5)
    np.testing.assert_array_equal(mask_on(device, shape, 0.5), mask)
    np.testing.assert_array_equal(mask_on(device, shape, 0.5, np.float32), mask)
    for other in ({"seed": 8}, {"step": 13}, {"layer": 4}, {"step": 3, "layer": 12}):
        assert np.mean(mask_on(device, shape, 0.5, **other) == mask) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
def test_the_share_and_the_values(p, dtype, device):
    mask = mask_on(device, (400, 500), p, dtype)
    np.testing.assert_array_equal(np.unique(mask), np.array([0.0, 1.0 / (1.0 - p)], dtype=dtype))
    deviation = np.sqrt(p * (1.0 - p) / mask.size)
    assert np.mean(mask > 0) == pytest.approx(1.0 - p, abs=5 * deviation)
    assert mask.mean(dtype=np.float64) == pytest.approx(1.0, abs=5 * deviation / (1.0 - p))  # y is x on average


def test_a_number_equal_to_p_is_kept(device, monkeypatch):
    """Or p = 0 would drop a number now and then: a uniform number can be 0."""
    for p, u, expected in ((0.0, 0.0, 1.0), (0.5, 0.5, 2.0), (0.5, 0.5 - 2.0**-24, 0.0)):
        monkeypatch.setattr(
            random, "uniform", lambda seed, stream, shape, xp=np, u=u: xp.full(shape, u, dtype=np.float32)
        )
        np.testing.assert_array_equal(mask_on(device, (3,), p), expected)
        np.testing.assert_array_equal(dropout_mask_naive(np.zeros(3), p, **PLACE), expected)


def test_p_zero_changes_nothing(device, rng):
    x = device.asarray(rng.standard_normal((6, 5)))
    mask = dropout_mask(x, 0.0, **PLACE)
    np.testing.assert_array_equal(device.to_host(mask), 1.0)
    np.testing.assert_array_equal(device.to_host(dropout_forward(x, mask)), device.to_host(x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_forward_and_backward_multiply_by_the_mask(dtype, device, rng):
    x, dy = (rng.standard_normal((5, 6)).astype(dtype) for _ in range(2))
    on_device = device.asarray(x.copy()), device.asarray(dy.copy())
    mask = dropout_mask(on_device[0], 0.5, **PLACE)
    y, dx = dropout_forward(on_device[0], mask), dropout_backward(on_device[1], mask)
    assert y.dtype == dx.dtype == dtype
    kept = device.to_host(mask) > 0
    assert 0 < kept.sum() < kept.size
    np.testing.assert_array_equal(device.to_host(y), np.where(kept, 2 * x, 0))
    np.testing.assert_array_equal(device.to_host(dx), np.where(kept, 2 * dy, 0))
    np.testing.assert_array_equal(device.to_host(on_device[0]), x)
    np.testing.assert_array_equal(device.to_host(on_device[1]), dy)


@given(p=st.floats(0.0, 0.99), seed=st.integers(0, 2**64 - 1), step=st.integers(0, 2**32 - 1))
def test_more_dropout_only_drops_more(p, seed, step, device):
    """The uniform numbers do not depend on p, so that what p drops, a larger p drops too."""
    few, many = (mask_on(device, (8, 8), q, seed=seed, step=step) for q in (p, (p + 1) / 2))
    assert (few[many > 0] > 0).all()
    expected = dropout_mask_naive(np.zeros((8, 8)), p, **{**PLACE, "seed": seed, "step": step})
    np.testing.assert_array_equal(few, expected)

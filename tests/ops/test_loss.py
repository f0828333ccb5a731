"""Softmax cross-entropy: values known by hand, the loops, differences, and logits far out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bareconv.ops.loss import (
    softmax,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
    softmax_cross_entropy_naive,
)

SMOOTHINGS = [0.0, 0.1, 1.0]


def draw(rng, N, K):
    return 2.0 * rng.standard_normal((N, K)), rng.integers(0, K, N)


def on(device, logits, labels, smoothing=0.0):
    """(loss, dz) of the array form, on the host."""
    loss, p, t = softmax_cross_entropy_forward(device.asarray(logits), device.asarray(labels), smoothing)
    return float(loss), device.to_host(softmax_cross_entropy_backward(p, t))


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("shape", [(1, 2), (7, 10), (5, 1), (3, 300)], ids=str)
def test_array_form_is_the_loops(shape, smoothing, device, rng):
    logits, labels = draw(rng, *shape)
    loss_naive, dz_naive = softmax_cross_entropy_naive(logits, labels, smoothing)
    loss, dz = on(device, logits, labels, smoothing)
    assert loss == pytest.approx(loss_naive, rel=1e-13, abs=1e-15)
    np.testing.assert_allclose(dz, dz_naive, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("shape", [(1, 2), (6, 5)], ids=str)
def test_loops_have_the_numerical_gradient(shape, smoothing, rng, numerical_gradient):
    logits, labels = draw(rng, *shape)
    expected = numerical_gradient(lambda: softmax_cross_entropy_naive(logits, labels, smoothing)[0], logits)
    dz = softmax_cross_entropy_naive(logits, labels, smoothing)[1]
    np.testing.assert_allclose(dz, expected, rtol=1e-6, atol=1e-9)


def test_values_known_by_hand(device):
    ln2 = math.log(2.0)
    uniform, labels = np.zeros((3, 8)), np.array([0, 3, 7])
    assert on(device, uniform, labels)[0] == pytest.approx(3 * ln2)  # log 8, whatever the targets are
    assert on(device, uniform, labels, 0.3)[0] == pytest.approx(3 * ln2)
    third = np.array([[math.log(2.0), 0.0]])  # p = 2/3, 1/3
    loss, dz = on(device, third, np.array([1]))
    assert loss == pytest.approx(math.log(3.0))
    np.testing.assert_allclose(dz, [[2 / 3, -2 / 3]], rtol=1e-14)
    loss, dz = on(device, third, np.array([1]), 0.2)  # t = 0.1, 0.9
    assert loss == pytest.approx(math.log(3.0) - 0.1 * ln2)
    np.testing.assert_allclose(dz, [[2 / 3 - 0.1, 1 / 3 - 0.9]], rtol=1e-14)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_the_gradient_is_divided_by_the_batch_once(smoothing, device, rng):
    """Three copies of a batch: the mean loss is the same, and each copy has a third of the gradient."""
    logits, labels = draw(rng, 5, 4)
    loss, dz = on(device, logits, labels, smoothing)
    loss_thrice, dz_thrice = on(device, np.tile(logits, (3, 1)), np.tile(labels, 3), smoothing)
    assert loss_thrice == pytest.approx(loss, rel=1e-13)
    np.testing.assert_allclose(dz_thrice, np.tile(dz / 3, (3, 1)), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_each_row_of_the_gradient_sums_to_zero(smoothing, device, rng):
    logits, labels = draw(rng, 20, 10)
    _, dz = on(device, logits, labels, smoothing)
    assert np.abs(dz).max() > 1e-3
    np.testing.assert_allclose(dz.sum(axis=1), 0.0, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_far_out_do_not_overflow(dtype, device):
    """exp(1e4) is infinite in every precision, and a warning is an error here."""
    logits = np.array([[1e4, 0.0, -1e4]] * 3, dtype=dtype)
    loss, dz = on(device, logits, np.array([0, 1, 2]))
    assert loss == pytest.approx((0.0 + 1e4 + 2e4) / 3, rel=1e-6)
    np.testing.assert_allclose(dz, np.array([[0, 0, 0], [1, -1, 0], [1, 0, -1]]) / 3, rtol=1e-6)
    np.testing.assert_array_equal(device.to_host(softmax(device.asarray(logits))), [[1, 0, 0]] * 3)
    heights = np.array([[1e4], [-1e4], [0.0]], dtype=dtype).repeat(8, axis=1)  # each row has a maximum of its own
    assert on(device, heights, np.array([0, 5, 7]))[0] == pytest.approx(math.log(8.0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_float32_stays_float32_and_is_accurate(smoothing, device, rng):
    logits, labels = draw(rng, 32, 10)
    loss, p, t = softmax_cross_entropy_forward(
        device.asarray(logits, np.float32), device.asarray(labels, np.uint8), smoothing
    )
    dz = softmax_cross_entropy_backward(p, t)
    assert {a.dtype for a in (loss, p, t, dz)} == {np.dtype(np.float32)}
    loss_naive, dz_naive = softmax_cross_entropy_naive(logits, labels, smoothing)
    assert float(loss) == pytest.approx(loss_naive, rel=1e-5)
    np.testing.assert_allclose(device.to_host(dz), dz_naive, rtol=1e-4, atol=1e-7)


def test_the_loss_stays_on_the_device(device, rng):
    """An array of no axes (of NumPy: its scalar), not a Python number: to read it is to wait for the GPU."""
    logits, labels = draw(rng, 4, 3)
    loss, _, _ = softmax_cross_entropy_forward(device.asarray(logits), device.asarray(labels))
    assert isinstance(loss, np.floating if device.name == "cpu" else device.xp.ndarray)
    assert loss.shape == ()


@pytest.mark.parametrize("smoothing", [0.0, 0.25])
def test_probabilities_and_targets(smoothing, device, rng):
    logits, labels = draw(rng, 6, 4)
    _, p, t = softmax_cross_entropy_forward(device.asarray(logits), device.asarray(labels), smoothing)
    exp = np.array([[math.exp(z) for z in row] for row in logits])
    np.testing.assert_allclose(device.to_host(p), exp / exp.sum(axis=1, keepdims=True), rtol=1e-13)
    np.testing.assert_allclose(device.to_host(softmax(device.asarray(logits))), device.to_host(p), rtol=1e-14)
    expected = np.full((6, 4), smoothing / 4)
    for n, label in enumerate(labels):
        expected[n, label] += 1.0 - smoothing
    np.testing.assert_allclose(device.to_host(t), expected, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_labels_of_any_integer_type(dtype, device, rng):
    """Also of a byte over more classes than a byte can count: no second class takes a label's remainder."""
    logits, labels = draw(rng, 4, 600)
    labels %= 256
    _, _, t = softmax_cross_entropy_forward(device.asarray(logits), device.asarray(labels, dtype))
    t = device.to_host(t)
    np.testing.assert_array_equal(t.argmax(axis=1), labels)
    np.testing.assert_array_equal(t.sum(axis=1), 1.0)


@pytest.mark.parametrize("label", [-1, -4, 4, 1000])
def test_a_label_out_of_range_is_no_class(label, device, rng):
    """An index would count from the end, or read other memory on a GPU."""
    logits, _ = draw(rng, 1, 4)
    _, _, t = softmax_cross_entropy_forward(device.asarray(logits), device.asarray(np.array([label])))
    np.testing.assert_array_equal(device.to_host(t), 0.0)


def test_nothing_is_overwritten(device, rng):
    logits, labels = draw(rng, 4, 3)
    z = device.asarray(logits.copy())
    _, p, t = softmax_cross_entropy_forward(z, device.asarray(labels), 0.1)
    kept = device.to_host(p).copy(), device.to_host(t).copy()
    softmax_cross_entropy_backward(p, t)
    softmax(z)
    for before, after in zip((logits, *kept), (z, p, t), strict=True):
        np.testing.assert_array_equal(device.to_host(after), before)


@given(
    N=st.integers(1, 6),
    K=st.integers(1, 12),
    smoothing=st.floats(0.0, 1.0),
    shift=st.floats(-1e3, 1e3),
    scale=st.floats(0.0, 50.0),
)
def test_a_constant_added_to_a_row_changes_nothing(N, K, smoothing, shift, scale, device):
    rng = np.random.default_rng(0)
    logits, labels = scale * rng.standard_normal((N, K)), rng.integers(0, K, N)
    loss, dz = on(device, logits, labels, smoothing)
    shifted_loss, shifted_dz = on(device, logits + shift, labels, smoothing)
    assert loss >= 0.0
    assert shifted_loss == pytest.approx(loss, rel=1e-9, abs=1e-10)
    np.testing.assert_allclose(shifted_dz, dz, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(dz.sum(axis=1), 0.0, atol=1e-14)

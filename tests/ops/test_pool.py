"""Pooling: the array forms against the loops, ties, padding that must not win, NaN, and the gradients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bareconv.errors import ShapeError
from bareconv.ops.pool import (
    avg_pool_backward,
    avg_pool_backward_naive,
    avg_pool_forward,
    avg_pool_naive,
    max_pool_backward,
    max_pool_backward_naive,
    max_pool_forward,
    max_pool_naive,
)
from bareconv.ops.windows import Window

# (N, H, W, C, window)
CASES = {
    "plain": (2, 6, 4, 3, Window((2, 2), (2, 2))),
    "overlapping": (2, 7, 9, 2, Window((3, 3), (2, 2))),
    "overlapping at every pixel": (1, 5, 6, 2, Window((3, 2))),
    "stride larger than the kernel": (1, 9, 8, 2, Window((2, 2), (3, 4))),
    "odd sizes, a row left over": (2, 5, 7, 3, Window((2, 2), (2, 2))),
    "padding": (2, 6, 5, 2, Window((3, 3), (2, 2), (1, 1))),
    "padding on one axis": (1, 4, 5, 2, Window((3, 2), (1, 2), (1, 0))),
    "padding of half the kernel": (1, 4, 3, 2, Window((4, 2), (1, 1), (2, 1))),
    "dilated": (1, 9, 8, 2, Window((3, 2), (1, 2), dilation=(2, 3))),
    "kernel equal to the image": (2, 4, 5, 3, Window((4, 5))),
    "one pixel": (2, 1, 1, 3, Window((1, 1))),
    "one pixel in padding": (1, 1, 1, 2, Window((2, 2), padding=(1, 1))),
    "256 taps": (1, 17, 16, 2, Window((16, 16))),
    "more than 256 taps": (1, 18, 17, 2, Window((17, 16))),
    "everything at once": (2, 10, 11, 2, Window((3, 4), (2, 3), (1, 2), (2, 1))),
}


def draw(rng, case, ties=False):
    """(x, dy) in float64; with ``ties``, of five values only."""
    N, H, W, C, window = case
    dy = rng.standard_normal((N, *window.output_size((H, W)), C))
    x = rng.integers(-2, 3, (N, H, W, C)).astype(np.float64) if ties else rng.standard_normal((N, H, W, C))
    return x, dy


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_max_is_the_loops(case, ties, device, rng):
    x, dy = draw(rng, case, ties)
    window = case[4]
    y_naive, where_naive = max_pool_naive(x, window)
    y, where = max_pool_forward(device.asarray(x), window)
    np.testing.assert_array_equal(device.to_host(y), y_naive)
    np.testing.assert_array_equal(device.to_host(where), where_naive)
    dx = max_pool_backward(device.asarray(dy), where, x.shape, window)
    expected = max_pool_backward_naive(dy, where_naive, x.shape, window)
    np.testing.assert_allclose(device.to_host(dx), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_mean_is_the_loops(case, device, rng):
    x, dy = draw(rng, case)
    window = case[4]
    y = avg_pool_forward(device.asarray(x), window)
    np.testing.assert_allclose(device.to_host(y), avg_pool_naive(x, window), rtol=1e-12, atol=1e-14)
    dx = avg_pool_backward(device.asarray(dy), x.shape, window)
    expected = avg_pool_backward_naive(dy, x.shape, window)
    np.testing.assert_allclose(device.to_host(dx), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", [c for c in CASES.values() if len(c[4].taps) < 256], ids=lambda c: str(c[4].kernel))
def test_loops_have_the_numerical_gradient(case, rng, numerical_gradient):
    """All pixels apart by 0.1, so that no step of a difference changes who wins."""
    x, dy = draw(rng, case)
    x = 0.1 * rng.permutation(x.size).reshape(x.shape)
    window = case[4]
    _, where = max_pool_naive(x, window)
    expected = numerical_gradient(lambda: (max_pool_naive(x, window)[0] * dy).sum(), x)
    np.testing.assert_allclose(max_pool_backward_naive(dy, where, x.shape, window), expected, rtol=1e-6, atol=1e-7)
    expected = numerical_gradient(lambda: (avg_pool_naive(x, window) * dy).sum(), x)
    np.testing.assert_allclose(avg_pool_backward_naive(dy, x.shape, window), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("value", [3.0, 0.0, -0.0, -2.0])
@pytest.mark.parametrize("kernel", [2, 3])
def test_of_a_constant_image_the_first_pixel_wins_alone(value, kernel, device, rng):
    """Windows side by side: each sends its whole gradient to its top left pixel."""
    x = np.full((2, 3 * kernel, 2 * kernel, 2), value)
    window = Window((kernel, kernel), (kernel, kernel))
    dy = rng.standard_normal((2, 3, 2, 2))
    y, where = max_pool_forward(device.asarray(x), window)
    np.testing.assert_array_equal(device.to_host(y), value)
    np.testing.assert_array_equal(device.to_host(where), 0)
    expected = np.zeros_like(x)
    expected[:, ::kernel, ::kernel] = dy
    dx = max_pool_backward(device.asarray(dy), where, x.shape, window)
    np.testing.assert_array_equal(device.to_host(dx), expected)


@pytest.mark.parametrize("values", [(-0.0, 0.0), (0.0, -0.0)])
def test_both_zeros_are_equal(values, device):
    x = np.array([*values, *values]).reshape(1, 2, 2, 1)
    window = Window((2, 2))
    y, where = max_pool_forward(device.asarray(x), window)
    assert device.to_host(y).item() == 0.0
    dx = max_pool_backward(device.asarray(np.ones((1, 1, 1, 1))), where, x.shape, window)
    np.testing.assert_array_equal(device.to_host(dx).ravel(), [1, 0, 0, 0])


@pytest.mark.parametrize("value", [-5.0, -0.5])
def test_padding_never_wins_over_equal_negative_pixels(value, device):
    """Stride 3 over a padded 5 x 5 image: the windows start in the padding, their first pixels are rows 0 and 2."""
    window = Window((3, 3), (3, 3), (1, 1))
    x = np.full((1, 5, 5, 1), value)
    y, where = max_pool_forward(device.asarray(x), window)
    np.testing.assert_array_equal(device.to_host(y), np.full((1, 2, 2, 1), value))
    dx = device.to_host(max_pool_backward(device.asarray(np.full((1, 2, 2, 1), 7.0)), where, x.shape, window))
    expected = np.zeros((5, 5))
    expected[np.ix_([0, 2], [0, 2])] = 7.0
    np.testing.assert_array_equal(dx[0, :, :, 0], expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if max(case[4].padding) > 0])
def test_padding_never_wins_over_negative_pixels(name, dtype, device, rng):
    window = CASES[name][4]
    x, dy = (a.astype(dtype) for a in draw(rng, CASES[name]))
    x = -np.abs(x) - dtype(1e30)
    y, where = max_pool_forward(device.asarray(x), window)
    np.testing.assert_array_equal(device.to_host(y), max_pool_naive(x, window)[0])
    assert np.isfinite(device.to_host(y)).all()
    dx = max_pool_backward(device.asarray(dy), where, x.shape, window)
    assert device.to_host(dx).sum() == pytest.approx(dy.sum(), rel=1e-4, abs=1e-4)  # nothing is lost to the border


@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("pixel", [(0, 0), (0, 1), (1, 0), (1, 2), (2, 2), (4, 4)])
def test_nan_shows(pool, pixel, device, rng):
    """In every window that covers it, whichever tap it is under, and nowhere else."""
    window = Window((3, 3), (2, 2))  # windows of a 5 x 5 image: rows and columns 0-2 and 2-4
    x = rng.standard_normal((1, 5, 5, 2))
    x[0, pixel[0], pixel[1], 1] = np.nan
    rows, columns = ([i <= 2, i >= 2] for i in pixel)  # which of the two windows covers it, along each axis
    expected = np.zeros((1, 2, 2, 2), dtype=bool)
    expected[0, :, :, 1] = np.outer(rows, columns)
    if pool == "max":
        forms = max_pool_forward(device.asarray(x), window)[0], max_pool_naive(x, window)[0]
    else:
        forms = avg_pool_forward(device.asarray(x), window), avg_pool_naive(x, window)
    ours, naive = device.to_host(forms[0]), forms[1]
    np.testing.assert_array_equal(np.isnan(ours), expected)
    np.testing.assert_allclose(ours, naive, rtol=1e-13, atol=1e-14)  # NaN equals NaN here


@pytest.mark.parametrize(
    ("kernel", "dtype"), [((2, 2), np.uint8), ((16, 16), np.uint8), ((257, 1), np.int32), ((17, 16), np.int32)]
)
def test_the_last_tap_can_win(kernel, dtype, device):
    """Its number must fit: 255 is the last that a byte holds."""
    H, W = kernel
    window = Window(kernel)
    x = np.arange(2.0 * (H + 1) * W).reshape(2, H + 1, W, 1)  # grows, so that every window's last pixel wins
    y, where = max_pool_forward(device.asarray(x), window)
    assert where.dtype == dtype
    np.testing.assert_array_equal(device.to_host(where), H * W - 1)
    dx = device.to_host(max_pool_backward(device.asarray(np.ones((2, 2, 1, 1))), where, x.shape, window))
    expected = np.zeros_like(x)
    expected[:, -2:, -1] = 1.0
    np.testing.assert_array_equal(dx, expected)
    np.testing.assert_array_equal(device.to_host(y), x[:, -2:, -1:])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["plain", "everything at once"])
def test_the_dtype_is_kept_and_nothing_is_overwritten(name, dtype, device, rng):
    window = CASES[name][4]
    x, dy = (a.astype(dtype) for a in draw(rng, CASES[name]))
    on_device = device.asarray(x.copy()), device.asarray(dy.copy())
    y, where = max_pool_forward(on_device[0], window)
    mean = avg_pool_forward(on_device[0], window)
    gradients = (
        max_pool_backward(on_device[1], where, x.shape, window),
        avg_pool_backward(on_device[1], x.shape, window),
    )
    assert {a.dtype for a in (y, mean, *gradients)} == {np.dtype(dtype)}
    for before, after in zip((x, dy), on_device, strict=True):
        np.testing.assert_array_equal(device.to_host(after), before)


def test_float32_is_accurate(device, rng):
    x, _ = draw(rng, CASES["more than 256 taps"])
    y = avg_pool_forward(device.asarray(x, np.float32), Window((17, 16)))
    np.testing.assert_allclose(device.to_host(y), avg_pool_naive(x, Window((17, 16))), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("forward", [max_pool_forward, avg_pool_forward])
@pytest.mark.parametrize(("kernel", "padding"), [((2, 2), (2, 0)), ((3, 3), (0, 2)), ((1, 1), (1, 1))])
def test_padding_of_more_than_half_the_kernel_is_refused(forward, kernel, padding, rng):
    message = (
        rf"pooling with kernel \({kernel[0]}, {kernel[1]}\) and padding \({padding[0]}, {padding[1]}\): "
        "expected padding of at most half the kernel"
    )
    with pytest.raises(ShapeError, match=message):
        forward(rng.standard_normal((1, 6, 6, 1)), Window(kernel, padding=padding))


@pytest.mark.parametrize("forward", [max_pool_forward, avg_pool_forward])
def test_a_window_that_does_not_fit_is_named(forward, rng):
    with pytest.raises(ShapeError, match="a window of 3 x 3 does not fit an image of 2 x 6 with padding 0 x 0"):
        forward(rng.standard_normal((1, 2, 6, 1)), Window((3, 3)))


sizes, pairs = st.integers(3, 8), st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    N=st.integers(1, 2),
    size=st.tuples(sizes, sizes),
    C=st.integers(1, 2),
    kernel=pairs,
    stride=pairs,
    dilation=pairs,
    padded=st.tuples(st.booleans(), st.booleans()),
    values=st.integers(1, 4),
)
def test_over_random_shapes(N, size, C, kernel, stride, dilation, padded, values, device):
    """Few distinct values, so many ties: the first of the largest, wherever it is, gets the gradient."""
    window = Window(kernel, stride, (padded[0] * (kernel[0] // 2), padded[1] * (kernel[1] // 2)), dilation)
    assume(all(e <= s + 2 * p for e, s, p in zip(window.extent, size, window.padding, strict=True)))
    P, Q = window.output_size(size)
    rng = np.random.default_rng(0)
    x = rng.integers(-values, 0, (N, *size, C)).astype(np.float64)
    dy = rng.integers(-9, 10, (N, P, Q, C)).astype(np.float64)  # whole numbers: sums in any order are exact
    y_naive, where_naive = max_pool_naive(x, window)
    y, where = max_pool_forward(device.asarray(x), window)
    np.testing.assert_array_equal(device.to_host(y), y_naive)
    np.testing.assert_array_equal(device.to_host(where), where_naive)
    dx = device.to_host(max_pool_backward(device.asarray(dy), where, x.shape, window))
    np.testing.assert_array_equal(dx, max_pool_backward_naive(dy, where_naive, x.shape, window))
    assert dx.sum() == dy.sum()

    mean = device.to_host(avg_pool_forward(device.asarray(x), window))
    np.testing.assert_allclose(mean, avg_pool_naive(x, window), rtol=1e-13)
    dx = device.to_host(avg_pool_backward(device.asarray(dy), x.shape, window))
    assert (dx * x).sum() == pytest.approx((mean * dy).sum(), rel=1e-12, abs=1e-12)  # the mean is linear

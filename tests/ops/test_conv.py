"""conv2d: the array forms against the loops, on every device, over shapes that trip implementations up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bareconv import ops
from bareconv.errors import ShapeError
from bareconv.ops.conv import conv2d_backward, conv2d_backward_naive, conv2d_forward, conv2d_naive
from bareconv.ops.windows import Window

# (N, H, W, C, K, groups, window): odd sizes, overlap, gaps (stride larger than the kernel), padding, dilation, groups
CASES = {
    "plain": (2, 5, 6, 3, 4, 1, Window((3, 3))),
    "one pixel": (1, 1, 1, 2, 3, 1, Window((1, 1))),
    "kernel equal to the image": (2, 4, 3, 2, 2, 1, Window((4, 3))),
    "same padding": (2, 5, 5, 2, 3, 1, Window((3, 3), padding=(1, 1))),
    "strided, overlapping": (2, 7, 8, 2, 3, 1, Window((3, 3), stride=(2, 2), padding=(1, 0))),
    "stride larger than the kernel": (1, 9, 8, 2, 2, 1, Window((2, 2), stride=(3, 4))),
    "dilated": (2, 9, 7, 2, 2, 1, Window((3, 2), dilation=(2, 3), padding=(2, 1))),
    "groups": (2, 5, 5, 4, 6, 2, Window((3, 3), padding=(1, 1))),
    "depthwise": (1, 6, 5, 3, 3, 3, Window((3, 3), stride=(2, 1))),
    "1 x 1": (2, 3, 4, 5, 2, 1, Window((1, 1))),
    "padding wider than the image": (1, 2, 2, 1, 2, 1, Window((3, 3), padding=(3, 3))),
    "everything at once": (2, 11, 10, 4, 4, 2, Window((3, 2), (2, 3), (2, 1), (2, 2))),
}


def draw(rng, case, dtype=np.float64):
    N, H, W, C, K, groups, window = case
    P, Q = window.output_size((H, W))
    shapes = (N, H, W, C), (*window.kernel, C // groups, K), (K,), (N, P, Q, K)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def relative(a, b):
    return np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-300)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_array_form_is_the_loops(case, device, rng):
    x, w, b, dy = draw(rng, case)
    groups, window = case[5:]
    x_, w_, b_, dy_ = (device.asarray(a) for a in (x, w, b, dy))
    y, cols = conv2d_forward(x_, w_, b_, window, groups)
    assert relative(device.to_host(y), conv2d_naive(x, w, b, window, groups)) < 1e-13
    gradients = conv2d_backward(dy_, cols, w_, x.shape, window, groups)
    for ours, naive in zip(gradients, conv2d_backward_naive(dy, x, w, window, groups), strict=True):
        assert ours is not None
        assert relative(device.to_host(ours), naive) < 1e-13


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_loops_have_the_numerical_gradient(case, rng):
    """The loops are the truth for all else, so they are held against the one thing that needs no derivation."""
    x, w, b, dy = draw(rng, case)
    groups, window = case[5:]
    analytic = conv2d_backward_naive(dy, x, w, window, groups)
    for which, gradient in zip((x, w, b), analytic, strict=True):
        for index in rng.choice(which.size, size=min(6, which.size), replace=False):
            kept, h = which.flat[index], 1e-5
            values = []
            for shift in (h, -h):
                which.flat[index] = kept + shift
                values.append(float((conv2d_naive(x, w, b, window, groups) * dy).sum()))
            which.flat[index] = kept
            assert gradient.flat[index] == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_fft_form(case, device, rng):
    x, w, b, _ = draw(rng, case)
    groups, window = case[5:]
    x_, w_, b_ = (device.asarray(a) for a in (x, w, b))
    y = ops.conv2d_fft(x_, w_, b_, window, groups)
    assert relative(device.to_host(y), conv2d_naive(x, w, b, window, groups)) < 1e-12


@pytest.mark.parametrize("size", [(3, 3), (4, 4), (5, 8), (9, 6)])
@pytest.mark.parametrize(("padding", "groups"), [((0, 0), 1), ((1, 1), 2), ((2, 0), 1)])
def test_winograd_form(size, padding, groups, device, rng):
    window = Window((3, 3), padding=padding)
    x, w, b, _ = draw(rng, (2, *size, 4, 6, groups, window))
    x_, w_, b_ = (device.asarray(a) for a in (x, w, b))
    y = ops.conv2d_winograd(x_, w_, b_, window, groups)
    assert relative(device.to_host(y), conv2d_naive(x, w, b, window, groups)) < 1e-13


def test_winograd_says_what_it_cannot_do(rng):
    x, w, b, _ = draw(rng, CASES["strided, overlapping"])
    with pytest.raises(ShapeError, match=r"3 x 3 kernel, stride 1.*stride=\(2, 2\)"):
        ops.conv2d_winograd(x, w, b, CASES["strided, overlapping"][6])


@pytest.mark.parametrize("form", [ops.conv2d_fft, ops.conv2d_winograd, lambda *a: conv2d_forward(*a)[0]])
def test_float32_stays_float32_and_is_accurate(form, device, rng):
    window = Window((3, 3), padding=(1, 1))
    x, w, b, _ = draw(rng, (2, 12, 12, 16, 24, 1, window))
    y = form(*(device.asarray(a, np.float32) for a in (x, w, b)), window, 1)
    assert y.dtype == np.float32
    assert relative(device.to_host(y), conv2d_naive(x, w, b, window)) < 1e-5


def test_gradients_keep_the_dtype(device, rng):
    case = CASES["everything at once"]
    x, w, b, dy = (device.asarray(a) for a in draw(rng, case, np.float32))
    _, cols = conv2d_forward(x, w, b, case[6], case[5])
    dx, dw, db = conv2d_backward(dy, cols, w, x.shape, case[6], case[5])
    assert dx is not None
    assert dx.dtype == dw.dtype == db.dtype == np.float32


def test_first_layer_needs_no_dx(rng):
    case = CASES["plain"]
    x, w, b, dy = draw(rng, case)
    _, cols = conv2d_forward(x, w, b, case[6])
    dx, dw, db = conv2d_backward(dy, cols, w, x.shape, case[6], need_dx=False)
    assert dx is None
    _, dw_naive, db_naive = conv2d_backward_naive(dy, x, w, case[6])
    assert relative(dw, dw_naive) < 1e-13
    assert relative(db, db_naive) < 1e-13


def test_shapes_that_do_not_fit_are_named(rng):
    x, w, b, _ = draw(rng, CASES["plain"])
    with pytest.raises(ShapeError, match=r"input \(2, 5, 6, 2\) and weights \(3, 3, 3, 4\)"):
        conv2d_forward(x[..., :2], w, b, CASES["plain"][6])
    with pytest.raises(ShapeError, match="a window of 3 x 3 does not fit an image of 2 x 6"):
        conv2d_forward(x[:, :2], w, b, CASES["plain"][6])


sizes, pairs = st.integers(1, 9), st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    N=st.integers(1, 3),
    size=st.tuples(sizes, sizes),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.integers(1, 3),
    kernel=pairs,
    stride=pairs,
    dilation=pairs,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_adjoint(N, size, per_group, groups, kernel, stride, dilation, padding):
    """Over random shapes: conv is linear in X and in W, so <dY, conv(X, W)> = <dX, X> = <dW, W> exactly."""
    window = Window(kernel, stride, padding, dilation)
    rng = np.random.default_rng(0)
    try:
        P, Q = window.output_size(size)
    except ShapeError:
        return  # no window fits; the message is tested above
    C, K = per_group[0] * groups, per_group[1] * groups
    x, w = rng.standard_normal((N, *size, C)), rng.standard_normal((*kernel, C // groups, K))
    dy = rng.standard_normal((N, P, Q, K))
    y, cols = conv2d_forward(x, w, None, window, groups)
    assert y.shape == dy.shape
    dx, dw, db = conv2d_backward(dy, cols, w, x.shape, window, groups)
    assert dx is not None
    assert dx.shape == x.shape
    product = (y * dy).sum()
    assert (dx * x).sum() == pytest.approx(product, rel=1e-9, abs=1e-9)
    assert (dw * w).sum() == pytest.approx(product, rel=1e-9, abs=1e-9)
    np.testing.assert_allclose(db, dy.sum(axis=(0, 1, 2)), atol=1e-12)

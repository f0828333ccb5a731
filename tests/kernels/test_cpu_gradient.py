"""dY at the convolution's own pixels, and the gradient of the weights, against ``ops``."""

from __future__ import annotations

import numpy as np
import pytest
from convolutions import EDGES, Shapes, shapes, whole_numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import assert_close, call, draws, empty, filled, planes, rounded, single
from numpy.typing import NDArray

from bareconv import ops
from bareconv.kernels.cpu.gradient import Spread, WeightGradient
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.target import Target
from bareconv.ops.windows import Pair, Window


def weight_gradient(
    target: Target, shape: Shapes, x: NDArray[np.float64], dy: NDArray[np.float64], before: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``before`` + dW."""
    padding = shape.window.padding
    x_plane = Plane(*shape.size, shape.channels, (padding[0], padding[1] + 1))
    dy_plane = Plane(*shape.out, shape.filters, (1, 2))
    window = shape.window
    kernel = WeightGradient(
        *(target, x_plane, dy_plane, window.kernel, window.stride, window.dilation),
        origin=(-padding[0], -padding[1]),
    )
    gradient = single(before, target.dtype)
    # No border of dY is read: it is poison here.
    blocks = {"x": planes(x, x_plane, target.dtype), "dy": planes(dy, dy_plane, target.dtype, border=np.nan)}
    call(kernel, {**blocks, "gradient": gradient}, ["gradient"], shape.range, whole=["gradient"])
    return gradient.data.reshape(shape.weight)


@settings(max_examples=10)
@given(shape=shapes())
def test_weight_gradient(target: Target, shape: Shapes) -> None:
    x = rounded(draws(1, shape.images, *shape.size, shape.channels), target)
    dy = rounded(draws(2, shape.images, *shape.out, shape.filters), target)
    before = rounded(draws(3, *shape.weight), target)
    mine = slice(shape.first, None)
    _, cols = ops.conv2d_forward(x[mine], before, None, shape.window)
    _, expected, _ = ops.conv2d_backward(dy[mine], cols, before, x[mine].shape, shape.window, need_dx=False)
    assert_close(weight_gradient(target, shape, x, dy, before), before + expected, target)


@pytest.mark.parametrize("shape", EDGES, ids=str)
def test_weight_gradient_at_the_edge(target: Target, shape: Shapes) -> None:
    x, before = whole_numbers(1, shape.images, *shape.size, shape.channels), whole_numbers(2, *shape.weight)
    dy = whole_numbers(3, shape.images, *shape.out, shape.filters)
    _, cols = ops.conv2d_forward(x, before, None, shape.window)
    _, expected, _ = ops.conv2d_backward(dy, cols, before, x.shape, shape.window, need_dx=False)
    assert np.array_equal(weight_gradient(target, shape, x, dy, before), before + expected)


@settings(max_examples=10)
@given(
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    rest=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    filters=st.sampled_from((1, 3, 8, 15, 16, 17, 40)),
    pool=st.sampled_from([(1, 1), (2, 2), (3, 3), (1, 2), (2, 1)]),
    relu=st.booleans(),
    bias=st.booleans(),
)
def test_spread(target: Target, size: Pair, rest: Pair, filters: int, pool: Pair, relu: bool, bias: bool) -> None:
    """dY back through pool and relu; ``rest``: pixels at the end that no window covers, of windows larger than that."""
    N = 3
    H, W = (size[i] * pool[i] + (rest[i] if pool[i] > 1 else 0) for i in (0, 1))
    z = whole_numbers(1, N, H, W, filters)  # the convolution's output, with ties, and exact zeros for the relu
    y, where = ops.max_pool_forward(z, Window(pool, pool))
    y = np.maximum(y, 0.0) if relu else y
    dy = whole_numbers(2, *y.shape)
    through = ops.relu_backward(dy, y) if relu else dy
    expected = ops.max_pool_backward(through, where, z.shape, Window(pool, pool))
    small, y_plane, large = Plane(*size, filters, (0, 1)), Plane(*size, filters, (2, 0)), Plane(H, W, filters, (1, 1))
    kernel = Spread(target, small, y_plane, large, pool, relu, bias)
    out = empty(large, N, target.dtype)
    out.pixels(large)[:, size[0] * pool[0] :] = 0.0
    out.pixels(large)[:, :, size[1] * pool[1] :] = 0.0
    sums = single(whole_numbers(3, filters), target.dtype)
    before = sums.data.copy()
    blocks = {
        "dy": planes(dy, small, target.dtype, border=np.nan),
        "y": planes(y, y_plane, target.dtype, border=np.nan),
        "where": filled(where, "uint8", gap=2),
        "out": out,
        "sums": sums,
    }
    call(kernel, blocks, ["out", "sums"], range(1, N), whole=["sums"])
    assert np.array_equal(out.pixels(large)[1:], expected[1:])
    assert np.array_equal(sums.data - before, [through[1:].sum(axis=(0, 1, 2)) * bias])


def test_spread_takes_products_of_any_size(target: Target) -> None:
    """The bias's gradient to the target's precision."""
    plane = Plane(5, 6, 19)
    dy = rounded(draws(1, 4, 5, 6, 19), target)
    out, sums = empty(plane, 4, target.dtype), single(np.zeros(19), target.dtype)
    kernel = Spread(target, plane, plane, plane, relu=False)
    call(
        kernel,
        {"dy": planes(dy, plane, target.dtype), "out": out, "sums": sums},
        ["out", "sums"],
        range(4),
        whole=["sums"],
    )
    assert_close(sums.data[0], dy.sum(axis=(0, 1, 2)), target)

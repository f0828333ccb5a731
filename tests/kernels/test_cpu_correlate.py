"""The convolution kernel, forward and back to its input, against ``ops.conv2d``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from convolutions import EDGES, Shapes, packed, places_of, shapes, whole_numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import Block, assert_close, call, draws, empty, planes, rounded, single
from numpy.typing import NDArray

from bareconv import ops
from bareconv.kernels.cpu.correlate import Correlate
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.target import Target
from bareconv.ops.windows import Pair, Window
from bareconv.plan.cpu.packing import correlate_places, turned_round

FLAGS = st.fixed_dictionaries({"bias": st.booleans(), "relu": st.booleans(), "add": st.booleans()})


def forward(
    target: Target,
    shape: Shapes,
    x: NDArray[np.float64],
    weight: NDArray[np.float64],
    bias: NDArray[np.float64] | None = None,
    *,
    pool: Pair = (1, 1),
    relu: bool = False,
    before: NDArray[np.float64] | None = None,
    out_border: Pair = (0, 0),
) -> tuple[Block, Block, Plane]:
    """(Y, where, Y's plane) of a call; ``before`` is what Y held, where the kernel adds to it."""
    (P, Q), padding = shape.out, shape.window.padding
    border = padding[0] + 1, padding[1]  # a border may be wider than what this reader needs
    x_plane = Plane(*shape.size, shape.channels, border)
    y_plane = Plane(P // pool[0], Q // pool[1], shape.filters, out_border)
    kernel = Correlate(
        target,
        x_plane,
        y_plane,
        shape.filters,
        shape.window.kernel,
        (P, Q),
        shape.window.stride,
        shape.window.dilation,
        (-padding[0], -padding[1]),
        pool=pool,
        bias=bias is not None,
        relu=relu,
        add=before is not None,
        keep_where=pool != (1, 1),
    )
    y = empty(y_plane, shape.images, target.dtype)
    if before is not None:
        y.pixels(y_plane)[...] = before
    where = Block(y_plane.height * y_plane.width * shape.filters, shape.images, "uint8", gap=3)
    blocks = {
        "x": planes(x, x_plane, target.dtype),
        "weight": single(packed(correlate_places(kernel, places_of(shape.weight)), weight), target.dtype),
        "y": y,
        "where": where,
    }
    if bias is not None:
        blocks["bias"] = single(bias, target.dtype)
    call(kernel, blocks, ["y", *(["where"] if pool != (1, 1) else [])], shape.range)
    return y, where, y_plane


@settings(max_examples=10)
@given(shape=shapes(), flags=FLAGS)
def test_forward(target: Target, shape: Shapes, flags: dict[str, bool]) -> None:
    x = rounded(draws(1, shape.images, *shape.size, shape.channels), target)
    weight, bias = rounded(draws(2, *shape.weight), target), rounded(draws(3, shape.filters), target)
    before = rounded(draws(4, shape.images, *shape.out, shape.filters), target)
    given_bias = bias if flags["bias"] else None
    expected, _ = ops.conv2d_forward(x, weight, given_bias, shape.window)
    expected = np.maximum(expected, 0.0) if flags["relu"] else expected
    expected = expected + before if flags["add"] else expected
    y, _, plane = forward(
        *(target, shape, x, weight, given_bias),
        relu=flags["relu"],
        before=before if flags["add"] else None,
        out_border=(1, 2),
    )
    assert_close(y.pixels(plane)[shape.first :], expected[shape.first :], target)


@pytest.mark.parametrize("shape", EDGES, ids=str)
def test_shapes_at_the_edge(target: Target, shape: Shapes) -> None:
    """Whole numbers: nothing is rounded, so that the results are equal."""
    x, weight = whole_numbers(1, shape.images, *shape.size, shape.channels), whole_numbers(2, *shape.weight)
    expected, _ = ops.conv2d_forward(x, weight, None, shape.window)
    y, _, plane = forward(target, shape, x, weight)
    assert np.array_equal(y.pixels(plane), expected)


@settings(max_examples=8)
@given(data=st.data(), pool=st.sampled_from([(2, 2), (3, 3), (1, 2), (2, 1), (3, 2)]), relu=st.booleans())
def test_forward_with_pool(target: Target, data: st.DataObject, pool: Pair, relu: bool) -> None:
    """Equal maxima are frequent here: the first one's position is kept. What no window covers is not written."""
    shape = data.draw(shapes(pool=pool))
    x, weight = whole_numbers(1, shape.images, *shape.size, shape.channels), whole_numbers(2, *shape.weight)
    bias = whole_numbers(3, shape.filters)
    sums, _ = ops.conv2d_forward(x, weight, None, shape.window)
    expected, expected_where = ops.max_pool_forward(sums, Window(pool, pool))
    expected = np.maximum(expected + bias, 0.0) if relu else expected + bias
    y, where, plane = forward(target, shape, x, weight, bias, pool=pool, relu=relu)
    assert np.array_equal(y.pixels(plane)[shape.first :], expected[shape.first :])
    found = where.data.reshape(expected_where.shape)
    assert np.array_equal(found[shape.first :], expected_where[shape.first :])


def test_relu_keeps_nan(target: Target) -> None:
    """As ``ops.relu_forward`` does: a model that has diverged must show it."""
    shape = Shapes(1, (3, 3), 2, 5, Window((1, 1)))
    x = whole_numbers(1, 1, 3, 3, 2)
    x[0, 1, 1] = np.nan
    y, _, plane = forward(target, shape, x, whole_numbers(2, *shape.weight), relu=True)
    assert np.isnan(y.pixels(plane)[0, 1, 1]).all()
    assert np.isnan(y.pixels(plane)).sum() == 5


def classes(
    length: int, out: int, kernel: int, stride: int, pad: int, dilation: int
) -> list[tuple[int, int, list[int], int]]:
    """Pixels h of dX that meet the same taps: (first pixel, how many, taps, the output that the last tap comes from).

    By the definition: pixel h takes part in tap r of output p where h + pad = p * stride + r * dilation.
    """
    found = []
    for h in range(min(stride, length)):
        taps = [r for r in range(kernel) if (h + pad - r * dilation) % stride == 0]
        if taps:
            found.append((h, len(range(h, length, stride)), taps, (h + pad - taps[-1] * dilation) // stride))
    return found


def input_gradient(
    target: Target,
    shape: Shapes,
    dy: NDArray[np.float64],
    weight: NDArray[np.float64],
    before: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """dX by as many calls as there are classes of pixels."""
    window, reach = shape.window, 12  # a border that is wide enough for all
    dy_plane = Plane(*shape.out, shape.filters, (reach, reach))
    dx_plane = Plane(*shape.size, shape.channels, (1, 0))
    dx = empty(dx_plane, shape.images, target.dtype)
    dx.pixels(dx_plane)[...] = 0.0 if before is None else before
    source = planes(dy, dy_plane, target.dtype)
    down, across = (
        classes(shape.size[i], shape.out[i], window.kernel[i], window.stride[i], window.padding[i], window.dilation[i])
        for i in (0, 1)
    )
    for h, rows, r, top in down:
        for w, columns, s, left in across:
            kernel = Correlate(
                *(target, dy_plane, dx_plane, shape.channels, (len(r), len(s)), (rows, columns)),
                dilation=window.dilation,
                origin=(top, left),
                step=window.stride,
                first=(h, w),
                add=before is not None,
            )
            taps = turned_round(
                places_of(shape.weight), slice(r[0], None, window.stride[0]), slice(s[0], None, window.stride[1])
            )
            order = correlate_places(kernel, taps)
            call(
                kernel,
                {"x": source, "weight": single(packed(order, weight), target.dtype), "y": dx},
                ["y"],
                shape.range,
            )
    return dx.pixels(dx_plane)


@settings(max_examples=10)
@given(shape=shapes(), add=st.booleans())
def test_input_gradient(target: Target, shape: Shapes, add: bool) -> None:
    x = draws(1, shape.images, *shape.size, shape.channels)
    weight = rounded(draws(2, *shape.weight), target)
    dy = rounded(draws(3, shape.images, *shape.out, shape.filters), target)
    before = rounded(draws(4, *x.shape), target) if add else None
    _, cols = ops.conv2d_forward(x, weight, None, shape.window)
    expected, _, _ = ops.conv2d_backward(dy, cols, weight, x.shape, shape.window)
    assert expected is not None
    expected = expected if before is None else expected + before
    found = input_gradient(target, shape, dy, weight, before)
    assert_close(found[shape.first :], expected[shape.first :], target)


@pytest.mark.parametrize("shape", EDGES, ids=str)
def test_input_gradient_at_the_edge(target: Target, shape: Shapes) -> None:
    x, weight = whole_numbers(1, shape.images, *shape.size, shape.channels), whole_numbers(2, *shape.weight)
    dy = whole_numbers(3, shape.images, *shape.out, shape.filters)
    _, cols = ops.conv2d_forward(x, weight, None, shape.window)
    expected, _, _ = ops.conv2d_backward(dy, cols, weight, x.shape, shape.window)
    assert expected is not None
    assert np.array_equal(input_gradient(target, shape, dy, weight, None), expected)


def test_flops_count_what_is_computed(target: Target) -> None:
    """Pixels that a pool does not cover are not computed."""
    shape = Shapes(1, (9, 8), 3, 5, Window((2, 3)))
    x, y = Plane(*shape.size, 3), Plane(4, 3, 5)
    kernel = Correlate(target, x, y, 5, (2, 3), shape.out, pool=(2, 2))
    assert kernel.flops == 2 * 8 * 6 * 5 * (2 * 3 * 3)
    assert replace(kernel, pool=(1, 1)).flops == 2 * 8 * 6 * 5 * (2 * 3 * 3)
    assert replace(kernel, pool=(3, 1)).flops == 2 * 6 * 6 * 5 * (2 * 3 * 3)

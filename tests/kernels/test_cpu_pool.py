"""The pools against ``ops.pool``, in whole numbers: exact, and with ties everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from convolutions import whole_numbers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_harness import Block, assert_close, call, empty, filled, planes

from bareconv import ops
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.pool import PoolBackward, PoolForward
from bareconv.kernels.cpu.target import Target
from bareconv.ops.windows import Pair, Window

PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=7)
@given(
    window=PAIRS,
    stride=PAIRS,
    more=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    C=st.sampled_from((1, 3, 8, 16, 17, 35)),
    mean=st.booleans(),
)
@example(window=(3, 3), stride=(1, 2), more=(4, 4), C=5, mean=False)  # windows overlap
@example(window=(1, 2), stride=(3, 3), more=(5, 5), C=5, mean=False)  # pixels between windows
@example(window=(16, 16), stride=(1, 1), more=(0, 0), C=3, mean=False)  # positions up to 255
@example(window=(20, 20), stride=(1, 1), more=(0, 0), C=3, mean=True)
def test_pool(target: Target, window: Pair, stride: Pair, more: Pair, C: int, mean: bool) -> None:
    """Forward, where, and back. Every element of dX is written, wherever windows are."""
    N, (H, W), shape = 3, (a + b for a, b in zip(window, more, strict=True)), Window(window, stride)
    x = whole_numbers(1, N, H, W, C)
    P, Q = shape.output_size((H, W))
    x_plane, y_plane, dx_plane = Plane(H, W, C, (1, 0)), Plane(P, Q, C, (0, 1)), Plane(H, W, C, (1, 2))
    y, where = empty(y_plane, N, target.dtype), Block(P * Q * C, N, "uint8", gap=1)
    blocks = {"x": planes(x, x_plane, target.dtype, border=np.nan), "y": y, "where": where}
    keep = not mean
    call(
        PoolForward(target, x_plane, y_plane, window, stride, mean=mean, keep_where=keep),
        blocks,
        ["y", *(["where"] if keep else [])],
        range(1, N),
    )
    dy = whole_numbers(2, N, P, Q, C)
    if mean:
        expected = ops.avg_pool_forward(x, shape)
        expected_dx = ops.avg_pool_backward(dy, x.shape, shape)
        assert_close(y.pixels(y_plane)[1:], expected[1:], target)
        given_where = where
    else:
        expected, positions = ops.max_pool_forward(x, shape)
        expected_dx = ops.max_pool_backward(dy, positions, x.shape, shape)
        assert np.array_equal(y.pixels(y_plane)[1:], expected[1:])
        assert np.array_equal(where.data.reshape(N, P, Q, C)[1:], positions[1:])
        given_where = filled(positions, "uint8")
    dx = empty(dx_plane, N, target.dtype)
    kernel = PoolBackward(target, dx_plane, y_plane, window, stride, mean=mean)
    blocks = {"dy": planes(dy, y_plane, target.dtype, border=np.nan), "where": given_where, "dx": dx}
    call(kernel, blocks, ["dx"], range(1, N))
    assert_close(dx.pixels(dx_plane)[1:], expected_dx[1:], target)


@pytest.mark.parametrize("mean", [False, True])
def test_without_positions_nothing_is_written_there(target: Target, mean: bool) -> None:
    """A prediction keeps none."""
    x_plane, y_plane = Plane(4, 4, 3), Plane(2, 2, 3)
    y = empty(y_plane, 1, target.dtype)
    blocks = {"x": planes(whole_numbers(1, 1, 4, 4, 3), x_plane, target.dtype), "y": y}
    call(PoolForward(target, x_plane, y_plane, (2, 2), (2, 2), mean=mean, keep_where=False), blocks, ["y"], range(1))
    assert np.isfinite(y.pixels(y_plane)).all()

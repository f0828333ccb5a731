"""The backward through the live gradients only, against ``ops``: ties, dead relus, images without any live gradient."""

from __future__ import annotations

import numpy as np
import pytest
from convolutions import Shapes, packed, places_of, shapes, whole_numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import Block, assert_close, call, draws, empty, filled, planes, rounded, single
from numpy.typing import NDArray

from bareconv import ops
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.sparse import SparseBackward
from bareconv.kernels.cpu.target import Target
from bareconv.ops.windows import Pair, Window
from bareconv.plan.cpu.packing import run_places, run_positions

POOLS = [(2, 2), (3, 3), (1, 2), (2, 1)]


class Backward:
    """conv, pool and relu forward by ``ops``; backward by ``ops`` and by the kernel."""

    def __init__(
        self,
        target: Target,
        shape: Shapes,
        pool: Pair,
        x: NDArray[np.float64],
        weight: NDArray[np.float64],
        bias: NDArray[np.float64],
        dy: NDArray[np.float64] | None = None,
        *,
        need_dx: bool = True,
    ) -> None:
        self.target, self.shape = target, shape
        window, pools = shape.window, Window(pool, pool)
        sums, cols = ops.conv2d_forward(x, weight, bias, window)
        pooled, where = ops.max_pool_forward(sums, pools)
        y = np.maximum(pooled, 0.0)
        self.dy = whole_numbers(4, *y.shape) if dy is None else dy
        through = ops.relu_backward(self.dy, y)
        through[: shape.first] = 0.0  # images of another call
        full = ops.max_pool_backward(through, where, sums.shape, pools)
        self.dx, self.dw, self.db = ops.conv2d_backward(full, cols, weight, x.shape, window)

        self.plane = Plane(*shape.size, shape.channels, window.padding)
        _, P, Q, K = y.shape
        small, y_plane = Plane(P, Q, K, (1, 0)), Plane(P, Q, K, (0, 1))
        origin = (-window.padding[0], -window.padding[1])
        kernel = self.kernel = SparseBackward(
            *(target, self.plane, small, y_plane, window.kernel, pool, origin), need_dx=need_dx
        )
        self.before = whole_numbers(5, shape.filters, window.kernel[0], kernel.run)
        self.gradient, self.sums = single(self.before, target.dtype), single(np.zeros(shape.filters), target.dtype)
        self.found_dx = empty(self.plane, shape.images, target.dtype, gap=target.lanes)
        self.blocks = {
            "x": planes(x, self.plane, target.dtype, gap=target.lanes),
            "dy": planes(self.dy, small, target.dtype, border=np.nan),
            "y": planes(y, y_plane, target.dtype, border=np.nan),
            "where": filled(where, "uint8", gap=1),
            "weight": single(packed(run_places(kernel, places_of(shape.weight)), weight), target.dtype),
            "gradient": self.gradient,
            "sums": self.sums,
            "dx": self.found_dx,
            "places": Block(kernel.list_elements, 1, "int32"),
            "values": Block(kernel.list_elements, 1, target.dtype),
        }

    def run(self) -> None:
        shared = ("gradient", "sums", "places", "values")
        writes = [*shared, *(["dx"] if self.kernel.need_dx else [])]
        call(self.kernel, self.blocks, writes, self.shape.range, slack={"dx": self.target.lanes}, whole=shared)

    @property
    def found_dw(self) -> NDArray[np.float64]:
        """What was added to dW, (R, S, C, K)."""
        at = run_positions(self.kernel, self.shape.weight)
        return (self.gradient.data - self.before.reshape(1, -1))[0, at].reshape(self.shape.weight)

    def check_equal(self) -> None:
        first = self.shape.first
        assert np.array_equal(self.found_dw, self.dw)
        assert np.array_equal(self.sums.data[0], self.db)
        if self.kernel.need_dx:
            assert self.dx is not None
            assert np.array_equal(self.found_dx.pixels(self.plane)[first:], self.dx[first:])


def exact(target: Target, shape: Shapes, pool: Pair, *, need_dx: bool = True) -> Backward:
    """In whole numbers: ties in most windows, sums that are exactly zero."""
    x, weight = whole_numbers(1, shape.images, *shape.size, shape.channels), whole_numbers(2, *shape.weight)
    return Backward(target, shape, pool, x, weight, whole_numbers(3, shape.filters), need_dx=need_dx)


@settings(max_examples=6)
@given(data=st.data(), pool=st.sampled_from(POOLS), need_dx=st.booleans())
def test_ties_and_dead_relus(target: Target, data: st.DataObject, pool: Pair, need_dx: bool) -> None:
    case = exact(target, data.draw(shapes(plain=True, pool=pool)), pool, need_dx=need_dx)
    case.run()
    case.check_equal()


@settings(max_examples=3)
@given(data=st.data(), pool=st.sampled_from(POOLS))
def test_numbers_of_any_size(target: Target, data: st.DataObject, pool: Pair) -> None:
    shape = data.draw(shapes(plain=True, pool=pool))
    x = rounded(draws(1, shape.images, *shape.size, shape.channels), target)
    weight, bias = rounded(draws(2, *shape.weight), target), rounded(draws(3, shape.filters), target)
    P, Q = (size // cell for size, cell in zip(shape.out, pool, strict=True))
    dy = rounded(draws(4, shape.images, P, Q, shape.filters), target)
    case = Backward(target, shape, pool, x, weight, bias, dy)
    # dW is added to whole numbers: begin at zero here, so that only its own rounding counts.
    case.before[...] = 0.0
    case.gradient.data[...] = 0.0
    case.run()
    assert case.dx is not None
    assert_close(case.found_dw, case.dw, target, "dW")
    assert_close(case.sums.data[0], case.db, target, "db")
    assert_close(case.found_dx.pixels(case.plane)[shape.first :], case.dx[shape.first :], target, "dX")


@pytest.mark.parametrize("alive", [False, True], ids=["all dead", "all alive"])
def test_all_or_nothing(target: Target, alive: bool) -> None:
    """Lists of every window, and empty ones. The bias decides."""
    shape = Shapes(2, (11, 9), 3, 2 * target.lanes + 1, Window((3, 3), (1, 1), (1, 1)))
    x, weight = whole_numbers(1, 2, 11, 9, 3), whole_numbers(2, *shape.weight)
    case = Backward(target, shape, (2, 2), x, weight, np.full(shape.filters, 500.0 if alive else -500.0))
    if alive:
        case.dy[...] = np.where(case.dy == 0, 1.0, case.dy)
        case = Backward(target, shape, (2, 2), x, weight, np.full(shape.filters, 500.0), case.dy)
    case.run()
    case.check_equal()
    assert bool(case.found_dw.any()) is alive


def test_more_windows_than_a_strip_holds(target: Target) -> None:
    """Several whole strips and a rest, each with its own lists."""
    case = exact(target, Shapes(2, (12, 31), 64, 3, Window((3, 2))), (2, 2))
    windows = case.kernel.dy.height * case.kernel.dy.width
    assert windows // case.kernel.strip > 1
    assert windows % case.kernel.strip % target.lanes
    case.run()
    case.check_equal()


@pytest.mark.parametrize("kernel", [(1, 1), (1, 7), (5, 5), (7, 7)], ids=str)
def test_windows_of_more_registers_than_there_are(target: Target, kernel: Pair) -> None:
    """They are gone through in pieces."""
    shape = Shapes(2, (kernel[0] + 3, kernel[1] + 4), 9, 5, Window(kernel, (1, 1), (kernel[0] // 2, kernel[1] // 2)))
    case = exact(target, shape, (2, 2))
    case.run()
    case.check_equal()


def test_of_the_next_image_nothing_is_touched(target: Target) -> None:
    """A run ends with zeros beyond the window; past the last image of a call begins one that another thread may be at.

    Adding zero to what is there would not show in its value, except that it turns -0 into 0.
    """
    shape = Shapes(2, (6, 6), 3, 5, Window((3, 3)))
    case = exact(target, shape, (2, 2))
    assert case.kernel.run > 9  # there are zeros
    case.found_dx.data[1] = -0.0
    case.shape = Shapes(1, (6, 6), 3, 5, Window((3, 3)))
    case.run()
    assert np.signbit(case.found_dx.data[1]).all()

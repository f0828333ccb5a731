"""Convolution by transforms against ``ops.conv2d``: in whole numbers its halves and quarters are exact, too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from convolutions import packed, places_of, whole_numbers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_harness import Block, assert_close, call, draws, empty, planes, rounded, single
from numpy.typing import NDArray

from bareconv import ops
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.target import Target
from bareconv.kernels.cpu.winograd import Winograd, WinogradWeights, pays
from bareconv.ops.windows import Pair, Window
from bareconv.plan.cpu.packing import in_registers

Array = NDArray[np.float64]


def transformed(kernel: Winograd, weight: Array) -> Block:
    """The weights (3, 3, C, K) as ``kernel`` reads them, by two calls for some of the channels each."""
    target, C = kernel.target, kernel.x.channels
    rows = in_registers(places_of(weight.shape).reshape(9 * C, -1), target.lanes)
    given, out = single(packed(rows, weight), target.dtype), Block(kernel.packed_elements, 1, target.dtype)
    transform = WinogradWeights(target, C, rows.shape[1], kernel.panel)
    for channels in (range(C // 3), range(C // 3, C)):
        call(transform, {"weight": given, "packed": out}, ["packed"], channels, whole=["packed"])
    return out


class Case:
    """A kernel for that many tiles, its operands in whole numbers or of any size, and what the reference has."""

    def __init__(
        self,
        target: Target,
        N: int,
        tiles: Pair,
        C: int,
        K: int,
        *,
        padding: Pair = (1, 1),
        pool: Pair = (1, 1),
        bias: bool = False,
        relu: bool = False,
        add: bool = False,
        whole: bool = True,
    ) -> None:
        P, Q = 2 * tiles[0], 2 * tiles[1]
        H, W = P + 2 - 2 * padding[0], Q + 2 - 2 * padding[1]
        made = whole_numbers if whole else lambda seed, *shape: rounded(draws(seed, *shape), target)
        self.target, self.x, self.weight = target, made(1, N, H, W, C), made(2, 3, 3, C, K)
        self.bias, self.before = made(3, K), made(4, N, P // pool[0], Q // pool[1], K)
        self.padding, self.pool = padding, pool
        x, y = Plane(H, W, C, (padding[0] + 1, padding[1])), Plane(P // pool[0], Q // pool[1], K, (1, 2))
        origin, keep = (-padding[0], -padding[1]), pool != (1, 1)
        self.kernel = Winograd(
            *(target, x, y, K, (P, Q), origin), pool=pool, bias=bias, relu=relu, add=add, keep_where=keep
        )
        self.y, self.where = empty(y, N, target.dtype), Block(y.height * y.width * K, N, "uint8", gap=3)

    def expected(self) -> tuple[Array, NDArray[Any]]:
        """(Y, where)."""
        kernel = self.kernel
        sums, _ = ops.conv2d_forward(self.x, self.weight, None, Window((3, 3), (1, 1), self.padding))
        y, where = ops.max_pool_forward(sums, Window(self.pool, self.pool))
        y = y + self.bias if kernel.bias else y
        y = np.maximum(y, 0.0) if kernel.relu else y
        return (y + self.before if kernel.add else y), where

    def run(self, images: range) -> Array:
        """Y of these images; their scratch memory is as large as the kernel says, and not more."""
        kernel, dtype = self.kernel, self.target.dtype
        if kernel.add:
            self.y.pixels(kernel.y)[...] = self.before
        scratch = Block(kernel.scratch_elements, 1, dtype)
        blocks = {"x": planes(self.x, kernel.x, dtype), "weight": transformed(kernel, self.weight), "y": self.y}
        blocks |= {"scratch": scratch, "where": self.where, "bias": single(self.bias, dtype)}
        writes = ["y", "scratch", *(["where"] if kernel.keep_where else [])]
        call(kernel, blocks, writes, images, whole=["scratch"])
        return self.y.pixels(kernel.y)[images.start : images.stop]

    def check_equal(self, images: range) -> None:
        mine = slice(images.start, images.stop)
        expected, where = self.expected()
        assert np.array_equal(self.run(images), expected[mine])
        if self.kernel.keep_where:
            assert np.array_equal(self.where.data.reshape(where.shape)[mine], where[mine])


FLAGS = st.fixed_dictionaries({name: st.booleans() for name in ("bias", "relu", "add")})


@settings(max_examples=6)
@given(
    N=st.integers(1, 3),
    tiles=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    C=st.sampled_from((1, 3, 8, 16, 17, 24, 35)),
    K=st.sampled_from((1, 5, 8, 15, 16, 17, 32, 33, 50)),
    padding=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    pooled=st.booleans(),
    flags=FLAGS,
)
@example(N=2, tiles=(3, 2), C=17, K=50, padding=(1, 1), pooled=True, flags={"bias": True, "relu": True, "add": False})
@example(N=2, tiles=(2, 3), C=9, K=33, padding=(0, 1), pooled=False, flags={"bias": False, "relu": False, "add": True})
def test_forward(
    target: Target, N: int, tiles: Pair, C: int, K: int, padding: Pair, pooled: bool, flags: dict[str, bool]
) -> None:
    """Nothing is rounded: equal, with ties in the windows of the pool."""
    case = Case(target, N, tiles, C, K, padding=padding, pool=(2, 2) if pooled else (1, 1), **flags)
    case.check_equal(range(N // 2, N))


@pytest.mark.parametrize("C", [8, 64])
def test_numbers_of_any_size(target: Target, C: int) -> None:
    """To the target's precision, though the transforms add and subtract before they multiply."""
    case = Case(target, 2, (4, 5), C, 20, bias=True, relu=True, whole=False)
    assert_close(case.run(range(2)), case.expected()[0], target)


@pytest.mark.parametrize("tiles", [(1, 1), (2, 3)], ids=str)
def test_more_images_than_a_block_holds(target: Target, tiles: Pair) -> None:
    """A whole block of small images and a rest, from the second image on."""
    size = Case(target, 1, tiles, 8, target.lanes + 1).kernel.images
    assert size > 1
    case = Case(target, size + 4, tiles, 8, target.lanes + 1, bias=True)
    case.check_equal(range(1, size + 4))


@pytest.mark.parametrize(("C", "tiles"), [(512, (9, 8)), (512, (8, 8)), (300, (17, 5))], ids=str)
def test_more_tiles_than_a_block_holds(target: Target, C: int, tiles: Pair) -> None:
    """Blocks of some rows of tiles; the last one is smaller, or is not."""
    case = Case(target, 2, tiles, C, 5, pool=(2, 2))
    assert case.kernel.images == 1
    assert case.kernel.tile_rows < tiles[0]
    case.check_equal(range(1, 2))


def test_relu_keeps_nan(target: Target) -> None:
    """Wherever the reference has it; the transforms may spread it over its tile."""
    case = Case(target, 2, (3, 3), 8, 9, relu=True)
    case.x[0, 2, 3, 4] = np.nan
    expected, _ = case.expected()
    found = case.run(range(2))
    assert np.isnan(expected).any()
    assert np.isnan(found[np.isnan(expected)]).all()
    assert np.array_equal(found[1], expected[1])


def test_weights_are_those_of_the_formula(target: Target) -> None:
    """G g G' of every filter and channel, in panels; filters past the last are zeros."""
    K = 2 * target.lanes + 1
    kernel = Case(target, 1, (1, 1), 5, K).kernel
    weight, lanes = rounded(draws(7, 3, 3, 5, K), target), target.lanes
    G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    whole = np.zeros((16, 5, 3 * lanes))
    whole[:, :, :K] = np.einsum("ir,rsck,js->ijck", G, weight, G).reshape(16, 5, K)
    width = kernel.panel * lanes
    panels = [whole[:, :, first : first + width].ravel() for first in range(0, 3 * lanes, width)]
    assert_close(transformed(kernel, weight).data[0], np.concatenate(panels), target)


def test_where_it_pays() -> None:
    """Only 3 x 3 windows, side by side, of even outputs; pooled by 2 x 2 or not at all; and of channels enough."""
    fine: dict[str, Any] = {"x": Plane(8, 8, 16), "filters": 16, "taps": (3, 3), "size": (8, 8), "lanes": 16}
    fine |= {"stride": (1, 1), "dilation": (1, 1), "pool": (2, 2)}
    assert pays(**fine)
    assert pays(**{**fine, "pool": (1, 1)})
    others: dict[str, list[Any]] = {
        "x": [Plane(8, 8, 3)],
        "filters": [8],
        "taps": [(3, 5), (1, 1)],
        "size": [(7, 8), (8, 7)],
        "stride": [(2, 1)],
        "dilation": [(1, 2)],
        "pool": [(3, 3), (2, 1)],
    }
    for name, values in others.items():
        assert not any(pays(**{**fine, name: value}) for value in values), name


def test_a_third_of_the_products_or_so(target: Target) -> None:
    """16 for four outputs instead of 36, and the transforms."""
    direct = 2 * 8 * 10 * 64 * 64 * 9
    flops = Case(target, 1, (4, 5), 64, 64).kernel.flops
    assert direct * 16 / 36 < flops < direct * 0.6

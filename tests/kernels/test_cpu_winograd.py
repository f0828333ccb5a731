"""Convolution by Winograd's transforms against ``ops.conv2d``: blocks of rows, and blocks of images."""

from __future__ import annotations

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
from bareconv.plan.packing import in_registers


def correlated(
    target: Target,
    x: NDArray[np.float64],
    weight: NDArray[np.float64],
    bias: NDArray[np.float64] | None,
    padding: Pair,
    images: range,
    *,
    pool: Pair = (1, 1),
    relu: bool = False,
    before: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], Block]:
    """(Y, where) of a call, its weights transformed by two."""
    (N, H, W, C), K = x.shape, weight.shape[3]
    size = H + 2 * padding[0] - 2, W + 2 * padding[1] - 2
    x_plane = Plane(H, W, C, padding)
    y_plane = Plane(size[0] // pool[0], size[1] // pool[1], K, (1, 0))
    keep = pool != (1, 1)
    kernel = Winograd(
        *(target, x_plane, y_plane, K, size, (-padding[0], -padding[1]), pool),
        bias=bias is not None,
        relu=relu,
        add=before is not None,
        keep_where=keep,
    )
    rows = in_registers(places_of(weight.shape).reshape(9 * C, K), target.lanes)
    transformed = Block(kernel.packed_elements, 1, target.dtype)
    blocks = {"weight": single(packed(rows, weight), target.dtype), "packed": transformed}
    transform = WinogradWeights(target, C, rows.shape[1], kernel.panel)
    call(transform, blocks, ["packed"], range(C // 2), whole=["packed"])
    call(transform, blocks, ["packed"], range(C // 2, C), whole=["packed"])
    assert np.isfinite(transformed.data).all()
    y, where = empty(y_plane, N, target.dtype), Block(y_plane.height * y_plane.width * K, N, "uint8", gap=3)
    if before is not None:
        y.pixels(y_plane)[...] = before
    blocks = {
        "x": planes(x, x_plane, target.dtype),
        "weight": transformed,
        "y": y,
        "where": where,
        "scratch": Block(kernel.scratch_elements, 1, target.dtype),
    }
    if bias is not None:
        blocks["bias"] = single(bias, target.dtype)
    call(kernel, blocks, ["y", "scratch", *(["where"] if keep else [])], images, whole=["scratch"])
    return y.pixels(y_plane), where


@settings(max_examples=8)
@given(
    N=st.integers(1, 9),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    C=st.sampled_from((1, 7, 8, 16, 19)),
    K=st.sampled_from((1, 8, 16, 17, 40)),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
@example(N=70, size=(1, 1), padding=(0, 0), C=8, K=8, flags=(True, True, False))  # more images than a block has
@example(N=1, size=(40, 30), padding=(1, 1), C=64, K=8, flags=(False, False, True))  # more tiles than a block has
def test_forward(
    target: Target, N: int, size: Pair, padding: Pair, C: int, K: int, flags: tuple[bool, bool, bool]
) -> None:
    # As many tiles as ``size`` says; or two pixels, where so much padding gives more.
    H, W = (max(2, 2 * tiles + 2 - 2 * pad) for tiles, pad in zip(size, padding, strict=True))
    window = Window((3, 3), (1, 1), padding)
    x, weight = rounded(draws(1, N, H, W, C), target), rounded(draws(2, 3, 3, C, K), target)
    bias = rounded(draws(3, K), target) if flags[0] else None
    expected, _ = ops.conv2d_forward(x, weight, bias, window)
    expected = np.maximum(expected, 0.0) if flags[1] else expected
    before = rounded(draws(4, *expected.shape), target) if flags[2] else None
    expected = expected if before is None else expected + before
    found, _ = correlated(target, x, weight, bias, padding, range(N // 3, N), relu=flags[1], before=before)
    assert_close(found[N // 3 :], expected[N // 3 :], target)


@settings(max_examples=6)
@given(
    N=st.integers(1, 5),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    C=st.sampled_from((1, 8, 17)),
    K=st.sampled_from((3, 8, 17, 33)),
    relu=st.booleans(),
)
def test_with_pool(target: Target, N: int, size: Pair, C: int, K: int, relu: bool) -> None:
    """In whole numbers even the transforms are exact: ties are ties, and the first one wins."""
    x, weight = whole_numbers(1, N, 2 * size[0], 2 * size[1], C), whole_numbers(2, 3, 3, C, K)
    bias = whole_numbers(3, K)
    sums, _ = ops.conv2d_forward(x, weight, None, Window((3, 3), (1, 1), (1, 1)))
    expected, positions = ops.max_pool_forward(sums, Window((2, 2), (2, 2)))
    expected = np.maximum(expected + bias, 0.0) if relu else expected + bias
    found, where = correlated(target, x, weight, bias, (1, 1), range(N // 2, N), pool=(2, 2), relu=relu)
    assert np.array_equal(found[N // 2 :], expected[N // 2 :])
    assert np.array_equal(where.data.reshape(positions.shape)[N // 2 :], positions[N // 2 :])


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        ("few channels", {"x": Plane(8, 8, 4)}),
        ("few filters", {"filters": 4}),
        ("another window", {"taps": (3, 2)}),
        ("an odd size", {"size": (6, 5)}),
        ("a stride", {"stride": (2, 1)}),
        ("a dilation", {"dilation": (1, 2)}),
        ("another pool", {"pool": (3, 3)}),
    ],
)
def test_where_it_does_not_pay(reason: str, changed: dict[str, object]) -> None:
    fits = {
        "x": Plane(8, 8, 16),
        "filters": 16,
        "taps": (3, 3),
        "size": (6, 6),
        "stride": (1, 1),
        "dilation": (1, 1),
        "pool": (2, 2),
        "lanes": 16,
    }
    assert pays(**fits)  # type: ignore[arg-type]
    assert not pays(**{**fits, **changed}), reason  # type: ignore[arg-type]

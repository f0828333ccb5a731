"""Dense layers of few units, from numbers and from pixels, against ``ops.dense``."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import Block, assert_close, call, draws, filled, rounded, single

from bareconv.kernels.cpu.narrow import NarrowForward, NarrowWeightGradient, Pixels, is_narrow
from bareconv.kernels.cpu.target import Target

SHAPES = {
    "N": st.integers(1, 20),
    "F": st.sampled_from((1, 7, 16, 17, 64, 100, 200)),
    "U": st.integers(1, 10),
    "pixels": st.sampled_from((None, Pixels(0.0, 255.0), Pixels(33.25, 70.5))),
    "gap": st.integers(0, 3),
}


def rows(
    target: Target, N: int, F: int, pixels: Pixels | None, gap: int
) -> tuple[dict[str, Block], np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    """(operands, X): numbers N rows apart; or pixels, in the order in which they are chosen."""
    if pixels is None:
        x = rounded(draws(1, N, F), target)
        return {"x": filled(x, target.dtype, gap)}, x
    drawn = np.random.default_rng(1)
    images, order = drawn.integers(0, 256, (N + 3, F), np.uint8), drawn.integers(0, N + 3, N)
    chosen = (images[order].astype(np.float64) - pixels.mean) / pixels.std
    return {"x": filled(images, gap=gap), "order": single(order)}, chosen


@settings(max_examples=12)
@given(**SHAPES, bias=st.booleans(), relu=st.booleans())
def test_forward(
    target: Target, N: int, F: int, U: int, pixels: Pixels | None, gap: int, bias: bool, relu: bool
) -> None:
    given_x, x = rows(target, N, F, pixels, gap)
    w, b = rounded(draws(2, F, U), target), rounded(draws(3, U), target)
    kernel = NarrowForward(target, F, U, F + gap, bias, relu, pixels)
    by_unit = np.zeros((U, kernel.width))
    by_unit[:, :F] = w.T
    y, first = Block(U, N, target.dtype), N // 3
    blocks = {**given_x, "weight": single(by_unit, target.dtype), "bias": single(b, target.dtype), "y": y}
    call(kernel, blocks, ["y"], range(first, N))
    expected = x @ w + b * bias
    # Sums of pixels less their mean cancel: what is left is off by the rounding of the terms.
    terms = np.linalg.norm((np.abs(x) @ np.abs(w) + np.abs(b))[first:])
    wrong = np.linalg.norm(y.data[first:] - (np.maximum(expected, 0.0) if relu else expected)[first:])
    assert wrong <= {"float32": 1e-6, "float64": 1e-14}[target.dtype] * terms


@settings(max_examples=12)
@given(**SHAPES)
def test_weight_gradient(target: Target, N: int, F: int, U: int, pixels: Pixels | None, gap: int) -> None:
    given_x, x = rows(target, N, F, pixels, gap)
    dy, first = rounded(draws(4, N, U), target), N // 3
    kernel = NarrowWeightGradient(target, F, U, F + gap, pixels)
    before = rounded(draws(5, U, kernel.width), target)
    gradient = single(before, target.dtype)
    blocks = {**given_x, "dy": filled(dy, target.dtype), "gradient": gradient}
    call(kernel, blocks, ["gradient"], range(first, N), whole=["gradient"])
    found = gradient.data.reshape(U, kernel.width)
    assert_close(found[:, :F], before[:, :F] + dy[first:].T @ x[first:], target)
    assert np.array_equal(found[:, F:], before[:, F:]), "beyond the features nothing is added"


def test_no_images_at_all(target: Target) -> None:
    """A worker may have none."""
    y = Block(5, 2, target.dtype)
    blocks = {"x": Block(7, 2, target.dtype), "weight": Block(5 * 16, 1, target.dtype), "y": y}
    call(NarrowForward(target, 7, 5, 7, bias=False), blocks, ["y"], range(1, 1))
    assert np.isnan(y.data).all()


def test_where_lanes_of_features_are_better(target: Target) -> None:
    """Few units, many features, and all sums in registers."""
    many = 4 * target.lanes
    assert is_narrow(target, many, 1)
    assert not is_narrow(target, many - 1, 1)
    assert not is_narrow(target, many, target.lanes)

"""Dense layers of few units: lanes are features, of numbers or of the images' pixels."""

from __future__ import annotations

import numpy as np
import pytest
from convolutions import packed, places_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_harness import Block, assert_close, call, draws, filled, rounded, single
from numpy.typing import NDArray

from bareconv import ops
from bareconv.kernels.cpu.narrow import NarrowForward, NarrowWeightGradient, Pixels, is_narrow
from bareconv.kernels.cpu.target import Target
from bareconv.plan.cpu.packing import by_unit, by_unit_positions

Array = NDArray[np.float64]
SHAPES = {
    "N": st.integers(1, 20),
    "F": st.sampled_from((1, 7, 16, 33, 64, 100, 147)),
    "U": st.sampled_from((1, 2, 3, 5, 10)),
    "pixels": st.sampled_from((None, Pixels(0.0, 255.0), Pixels(33.25, 78.5))),
}


def inputs(target: Target, N: int, F: int, pixels: Pixels | None, gap: int) -> tuple[Array, dict[str, Block]]:
    """(X, the operands that hold it): rows some elements apart, or pixels, of which some images twice and some not."""
    if pixels is None:
        x = rounded(draws(1, N, F), target)
        return x, {"x": filled(x, target.dtype, gap)}
    drawn = np.random.default_rng(1)
    images, order = drawn.integers(0, 256, (9, F), np.uint8), drawn.integers(0, 9, N)
    return (images[order] - pixels.mean) / pixels.std, {"x": filled(images, gap=gap), "order": single(order)}


@settings(max_examples=10)
@given(**SHAPES, bias=st.booleans(), relu=st.booleans(), gap=st.integers(0, 3))
@example(N=20, F=147, U=10, pixels=Pixels(33.25, 78.5), bias=True, relu=True, gap=0)
@example(N=19, F=100, U=3, pixels=None, bias=True, relu=False, gap=3)
def test_forward(
    target: Target, N: int, F: int, U: int, pixels: Pixels | None, bias: bool, relu: bool, gap: int
) -> None:
    x, blocks = inputs(target, N, F, pixels, gap)
    w, b = rounded(draws(2, F, U), target), rounded(draws(3, U), target)
    kernel = NarrowForward(target, F, U, F + gap, bias, relu, pixels)
    weight, y, first = packed(by_unit(kernel.width, places_of((F, U))), w), Block(U, N, target.dtype), N // 3
    blocks |= {"weight": single(weight, target.dtype), "bias": single(b, target.dtype), "y": y}
    call(kernel, blocks, ["y"], range(first, N))
    expected = ops.dense_forward(x, w, b if bias else None)
    expected = np.maximum(expected, 0.0) if relu else expected
    assert_close(y.data[first:], expected[first:], target)


@settings(max_examples=10)
@given(**SHAPES, gap=st.integers(0, 3))
@example(N=20, F=147, U=10, pixels=Pixels(33.25, 78.5), gap=0)
@example(N=19, F=100, U=3, pixels=None, gap=3)
def test_weight_gradient(target: Target, N: int, F: int, U: int, pixels: Pixels | None, gap: int) -> None:
    """Added to what is there; zeros past the last feature stay zeros."""
    x, blocks = inputs(target, N, F, pixels, gap)
    dy, before = rounded(draws(2, N, U), target), rounded(draws(3, F, U), target)
    kernel = NarrowWeightGradient(target, F, U, F + gap, pixels)
    gradient = single(packed(by_unit(kernel.width, places_of((F, U))), before), target.dtype)
    blocks |= {"dy": filled(dy, target.dtype), "gradient": gradient}
    first = N // 3
    call(kernel, blocks, ["gradient"], range(first, N), whole=["gradient"])
    at = by_unit_positions(kernel.width, (F, U))
    assert_close(gradient.data[0, at].reshape(F, U), before + x[first:].T @ dy[first:], target)
    assert not np.delete(gradient.data[0], at).any()


@pytest.mark.parametrize("pixels", [None, Pixels(33.25, 78.5)], ids=["numbers", "pixels"])
def test_no_images_at_all(target: Target, pixels: Pixels | None) -> None:
    """A worker may have none."""
    _, given = inputs(target, 2, 40, pixels, 0)
    weight, y = single(np.ones(3 * 48), target.dtype), Block(3, 2, target.dtype)
    backward = NarrowWeightGradient(target, 40, 3, 40, pixels)
    forward = NarrowForward(target, 40, 3, 40, bias=False, pixels=pixels)
    call(backward, {**given, "dy": y, "gradient": weight}, ["gradient"], range(1, 1), whole=["gradient"])
    assert (weight.data == 1.0).all()
    call(forward, {**given, "weight": weight, "y": y}, ["y"], range(1, 1))
    assert np.isnan(y.data).all()


def test_relu_keeps_nan(target: Target) -> None:
    x = np.ones((2, 40))
    x[1, 39] = np.nan
    y = Block(3, 2, target.dtype)
    blocks = {"x": filled(x, target.dtype), "weight": single(np.ones(3 * 48), target.dtype), "y": y}
    call(NarrowForward(target, 40, 3, 40, bias=False, relu=True), blocks, ["y"], range(2))
    assert np.array_equal(np.isnan(y.data), [[False] * 3, [True] * 3])


def test_what_is_narrow(target: Target) -> None:
    """A third of a register's lanes would be empty, there are features enough, and the sums fit into registers."""
    most = min(target.lanes * 2 // 3, target.registers * 5 // 8)
    assert is_narrow(target, 4 * target.lanes, most)
    assert not is_narrow(target, 4 * target.lanes, most + 1)
    assert not is_narrow(target, 4 * target.lanes - 1, most)

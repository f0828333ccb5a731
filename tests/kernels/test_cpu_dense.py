"""The dense kernels against ``ops.dense``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_harness import Block, assert_close, call, draws, filled, rounded, single
from numpy.typing import NDArray

from bareconv import ops
from bareconv.kernels.cpu.dense import ColumnSums, DenseForward, DenseInputGradient, DenseWeightUpdate
from bareconv.kernels.cpu.target import Target
from bareconv.optim.rule import SCALARS, Rule

SIZES = st.sampled_from((1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 70))


@settings(max_examples=8)
@given(N=st.integers(1, 30), F=SIZES, U=SIZES, bias=st.booleans(), relu=st.booleans(), gap=st.integers(0, 3))
@example(N=1, F=1, U=1, bias=True, relu=True, gap=0)
@example(N=5, F=700, U=100, bias=True, relu=False, gap=0)  # more features than a panel holds
def test_forward(target: Target, N: int, F: int, U: int, bias: bool, relu: bool, gap: int) -> None:
    x, w, b = (rounded(draws(i, *shape), target) for i, shape in enumerate(((N, F), (F, U), (U,))))
    expected = ops.dense_forward(x, w, b if bias else None)
    expected = np.maximum(expected, 0.0) if relu else expected
    y, first = Block(U, N, target.dtype), N // 3
    blocks = {"x": filled(x, target.dtype, gap), "weight": single(w, target.dtype), "y": y}
    if bias:
        blocks["bias"] = single(b, target.dtype)
    call(DenseForward(target, F, U, F + gap, bias, relu), blocks, ["y"], range(first, N))
    assert_close(y.data[first:], expected[first:], target)


@settings(max_examples=8)
@given(N=st.integers(1, 30), F=SIZES, U=SIZES, gap=st.integers(0, 3))
@example(N=1, F=1, U=1, gap=0)
@example(N=9, F=100, U=130, gap=1)
def test_input_gradient(target: Target, N: int, F: int, U: int, gap: int) -> None:
    dy, w = rounded(draws(1, N, U), target), rounded(draws(2, F, U), target)
    kernel = DenseInputGradient(target, F, U, F + gap)
    dx, first = Block(F, N, target.dtype, gap), N // 3
    scratch = Block(kernel.scratch_elements, 1, target.dtype)
    blocks = {"dy": filled(dy, target.dtype), "weight": single(w, target.dtype), "dx": dx, "scratch": scratch}
    call(kernel, blocks, ["dx", "scratch"], range(first, N), whole=["scratch"])
    assert_close(dx.data[first:], (dy @ w.T)[first:], target)


def weight_update(
    target: Target, x: NDArray[np.float64], dy: NDArray[np.float64], rule: Rule, features: range, blocked: bool = False
) -> dict[str, Block]:
    """The blocks after a call for these features; the weights were 1 and the rate 0.5."""
    (N, F), U, gap = x.shape, dy.shape[1], 2
    kernel = DenseWeightUpdate(target, F, U, F + gap, rule, blocked)
    blocks = {
        "x": filled(x, target.dtype, gap),
        "dy": filled(dy, target.dtype),
        "images": single(np.array([N])),
        "scalars": single(np.array([0.5] + [0.0] * (SCALARS - 1)), target.dtype),
        "scratch": Block(kernel.scratch_elements, 1, target.dtype),
        "weight": filled(np.ones((F, U)), target.dtype),
        "gradient": Block(U, F, target.dtype),
        "state1": Block(U, F, target.dtype),
        "state2": Block(U, F, target.dtype),
    }
    written = ["gradient" if rule.name == "gradient" else "weight", *(["scratch"] if blocked else [])]
    call(kernel, blocks, written, features, whole=["scratch"])
    return blocks


@settings(max_examples=8)
@given(N=st.integers(1, 40), F=SIZES, U=SIZES, part=st.integers(0, 3))
@example(N=1, F=1, U=1, part=0)
def test_weight_gradient_and_update(target: Target, N: int, F: int, U: int, part: int) -> None:
    """Gradients alone, and a step of plain SGD with them; other features than those of the call are left alone."""
    x, dy = rounded(draws(1, N, F), target), rounded(draws(2, N, U), target)
    features = range(min(part, F - 1), F)
    found = weight_update(target, x, dy, Rule("gradient"), features)
    expected = (x.T @ dy)[features.start :]
    assert_close(found["gradient"].data[features.start :], expected, target)
    found = weight_update(target, x, dy, Rule("sgd"), features)
    assert_close(found["weight"].data[features.start :], 1.0 - 0.5 * expected, target)


@pytest.mark.parametrize("N", [1, DenseWeightUpdate.ROWS, 2 * DenseWeightUpdate.ROWS + 1])
@pytest.mark.parametrize(("F", "U"), [(200, 100), (9, 17), (5, 1)])
def test_weight_update_in_blocks_of_rows(target: Target, N: int, F: int, U: int) -> None:
    """Sums of a panel of features in scratch memory; the last panel, and the last block of rows, are smaller."""
    x, dy, features = rounded(draws(1, N, F), target), rounded(draws(2, N, U), target), range(3, F)
    found = weight_update(target, x, dy, Rule("gradient"), features, blocked=True)
    assert_close(found["gradient"].data[3:], (x.T @ dy)[3:], target)
    found = weight_update(target, x, dy, Rule("sgd"), features, blocked=True)
    assert_close(found["weight"].data[3:], (1.0 - 0.5 * x.T @ dy)[3:], target)


@settings(max_examples=8)
@given(N=st.integers(1, 30), U=SIZES)
def test_column_sums(target: Target, N: int, U: int) -> None:
    y, before = rounded(draws(1, N, U), target), rounded(draws(2, U), target)
    sums, first = single(before, target.dtype), N // 2
    call(
        ColumnSums(target, U),
        {"y": filled(y, target.dtype, 3), "sums": sums},
        ["sums"],
        range(first, N),
        whole=["sums"],
    )
    assert_close(sums.data[0], before + y[first:].sum(axis=0), target)


def test_no_images_at_all(target: Target) -> None:
    """A worker may have none: more threads than images."""
    y = Block(5, 2, target.dtype)
    blocks = {"x": Block(7, 2, target.dtype), "weight": Block(35, 1, target.dtype), "y": y}
    call(DenseForward(target, 7, 5, 7, bias=False), blocks, ["y"], range(1, 1))
    assert np.isnan(y.data).all()


def test_relu_keeps_nan(target: Target) -> None:
    x = np.ones((2, 3))
    x[1, 1] = np.nan
    y = Block(5, 2, target.dtype)
    blocks = {"x": filled(x, target.dtype), "weight": single(np.ones((3, 5)), target.dtype), "y": y}
    call(DenseForward(target, 3, 5, 3, bias=False, relu=True), blocks, ["y"], range(2))
    assert np.array_equal(np.isnan(y.data), [[False] * 5, [True] * 5])

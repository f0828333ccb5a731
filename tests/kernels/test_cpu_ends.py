"""Pixels to numbers, logits to a loss: both ends of a network, against ``ops.loss`` and ``Model.prepare``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_harness import Block, assert_close, call, draws, empty, filled, planes, rounded, single
from numpy.typing import NDArray

from bareconv import ops
from bareconv.kernels.cpu.elementwise import Elementwise
from bareconv.kernels.cpu.ends import Normalise, SoftmaxCrossEntropy, exponential
from bareconv.kernels.cpu.kernel import Frame, Kernel
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.target import Target
from bareconv.ops.windows import Pair

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=6)
@given(size=SIZES, C=st.sampled_from((1, 3, 4, 17)), mean=st.sampled_from((0.0, 33.25)))
def test_normalise(target: Target, size: Pair, C: int, mean: float) -> None:
    """The images that ``order`` names; some twice, some not."""
    drawn = np.random.default_rng(1)
    pixels, order = drawn.integers(0, 256, (6, *size, C), np.uint8), np.array([5, 0, 3, 3])
    plane = Plane(*size, C, (1, 2))
    y = empty(plane, 4, target.dtype)
    blocks = {"pixels": filled(pixels), "order": single(order), "y": y}
    call(Normalise(target, plane, mean, 70.5), blocks, ["y"], range(1, 4))
    assert_close(y.pixels(plane)[1:], ((pixels[order].astype(np.float64) - mean) / 70.5)[1:], target)


def loss_blocks(
    target: Target, logits: NDArray[np.float64], labels: NDArray[np.int64], order: NDArray[np.int64]
) -> dict[str, Block]:
    N, K = logits.shape
    return {
        "logits": filled(logits, target.dtype, gap=2),
        "labels": single(labels),
        "order": single(order),
        "images": single(np.array([N])),
        "dlogits": Block(K, N, target.dtype, gap=1),
        "losses": Block(1, N, "float64"),
        "hits": Block(1, N, "int64"),
    }


@settings(max_examples=20)
@given(
    N=st.integers(1, 9),
    K=st.sampled_from((1, 2, 10, 17, 100)),
    smoothing=st.sampled_from((0.0, 0.1, 0.9)),
    scale=st.sampled_from((1.0, 50.0, 1e4, 1e30)),
)
@example(N=3, K=10, smoothing=0.0, scale=1e30)
def test_loss(target: Target, N: int, K: int, smoothing: float, scale: float) -> None:
    """Also of logits whose exponentials no number can hold."""
    logits = rounded(scale * draws(1, N, K), target)
    drawn = np.random.default_rng(2)
    labels, order = drawn.integers(0, K, N + 4), drawn.permutation(N + 4)[:N]
    blocks = loss_blocks(target, logits, labels, order)
    call(SoftmaxCrossEntropy(target, K, smoothing), blocks, ["dlogits", "losses", "hits"], range(N))
    loss, p, t = ops.softmax_cross_entropy_forward(logits, labels[order], smoothing)
    near = 1e-12 if target.dtype == "float64" else 1e-6  # differences of logits are rounded in the target's precision
    assert np.isclose(blocks["losses"].data.sum() / N, loss, rtol=near, atol=near)
    assert_close(blocks["dlogits"].data, ops.softmax_cross_entropy_backward(p, t), target)
    assert blocks["hits"].data.sum() == (logits.argmax(axis=1) == labels[order]).sum()


def test_of_equal_logits_the_first_counts(target: Target) -> None:
    """As ``argmax`` has it."""
    blocks = loss_blocks(target, np.array([[0.0, 7.0, 7.0], [0.0, 7.0, 7.0]]), np.array([1, 2]), np.array([0, 1]))
    call(SoftmaxCrossEntropy(target, 3, 0.0), blocks, ["dlogits", "losses", "hits"], range(2))
    assert blocks["hits"].data.ravel().tolist() == [1, 0]


def test_a_logit_that_is_nan_makes_the_loss_nan(target: Target) -> None:
    for place in range(3):
        logits = np.zeros((1, 3))
        logits[0, place] = np.nan
        blocks = loss_blocks(target, logits, np.array([1]), np.array([0]))
        call(SoftmaxCrossEntropy(target, 3, 0.0), blocks, ["dlogits", "losses", "hits"], range(1))
        assert np.isnan(blocks["losses"].data).all()
        assert np.isnan(blocks["dlogits"].data).all()


@dataclass(frozen=True)
class Exponential(Kernel):
    """y = e^x, elements ``begin`` to ``end``."""

    operands: ClassVar[tuple[str, ...]] = ("x", "y")

    def write(self, k: Frame) -> None:
        x, y = k.operand("x").base, k.operand("y").base
        for i in k.b.range(k.begin, k.end, k.b.lanes):
            y.store(exponential(k.b, x.vector(i)), i)


def exponentials(target: Target, x: NDArray[np.float64]) -> NDArray[np.float64]:
    given = single(np.resize(x, -(-len(x) // target.lanes) * target.lanes), target.dtype)
    y = Block(given.elements, 1, target.dtype)
    call(Exponential(target), {"x": given, "y": y}, ["y"], range(given.elements), whole=["y"])
    return y.data[0, : len(x)].astype(np.float64)


def test_exponential(target: Target) -> None:
    """To two units of the last place from 0 down to where numbers cease to be normal; 1 at 0."""
    smallest = -87.0 if target.dtype == "float32" else -708.0
    near_zero, near_steps = -np.logspace(-20, 0, 500), -np.arange(0.5, -smallest / np.log(2.0)) * np.log(2.0)
    x = np.concatenate([[0.0, smallest], np.linspace(smallest, 0.0, 20_000), near_zero, near_steps, near_steps + 1e-6])
    x = rounded(x, target)
    expected = np.exp(x.astype(np.longdouble))
    error = np.abs(exponentials(target, x) - expected) / expected
    assert error.max() <= 2.0 * np.finfo(target.dtype).eps
    assert exponentials(target, np.zeros(1)) == 1.0


def test_exponential_of_what_is_far_below_or_no_number(target: Target) -> None:
    """The smallest there is, as good as zero; NaN stays NaN."""
    found = exponentials(target, np.array([-1e30, -np.inf, np.nan, -1.0]))
    assert found[0] == found[1]
    assert 0.0 < found[0] < 2.0 * np.finfo(target.dtype).tiny
    assert np.isnan(found[2])
    assert np.isfinite(found[3])


OPERATIONS: dict[str, Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]] = {
    "copy": lambda a, b: a,
    "relu": lambda a, b: np.maximum(a, 0.0),
    "add": lambda a, b: a + b,
    "add relu": lambda a, b: np.maximum(a + b, 0.0),
    "multiply": lambda a, b: a * b,
    "gate": lambda a, b: np.where(b > 0, a, 0.0),
}


@settings(max_examples=15)
@given(
    operation=st.sampled_from(sorted(OPERATIONS)), size=SIZES, C=st.sampled_from((1, 3, 16, 17)), in_place=st.booleans()
)
def test_elementwise(target: Target, operation: str, size: Pair, C: int, in_place: bool) -> None:
    """Between planes of different borders, or onto the first of them."""
    a, b = (np.random.default_rng(i).integers(-3, 4, (3, *size, C)).astype(np.float64) for i in (1, 2))
    plane = Plane(*size, C, (1, 0))
    y_plane = plane if in_place else Plane(*size, C, (0, 3))
    left = planes(a, plane, target.dtype, border=np.nan)
    y = left if in_place else empty(y_plane, 3, target.dtype)
    b_plane = Plane(*size, C, (2, 2))
    blocks = {"a": left, "b": planes(b, b_plane, target.dtype, border=np.nan), "y": y}
    call(
        Elementwise(target, operation, plane, b_plane, y_plane), blocks, ["a", "y"] if in_place else ["y"], range(1, 3)
    )
    assert np.array_equal(y.pixels(y_plane)[1:], OPERATIONS[operation](a, b)[1:])


def test_elementwise_relu_keeps_nan(target: Target) -> None:
    plane = Plane(1, 5, 1)
    a = np.array([np.nan, -1.0, 0.0, 2.0, -np.inf]).reshape(1, 1, 5, 1)
    y = empty(plane, 1, target.dtype)
    call(
        Elementwise(target, "relu", plane, plane, plane), {"a": planes(a, plane, target.dtype), "y": y}, ["y"], range(1)
    )
    assert np.array_equal(y.pixels(plane).ravel(), [np.nan, 0.0, 0.0, 2.0, 0.0], equal_nan=True)

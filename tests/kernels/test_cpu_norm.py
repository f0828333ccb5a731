"""The batch-norm kernels, with what follows them, against ``ops.norm``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_harness import (
    TOLERANCE,
    Block,
    assert_close,
    call,
    distance,
    draws,
    empty,
    filled,
    planes,
    rounded,
    single,
)
from numpy.typing import NDArray

from bareconv import ops
from bareconv.kernels.cpu.norm import (
    NormApply,
    NormBackward,
    NormBackwardFinish,
    NormBackwardSums,
    NormFinish,
    NormScale,
    NormSums,
)
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.target import Target
from bareconv.nn.layers import BatchNorm
from bareconv.ops.windows import Pair, Window

WORKERS, EPS, MOMENTUM = 3, 1e-3, 0.2
POOLS = [(1, 1), (2, 2), (1, 3), (3, 2)]
SHAPES = {
    "N": st.integers(1, 5),
    "size": st.tuples(st.integers(1, 7), st.integers(1, 7)),
    "C": st.sampled_from((1, 3, 8, 15, 16, 17, 40)),
}


@dataclass
class Norm:
    """A batch norm's arrays, as the reference has them and as the kernels do. The images are dealt out to workers."""

    target: Target
    x: NDArray[np.float64]
    plane: Plane

    def __post_init__(self) -> None:
        C, target = self.x.shape[3], self.target
        self.gamma, self.beta = rounded(draws(1, C) + 1.0, target), rounded(draws(2, C), target)
        self.mean, self.var = rounded(draws(3, C), target), rounded(draws(4, C) ** 2 + 0.1, target)
        self.blocks = {
            "x": planes(self.x, self.plane, target.dtype, border=np.nan),
            "pivot": single(self.mean, target.dtype),
            "sums": Block(2 * C, WORKERS, "float64", gap=6),
            "workers": single(np.array([WORKERS])),
            "images": single(np.array([len(self.x)])),
            "gamma": single(self.gamma, target.dtype),
            "beta": single(self.beta, target.dtype),
            "mean": single(self.mean, target.dtype),
            "var": single(self.var, target.dtype),
            "coefficients": Block(4 * C, 1, target.dtype),
            "dgamma": Block(C, 1, target.dtype),
            "dbeta": Block(C, 1, target.dtype),
            "terms": Block(3 * C, 1, target.dtype),
        }
        self.blocks["sums"].data[...] = 0.0

    @property
    def pitch(self) -> int:
        return self.blocks["sums"].pitch

    def dealt_out(self, kernel: NormSums | NormBackwardSums, blocks: dict[str, Block]) -> None:
        """A call for each worker's images, into its own sums."""
        for worker in range(WORKERS):
            mine = Block(2 * self.plane.channels, 1, "float64")
            mine.data[...] = 0.0
            begin, end = (len(self.x) * i // WORKERS for i in (worker, worker + 1))
            call(kernel, {**blocks, "sums": mine}, ["sums"], range(begin, end), whole=["sums"])
            self.blocks["sums"].data[worker] = mine.data[0]

    def only(self, *names: str) -> dict[str, Block]:
        return {name: self.blocks[name] for name in names}

    def forward_sums(self) -> None:
        """NormSums, then NormFinish."""
        C, pixels = self.plane.channels, self.plane.height * self.plane.width
        self.dealt_out(NormSums(self.target, self.plane), self.only("x", "pivot"))
        names = ("sums", "workers", "images", "gamma", "beta", "mean", "var", "coefficients")
        writes = ("sums", "mean", "var", "coefficients")
        kernel = NormFinish(self.target, C, pixels, self.pitch, MOMENTUM, EPS)
        call(kernel, self.only(*names), writes, range(C), whole=writes)

    @property
    def coefficients(self) -> NDArray[np.float64]:
        return self.blocks["coefficients"].data.reshape(4, -1)


@settings(max_examples=6)
@given(**SHAPES)
@example(N=1, size=(1, 1), C=3)  # one number a channel: a variance of zero
def test_statistics(target: Target, N: int, size: Pair, C: int) -> None:
    x = rounded(2.0 * draws(5, N, *size, C) + 1.5, target)
    norm = Norm(target, x, Plane(*size, C, (1, 0)))
    norm.forward_sums()
    layer = BatchNorm(MOMENTUM, EPS)
    layer.params.update(gamma=norm.gamma, beta=norm.beta)
    layer.buffers.update(mean=norm.mean.copy(), var=norm.var.copy())
    layer.forward(x, training=True)
    _, _, inverse, mean, _ = ops.batch_norm_forward(x, norm.gamma, norm.beta, EPS)
    scale = norm.gamma * inverse
    # The variance is a difference: what it loses by that is as much as squares about the pivot are larger than it.
    squares = ((x - norm.mean) ** 2).mean(axis=(0, 1, 2))
    loss = float((squares * inverse**2).max()) + 1.0
    for found, expected in zip(norm.coefficients, (mean, inverse, scale, norm.beta - mean * scale), strict=True):
        assert distance(found, expected) <= TOLERANCE[target.dtype] * loss
    assert_close(norm.blocks["mean"].data[0], layer.buffers["mean"], target, "running mean")
    assert_close(norm.blocks["var"].data[0], layer.buffers["var"], target, "running variance")
    assert not norm.blocks["sums"].data.any(), "the workers' sums are cleared for the next step"


def test_of_equal_numbers_the_variance_is_not_negative(target: Target) -> None:
    """Its square root would be NaN."""
    x = np.full((3, 4, 4, 5), 1.1).astype(target.dtype).astype(np.float64)
    norm = Norm(target, x, Plane(4, 4, 5))
    norm.forward_sums()
    assert np.isfinite(norm.coefficients).all()
    assert np.allclose(norm.coefficients[1], EPS**-0.5, rtol=1e-3)

    norm.blocks["pivot"].data[...] = norm.blocks["mean"].data[...] = x[0, 0, 0]
    norm.forward_sums()
    assert_close(norm.coefficients[1], np.full(5, EPS**-0.5), target, "about the mean itself")


@settings(max_examples=6)
@given(C=SHAPES["C"])
def test_scale_of_the_running_statistics(target: Target, C: int) -> None:
    norm = Norm(target, np.zeros((1, 1, 1, C)), Plane(1, 1, C))
    names = ("gamma", "beta", "mean", "var", "coefficients")
    call(NormScale(target, C, EPS), norm.only(*names), ["coefficients"], range(C), whole=["coefficients"])
    x = draws(9, 7, C)
    expected = ops.batch_norm_inference(x, norm.gamma, norm.beta, norm.mean, norm.var, EPS)
    found = x * norm.coefficients[2].astype(np.float64) + norm.coefficients[3].astype(np.float64)
    assert_close(found, expected, target)


@settings(max_examples=6)
@given(**SHAPES, pool=st.sampled_from(POOLS), relu=st.booleans())
def test_apply(target: Target, N: int, size: Pair, C: int, pool: Pair, relu: bool) -> None:
    """In whole numbers: exact, with ties."""
    H, W = (max(a, b) for a, b in zip(size, pool, strict=True))
    x = np.random.default_rng(1).integers(-2, 3, (N, H, W, C)).astype(np.float64)
    coefficients = np.random.default_rng(2).integers(-3, 4, (4, C)).astype(np.float64)
    expected, expected_where = ops.max_pool_forward(x * coefficients[2] + coefficients[3], Window(pool, pool))
    expected = np.maximum(expected, 0.0) if relu else expected
    x_plane, y_plane = Plane(H, W, C, (0, 2)), Plane(H // pool[0], W // pool[1], C, (1, 1))
    y, where = empty(y_plane, N, target.dtype), Block(expected[0].size, N, "uint8", gap=5)
    blocks = {
        "x": planes(x, x_plane, target.dtype, border=np.nan),
        "coefficients": single(coefficients, target.dtype),
        "y": y,
        "where": where,
    }
    keep = pool != (1, 1)
    kernel = NormApply(target, x_plane, y_plane, pool, relu, keep)
    call(kernel, blocks, ["y", *(["where"] if keep else [])], range(N // 2, N))
    assert np.array_equal(y.pixels(y_plane)[N // 2 :], expected[N // 2 :])
    if keep:
        assert np.array_equal(where.data.reshape(expected.shape)[N // 2 :], expected_where[N // 2 :])


@settings(max_examples=7)
@given(**SHAPES, pool=st.sampled_from(POOLS), relu=st.booleans())
@example(N=2, size=(5, 7), C=17, pool=(2, 2), relu=True)  # pixels that no window covers
def test_backward(target: Target, N: int, size: Pair, C: int, pool: Pair, relu: bool) -> None:
    """dgamma, dbeta and dX of batch norm, relu and pool in one."""
    H, W = (max(a, b) for a, b in zip(size, pool, strict=True))
    x = rounded(draws(5, N, H, W, C), target)
    norm = Norm(target, x, Plane(H, W, C, (1, 1)))
    norm.forward_sums()
    z, xhat, inverse, _, _ = ops.batch_norm_forward(x, norm.gamma, norm.beta, EPS)
    y, where = ops.max_pool_forward(z, Window(pool, pool))
    dy = rounded(draws(6, *y.shape), target)
    through = ops.relu_backward(dy, np.maximum(y, 0.0)) if relu else dy
    g = ops.max_pool_backward(through, where, x.shape, Window(pool, pool))
    dx, dgamma, dbeta = ops.batch_norm_backward(g, xhat, inverse, norm.gamma)

    _, P, Q, _ = y.shape
    small, y_plane, dx_plane = Plane(P, Q, C), Plane(P, Q, C, (2, 1)), Plane(H, W, C, (0, 1))
    given = {
        **norm.only("x", "coefficients"),
        "dy": planes(dy, small, target.dtype),
        "y": planes(np.maximum(y, 0.0), y_plane, target.dtype, border=np.nan),
        "where": filled(where, "uint8", gap=1),
    }
    norm.dealt_out(NormBackwardSums(target, norm.plane, small, y_plane, pool, relu), given)
    names = ("sums", "workers", "images", "gamma", "coefficients", "dgamma", "dbeta", "terms")
    writes = ("sums", "dgamma", "dbeta", "terms")
    call(NormBackwardFinish(target, C, H * W, norm.pitch), norm.only(*names), writes, range(C), whole=writes)
    found = empty(dx_plane, N, target.dtype)
    kernel = NormBackward(target, norm.plane, small, y_plane, dx_plane, pool, relu)
    call(kernel, {**given, **norm.only("terms"), "dx": found}, ["dx"], range(N // 2, N))

    # dX is a difference: of one number a channel it is zero, and what is left is rounding of terms as large as dY.
    size_of_terms = float(np.linalg.norm(g * norm.gamma * inverse)) or 1.0
    tolerance = 1e-5 if target.dtype == "float32" else 1e-12
    assert np.linalg.norm(found.pixels(dx_plane)[N // 2 :] - dx[N // 2 :]) <= tolerance * size_of_terms
    assert np.linalg.norm(norm.blocks["dgamma"].data[0] - dgamma) <= tolerance * (np.linalg.norm(g * xhat) + 1.0)
    assert_close(norm.blocks["dbeta"].data[0], dbeta, target, "dbeta")
    assert not norm.blocks["sums"].data.any()

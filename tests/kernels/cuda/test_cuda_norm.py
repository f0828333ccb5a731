"""norm.cu on a CPU against ops.norm, and compiled for every GPU."""

import ctypes
import itertools

import numpy as np
import pytest
from cuda_host import (
    TOLERANCE,
    from_kept,
    launch_at,
    needs_compiler,
    needs_nvrtc,
    pad_channels,
    poison,
    relative_error,
    to_kept,
)

from bareconv import ops
from bareconv.kernels.cuda import norm as kernels
from bareconv.kernels.cuda.compiler import compile_kernel
from bareconv.kernels.cuda.kernel import PRECISIONS, Precision, padded
from bareconv.kernels.cuda.limits import GENERATIONS, H100, Limits
from bareconv.kernels.cuda.norm import COEFFICIENTS, Norm, Parts
from bareconv.ops.windows import Window

SMALL = Limits("sm_86", 2, 101376, 3 << 20)  # so few multiprocessors that a block has several tiles
BATCH, IMAGES = 7, 5  # the last two are absent


def kept(values, precision):
    return to_kept(pad_channels(values), precision)


class Case:
    """Random operands of a batch norm, as the kernels have them, and the float64 result by ``ops``."""

    def __init__(self, precision, norm, seed=0):
        rng = np.random.default_rng(seed)
        self.precision, self.norm = precision, norm
        height, width = norm.size
        C = norm.channels
        self.C = C
        self.control = np.array([0, IMAGES, IMAGES, BATCH, 0], np.int32)
        self.x = kept(rng.standard_normal((BATCH, height, width, C)) * 2 + rng.standard_normal(C) * 3, precision)
        self.other = kept(rng.standard_normal((BATCH, height, width, C)), precision)
        self.dy = kept(rng.standard_normal((BATCH, *norm.pooled, C)), precision)
        self.gamma, self.beta = (rng.standard_normal(C).astype(np.float32) for _ in range(2))
        self.running = rng.standard_normal(C).astype(np.float32), rng.random(C).astype(np.float32) + 0.5
        # What belongs to images that the batch does not have may be anything.
        for array in (self.x, self.other, self.dy):
            array[IMAGES:] = poison((1,), precision)
        self.y = poison((BATCH, *norm.pooled, padded(C)), precision)
        self.dx = poison((BATCH, height, width, padded(C)), precision)
        self.coefficients = np.full((COEFFICIENTS, padded(C)), np.nan, np.float32)
        self.dgamma, self.dbeta = (np.full(C, np.nan, np.float32) for _ in range(2))

    def real(self, array):
        """What of an array is an image's and a channel's, in float64."""
        return from_kept(array)[:IMAGES, ..., : self.C]

    def expect(self):
        norm = self.norm
        x, other, dy = self.real(self.x), self.real(self.other), self.real(self.dy)
        gamma, beta = self.gamma.astype(np.float64), self.beta.astype(np.float64)
        z, xhat, inv_std, mean, var = ops.batch_norm_forward(x, gamma, beta, norm.eps)
        if norm.added == "before relu":
            z = z + other
        full = np.maximum(z, 0) if norm.relu else z
        if norm.added == "after relu":
            self.expected_y = full + other
        elif norm.pool != (1, 1):
            window = Window(norm.pool, norm.pool)
            self.expected_y, where = ops.max_pool_forward(full, window)
            dy = ops.max_pool_backward(dy, where, x.shape, window)
        else:
            self.expected_y = full
        self.masked = dz = dy * (z > 0) if norm.relu else dy
        self.expected_dx, self.expected_dgamma, self.expected_dbeta = ops.batch_norm_backward(dz, xhat, inv_std, gamma)
        self.mean, self.var = mean, var

    def check(self, got, expected, name):
        padding = from_kept(got)[:IMAGES, ..., self.C :]
        assert (padding == 0).all(), f"{name}: the padding channels are not zeros"
        assert relative_error(self.real(got), expected) <= TOLERANCE[self.precision], name


def finish_statistics(launch, case, parts, sums, order="forward"):
    """From parts of statistics to coefficients."""
    running = dict(zip(("running_mean", "running_var"), case.running, strict=True))
    arrays = {"parts": sums, "gamma": case.gamma, "beta": case.beta, "coefficients": case.coefficients, **running}
    launch(kernels.finish_statistics(case.norm, parts), arrays, order)


def statistics(launch, case, limits, order="forward"):
    """From x to coefficients."""
    kernel, parts = kernels.statistics(case.precision, BATCH, case.norm, limits)
    sums = np.full(parts.size(case.C), np.nan, np.float32)
    launch(kernel, {"x": case.x, "control": case.control, "parts": sums}, order)
    finish_statistics(launch, case, parts, sums, order)


def run(launch, case, limits, order):
    """Forward and backward; what ``masked`` is afterwards."""
    norm, precision = case.norm, case.precision
    arrays = {"control": case.control, "coefficients": case.coefficients}
    statistics(launch, case, limits, order)
    added = case.other if norm.added else None
    passed = {}
    if norm.remembers:
        passed["passed"] = np.zeros(kernels.passed_size(precision, BATCH, norm), np.uint8)
    kernel = kernels.apply(precision, BATCH, norm, limits, backward=True)
    launch(kernel, {**arrays, **passed, "x": case.x, "other": added, "y": case.y}, order)

    kernel, parts = kernels.sum_gradients(precision, BATCH, norm, limits)
    sums = np.full(parts.size(case.C), np.nan, np.float32)
    masked = poison(case.dy.shape, precision) if norm.remembers else None
    through = {"passed": passed.get("passed"), "masked": masked}
    launch(kernel, {**arrays, **through, "x": case.x, "dy": case.dy, "parts": sums}, order)
    gradients = {"dgamma": case.dgamma, "dbeta": case.dbeta}
    launch(kernels.finish_gradients(norm, parts), {**arrays, **gradients, "parts": sums}, order)
    dy = case.dy if masked is None else masked
    kernel = kernels.input_gradient(precision, BATCH, norm, limits)
    launch(kernel, {**arrays, "x": case.x, "dy": dy, "dx": case.dx}, order)
    return masked


CASES = [
    ("float32", Norm((5, 7, 3), relu=True), SMALL, "backward"),
    ("bfloat16", Norm((6, 6, 20), relu=True), SMALL, "random"),
    ("tf32", Norm((3, 3, 300), relu=True, added="after relu"), H100, "forward"),
    ("bfloat16", Norm((5, 4, 13), relu=True, added="before relu"), SMALL, "backward"),
    ("float32", Norm((6, 8, 12), relu=True, pool=(2, 2)), SMALL, "random"),
    ("bfloat16", Norm((7, 9, 10), relu=True, pool=(2, 2)), SMALL, "forward"),
    ("tf32", Norm((7, 8, 5), pool=(3, 3)), SMALL, "forward"),
    ("float32", Norm((1100,), relu=True), H100, "forward"),
]


@pytest.mark.parametrize(("precision", "norm", "limits", "order"), CASES)
def test_forward_and_backward(launch, precision, norm, limits, order):
    case = Case(precision, norm)
    case.expect()
    before = [array.astype(np.float64) for array in case.running]
    masked = run(launch, case, limits, order)
    case.check(case.y, case.expected_y, "y")
    # A pixel near zero, or two that are nearly the same, may go the other way, but only in the last bits of float32.
    case.check(case.dx, case.expected_dx, "dx")
    assert relative_error(case.dgamma.astype(np.float64), case.expected_dgamma) < 2e-5
    assert relative_error(case.dbeta.astype(np.float64), case.expected_dbeta) < 2e-5
    if masked is not None:
        np.testing.assert_array_equal(case.real(masked), case.masked)
    M = IMAGES * norm.pixels
    for got, old, now in zip(case.running, before, (case.mean, case.var * M / max(M - 1, 1)), strict=True):
        np.testing.assert_allclose(got, 0.9 * old + 0.1 * now, rtol=1e-5, atol=1e-6)


@needs_compiler
def test_masked_gradient_may_take_the_place_of_dy():
    norm = Norm((4, 5, 8), relu=True, added="before relu")
    case = Case("float32", norm)
    case.expect()
    passed = np.zeros(kernels.passed_size("float32", BATCH, norm), np.uint8)
    passed[: IMAGES * 40] = np.packbits(case.expected_y.reshape(-1, 4) > 0, axis=1, bitorder="little")[:, 0]
    case.coefficients[:] = 0.5
    kernel, parts = kernels.sum_gradients("float32", BATCH, norm, SMALL)
    sums = np.full(parts.size(8), np.nan, np.float32)
    arrays = {"x": case.x, "passed": passed, "coefficients": case.coefficients, "control": case.control, "parts": sums}
    arrays |= {"dy": case.dy, "masked": case.dy}
    launch_at(kernel, [ctypes.c_void_p(arrays[name].ctypes.data) for name in kernel.operands])
    np.testing.assert_array_equal(case.real(case.dy), case.masked)
    assert (
        relative_error(sums[: -parts.count].reshape(-1, 2, 8)[:, 0].sum(axis=0, dtype=np.float64), case.expected_dbeta)
        < 1e-5
    )


def test_statistics_of_numbers_far_from_zero(launch):
    case = Case("float32", Norm((8, 8, 8)))
    case.x[:IMAGES] = (case.x[:IMAGES] + 1e4).astype(np.float32)
    case.expect()
    statistics(launch, case, SMALL)
    assert relative_error(case.coefficients[0].astype(np.float64), case.mean) < 1e-6
    inv_std = 1 / np.sqrt(case.var + case.norm.eps)
    assert relative_error(case.coefficients[1].astype(np.float64), inv_std) < 1e-5


def test_merges_the_statistics_that_another_kernel_has_written(launch):
    """As a convolution leaves them: a part for each tile of its pixels, in order, none for what is absent."""
    norm = Norm((5, 5, 11), relu=True)
    case = Case("bfloat16", norm)
    case.expect()
    tile = 16
    parts = Parts(-(-BATCH * 25 // tile))
    sums, counts = np.zeros((parts.count, 2, 16), np.float32), np.zeros(parts.count, np.float32)
    pixels = from_kept(case.x)[:IMAGES].reshape(-1, 16)
    for part in range(parts.count):
        mine = pixels[part * tile : (part + 1) * tile]
        counts[part] = len(mine)
        if len(mine):
            sums[part] = mine.mean(axis=0), ((mine - mine.mean(axis=0)) ** 2).sum(axis=0)
    assert counts[-1] == 0
    sums = np.concatenate([sums.ravel(), counts])
    finish_statistics(launch, case, parts, sums)
    inv_std = 1 / np.sqrt(case.var + norm.eps)
    gamma, beta = case.gamma.astype(np.float64), case.beta.astype(np.float64)
    expected = np.zeros((4, 16))
    expected[:, :11] = case.mean, inv_std, gamma * inv_std, beta - case.mean * gamma * inv_std
    np.testing.assert_allclose(case.coefficients[:4], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 300, 2300])
def test_merges_any_number_of_parts_some_of_which_counted_nothing(launch, count):
    norm, rng = Norm((5, 5, 11)), np.random.default_rng(3)
    case, parts = Case("float32", norm), Parts(count)
    counts = rng.integers(0, 60, count).astype(np.float32) if count > 1 else np.array([7], np.float32)
    counts[1::5] = 0
    counts[0] = 0 if count == 300 else 5
    means = 50 + rng.standard_normal((count, 16)).astype(np.float32)
    squares = 10 * rng.random((count, 16)).astype(np.float32)
    means[counts == 0] = squares[counts == 0] = np.nan  # nobody's
    means[0] = np.nan_to_num(means[0])
    sums = np.concatenate([np.stack([means, squares], axis=1).ravel(), counts])
    finish_statistics(launch, case, parts, sums)
    n, m, s = (array[counts > 0, :11].astype(np.float64) for array in (counts[:, None].repeat(16, 1), means, squares))
    mean = (n * m).sum(axis=0) / n.sum(axis=0)
    var = (s + n * (m - mean) ** 2).sum(axis=0) / n.sum(axis=0)
    np.testing.assert_allclose(case.coefficients[0, :11], mean, rtol=1e-6)
    np.testing.assert_allclose(case.coefficients[1, :11], 1 / np.sqrt(var + norm.eps), rtol=1e-5 if counts[0] else 1e-3)
    assert (case.coefficients[:4, 11:] == 0).all()


def test_evaluation_uses_the_running_statistics(launch):
    norm = Norm((4, 6, 10), relu=True, pool=(2, 2))
    case = Case("float32", norm)
    running = dict(zip(("running_mean", "running_var"), case.running, strict=True))
    launch(
        kernels.use_running(norm),
        {"gamma": case.gamma, "beta": case.beta, **running, "coefficients": case.coefficients},
    )
    arrays = {"x": case.x, "other": None, "coefficients": case.coefficients, "control": case.control, "y": case.y}
    launch(kernels.apply("float32", BATCH, norm, H100), arrays)
    z = ops.batch_norm_inference(case.real(case.x), case.gamma, case.beta, *case.running, norm.eps)
    case.check(case.y, ops.max_pool_forward(np.maximum(z, 0), Window((2, 2), (2, 2)))[0], "y")


def test_a_nan_is_not_lost_in_relu_or_pool(launch):
    norm = Norm((4, 4, 8), relu=True, pool=(2, 2))
    case = Case("bfloat16", norm)
    case.coefficients[:] = 1
    case.x[0, 1, 0, 2] = 0x7FFF
    arrays = {"x": case.x, "other": None, "coefficients": case.coefficients, "control": case.control, "y": case.y}
    launch(kernels.apply("bfloat16", BATCH, norm, H100), arrays)
    lost = np.argwhere(np.isnan(from_kept(case.y)[:IMAGES]))
    assert lost.tolist() == [[0, 0, 0, 2]]


@needs_nvrtc
@pytest.mark.parametrize("limits", GENERATIONS, ids=lambda limits: limits.architecture)
def test_compiles_without_spills(limits):
    norms = (
        Norm((32, 32, 64), relu=True),
        Norm((32, 32, 128), relu=True, pool=(2, 2)),
        Norm((8, 8, 512), relu=True, added="before relu"),
        Norm((9, 9, 64), relu=True, pool=(3, 3)),
    )
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for precision, norm in itertools.product(precisions, norms):
        wanted = [
            kernels.apply(precision, 512, norm, limits, backward=True),
            kernels.sum_gradients(precision, 512, norm, limits)[0],
            kernels.input_gradient(precision, 512, norm, limits),
        ]
        if norm is norms[0]:
            kernel, parts = kernels.statistics(precision, 512, norm, limits)
            wanted += [kernel, kernels.finish_statistics(norm, parts), kernels.finish_gradients(norm, parts)]
        for kernel in wanted:
            code = compile_kernel(kernel, limits.architecture)
            assert (code.spilled, code.stack) == (0, 0), kernel
            assert code.registers <= (128 if norm.pool != (3, 3) else 255), kernel


def test_sums_come_in_few_parts():
    for norm, limits in itertools.product((Norm((32, 32, 64)), Norm((4, 4, 512)), Norm((1, 1, 10))), (H100, SMALL)):
        for precision in PRECISIONS:
            for kernel, parts in (
                kernels.statistics(precision, 512, norm, limits),
                kernels.sum_gradients(precision, 512, norm, limits),
            ):
                assert 1 <= parts.count == kernel.grid[0]
                assert kernel.grid[0] * kernel.grid[1] <= 4 * limits.multiprocessors
                assert 4 * parts.size(norm.channels) <= max(kernel.bytes / 8, 8 * padded(norm.channels))

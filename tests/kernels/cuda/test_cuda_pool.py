"""pool.cu on a CPU against ops.pool, and compiled for every GPU."""

import numpy as np
import pytest
from cuda_host import TOLERANCE, from_kept, needs_nvrtc, pad_channels, poison, relative_error, to_kept

from bareconv import ops
from bareconv.errors import ShapeError
from bareconv.kernels.cuda import pool
from bareconv.kernels.cuda.compiler import compile_kernel
from bareconv.kernels.cuda.kernel import padded
from bareconv.kernels.cuda.limits import GENERATIONS
from bareconv.ops.windows import Window

BATCH, IMAGES = 4, 3
CONTROL = np.array([0, IMAGES, IMAGES, BATCH, 0], np.int32)

CASES = [
    ("float32", (6, 8, 12), Window((2, 2), (2, 2)), "forward"),
    ("bfloat16", (7, 9, 10), Window((2, 2), (2, 2)), "random"),  # pixels that no window has
    ("tf32", (9, 7, 5), Window((3, 3), (2, 2), (1, 1)), "backward"),  # windows overlap
    ("bfloat16", (6, 5, 17), Window((3, 2), (1, 1)), "forward"),
    ("float32", (9, 11, 9), Window((2, 3), (2, 1), (0, 1), (3, 2)), "forward"),  # with gaps between taps
    ("bfloat16", (8, 8, 40), Window((8, 8)), "random"),  # global: threads share a window
    ("float32", (16, 17, 3), Window((16, 17)), "forward"),  # more taps than a byte can name
    ("bfloat16", (18, 18, 11), Window((17, 16), (1, 2)), "backward"),
]


def numbers(shape, precision, seed=0):
    """(BATCH, *shape) with many ties, as they are kept; the absent images are NaN."""
    values = np.random.default_rng(seed).integers(-6, 7, (BATCH, *shape)) / 4.0
    array = to_kept(pad_channels(values), precision)
    array[IMAGES:] = poison((1,), precision)
    return array


def check(got, expected, precision):
    C = expected.shape[-1]
    got = from_kept(got)
    assert np.isnan(got[IMAGES:]).all(), "an image that the batch does not have was written"
    assert (got[:IMAGES, ..., C:] == 0).all(), "the padding channels are not zeros"
    assert relative_error(got[:IMAGES, ..., :C], expected) <= TOLERANCE[precision]


@pytest.mark.parametrize(
    ("precision", "shape", "window", "order", "relu"), [(*c, i % 2 == 1) for i, c in enumerate(CASES)]
)
def test_max_pool(launch, precision, shape, window, order, relu):
    H, W, C = shape
    P, Q = window.output_size((H, W))
    x, dy = numbers(shape, precision), numbers((P, Q, C), precision, 1)
    y, dx = (poison((BATCH, *size, padded(C)), precision) for size in ((P, Q), (H, W)))
    kind = np.dtype(pool.where_dtype(window))
    where = np.full(y.shape, 77, kind)
    kernel = pool.max_pool(precision, BATCH, shape, window, relu=relu)
    launch(kernel, {"x": x, "y": y, "where": where, "control": CONTROL}, order)

    real = from_kept(x)[:IMAGES, ..., :C]
    expected, expected_where = ops.max_pool_forward(real, window)
    gradient = from_kept(dy)[:IMAGES, ..., :C]
    if relu:
        expected_where = np.where(expected > 0, expected_where, np.iinfo(kind).max)
        gradient = gradient * (expected > 0)
        expected = np.maximum(expected, 0)
    check(y, expected, precision)
    np.testing.assert_array_equal(where[:IMAGES, ..., :C], expected_where)
    assert (where[IMAGES:] == 77).all()
    kernel = pool.max_pool_backward(precision, BATCH, shape, window)
    launch(kernel, {"dy": dy, "where": where, "dx": dx, "control": CONTROL}, order)
    expected_where = np.where(expected_where == np.iinfo(kind).max, 0, expected_where)
    check(dx, ops.max_pool_backward(gradient, expected_where, real.shape, window), precision)


@pytest.mark.parametrize(("precision", "shape", "window", "order"), CASES[::2])
def test_avg_pool(launch, precision, shape, window, order):
    H, W, C = shape
    P, Q = window.output_size((H, W))
    x, dy = numbers(shape, precision), numbers((P, Q, C), precision, 1)
    y, dx = (poison((BATCH, *size, padded(C)), precision) for size in ((P, Q), (H, W)))
    launch(pool.avg_pool(precision, BATCH, shape, window), {"x": x, "y": y, "control": CONTROL}, order)
    real = from_kept(x)[:IMAGES, ..., :C]
    check(y, ops.avg_pool_forward(real, window), precision)
    kernel = pool.avg_pool_backward(precision, BATCH, shape, window)
    launch(kernel, {"dy": dy, "dx": dx, "control": CONTROL}, order)
    check(dx, ops.avg_pool_backward(from_kept(dy)[:IMAGES, ..., :C], real.shape, window), precision)


def test_prediction_needs_no_winners_and_a_nan_is_not_lost(launch):
    shape, window = (4, 4, 8), Window((2, 2), (2, 2))
    x = numbers(shape, "bfloat16")
    x[1, 3, 0, 5] = 0x7FFF
    y = poison((BATCH, 2, 2, 8), "bfloat16")
    kernel = pool.max_pool("bfloat16", BATCH, shape, window, where=False, relu=True)
    launch(kernel, {"x": x, "y": y, "control": CONTROL})
    got = from_kept(y)[:IMAGES]
    assert np.argwhere(np.isnan(got)).tolist() == [[1, 1, 0, 5]]
    expected = np.maximum(ops.max_pool_forward(from_kept(x)[:IMAGES], window)[0], 0)
    np.testing.assert_array_equal(got, expected)


def test_refuses_windows_with_more_taps_than_can_be_told():
    with pytest.raises(ShapeError, match="65536 taps"):
        pool.max_pool("float32", 1, (256, 256, 1), Window((256, 256)))


@needs_nvrtc
@pytest.mark.parametrize("limits", GENERATIONS, ids=lambda limits: limits.architecture)
def test_compiles_without_spills(limits):
    for precision in ("float32", "bfloat16"):
        for shape, window in (
            ((24, 24, 64), Window((2, 2), (2, 2))),
            ((112, 112, 64), Window((3, 3), (2, 2), (1, 1))),
            ((4, 4, 512), Window((4, 4))),
            ((16, 16, 256), Window((16, 16))),
        ):
            for kernel in (
                pool.max_pool(precision, 512, shape, window, relu=True),
                pool.max_pool_backward(precision, 512, shape, window),
                pool.avg_pool(precision, 512, shape, window),
                pool.avg_pool_backward(precision, 512, shape, window),
            ):
                code = compile_kernel(kernel, limits.architecture)
                assert (code.spilled, code.stack) == (0, 0), kernel
                assert code.registers <= 128, kernel

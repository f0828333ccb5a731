"""elementwise.cu on a CPU against NumPy and ops, and compiled for every GPU."""

import numpy as np
import pytest
from cuda_host import TOLERANCE, from_kept, needs_nvrtc, pad_channels, poison, relative_error, to_kept

from bareconv import ops
from bareconv.kernels.cuda import elementwise
from bareconv.kernels.cuda.compiler import compile_kernel
from bareconv.kernels.cuda.kernel import PRECISIONS, padded
from bareconv.kernels.cuda.limits import GENERATIONS

BATCH, IMAGES = 5, 4
CONTROL = np.array([2, IMAGES, 100, BATCH, 11], np.int32)  # step 13 of the training


def numbers(precision, shape, seed=0):
    """(BATCH, *shape) as they are kept, the absent images NaN."""
    values = np.random.default_rng(seed).standard_normal((BATCH, *shape))
    array = to_kept(pad_channels(values), precision)
    array[IMAGES:] = poison((1,), precision)
    return array


def check(got, expected, precision):
    assert np.isnan(from_kept(got)[IMAGES:]).all(), "an image that the batch does not have was written"
    assert relative_error(from_kept(got)[:IMAGES], expected) <= TOLERANCE[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("order", ["forward", "random"])
def test_sums_relus_and_copies(launch, precision, order):
    shape = (7, 5, 20)
    image = 7 * 5 * 24
    a, b = (numbers(precision, shape, seed) for seed in range(2))
    p, q = (from_kept(array)[:IMAGES] for array in (a, b))
    for kernel, operands, expected in (
        (elementwise.copy(precision, BATCH, image), {"x": a}, p),
        (elementwise.add(precision, BATCH, image), {"a": a, "b": b}, p + q),
        (elementwise.add(precision, BATCH, image, relu=True), {"a": a, "b": b}, np.maximum(p + q, 0)),
        (elementwise.relu(precision, BATCH, image), {"x": a}, np.maximum(p, 0)),
        (elementwise.relu_backward(precision, BATCH, image), {"dy": a, "y": b}, p * (q > 0)),
    ):
        result = poison(a.shape, precision)
        launch(kernel, {**operands, kernel.operands[-1]: result, "control": CONTROL}, order)
        check(result, expected, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 2, 12), (1, 1, 10), (1, 1, 33), (2, 3, 8)])
def test_dropout_draws_the_reference_s_mask(launch, precision, shape):
    if precision == "tf32" and shape != (3, 5, 7):
        return  # the same code as float32
    *size, C = shape
    seed, layer, p = 0x123456789ABCDEF, 6, 0.3
    x = numbers(precision, shape)
    y = poison(x.shape, precision)
    kernel = elementwise.dropout(precision, BATCH, tuple(size), C, p, seed, layer)
    launch(kernel, {"x": x, "y": y, "control": CONTROL})
    real = from_kept(x)[:IMAGES, ..., :C]
    mask = ops.dropout_mask(real.astype(np.float32), p, seed, 13, layer)
    assert 0.4 < (mask > 0).mean() < 0.95
    expected = np.zeros((IMAGES, *size, padded(C)))
    expected[..., :C] = real * mask
    check(y, expected, precision)
    np.testing.assert_array_equal(from_kept(y)[:IMAGES] != 0, expected != 0)


@needs_nvrtc
@pytest.mark.parametrize("limits", GENERATIONS, ids=lambda limits: limits.architecture)
def test_compiles_without_spills(limits):
    for precision in ("float32", "bfloat16"):
        for kernel in (
            elementwise.add(precision, 512, 1 << 16, relu=True),
            elementwise.relu_backward(precision, 512, 1 << 16),
            elementwise.copy(precision, 512, 1 << 16),
            elementwise.dropout(precision, 512, (32, 32), 64, 0.1, 1, 2),
            elementwise.dropout(precision, 512, (9, 9), 13, 0.1, 1, 2),
        ):
            code = compile_kernel(kernel, limits.architecture)
            assert (code.spilled, code.stack) == (0, 0)
            assert code.registers <= 64

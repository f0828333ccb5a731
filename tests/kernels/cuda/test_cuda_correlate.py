"""correlate.cu against the reference in float64, forward and to the input, and compiled for every GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_host import TOLERANCE, from_kept, needs_nvrtc, pad_channels, poison, relative_error, to_kept

from bareconv.kernels.cuda.compiler import compile_kernel
from bareconv.kernels.cuda.correlate import (
    best_tiling,
    forward,
    forward_correlation,
    gradient_correlations,
    gradient_of_input,
    kernel_of,
    statistics_of,
    tilings,
)
from bareconv.kernels.cuda.geometry import Convolution
from bareconv.kernels.cuda.kernel import PRECISIONS, padded
from bareconv.kernels.cuda.limits import GENERATIONS, H100
from bareconv.ops.conv import conv2d_backward, conv2d_forward


def normal(rng, shape, precision):
    """Numbers that the precision has, as float64."""
    return from_kept(to_kept(rng.standard_normal(shape), precision))


def control(images, batch):
    return np.array([0, images, batch, batch, 0], np.int32)


def working_copy(weight, precision):
    """(R, S, C, K) -> [taps][padded C][padded K]."""
    R, S, C, K = weight.shape
    copy = np.zeros((R * S, padded(C), padded(K)))
    copy[:, :C, :K] = weight.reshape(R * S, C, K)
    return to_kept(copy, precision)


def kept(values, precision, batch):
    """Images as the kernels keep them, NaN where the batch has none."""
    images = to_kept(pad_channels(values), precision)
    result = poison((batch, *images.shape[1:]), precision)
    result[: len(images)] = images
    return result


def check_forward(
    launch,
    convolution,
    precision,
    batch,
    images,
    limits=H100,
    *,
    bias=False,
    relu=False,
    add=False,
    statistics=False,
    tiling=None,
    order="forward",
):
    rng = np.random.default_rng(1)
    C, K, (P, Q) = convolution.channels, convolution.filters, convolution.output
    x = normal(rng, (images, convolution.height, convolution.width, C), precision)
    weight = normal(rng, (*convolution.kernel, C, K), precision)
    b = rng.standard_normal(K).astype(np.float32) if bias else None
    other = normal(rng, (images, P, Q, K), precision) if add else None
    kernel = forward(
        convolution, precision, batch, limits, bias=bias, relu=relu, add=add, statistics=statistics, tiling=tiling
    )
    y = poison((batch, P, Q, padded(K)), precision)
    table = poison((statistics_of(kernel).size,)) if statistics else None
    arrays = {
        "x": kept(x, precision, batch),
        "weight": working_copy(weight, precision),
        "bias": b,
        "other": None if other is None else kept(other, precision, batch),
        "y": y,
        "statistics": table,
        "control": control(images, batch),
    }
    launch(kernel, arrays, order)

    expected, _ = conv2d_forward(x, weight, None if b is None else b.astype(np.float64), convolution.window)
    if other is not None:
        expected = expected + other
    if relu:
        expected = np.maximum(expected, 0)
    got = from_kept(y)
    assert relative_error(got[:images, ..., :K], expected) <= TOLERANCE[precision]
    assert (got[:images, ..., K:] == 0).all(), "padding channels are not zero"
    assert np.isnan(got[images:]).all(), "an image that the batch does not have was written"
    if table is not None:
        check_statistics(table, statistics_of(kernel), expected, precision)


def check_statistics(table, statistics, y, precision):
    """Merged by Chan's formula, the rows are the mean and the variance of all outputs."""
    K = y.shape[-1]
    parts = table[: statistics.rows * 2 * statistics.pitch].reshape(statistics.rows, 2, statistics.pitch)
    counts = table[statistics.rows * 2 * statistics.pitch :].astype(np.float64)
    assert np.isfinite(table).all()
    assert (parts[:, :, K:] == 0).all()
    assert (parts[counts == 0] == 0).all()
    assert counts.sum() == y[..., 0].size
    mean, squares, count = np.zeros(K), np.zeros(K), 0.0
    for (part_mean, part_squares), part_count in zip(parts[:, :, :K].astype(np.float64), counts, strict=True):
        if part_count:
            delta, total = part_mean - mean, count + part_count
            mean = mean + delta * part_count / total
            squares = squares + part_squares + delta**2 * count * part_count / total
            count = total
    flat = y.reshape(-1, K)
    tolerance = 10 * TOLERANCE[precision] if precision == "float32" else TOLERANCE[precision]
    assert np.abs(mean - flat.mean(0)).max() <= tolerance * flat.std(0).max()
    assert np.abs(squares / count - flat.var(0)).max() <= tolerance * flat.var(0).max()


def check_gradient(
    launch, convolution, precision, batch, images, limits=H100, *, mask=False, add=False, kernels=None, order="forward"
):
    rng = np.random.default_rng(2)
    C, K, (P, Q) = convolution.channels, convolution.filters, convolution.output
    size = (images, convolution.height, convolution.width, C)
    dy = normal(rng, (images, P, Q, K), precision)
    weight = normal(rng, (*convolution.kernel, C, K), precision)
    x = np.maximum(normal(rng, size, precision), 0)
    held = normal(rng, size, precision) if add else None
    dx = poison((batch, *size[1:3], padded(C)), precision) if held is None else kept(held, precision, batch)
    for kernel in kernels or gradient_of_input(convolution, precision, batch, limits, mask=mask, add=add):
        arrays = {
            "dy": kept(dy, precision, batch),
            "weight": working_copy(weight, precision),
            "x": kept(x, precision, batch) if mask else None,
            "dx": dx,
            "control": control(images, batch),
        }
        launch(kernel, arrays, order)

    cols = np.zeros((1, images * P * Q, convolution.taps * C))
    expected: Any
    expected, _, _ = conv2d_backward(dy, cols, weight, size, convolution.window)
    if held is not None:
        expected = expected + held
    if mask:
        expected = np.where(x > 0, expected, 0)
    got = from_kept(dx)
    assert relative_error(got[:images, ..., :C], expected) <= TOLERANCE[precision]
    assert (got[:images, ..., C:] == 0).all(), "padding channels are not zero"
    assert np.isnan(got[images:]).all(), "an image that the batch does not have was written"


# A name, the convolution, the batch and how many images of it there are.
CASES = {
    "3x3": (Convolution(6, 7, 16, 16, (3, 3), padding=(1, 1)), 4, 3),
    "several chunks": (Convolution(4, 4, 144, 40, (3, 3), padding=(1, 1)), 9, 8),
    "one channel": (Convolution(9, 8, 1, 6, (5, 5)), 3, 3),
    "three channels": (Convolution(8, 8, 3, 33, (3, 3), padding=(1, 1)), 3, 2),
    "odd groups": (Convolution(5, 6, 24, 9, (3, 2), padding=(1, 0)), 3, 3),
    "more odd groups": (Convolution(5, 5, 70, 12, (2, 2)), 3, 3),
    "1x1": (Convolution(5, 4, 40, 24, (1, 1)), 8, 7),
    "stride": (Convolution(9, 8, 16, 16, (3, 3), (2, 2), (1, 1)), 4, 4),
    "1x1 stride": (Convolution(8, 9, 24, 20, (1, 1), (2, 2)), 4, 3),
    "stride beyond the kernel": (Convolution(8, 9, 6, 9, (2, 1), (3, 4), (1, 2)), 3, 3),
    "dilation": (Convolution(9, 9, 8, 6, (3, 2), padding=(2, 2), dilation=(2, 3)), 3, 3),
    "dilation and stride": (Convolution(11, 10, 5, 7, (3, 3), (2, 3), (2, 1), (3, 2)), 3, 3),
    "both even": (Convolution(11, 10, 9, 7, (3, 3), (2, 4), (2, 1), (2, 2)), 3, 2),
    "far padding": (Convolution(3, 2, 5, 4, (3, 2), padding=(4, 5)), 3, 3),
    "one pixel": (Convolution(1, 1, 3, 17, (3, 3), padding=(1, 1)), 5, 4),
    "as large as the image": (Convolution(5, 6, 8, 12, (5, 6)), 5, 5),
    "many filters": (Convolution(3, 3, 8, 200, (3, 3), padding=(1, 1)), 2, 1),
    "wide": (Convolution(3, 150, 4, 8, (3, 3), padding=(1, 1)), 2, 2),
}


# Every case in every precision would take minutes to build: each gets one, in turn, and the first few get all.
TURNS = [
    pytest.param(case, precision, id=f"{case}-{precision}")
    for number, case in enumerate(CASES)
    for turn, precision in enumerate(PRECISIONS)
    if number < 2 or number % 3 == turn
]


@pytest.mark.parametrize(("case", "precision"), TURNS)
def test_forward(launch, case, precision):
    convolution, batch, images = CASES[case]
    check_forward(launch, convolution, precision, batch, images)


@pytest.mark.parametrize(("case", "precision"), TURNS)
def test_gradient_of_input(launch, case, precision):
    convolution, batch, images = CASES[case]
    check_gradient(launch, convolution, precision, batch, images)


ODD = Convolution(7, 6, 9, 20, (3, 3), padding=(1, 1))
STRIDED = Convolution(7, 6, 9, 20, (2, 3), (2, 2), (1, 1))  # some pixels are reached by no tap of a row


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("order", ["backward", "random"])
def test_bias_sum_relu_and_statistics(launch, precision, order):
    both = {"bias": True, "relu": True, "add": True, "statistics": True}
    check_forward(launch, ODD, precision, 7, 5, order=order, **both)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_statistics_of_blocks_without_an_image(launch, precision):
    check_forward(launch, ODD, precision, 40, 3, bias=True, statistics=True)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("order", ["backward", "random"])
def test_masked_sum_of_gradients(launch, precision, order):
    check_gradient(launch, STRIDED, precision, 5, 4, mask=True, add=True, order=order)


def test_gradient_is_added(launch):
    check_gradient(launch, Convolution(5, 5, 8, 8, (1, 1), (2, 2)), "float32", 3, 3, add=True)


def test_masked_gradient(launch):
    check_gradient(launch, Convolution(5, 5, 8, 8, (1, 1), (2, 2)), "bfloat16", 3, 2, mask=True)


WIDE = Convolution(6, 21, 40, 24, (3, 3), padding=(1, 1))
APART = Convolution(9, 21, 24, 24, (3, 2), (2, 3), (1, 1), (1, 2))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("convolution", [WIDE, APART], ids=["plain", "strided"])
@pytest.mark.parametrize(("at_once", "strip"), [("all", 8), ("row", None), ("one", 4)])
def test_other_tilings(launch, precision, convolution, at_once, strip):
    """Strips that do not divide the image, and taps served one row or one at a time."""
    correlation = forward_correlation(convolution, precision, 3)
    R, S = convolution.kernel
    taps = {"all": (R, S), "row": (1, S), "one": (1, 1)}[at_once]
    found = tilings(correlation, H100, taps_at_once=taps, strip=strip or convolution.output[1])
    statistics = strip is not None
    check_forward(launch, convolution, precision, 3, 2, statistics=statistics, tiling=found[0])
    check_forward(launch, convolution, precision, 3, 2, statistics=statistics, tiling=found[-1])


ANY = [
    Convolution(224, 224, 3, 64, (7, 7), (2, 2), (3, 3)),
    Convolution(1024, 1024, 16, 16, (11, 11), padding=(5, 5)),
    Convolution(300, 5000, 200, 20, (5, 31), padding=(60, 60), dilation=(30, 8)),
    Convolution(64, 64, 2048, 1000, (1, 1)),
    Convolution(8, 8, 512, 8, (8, 8)),
    Convolution(31, 17, 1, 1, (31, 17)),
]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_shape_fits_every_gpu(precision):
    for limits in GENERATIONS:
        for convolution in ANY:
            for correlation in [
                forward_correlation(convolution, precision, 64),
                *gradient_correlations(convolution, precision, 64),
            ]:
                assert best_tiling(correlation, limits).shared_bytes <= limits.shared_bytes


BIG = {
    "3x3": Convolution(16, 16, 128, 128, (3, 3), padding=(1, 1)),
    "stride": Convolution(32, 32, 64, 128, (3, 3), (2, 2), (1, 1)),
    "few channels": Convolution(32, 32, 3, 64, (3, 3), padding=(1, 1)),
    "small": Convolution(4, 4, 512, 512, (3, 3), padding=(1, 1)),
}


@needs_nvrtc
@pytest.mark.parametrize("limits", GENERATIONS, ids=lambda limits: limits.architecture)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_registers_are_enough(precision, limits):
    for convolution in BIG.values():
        there = forward_correlation(convolution, precision, 512)
        back = gradient_correlations(convolution, precision, 512)[0]
        kernels = [
            kernel_of(there, best_tiling(there, limits), bias=True, relu=True, statistics=True),
            kernel_of(back, best_tiling(back, limits), mask=True, add=True),
        ]
        for kernel in kernels:
            code = compile_kernel(kernel, limits.architecture)
            assert (code.spilled, code.stack) == (0, 0), kernel
            assert code.registers * kernel.threads * int(dict(kernel.defines)["BLOCKS"]) <= 65536

"""correlate.cu against the reference in float64, forward and to the input, and compiled for every GPU."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cuda_host import TOLERANCE, from_kept, needs_nvrtc, pad_channels, poison, relative_error, to_kept

from bareconv.errors import BareconvError
from bareconv.kernels.cuda.compiler import compile_kernel
from bareconv.kernels.cuda.correlate import (
    Tiling,
    best_tiling,
    forward,
    forward_correlation,
    gradient_correlations,
    gradient_of_input,
    statistics_of,
    tilings,
)
from bareconv.kernels.cuda.geometry import Convolution
from bareconv.kernels.cuda.kernel import PRECISIONS, padded
from bareconv.kernels.cuda.limits import GENERATIONS, H100, Limits
from bareconv.ops.conv import conv2d_backward, conv2d_forward

SMALL = next(limits for limits in GENERATIONS if limits.architecture == "sm_86")


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
    assert (parts[:, :, K:] == 0).all() and (parts[counts == 0] == 0).all()
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
    launch, convolution, precision, batch, images, limits=H100, *, mask=False, add=False, choose=None, order="forward"
):
    rng = np.random.default_rng(2)
    C, K, (P, Q) = convolution.channels, convolution.filters, convolution.output
    size = (images, convolution.height, convolution.width, C)
    dy = normal(rng, (images, P, Q, K), precision)
    weight = normal(rng, (*convolution.kernel, C, K), precision)
    x = np.maximum(normal(rng, size, precision), 0)
    held = normal(rng, size, precision) if add else None
    dx = poison((batch, *size[1:3], padded(C)), precision) if held is None else kept(held, precision, batch)
    for kernel in gradient_of_input(convolution, precision, batch, limits, mask=mask, add=add, choose=choose):
        arrays = {
            "dy": kept(dy, precision, batch),
            "weight": working_copy(weight, precision),
            "x": kept(x, precision, batch) if mask else None,
            "dx": dx,
            "control": control(images, batch),
        }
        launch(kernel, arrays, order)

    cols = np.zeros((1, images * P * Q, convolution.taps * C))
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


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_forward(launch, case, precision):
    check_forward(launch, *CASES[case][:1], precision, *CASES[case][1:])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_gradient_of_input(launch, case, precision):
    check_gradient(launch, *CASES[case][:1], precision, *CASES[case][1:])

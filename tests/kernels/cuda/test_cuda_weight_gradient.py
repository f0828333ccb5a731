"""weight_gradient.cu against the float64 gradient, and compiled for every GPU."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_host import TOLERANCE, from_kept, needs_nvrtc, pad_channels, poison, relative_error, to_kept

from bareconv.errors import BareconvError
from bareconv.kernels.cuda.compiler import compile_kernel
from bareconv.kernels.cuda.geometry import Convolution
from bareconv.kernels.cuda.kernel import PRECISIONS
from bareconv.kernels.cuda.limits import GENERATIONS, H100, Limits
from bareconv.kernels.cuda.weight_gradient import gradient_of_weight
from bareconv.ops.windows import Pair, Window

SMALL = Limits("sm_86", 28, 101376, 3 << 20)


def check(launch, convolution, precision, batch, images, limits=SMALL, bias=True, order="forward"):
    """The parts' sum is the gradient of the first ``images``; what the others hold, NaN, is not looked at."""
    rng = np.random.default_rng(batch)
    P, Q = convolution.output
    x = to_kept(rng.standard_normal((batch, convolution.height, convolution.width, convolution.channels)), precision)
    dy = to_kept(rng.standard_normal((batch, P, Q, convolution.filters)), precision)
    shape = (*convolution.kernel, convolution.channels, convolution.filters)
    padded, gradient = convolution.window.pad(from_kept(x[:images])), from_kept(dy[:images])
    dw, db = np.zeros(shape), gradient.sum(axis=(0, 1, 2))
    for tap in convolution.window.taps:
        dw[tap] = np.einsum("npqc,npqk->ck", padded[convolution.window.tap(*tap, (P, Q))], gradient)

    result = gradient_of_weight(convolution, precision, batch, limits, bias=bias)
    arrays = {"x": pad_channels(x), "dy": pad_channels(dy), "partial": poison((result.parts, *shape))}
    for name in ("x", "dy"):
        arrays[name][images:] = poison((1,), precision)
    if bias:
        arrays["partial_bias"] = poison((result.parts, convolution.filters))
    arrays["control"] = np.array([0, images, images, batch, 0], np.int32)
    launch(result.kernel, arrays, order)
    assert relative_error(arrays["partial"].astype(np.float64).sum(axis=0), dw) <= TOLERANCE[precision]
    if bias:
        assert relative_error(arrays["partial_bias"].astype(np.float64).sum(axis=0), db) <= TOLERANCE[precision]
    return result


def drawn(count: int) -> list[Convolution]:
    """Convolutions of every kind: kernels, strides, paddings and dilations that differ between the axes."""
    rng = np.random.default_rng(7)

    def pair(low: int, high: int) -> Pair:
        return int(rng.integers(low, high)), int(rng.integers(low, high))

    found: list[Convolution] = []
    while len(found) < count:
        window = Window(pair(1, 6), pair(1, 4), pair(0, 4), pair(1, 4))
        size = pair(1, 15)
        channels, filters = int(rng.choice([1, 2, 3, 5, 8, 12, 17, 40])), int(rng.choice([1, 3, 8, 10, 16, 33, 70]))
        if all(a + 2 * b >= c for a, b, c in zip(size, window.padding, window.extent, strict=True)):
            shape = (window.kernel, window.stride, window.padding, window.dilation)
            found.append(Convolution(*size, channels, filters, *shape))
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("convolution", drawn(6), ids=str)
def test_any_convolution(launch, convolution, precision):
    check(launch, convolution, precision, batch=5, images=5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("order", ["forward", "backward", "random"])
def test_threads_in_any_order(launch, order, precision):
    check(launch, Convolution(7, 6, 11, 20, (3, 3), padding=(1, 1)), precision, batch=6, images=6, order=order)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("images", [0, 1, 4, 7])
def test_fewer_images_than_the_batch(launch, images, precision):
    check(launch, Convolution(4, 4, 9, 16, (3, 3), padding=(1, 1)), precision, batch=7, images=images)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_first_layer(launch, precision):
    check(launch, Convolution(9, 10, 1, 6, (5, 5), padding=(2, 2)), precision, batch=3, images=3)
    check(launch, Convolution(8, 8, 3, 24, (3, 3), padding=(1, 1)), precision, batch=3, images=2)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_many_filters_and_channels(launch, precision):
    check(launch, Convolution(4, 4, 72, 136, (3, 3), padding=(1, 1)), precision, batch=4, images=3)
    check(launch, Convolution(5, 5, 136, 72, (1, 1), stride=(2, 2)), precision, batch=3, images=3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_images_cut_into_rows_and_columns(launch, precision):
    few = Limits("sm_86", 2, 16384, 3 << 20)  # shared memory for little more than a row
    check(launch, Convolution(9, 40, 16, 16, (3, 3), padding=(1, 1)), precision, batch=2, images=2, limits=few)
    check(launch, Convolution(6, 40, 8, 16, (3, 3), (2, 2), (0, 2), (1, 2)), precision, batch=2, images=2, limits=few)


def test_kernel_as_large_as_the_image(launch):
    check(launch, Convolution(12, 13, 8, 16, (12, 13)), "bfloat16", batch=9, images=8)
    check(launch, Convolution(2, 2, 8, 8, (5, 5), padding=(2, 2)), "bfloat16", batch=9, images=9)


def test_image_smaller_than_padding(launch):
    check(launch, Convolution(1, 1, 8, 8, (3, 3), stride=(3, 3), padding=(4, 4)), "bfloat16", batch=4, images=4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_windows_that_see_only_padding(launch, precision):
    check(launch, Convolution(1, 6, 24, 8, (1, 2), (3, 3), (1, 4), (1, 3)), precision, batch=1, images=1)
    check(launch, Convolution(6, 2, 8, 8, (2, 1), (2, 5), (0, 3)), precision, batch=3, images=3)


def test_without_bias(launch):
    result = check(launch, Convolution(6, 6, 8, 8, (3, 3)), "float32", batch=2, images=2, bias=False)
    assert "partial_bias" not in result.kernel.operands


RESNET9 = [
    Convolution(32, 32, 3, 64, (3, 3), padding=(1, 1)),
    Convolution(16, 16, 128, 128, (3, 3), padding=(1, 1)),
    Convolution(8, 8, 256, 512, (3, 3), padding=(1, 1)),
]
OTHERS = [
    Convolution(28, 28, 1, 6, (5, 5), padding=(2, 2)),
    Convolution(32, 32, 64, 128, (1, 1), (2, 2)),
    Convolution(224, 224, 3, 64, (7, 7), (2, 2), (3, 3)),
]


@pytest.mark.parametrize("limits", GENERATIONS, ids=lambda limits: limits.architecture)
@pytest.mark.parametrize("convolution", RESNET9 + OTHERS, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_fits_every_generation(convolution, precision, limits):
    kernel = gradient_of_weight(convolution, precision, 512, limits, bias=True).kernel
    assert kernel.shared_bytes <= limits.shared_bytes
    assert kernel.threads <= 256


@needs_nvrtc
@pytest.mark.parametrize("limits", GENERATIONS, ids=lambda limits: limits.architecture)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_registers(precision, limits):
    for convolution in RESNET9[:2]:
        kernel = gradient_of_weight(convolution, precision, 512, limits, bias=True).kernel
        code = compile_kernel(kernel, limits.architecture)
        assert code.spilled == 0
        assert code.stack == 0
        assert code.registers * kernel.threads <= 65536


def test_parts_of_a_large_weight_are_few():
    large = gradient_of_weight(Convolution(4, 4, 512, 512, (3, 3), padding=(1, 1)), "bfloat16", 512, H100, bias=True)
    assert large.parts <= 4
    small = gradient_of_weight(RESNET9[0], "bfloat16", 512, H100, bias=True)
    assert small.kernel.grid[0] * small.parts >= H100.multiprocessors * 0.8, "multiprocessors without work"


def test_says_what_does_not_fit():
    none = Limits("sm_90", 132, 1024, 1 << 20)
    with pytest.raises(BareconvError, match="shared memory"):
        gradient_of_weight(Convolution(8, 8, 8, 8, (3, 3)), "float32", 4, none, bias=True)

"""peak.cu: it does the work that is counted, and compiles for every GPU."""

from dataclasses import replace

import numpy as np
import pytest
from cuda_host import TOLERANCE, from_kept, needs_nvrtc, poison, relative_error, to_kept

from bareconv.kernels.cuda import correlate, dense, head, peak, weight_gradient
from bareconv.kernels.cuda.compiler import compile_kernel
from bareconv.kernels.cuda.geometry import Convolution
from bareconv.kernels.cuda.kernel import PRECISIONS
from bareconv.kernels.cuda.limits import GENERATIONS, H100

FEW = replace(H100, multiprocessors=1)
TURING = GENERATIONS[0]


@pytest.mark.parametrize(("unit", "order"), list(zip(PRECISIONS, ("forward", "backward", "random"), strict=True)))
def test_products_that_are_counted_are_made(launch, unit, order):
    iterations = 3
    kernel = peak.multiply(unit, FEW, iterations)
    rows, columns, terms = peak.multiply_shape(unit)
    rng = np.random.default_rng(0)
    left = to_kept(rng.standard_normal((rows, terms)), unit)
    right = to_kept(rng.standard_normal((terms, columns)), unit)
    sums = poison((kernel.grid[0], rows, columns + 8))
    launch(kernel, {"left": left, "right": right, "sums": sums}, order)
    used = peak.SCALAR_TERMS if unit == "float32" else terms
    expected = iterations * (from_kept(left)[:, :used] @ from_kept(right)[:used])
    for block in sums:
        assert relative_error(from_kept(block[:, :columns]), expected) <= TOLERANCE[unit]
        assert np.isnan(block[:, columns:]).all()
    assert kernel.flops == 2 * iterations * kernel.grid[0] * rows * columns * used


def test_products_of_groups_that_are_counted_are_made(launch):
    iterations = 3
    kernel = peak.multiply_groups(FEW, iterations)
    one = np.uint32(0x3F803F80)
    sums = poison((1, kernel.threads))
    launch(kernel, {"left": np.full((16, 128), one), "right": np.full(4096, one), "sums": sums}, "random")
    # 128 rows of 128 columns of sums over 64 terms, 64 of them a thread's.
    assert (sums == 64 * 64 * iterations).all()
    assert kernel.flops == 2 * iterations * 128 * 128 * 64


@pytest.mark.parametrize("passes", [1, 3])
def test_copies_everything(launch, passes):
    size = 5 * peak.PIECE_BYTES
    source = np.random.default_rng(1).integers(0, 256, size, np.uint8)
    target = np.zeros(size, np.uint8)
    kernel = peak.copy(size, passes)
    launch(kernel, {"source": source, "target": target}, "random")
    np.testing.assert_array_equal(target, source)
    assert kernel.bytes == 2 * passes * size


def test_reads_without_writing(launch):
    source = np.random.default_rng(1).integers(0, 256, 2 * peak.PIECE_BYTES, np.uint8) & 0x7F
    target = np.full(16, 7, np.uint8)
    kernel = peak.copy(len(source), 2, write=False)
    launch(kernel, {"source": source, "target": target})
    assert (target == 7).all()
    assert kernel.bytes == 2 * len(source)
    source[:] = 0xFF  # what it looks for, so that it has to look
    launch(kernel, {"source": source, "target": target})
    assert (target == 0xFF).all()


def test_nothing(launch):
    launch(peak.nothing(), {})


def test_units():
    convolution = Convolution(8, 8, 16, 16, (3, 3))
    forward = {one: correlate.forward(convolution, one, 4, H100, bias=True, relu=True) for one in PRECISIONS}
    assert {one: peak.unit_of(kernel, H100) for one, kernel in forward.items()} == {one: one for one in PRECISIONS}
    assert {peak.unit_of(kernel, TURING) for kernel in forward.values()} == {"float32"}
    gradient = weight_gradient.gradient_of_weight(convolution, "tf32", 4, H100, bias=True).kernel
    assert peak.unit_of(gradient, H100) == "tf32"
    whole = head.head("bfloat16", (32, 10), (True, False), 1, 64, H100)
    assert whole is not None
    assert peak.unit_of(whole, H100) == "float32"
    pixels = dense.pixel_product("bfloat16", dense.DenseShape(64, 1, 10), 64, 0.0, 1.0, H100)
    assert pixels is not None
    assert peak.unit_of(pixels, H100) == "tf32"
    assert peak.units(TURING) == ("float32",)
    assert peak.units(H100) == PRECISIONS


@needs_nvrtc
@pytest.mark.parametrize("limits", GENERATIONS, ids=lambda limits: limits.architecture)
def test_registers(limits):
    for kernel in (*(peak.multiply(unit, limits, 4096) for unit in peak.units(limits)), peak.copy(1 << 20, 8)):
        code = compile_kernel(kernel, limits.architecture)
        assert code.spilled == 0
        assert code.stack == 0
        assert kernel.shared_bytes <= limits.shared_bytes

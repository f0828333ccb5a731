"""correlate_hopper.cu against the reference in float64, on shapes that leave no tile whole."""

from __future__ import annotations

import dataclasses
import os

import pytest
from cuda_host import FOR_RACECHECK, needs_nvrtc, run_on_host
from test_cuda_correlate import check_forward, check_gradient  # type: ignore[import-not-found]

from bareconv.kernels.cuda.compiler import compile_kernel
from bareconv.kernels.cuda.correlate import (
    forward,
    forward_correlation,
    gradient_correlations,
    gradient_of_input,
    kernel_of,
)
from bareconv.kernels.cuda.correlate_hopper import tilings
from bareconv.kernels.cuda.geometry import Convolution
from bareconv.kernels.cuda.limits import GENERATIONS, H100

# The convolution, the batch, how many images of it there are, and a block's outputs and channels, of dX and forward.
CASES = {
    "3x3": (Convolution(6, 7, 72, 64, (3, 3), padding=(1, 1)), 9, 7, (256, 128), (256, 64)),
    "several chunks": (Convolution(4, 4, 144, 136, (3, 3), padding=(1, 1)), 20, 20, (128, 128), (128, 128)),
    "odd groups": (Convolution(5, 6, 72, 40, (3, 2), padding=(1, 0)), 15, 14, (512, 64), None),
    "1x1": (Convolution(5, 5, 64, 200, (1, 1)), 12, 11, (256, 64), (256, 128)),
}


@pytest.fixture
def launch(launch):
    if launch is not run_on_host:
        from bareconv.kernels.cuda import driver

        if driver.device_limits(0).capability != 90:
            pytest.skip("for GPUs of compute capability 9.0")
    return arriving(launch) if os.environ.get(FOR_RACECHECK) else launch


def arriving(launch):
    """``launch``, of kernels in which every lane arrives at barriers in shared memory: racecheck can follow that."""

    def launched(kernel, *arguments):
        launch(dataclasses.replace(kernel, defines=(*kernel.defines, ("EVERY_LANE_ARRIVES", 1))), *arguments)

    return launched


def test_every_lane_may_arrive(launch):
    convolution, batch, images, _, block = CASES["3x3"]
    tiling = tiling_of(forward_correlation(convolution, "bfloat16", batch), block)
    check_forward(arriving(launch), convolution, "bfloat16", batch, images, tiling=tiling)


def tiling_of(correlation, block):
    """The best one with such a block, for so few blocks that each takes several tiles."""
    tiling = next(tiling for tiling in tilings(correlation, H100) if tiling.block == block)
    return dataclasses.replace(tiling, blocks=min(tiling.blocks, 2))


def gradients(convolution, batch, block, **flags):
    correlations = gradient_correlations(convolution, "bfloat16", batch)
    return [kernel_of(correlation, tiling_of(correlation, block), **flags) for correlation in correlations]


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][4]])
def test_forward(launch, case):
    convolution, batch, images, _, block = CASES[case]
    tiling = tiling_of(forward_correlation(convolution, "bfloat16", batch), block)
    check_forward(launch, convolution, "bfloat16", batch, images, tiling=tiling)


@pytest.mark.parametrize("case", CASES)
def test_gradient_of_input(launch, case):
    convolution, batch, images, block, _ = CASES[case]
    check_gradient(launch, convolution, "bfloat16", batch, images, kernels=gradients(convolution, batch, block))


ODD = Convolution(7, 6, 40, 72, (3, 3), padding=(1, 1))
STRIDED = Convolution(7, 6, 72, 40, (2, 3), (2, 2), (1, 1))


@pytest.mark.parametrize("order", ["backward", "random"])
@pytest.mark.parametrize("images", [13, 3])
def test_bias_sum_relu_and_statistics(launch, order, images):
    """With 3 of 30 images some tiles have none."""
    tiling = tiling_of(forward_correlation(ODD, "bfloat16", 30), (256, 128))
    flags = {"bias": True, "relu": True, "add": True, "statistics": True}
    check_forward(launch, ODD, "bfloat16", 30, images, tiling=tiling, order=order, **flags)


@pytest.mark.parametrize("order", ["backward", "random"])
def test_masked_sum_of_gradients(launch, order):
    """Of a stride: a launch for each class of pixels."""
    kernels = gradients(STRIDED, 60, (256, 128), mask=True, add=True)
    check_gradient(launch, STRIDED, "bfloat16", 60, 59, mask=True, add=True, kernels=kernels, order=order)


BIG = {
    "large image": Convolution(32, 32, 64, 128, (3, 3), padding=(1, 1)),
    "small image": Convolution(4, 4, 512, 512, (3, 3), padding=(1, 1)),
    "few channels": Convolution(26, 26, 32, 64, (3, 3)),
}


@needs_nvrtc
@pytest.mark.parametrize("convolution", BIG.values(), ids=BIG)
def test_registers_are_enough(convolution):
    kernels = [
        forward(convolution, "bfloat16", 512, H100, bias=True, relu=True, add=True, statistics=True),
        *gradient_of_input(convolution, "bfloat16", 512, H100, mask=True, add=True),
    ]
    for kernel in kernels:
        if kernel.specific:
            code = compile_kernel(kernel, "sm_90")
            assert (code.spilled, code.stack) == (0, 0), kernel
            assert -(-code.registers // 8) * 8 * kernel.threads <= 65536
            assert "wgmma" not in code.log, code.log  # the compiler says so where it waits for each of them
    assert kernels[0].specific


def test_only_where_it_can_be():
    for limits in GENERATIONS:
        kernel = forward(BIG["large image"], "bfloat16", 512, limits, bias=True, relu=True)
        assert kernel.specific == (limits.architecture == "sm_90")
    assert not forward(BIG["large image"], "tf32", 512, H100, bias=True, relu=True).specific

"""CUDA kernels on the GPU, launched as ``cuda_host.run_on_host`` does it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from cuda_host import GUARD
from numpy.typing import NDArray

from bareconv.device import get_device
from bareconv.kernels.cuda import driver
from bareconv.kernels.cuda.compiler import compile_kernels
from bareconv.kernels.cuda.kernel import Kernel


@functools.cache
def _function(kernel: Kernel) -> int:
    limits = driver.device_limits(0)
    return driver.load(compile_kernels([kernel], limits.architecture).code[kernel].cubin, kernel)


def run_on_gpu(kernel: Kernel, arrays: Mapping[str, NDArray[Any] | None], order: str = "forward") -> None:
    """Launch ``kernel`` on copies of these arrays, by operand, and copy back. ``order`` is the hardware's own."""
    assert set(arrays) == set(kernel.operands), f"{kernel.entry} wants {kernel.operands}, got {tuple(arrays)}"
    device = get_device("cuda")
    with device.activate():
        xp = device.xp
        blocks: dict[str, Any] = {}
        addresses: list[int | None] = []
        for name in kernel.operands:
            array = arrays[name]
            if array is None:
                addresses.append(None)
                continue
            raw = np.full(array.nbytes + 2 * GUARD, 0xA5, np.uint8)
            raw[GUARD : GUARD + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
            blocks[name] = xp.asarray(raw)
            addresses.append(blocks[name].data.ptr + GUARD)
        driver.Launch(_function(kernel), kernel, addresses, overlap=False)()
        device.synchronize()
        for name, block in blocks.items():
            raw, array = device.to_host(block), arrays[name]
            assert array is not None
            assert (raw[:GUARD] == 0xA5).all(), f"{kernel.entry} wrote before operand {name}"
            assert (raw[GUARD + array.nbytes :] == 0xA5).all(), f"{kernel.entry} wrote beyond operand {name}"
            array[...] = raw[GUARD : GUARD + array.nbytes].view(array.dtype).reshape(array.shape)

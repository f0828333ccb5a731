"""CUDA kernels on the GPU, launched as ``cuda_host.run_on_host`` does it."""

from __future__ import annotations

import contextlib
import functools
import os
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
    """Launch ``kernel`` on copies of these arrays, by operand, and copy back. ``order`` is the hardware's own.

    With BARECONV_TEST_MEMORY=exact each copy is an allocation of its own, without margins: for a sanitizer, which sees
    whatever is beyond it.
    """
    exact = os.environ.get("BARECONV_TEST_MEMORY") == "exact"
    margin = 0 if exact else GUARD
    assert set(arrays) == set(kernel.operands), f"{kernel.entry} wants {kernel.operands}, got {tuple(arrays)}"
    device = get_device("cuda")
    xp = device.xp
    with device.activate(), xp.cuda.using_allocator(None) if exact else contextlib.nullcontext():
        blocks: dict[str, Any] = {}
        addresses: list[int | None] = []
        for name in kernel.operands:
            array = arrays[name]
            if array is None:
                addresses.append(None)
                continue
            raw = np.full(array.nbytes + 2 * margin, 0xA5, np.uint8)
            raw[margin : margin + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
            blocks[name] = xp.asarray(raw)
            addresses.append(blocks[name].data.ptr + margin)
        driver.Launch(_function(kernel), kernel, addresses, overlap=False)()
        device.synchronize()
        for name, block in blocks.items():
            raw, array = device.to_host(block), arrays[name]
            assert array is not None
            assert (raw[:margin] == 0xA5).all(), f"{kernel.entry} wrote before operand {name}"
            assert (raw[margin + array.nbytes :] == 0xA5).all(), f"{kernel.entry} wrote beyond operand {name}"
            array[...] = raw[margin : margin + array.nbytes].view(array.dtype).reshape(array.shape)

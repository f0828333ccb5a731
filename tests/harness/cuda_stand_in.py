"""A GPU's stand-in: a CUDA plan on NumPy arrays, its kernels built for the CPU (``cuda_host``)."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from cuda_host import launch_at

from bareconv.device import Array
from bareconv.kernels.cache import OnCompile
from bareconv.kernels.cuda.kernel import Kernel
from bareconv.kernels.cuda.limits import H100, Limits
from bareconv.plan.cuda.runtime import Part, describe


class StandIn:
    """Runs launches one after another, in ``order``; captures nothing, unless told to pretend."""

    def __init__(self, limits: Limits = H100, order: str = "forward", free: int = 1 << 33, graphs: bool = True) -> None:
        self.limits = limits
        self.xp: Any = np
        self.compiled, self.compile_seconds = 0, 0.0
        self._order, self._free, self._graphs = order, free, graphs
        self.launched: list[Kernel] = []

    @contextlib.contextmanager
    def activate(self) -> Iterator[None]:
        yield

    def free_bytes(self) -> int:
        return self._free

    def address(self, array: Array) -> int:
        return int(array.ctypes.data)

    def load(self, kernels: Iterable[Kernel], on_compile: OnCompile | None) -> None:
        pass

    def bind(self, kernel: Kernel, addresses: Sequence[int | None], overlap: bool) -> Callable[[int], None]:
        pointers = [ctypes.c_void_p(address) for address in addresses]

        def launch(stream: int) -> None:
            self.launched.append(kernel)
            launch_at(kernel, pointers, self._order)

        return launch

    def capture(self, parts: Sequence[Part], steps: int) -> Callable[[], None] | None:
        def graph() -> None:
            for _ in range(steps):
                for launch, _, _ in parts:
                    launch(0)

        return graph if self._graphs else None

    def describe(self, kernel: Kernel) -> str:
        return describe(kernel)

    def time(self, launch: Callable[[int], None], repeats: int) -> float:
        begun = time.perf_counter()
        for _ in range(repeats):
            launch(0)
        return (time.perf_counter() - begun) / repeats


def aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """Zeros that start where a GPU's allocations do, at a multiple of 256 bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    block = np.zeros(size + 256, np.uint8)
    start = -block.ctypes.data % 256
    return block[start : start + size].view(dtype).reshape(shape)

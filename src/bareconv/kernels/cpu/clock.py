"""The processor's counter, for Python; and how Python calls a kernel by itself."""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bareconv.kernels.cpu.jit import compile_kernels
from bareconv.kernels.cpu.kernel import Frame, Kernel
from bareconv.kernels.cpu.target import host_target

FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 4)


@dataclass(frozen=True)
class ReadClock(Kernel):
    """ticks[0] = the counter."""

    operands: ClassVar[tuple[str, ...]] = ("ticks",)

    def write(self, k: Frame) -> None:
        from bareconv.kernels.cpu.emit import I64

        k.operand("ticks", I64).base.store(k.b.clock)


@functools.cache
def native(kernel: type[Kernel]) -> Callable[[int, int, int, int, int], None]:
    """The kernel, compiled for this machine, as a function of (table, begin, end, worker, round)."""
    made = kernel(host_target())
    return FUNCTION(compile_kernels([made]).addresses[made])


def operands(*arrays: np.ndarray[tuple[int], np.dtype[np.int64]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The table of a kernel with these operands."""
    return np.array([word for array in arrays for word in (array.ctypes.data, 0, 0, 0)], np.int64)


@functools.cache
def tick_seconds() -> float:
    """Seconds of one tick of the counter that ``Builder.clock`` reads."""
    function, ticks = native(ReadClock), np.zeros(1, np.int64)
    table = operands(ticks)

    def read() -> int:
        function(table.ctypes.data, 0, 1, 0, 0)
        return int(ticks[0])

    first, begun = read(), time.perf_counter()
    while time.perf_counter() - begun < 0.02:
        pass
    return (time.perf_counter() - begun) / max(1, read() - first)

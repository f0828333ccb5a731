"""Where a plan's kernels run: on a GPU, or, in tests, on a CPU that stands in for one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from bareconv.device import Array, CudaDevice
from bareconv.kernels.cuda import driver
from bareconv.kernels.cuda.compiler import CompiledKernels, compile_kernels
from bareconv.kernels.cuda.kernel import Kernel
from bareconv.kernels.cuda.limits import Limits

OnCompile = Callable[[int, int], None]


class Runtime(Protocol):
    """Memory, and launches. ``xp``: the array library of its memory; ``compiled`` so far: kernels, seconds."""

    limits: Limits
    xp: Any
    compiled: int
    compile_seconds: float

    def activate(self) -> AbstractContextManager[None]: ...

    def free_bytes(self) -> int:
        """Of the device's memory that may be asked for."""
        ...

    def address(self, array: Array) -> int:
        """Of an array's first element."""
        ...

    def load(self, kernels: Iterable[Kernel], on_compile: OnCompile | None) -> None:
        """Machine code of all of them, before they are launched."""
        ...

    def bind(self, kernel: Kernel, addresses: Sequence[int | None], overlap: bool) -> Callable[[int], None]:
        """A launch on operands at these addresses: a function of the stream."""
        ...

    def capture(self, trunk: Callable[[int, int], None]) -> Callable[[], None] | None:
        """``trunk(stream, branch)`` puts launches into two streams; the result launches them all at once.

        None where there are no graphs.
        """
        ...


class GpuRuntime:
    """A CUDA GPU."""

    def __init__(self, device: CudaDevice) -> None:
        self.device, self.xp = device, device.xp
        self.limits = driver.device_limits(device.index)
        self.compiled, self.compile_seconds = 0, 0.0
        self._functions: dict[Kernel, driver.Function] = {}
        self._streams: tuple[driver.Stream, driver.Stream] | None = None

    def activate(self) -> AbstractContextManager[None]:
        return self.device.activate()

    def free_bytes(self) -> int:
        pool = self.xp.get_default_memory_pool()
        free, _ = self.xp.cuda.runtime.memGetInfo()
        return int(free) + int(pool.free_bytes())

    def address(self, array: Array) -> int:
        return int(array.data.ptr)  # type: ignore[attr-defined]

    def load(self, kernels: Iterable[Kernel], on_compile: OnCompile | None) -> None:
        made: CompiledKernels = compile_kernels(kernels, self.limits.architecture, on_compile)
        self.compiled += made.written
        self.compile_seconds += made.seconds if made.written else 0.0
        for kernel, code in made.code.items():
            if kernel not in self._functions:
                self._functions[kernel] = driver.load(code.cubin, kernel)

    def bind(self, kernel: Kernel, addresses: Sequence[int | None], overlap: bool) -> Callable[[int], None]:
        overlap = overlap and self.limits.capability >= driver.OLDEST_OVERLAP
        return driver.Launch(self._functions[kernel], kernel, addresses, overlap)

    def capture(self, trunk: Callable[[int, int], None]) -> Callable[[], None] | None:
        if self._streams is None:
            self._streams = driver.make_stream(), driver.make_stream()
        stream, branch = self._streams
        return driver.CapturedGraph(stream, lambda: trunk(stream, branch)).launch

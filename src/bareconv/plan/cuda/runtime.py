"""Where a plan's kernels run: on a GPU, or, in tests, on a CPU that stands in for one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

from bareconv.device import Array, CudaDevice
from bareconv.kernels.cache import OnCompile
from bareconv.kernels.cuda import driver
from bareconv.kernels.cuda.compiler import CompiledKernels, compile_kernels
from bareconv.kernels.cuda.kernel import Kernel
from bareconv.kernels.cuda.limits import Limits
from bareconv.plan.cuda.record import BRANCH, TRUNK

TIMED_ROWS = 7  # of launches, of which the first warms up

Part: TypeAlias = tuple[Callable[[int], None], int, bool]  # a launch, its branch, whether it waits for the other


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

    def capture(self, parts: Sequence[Part], steps: int) -> Callable[[], None] | None:
        """All ``parts``, ``steps`` times over, as one launch; None where there are no graphs."""
        ...

    def describe(self, kernel: Kernel) -> str:
        """What its launch takes of the device."""
        ...

    def time(self, launch: Callable[[int], None], repeats: int) -> float:
        """Seconds of one of ``repeats`` launches in a row, the median of several such rows."""
        ...


class GpuRuntime:
    """A CUDA GPU."""

    def __init__(self, device: CudaDevice) -> None:
        self.device, self.xp = device, device.xp
        self.limits = driver.device_limits(device.index)
        self.compiled, self.compile_seconds = 0, 0.0
        self._functions: dict[Kernel, driver.Function] = {}
        self._registers: dict[Kernel, int] = {}
        self._streams: tuple[driver.Stream, driver.Stream] | None = None

    def activate(self) -> AbstractContextManager[None]:
        return self.device.activate()

    def free_bytes(self) -> int:
        return self.device.free_bytes()

    def address(self, array: Array) -> int:
        return int(array.data.ptr)  # type: ignore[attr-defined]

    def load(self, kernels: Iterable[Kernel], on_compile: OnCompile | None) -> None:
        made: CompiledKernels = compile_kernels(kernels, self.limits.architecture, on_compile)
        self.compiled += made.written
        self.compile_seconds += made.seconds if made.written else 0.0
        for kernel, code in made.code.items():
            self._registers[kernel] = code.registers
            if kernel not in self._functions:
                self._functions[kernel] = driver.load(code.cubin, kernel)

    def bind(self, kernel: Kernel, addresses: Sequence[int | None], overlap: bool) -> Callable[[int], None]:
        overlap = overlap and self.limits.capability >= driver.OLDEST_OVERLAP
        return driver.Launch(self._functions[kernel], kernel, addresses, overlap)

    def capture(self, parts: Sequence[Part], steps: int) -> Callable[[], None] | None:
        if self._streams is None:
            self._streams = driver.make_stream(), driver.make_stream()
        streams = self._streams

        def body() -> None:
            for _ in range(steps):
                last, open_ = TRUNK, False
                for launch, branch, joins in parts:
                    if branch == BRANCH != last:
                        _wait(streams[BRANCH], streams[TRUNK])
                        open_ = True
                    if joins and open_:
                        _wait(streams[TRUNK], streams[BRANCH])
                        open_ = False
                    launch(streams[branch])
                    last = branch
                if open_:
                    _wait(streams[TRUNK], streams[BRANCH])

        return driver.CapturedGraph(streams[TRUNK], body).launch

    def describe(self, kernel: Kernel) -> str:
        return describe(kernel) + f", {self._registers[kernel]} registers"

    def time(self, launch: Callable[[int], None], repeats: int) -> float:
        def part(stream: int) -> None:
            launch(stream)

        graph = self.capture([(part, TRUNK, False)], repeats)
        assert graph is not None
        seconds = []
        for _ in range(TIMED_ROWS):
            marks = [self.device.mark()]
            graph()
            marks.append(self.device.mark())
            seconds += self.device.seconds_between(marks)
        return statistics.median(seconds[1:]) / repeats


def describe(kernel: Kernel) -> str:
    """Blocks, threads, shared memory."""
    blocks = math.prod(kernel.grid)
    shared = f", {kernel.shared_bytes / 1024:.0f} KB shared" if kernel.shared_bytes else ""
    return f"{blocks} x {kernel.threads} threads{shared}"


def _wait(stream: driver.Stream, other: driver.Stream) -> None:
    """What is put into ``stream`` from now on comes after all that is in ``other``."""
    event = driver.make_event()
    driver.record_event(event, other)
    driver.wait_event(stream, event)
    driver.destroy_event(event)

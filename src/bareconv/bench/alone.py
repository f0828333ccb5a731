"""A kernel by itself on arrays of the caller's: what the machine can do at best, and one convolution without a plan."""

from __future__ import annotations

import time

import numpy as np

from bareconv.device import Array
from bareconv.errors import UsageError
from bareconv.kernels.cpu.correlate import Correlate
from bareconv.kernels.cpu.jit import compile_kernels
from bareconv.kernels.cpu.kernel import Kernel
from bareconv.kernels.cpu.peak import Nothing, PeakFma, Stream
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.program import Address, Call, Program, Run, Stage
from bareconv.kernels.cpu.target import host_target
from bareconv.kernels.cpu.winograd import Winograd, WinogradWeights, pays
from bareconv.kernels.cpu.workers import Workers
from bareconv.ops.windows import Window
from bareconv.plan.cpu.memory import allocate
from bareconv.plan.cpu.packing import correlate_places, in_registers

AT_ONCE = 1 << 24  # bytes that a worker moves in a run, at least: a millisecond, about


def peak_flops(precision: str, threads: int, seconds: float = 0.4) -> float:
    """Floating-point operations a second of multiply-adds alone, on that many threads: the best of several runs."""
    kernel = PeakFma(host_target(precision))
    sums = np.zeros((threads, kernel.chains * kernel.target.lanes), precision)
    operands = {"sums": _shared(sums, worker=True)}
    workers, rounds = Workers(threads), 200
    program = _program([Stage([Call(kernel, operands)], extent=threads * rounds, chunk=rounds)], workers)
    best = _best(program, seconds)
    workers.close()
    return kernel.flops * rounds * threads / best


def start_seconds(threads: int, seconds: float = 0.1) -> float:
    """Seconds from Python into a program on that many threads, and back, where there is nothing to do: the best."""
    workers = Workers(threads)
    program = _program([Stage([Call(Nothing(host_target()), {})], extent=threads)], workers)
    best = _best(program, seconds)
    workers.close()
    return best


class Streams:
    """Bandwidths of memory: each of ``threads`` workers has ``size`` bytes, which it was the first to write to.

    So its pages are near its core, where memory has near and far. Close it, or it keeps its threads.
    """

    OPERATIONS = ("read", "copy", "triad")

    def __init__(self, threads: int, size: int) -> None:
        self._workers, self.threads = Workers(threads), threads
        self._kernels = {name: Stream(host_target(), name) for name in Stream.ARRAYS}
        self._piece = self._kernels["fill"].piece_bytes
        self._pitch = max(len(self.OPERATIONS), -(-size // self._piece)) * self._piece
        self._memory = allocate(threads * self._pitch)
        self._sums = np.zeros((threads, self._piece), np.uint8)
        self._passes = np.ones(1, np.int64)
        self._program("fill", self._pitch)[0].run(0)

    def bandwidth(self, operation: str, size: int, seconds: float) -> float:
        """Bytes a second over all workers, each of which goes through ``size`` bytes of its own; the best of several.

        The arrays of a "copy" or a "triad" have these bytes together.
        """
        program, moved = self._program(operation, size)
        self._passes[0] = max(1, AT_ONCE // moved)
        return moved * self.threads * int(self._passes[0]) / _best(program, seconds)

    def close(self) -> None:
        """End the threads."""
        self._workers.close()

    def _program(self, operation: str, size: int) -> tuple[Program, int]:
        """A pass, and the bytes that it moves for each worker."""
        kernel = self._kernels[operation]
        pieces = max(1, min(size, self._pitch) // (self._piece * kernel.ARRAYS[operation]))
        start, length = self._memory.ctypes.data, pieces * self._piece
        operands = {
            name: Address(start + number * length, worker=self._pitch)
            for number, name in enumerate(("a", "b", "c")[: kernel.ARRAYS[operation]])
        }
        operands |= {"passes": _shared(self._passes), "sums": _shared(self._sums, worker=True)}
        stage = Stage([Call(kernel, operands)], extent=self.threads * pieces, chunk=pieces, grain=pieces)
        return _program([stage], self._workers), kernel.bytes(pieces, 0)


def _best(program: Program, seconds: float) -> float:
    """The least seconds of a run among those of that time, after one that brings everything near."""
    program.run(0)
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        begun = time.perf_counter()
        program.run(0)
        best = min(best, time.perf_counter() - begun)
        if time.perf_counter() >= end:
            return best


class Conv2dAlone:
    """conv2d + bias, forward, by ``Correlate`` or ``Winograd``.

    Shapes: x (N, H, W, C), w (R, S, C, K), b (K), ``y`` (N, P, Q, K). Weights are packed, and images laid within their
    padding, beforehand. Raises UsageError where Winograd does not fit.
    """

    def __init__(self, x: Array, w: Array, b: Array, window: Window, threads: int, *, winograd: bool = False) -> None:
        target = host_target(str(x.dtype))
        N, H, W, C = x.shape
        P, Q = window.output_size((H, W))
        K = w.shape[3]
        x_plane, y_plane = Plane(H, W, C, window.padding), Plane(P, Q, K)
        origin = (-window.padding[0], -window.padding[1])
        padded = np.ascontiguousarray(window.pad(x))
        source = allocate(padded.nbytes + 256)[: padded.nbytes].view(x.dtype).reshape(padded.shape)
        source[...] = padded
        self.y = np.zeros((N, P, Q, K), x.dtype)
        bias = np.concatenate([b, np.zeros(target.lanes, x.dtype)])
        operands = {"x": _by_image(source), "y": _by_image(self.y), "bias": _shared(bias)}
        shape = (window.kernel, (P, Q), window.stride, window.dilation)
        self.kernel: Kernel
        self._workers = Workers(threads)
        if not winograd:
            direct = Correlate(target, x_plane, y_plane, K, *shape, origin, bias=True)
            places = np.arange(1, w.size + 1, dtype=np.int32).reshape(w.shape)
            packed = np.concatenate([[0], w.reshape(-1)]).astype(x.dtype)[correlate_places(direct, places)]
            self.kernel, chunk = direct, 1
        elif not pays(x_plane, K, *shape, (1, 1), target.lanes):
            raise UsageError(
                "needs a 3 x 3 kernel at stride 1, even output sizes, and channels enough to fill registers"
            )
        else:
            fast = Winograd(target, x_plane, y_plane, K, (P, Q), origin, bias=True)
            rows = np.arange(1, w.size + 1, dtype=np.int32).reshape(9 * C, K)
            in_rows = np.concatenate([[0], w.reshape(-1)]).astype(x.dtype)[in_registers(rows, target.lanes)]
            packed = np.zeros(fast.packed_elements + target.lanes, x.dtype)
            transform = WinogradWeights(target, C, in_rows.shape[1], fast.panel)
            given = {"weight": _shared(in_rows), "packed": _shared(packed)}
            _program([Stage([Call(transform, given)], extent=C, chunk=C)], self._workers).run(0)
            scratch = np.zeros((threads, fast.scratch_elements + target.lanes), x.dtype)
            operands["scratch"] = _shared(scratch, worker=True)
            self._scratch = scratch
            self.kernel, chunk = fast, fast.images
        operands["weight"] = _shared(packed)
        self._kept = source, bias, packed
        self._program = _program([Stage([Call(self.kernel, operands)], chunk=chunk)], self._workers)

    def run(self) -> None:
        """Fill ``y``."""
        self._program.run(len(self.y))


def _program(stages: list[Stage], workers: Workers) -> Program:
    kernels = [call.kernel for stage in stages for call in stage.calls]
    run = Run(kernels[0].target)
    return Program(stages, compile_kernels([run, *kernels]).addresses, run, workers)


def _by_image(array: Array) -> Address:
    return Address(array.ctypes.data, array.strides[0])


def _shared(array: Array, *, worker: bool = False) -> Address:
    return Address(array.ctypes.data, worker=array.strides[0] if worker else 0)

"""The threads that a program runs on, and the clock that its machine code reads."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from bareconv.errors import BareconvError


class Workers:
    """``count`` workers: the caller's thread is number 0, others wait for work. Machine code runs without the GIL."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._helpers = [_Helper(number) for number in range(1, count)]
        # A program that ends without closing must not wait for threads that wait for it.
        self._finalizer = weakref.finalize(self, _stop, self._helpers)

    def run(self, work: Callable[[int], object]) -> None:
        """``work(worker)`` on all workers at once; returns when all have returned, and raises what one has raised."""
        if not self._finalizer.alive:
            raise BareconvError("the workers have been closed")
        errors: list[BaseException] = []
        for helper in self._helpers:
            helper.begin(work)
        try:
            work(0)
        except BaseException as error:
            errors.append(error)
        waiting = list(self._helpers)
        while waiting:  # for all, whatever happens: the next work must find them idle
            try:
                theirs = waiting[0].join()
            except KeyboardInterrupt as pressed:
                errors.append(pressed)
                continue
            errors += [] if theirs is None else [theirs]
            del waiting[0]
        if errors:
            raise errors[0]

    def close(self) -> None:
        """End the threads."""
        self._finalizer()


class _Helper:
    def __init__(self, number: int) -> None:
        self._number = number
        self._work: Callable[[int], object] | None = None
        self._go, self._done = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._done.acquire()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, name=f"bareconv worker {number}", daemon=True)
        self._thread.start()

    def begin(self, work: Callable[[int], object] | None) -> None:
        self._work = work
        self._go.release()

    def join(self) -> BaseException | None:
        self._done.acquire()
        error, self._error = self._error, None
        return error

    def _loop(self) -> None:
        while True:
            self._go.acquire()
            work = self._work
            if work is None:
                return
            try:
                work(self._number)
            except BaseException as error:
                self._error = error
            self._done.release()


def _stop(helpers: list[_Helper]) -> None:
    for helper in helpers:
        with contextlib.suppress(RuntimeError):
            helper.begin(None)


@functools.cache
def tick_seconds() -> float:
    """Seconds of one tick of the counter that ``Builder.clock`` reads."""
    read = _reader()
    ticks, begun = read(), time.perf_counter()
    while time.perf_counter() - begun < 0.02:
        pass
    return (time.perf_counter() - begun) / max(1, read() - ticks)


def _reader() -> Callable[[], int]:
    """The counter, for Python."""
    import ctypes

    import numpy as np

    from bareconv.kernels.cpu.clock import ReadClock
    from bareconv.kernels.cpu.jit import compile_kernels
    from bareconv.kernels.cpu.target import host_target

    kernel, word = ReadClock(host_target()), np.zeros(4, np.int64)
    ticks = np.zeros(1, np.int64)
    word[0] = ticks.ctypes.data
    address = compile_kernels([kernel]).addresses[kernel]
    function: Any = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(address)

    def read() -> int:
        function(word.ctypes.data, 0, 1, 0)
        return int(ticks[0])

    return read

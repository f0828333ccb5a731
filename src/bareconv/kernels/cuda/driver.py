"""CUDA's driver, through its C interface: machine code to kernels, launches, graphs.

CuPy has arrays and streams; what it lacks, launches that overlap with the kernel before them and code for other
architectures than it names, is here. All calls work on the calling thread's current context, which
``device.activate()`` makes CuPy's. Interface: https://docs.nvidia.com/cuda/cuda-driver-api/
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

from bareconv.errors import BareconvError
from bareconv.kernels.cuda.kernel import Kernel
from bareconv.kernels.cuda.limits import Limits

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_OVERLAP = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_CAPTURE_THREAD_LOCAL = 1
_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING
_MULTIPROCESSORS, _SHARED_BYTES, _CACHE_BYTES, _MAJOR, _MINOR = 16, 97, 38, 75, 76  # CUdevice_attribute

OLDEST_OVERLAP = 90  # compute capability from which a kernel can start before the one before has ended

Function = int  # a handle
Stream = int
Event = int


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class _Configuration(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z")),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


@functools.cache
def _library() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise BareconvError("the NVIDIA driver's library libcuda.so.1 was not found") from None


def _call(name: str, *arguments: Any) -> None:
    status = getattr(_library(), name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        _library().cuGetErrorString(status, ctypes.byref(text))
        raise BareconvError(f"CUDA: {name}: {(text.value or b'unknown error').decode()} ({status})")


def device_limits(index: int) -> Limits:
    """What that GPU allows."""
    handle, value = ctypes.c_int(), ctypes.c_int()
    _call("cuInit", 0)
    _call("cuDeviceGet", ctypes.byref(handle), index)
    found = {}
    for attribute in (_MULTIPROCESSORS, _SHARED_BYTES, _CACHE_BYTES, _MAJOR, _MINOR):
        _call("cuDeviceGetAttribute", ctypes.byref(value), attribute, handle)
        found[attribute] = value.value
    architecture = f"sm_{found[_MAJOR]}{found[_MINOR]}"
    return Limits(architecture, found[_MULTIPROCESSORS], found[_SHARED_BYTES], found[_CACHE_BYTES])


def load(cubin: bytes, kernel: Kernel) -> Function:
    """The kernel's entry in that machine code, ready to be launched."""
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _call("cuModuleLoadData", ctypes.byref(module), cubin)
    _call("cuModuleGetFunction", ctypes.byref(function), module, kernel.entry.encode())
    if kernel.shared_bytes > 48 << 10:
        _call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, kernel.shared_bytes)
    assert function.value is not None
    return function.value


class Launch:
    """A kernel with its operands' addresses, which can be launched again and again.

    ``overlap``: it may start before the kernel before it in the stream has ended; it waits itself, where it must.
    """

    def __init__(self, function: Function, kernel: Kernel, addresses: Sequence[int | None], overlap: bool) -> None:
        self._pointers = [ctypes.c_void_p(address) for address in addresses]
        self._arguments = (ctypes.c_void_p * max(len(addresses), 1))(*map(ctypes.addressof, self._pointers))
        self._attribute = _Attribute(id=_OVERLAP, value=1)
        attributes = ctypes.pointer(self._attribute)
        self._configuration = _Configuration(
            *(*kernel.grid, kernel.threads, 1, 1, kernel.shared_bytes, None, attributes, int(overlap))
        )
        self._function = ctypes.c_void_p(function)

    def __call__(self, stream: Stream = 0) -> None:
        self._configuration.stream = stream or None
        _call("cuLaunchKernelEx", ctypes.byref(self._configuration), self._function, self._arguments, None)


def make_stream() -> Stream:
    """A stream that takes turns with the default one."""
    stream = ctypes.c_void_p()
    _call("cuStreamCreate", ctypes.byref(stream), 0)
    assert stream.value is not None
    return stream.value


def make_event() -> Event:
    """A place in a stream that another can wait for."""
    event = ctypes.c_void_p()
    _call("cuEventCreate", ctypes.byref(event), _NO_TIMING)
    assert event.value is not None
    return event.value


def record_event(event: Event, stream: Stream) -> None:
    """The event is where the stream is now."""
    _call("cuEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream or None))


def wait_event(stream: Stream, event: Event) -> None:
    """What is put into the stream from now on comes after the event."""
    _call("cuStreamWaitEvent", ctypes.c_void_p(stream or None), ctypes.c_void_p(event), 0)


def destroy_event(event: Event) -> None:
    """It is no longer needed; what waits for it still does."""
    _call("cuEventDestroy_v2", ctypes.c_void_p(event))


class CapturedGraph:
    """What ``body`` put into ``stream``, and into streams that wait for it: launched as one."""

    def __init__(self, stream: Stream, body: Callable[[], None]) -> None:
        handle, graph = ctypes.c_void_p(stream), ctypes.c_void_p()
        _call("cuStreamBeginCapture_v2", handle, _CAPTURE_THREAD_LOCAL)
        try:
            body()
        finally:  # a capture that is not ended leaves the stream unusable
            status = _library().cuStreamEndCapture(handle, ctypes.byref(graph))
        if status:
            raise BareconvError(f"CUDA: the graph of a step could not be captured ({status})")
        self._executable = ctypes.c_void_p()
        try:
            _call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))
        finally:
            _call("cuGraphDestroy", graph)

    def launch(self, stream: Stream = 0) -> None:
        """Put the whole graph into a stream."""
        _call("cuGraphLaunch", self._executable, ctypes.c_void_p(stream or None))

    def close(self) -> None:
        """Give its memory back."""
        if self._executable:
            _call("cuGraphExecDestroy", self._executable)
            self._executable = ctypes.c_void_p()

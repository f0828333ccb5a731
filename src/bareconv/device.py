"""Where arrays live and who computes on them: the CPU through NumPy, or a CUDA GPU through CuPy.

A ``Device`` is passed, never set: both live in one process side by side, or no honest comparison is possible. This is
the only module that imports CuPy or asks "is it CUDA?".
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bareconv import host
from bareconv.errors import UsageError

# Statically a NumPy array; at run time an array of whichever library the device holds (CuPy's has the same interface).
Array: TypeAlias = NDArray[Any]

_PIECE_BYTES = 1 << 26  # that are copied to a GPU at once, at most

OLDEST_CUDA = 12  # that the CuPy of this project can be installed for


def namespace(x: Array) -> Any:
    """The array library that ``x`` belongs to: numpy, or cupy."""
    return np if isinstance(x, np.ndarray) else sys.modules["cupy"]


def beside(array: Array, other: Array) -> Array:
    """``array`` in the library, on the device and in the dtype of ``other``; itself where it is so already."""
    xp, library = namespace(other), namespace(array)
    if library is not xp and hasattr(library, "asnumpy"):  # from the GPU to the CPU
        array = library.asnumpy(array)
    return xp.asarray(array, dtype=other.dtype)


class Device:
    """One processor: its array library, its clock, its memory. Get one with ``get_device``.

    Attributes: ``name`` ("cpu", "cuda:0"), ``description`` (what a person calls it), ``xp`` (numpy or cupy).
    """

    name: str
    description: str
    xp: ModuleType

    @contextlib.contextmanager
    def activate(self) -> Iterator[None]:
        """Within it, new arrays land on this device and its threads are set as they should be."""
        raise NotImplementedError

    def asarray(self, host: Any, dtype: Any = None) -> Array:
        """``host``, perhaps of another device, on this one: a copy, or on the CPU itself where that is possible."""
        return self.xp.asarray(host, dtype=dtype)

    def to_host(self, x: Array) -> Array:
        """``x`` as a NumPy array; waits for the device."""
        raise NotImplementedError

    def fetch(self, *arrays: Array) -> Callable[[], list[NDArray[Any]]]:
        """Begin to copy ``arrays`` to the host. The function that comes back waits for them, and for no later work."""
        copies = [self.to_host(array) for array in arrays]
        return lambda: copies

    def synchronize(self) -> None:
        """Wait until the device has done all it was told to do."""
        raise NotImplementedError

    def mark(self) -> Any:
        """A moment in the device's own order of work; see ``seconds_between``. Does not wait."""
        raise NotImplementedError

    def seconds_between(self, marks: Sequence[Any]) -> list[float]:
        """Seconds from each mark to the next: ``len(marks) - 1`` figures. Waits for the last one."""
        raise NotImplementedError

    def reset_peak_memory(self) -> None:
        """Start a new measurement of ``peak_memory``; gives cached blocks back first."""
        raise NotImplementedError

    def memory(self) -> int:
        """Bytes held now: resident memory of the process (CPU), reserved from the device (CUDA)."""
        raise NotImplementedError

    def peak_memory(self) -> int:
        """The most bytes held since ``reset_peak_memory``; the same quantity as ``memory``."""
        raise NotImplementedError

    def free_bytes(self) -> int | None:
        """Bytes that new arrays may take; None where arrays of the host are used as they are."""
        raise NotImplementedError

    def effective_precision(self, dtype: str) -> str:
        """How this device computes matrix products of ``dtype``: "float64", "float32" or "tf32"."""
        return dtype

    def __repr__(self) -> str:
        return f"Device({self.name}: {self.description})"


class CpuDevice(Device):
    """The CPU, through NumPy and the BLAS it was built with."""

    def __init__(self) -> None:
        self.name = "cpu"
        self.xp = np
        self.threads = host.blas_threads()
        self.description = f"{host.cpu_model()}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    @contextlib.contextmanager
    def activate(self) -> Iterator[None]:
        """BLAS gets as many threads as this process may use, not as the machine has cores."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(self.threads):
            yield

    def asarray(self, host: Any, dtype: Any = None) -> Array:
        cupy = sys.modules.get("cupy")  # where it was never imported, nothing lies on a GPU
        on_gpu = cupy is not None and isinstance(host, cupy.ndarray)
        return np.asarray(host.get() if on_gpu else host, dtype=dtype)

    def to_host(self, x: Array) -> Array:
        return x

    def synchronize(self) -> None:
        pass

    def mark(self) -> float:
        return time.perf_counter()

    def seconds_between(self, marks: Sequence[float]) -> list[float]:
        return [later - earlier for earlier, later in itertools.pairwise(marks)]

    def reset_peak_memory(self) -> None:
        host.reset_peak_resident_memory()

    def memory(self) -> int:
        return host.resident_memory()

    def peak_memory(self) -> int:
        return host.peak_resident_memory()

    def free_bytes(self) -> None:
        return None


class CudaDevice(Device):
    """One CUDA GPU, through CuPy."""

    def __init__(self, index: int) -> None:
        import cupy

        self.name = f"cuda:{index}"
        self.index = index
        self.xp = cupy
        name = cupy.cuda.runtime.getDeviceProperties(index)["name"]
        self.description = name.decode() if isinstance(name, bytes) else str(name)

    @contextlib.contextmanager
    def activate(self) -> Iterator[None]:
        with self.xp.cuda.Device(self.index):
            yield

    def asarray(self, host: Any, dtype: Any = None) -> Array:
        if not isinstance(host, np.ndarray) or host.nbytes <= _PIECE_BYTES:
            return self.xp.asarray(host, dtype=dtype)
        # CuPy copies by way of page-locked memory: as much as is copied at once, which a host may not have.
        copy = self.xp.empty(host.shape, dtype or host.dtype)
        rows = max(1, _PIECE_BYTES // host[0].nbytes)
        for start in range(0, len(host), rows):
            copy[start : start + rows] = self.xp.asarray(host[start : start + rows])
        return copy

    def to_host(self, x: Array) -> Array:
        return self.xp.asnumpy(x)

    def fetch(self, *arrays: Array) -> Callable[[], list[NDArray[Any]]]:
        stream, copies = self.xp.cuda.get_current_stream(), []
        for array in arrays:
            pinned = self.xp.cuda.alloc_pinned_memory(array.nbytes)  # only to there can a copy go on by itself
            copies.append(np.frombuffer(pinned, array.dtype, array.size).reshape(array.shape))
            array.get(stream=stream, out=copies[-1], blocking=False)  # type: ignore[attr-defined]
        done = self.xp.cuda.Event(disable_timing=True)
        done.record(stream)

        def wait() -> list[NDArray[Any]]:
            done.synchronize()
            return copies

        return wait

    def synchronize(self) -> None:
        self.xp.cuda.Device(self.index).synchronize()

    def mark(self) -> Any:
        event = self.xp.cuda.Event()
        event.record()
        return event

    def seconds_between(self, marks: Sequence[Any]) -> list[float]:
        if marks:
            marks[-1].synchronize()
        elapsed = self.xp.cuda.get_elapsed_time  # milliseconds
        return [elapsed(a, b) / 1e3 for a, b in itertools.pairwise(marks)]

    def reset_peak_memory(self) -> None:
        self.synchronize()
        with self.activate():  # each GPU has a part of the pool
            self.xp.get_default_memory_pool().free_all_blocks()

    def memory(self) -> int:
        with self.activate():
            return int(self.xp.get_default_memory_pool().total_bytes())

    def free_bytes(self) -> int:
        with self.activate():
            free, _ = self.xp.cuda.runtime.memGetInfo()
            return int(free) + int(self.xp.get_default_memory_pool().free_bytes())

    # The pool keeps what it has once reserved, so that what it holds now is the most it held.
    peak_memory = memory

    def effective_precision(self, dtype: str) -> str:
        # CuPy reads CUPY_TF32 once, at import, unset means strict float32; NVIDIA's own switch has the last word.
        tf32 = os.environ.get("CUPY_TF32") == "1" and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"
        return "tf32" if tf32 and dtype == "float32" else dtype


def get_device(spec: str | Device = "auto") -> Device:
    """The device of that name: "cpu", "cuda" (the first GPU), "cuda:1", or "auto" (a GPU where there is one).

    Raises UsageError where the name is none of these, or there is no such GPU, with the reason.
    """
    if isinstance(spec, Device):
        return spec
    if spec == "auto":
        return _cuda_device(0) if why_no_cuda() is None else _cpu_device()
    if spec == "cpu":
        return _cpu_device()
    kind, _, index = spec.partition(":")
    if kind != "cuda" or not (index.isdecimal() or spec == "cuda"):
        raise UsageError(f"device {spec!r}: expected cpu, cuda, cuda:1 (any number), or what --help names")
    reason = why_no_cuda()
    if reason is not None:
        raise UsageError(f"device {spec}: {reason}")
    number, count = int(index or 0), cuda_device_count()
    if number >= count:
        raise UsageError(f"device {spec}: there is no such GPU; this machine has {count}, counted from 0")
    return _cuda_device(number)


def all_devices() -> list[Device]:
    """The CPU, and the first GPU where there is one that works."""
    return [_cpu_device()] + ([_cuda_device(0)] if why_no_cuda() is None else [])


@functools.cache
def _cpu_device() -> CpuDevice:
    return CpuDevice()


@functools.cache
def _cuda_device(index: int) -> CudaDevice:
    return CudaDevice(index)


@functools.cache
def why_no_cuda() -> str | None:
    """None where CUDA works; otherwise one sentence: what is missing, and what to do about it."""
    version = driver_cuda_version()
    install = cupy_install_command(version)
    if importlib.util.find_spec("cupy") is None:
        if version is None:
            return "no NVIDIA driver was found, so there is no GPU to use"
        if version[0] < OLDEST_CUDA:
            return f"the NVIDIA driver stops at CUDA {version[0]}.{version[1]}: install a newer driver, then {install}"
        return f"the driver is there, but CuPy is not installed: {install}"
    try:
        import cupy
    except Exception as error:  # a broken installation fails in many ways; each is a reason, none is a crash
        return f"CuPy cannot be imported ({_one_line(error)}): {install}"
    try:
        if cupy.cuda.runtime.getDeviceCount() == 0:
            raise RuntimeError("the driver shows no GPU")
        # Each library that training needs is loaded at its first use: now, rather than in the middle of a run.
        cupy.arange(2).sum().item()  # the run-time compiler
        cupy.ones((2, 2), dtype="float32").dot(cupy.ones((2, 2), dtype="float32")).sum().item()  # cuBLAS
    except Exception as error:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if version is None:
            return "CuPy is installed, but no NVIDIA driver was found, so there is no GPU to use"
        if visible is not None and ("NoDevice" in str(error) or "no GPU" in str(error)):
            return f"CUDA_VISIBLE_DEVICES={visible} hides every GPU: unset it"
        if version[0] < OLDEST_CUDA or "InsufficientDriver" in str(error):
            return (
                f"the NVIDIA driver stops at CUDA {version[0]}.{version[1]}, too old for this CuPy: install a newer one"
            )
        if any(sign in str(error) for sign in ("failed to load", "cannot open", "No module named", "CUDA headers")):
            return f"CuPy is installed, but misses one of CUDA's libraries ({_one_line(error)}): {install}"
        return f"CuPy is installed, but the GPU does not work ({_one_line(error)})"
    return None


def cuda_device_count() -> int:
    """How many GPUs CuPy sees; 0 where CUDA does not work."""
    if why_no_cuda() is not None:
        return 0
    import cupy

    return int(cupy.cuda.runtime.getDeviceCount())


@functools.cache
def driver_cuda_version() -> tuple[int, int] | None:
    """The newest CUDA version that the NVIDIA driver supports, (13, 0) say; None without a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver, or a broken installation: no GPU that could be used
        return None
    try:
        number = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())  # 13000 is 13.0
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    return number // 1000, number % 1000 // 10


def cupy_install_command(version: tuple[int, int] | None) -> str:
    """The command that installs the CuPy that fits a driver's CUDA version."""
    return f'pip install "cupy-cuda{12 if version is not None and version[0] < 13 else 13}x[ctk]"'


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"

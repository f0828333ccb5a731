"""Where arrays live and who computes on them: the CPU through NumPy, or a CUDA GPU through CuPy.

A ``Device`` is passed, never set: both live in one process side by side, or no honest comparison is possible. This is
the only module that imports CuPy or asks "is it CUDA?".
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bareconv.errors import UsageError

# Statically a NumPy array; at run time an array of whichever library the device holds (CuPy's has the same interface).
Array: TypeAlias = NDArray[Any]

OLDEST_CUDA = 12  # that the CuPy of this project can be installed for


def namespace(x: Array) -> Any:
    """The array library that ``x`` belongs to: numpy, or cupy."""
    return np if isinstance(x, np.ndarray) else sys.modules["cupy"]


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
        """A copy of ``host`` on this device (on the CPU: itself where that is possible)."""
        return self.xp.asarray(host, dtype=dtype)

    def to_host(self, x: Array) -> Array:
        """``x`` as a NumPy array; waits for the device."""
        raise NotImplementedError

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
        self.threads = allowed_cores()
        self.description = f"{cpu_model()}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    @contextlib.contextmanager
    def activate(self) -> Iterator[None]:
        """BLAS gets as many threads as there are cores for this process, not as the machine has."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(self.threads):
            yield

    def to_host(self, x: Array) -> Array:
        return x

    def synchronize(self) -> None:
        pass

    def mark(self) -> float:
        return time.perf_counter()

    def seconds_between(self, marks: Sequence[float]) -> list[float]:
        return [later - earlier for earlier, later in itertools.pairwise(marks)]

    def reset_peak_memory(self) -> None:
        if not sys.platform.startswith("linux"):
            return
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):  # proc(5): 5 sets VmHWM to the resident size of now
            Path("/proc/self/clear_refs").write_text("5")

    def memory(self) -> int:
        return _proc_status("VmRSS") or _max_rss()

    def peak_memory(self) -> int:
        return _proc_status("VmHWM") or _max_rss()


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

    def to_host(self, x: Array) -> Array:
        return self.xp.asnumpy(x)

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
        self.xp.get_default_memory_pool().free_all_blocks()

    def memory(self) -> int:
        return int(self.xp.get_default_memory_pool().total_bytes())

    # The pool keeps what it has once reserved, so that what it holds now is the most it held.
    peak_memory = memory

    def effective_precision(self, dtype: str) -> str:
        # CuPy reads CUPY_TF32 once, at import; unset means strict float32.
        return "tf32" if dtype == "float32" and os.environ.get("CUPY_TF32", "0") == "1" else dtype


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
        raise UsageError(f"device {spec!r}: expected cpu, cuda, cuda:1 (any number) or auto")
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


def affinity_cores() -> int:
    """Cores that the scheduler may put this process on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def allowed_cores(root: Path = Path("/")) -> int:
    """Cores this process may use: the affinity mask, cut by the container's CPU quota, rounded down; at least 1."""
    quota = container_quota(root)
    return affinity_cores() if quota is None else max(1, min(affinity_cores(), int(quota)))


def requested_threads(variables: Mapping[str, str] = os.environ) -> tuple[str, int] | None:
    """The environment variable by which the user limits BLAS's threads, and its number; None where none is set."""
    for name in ("OPENBLAS", "MKL", "BLIS", "GOTO", "OMP"):  # the special ones go before the general one
        value = variables.get(f"{name}_NUM_THREADS", "").split(",")[0].strip()  # "4,2" is OpenMP's, for nested regions
        if value.isdecimal() and int(value) > 0:
            return f"{name}_NUM_THREADS", int(value)
    return None


def container_quota(root: Path = Path("/")) -> float | None:
    """The tightest CPU quota over this process, in cores (cgroup v2 or v1); None where there is none.

    The quota of a group binds all groups within it, so that every level counts. ``root``: where /proc and /sys are.
    """
    quotas = []
    for folder in control_groups("cpu", root):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text().split()  # v2: "150000 100000", or "max 100000"
            quotas += [] if quota == "max" else [int(quota) / int(period)]
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota_us = int((folder / "cpu.cfs_quota_us").read_text())  # v1: -1 is none
            quotas += [] if quota_us <= 0 else [quota_us / int((folder / "cpu.cfs_period_us").read_text())]
    return min(quotas, default=None)


def control_groups(controller: str, root: Path = Path("/")) -> list[Path]:
    """Folders of the control groups around this process that govern "cpu" or "memory", the innermost first.

    /proc/self/cgroup names the group, /proc/self/mountinfo the places where hierarchies are mounted, and which part
    of them a container sees (cgroups(7), proc_pid_mountinfo(5)). Some of the folders may not exist.
    """
    try:
        entries = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []
    group = {name: entry[2] for entry in entries if len(entry) == 3 for name in entry[1].split(",")}
    folders = []
    for line in mounts:
        left, _, right = (part.split() for part in line.partition(" - "))
        if len(left) < 5 or len(right) < 3:
            continue
        top, point = left[3], root / left[4].lstrip("/")
        if right[0] == "cgroup2":
            path = group.get("")
        elif right[0] == "cgroup" and controller in right[2].split(","):
            path = group.get(controller)
        else:
            continue
        if path is None:
            continue
        # A path from outside of what is mounted here is not visible; the mount itself is then the nearest there is.
        parts = path.removeprefix(top).split("/") if path == top or path.startswith(top.rstrip("/") + "/") else []
        parts = [] if ".." in parts else [part for part in parts if part]
        folders += [point.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return folders


def cpuinfo(root: Path = Path("/")) -> dict[str, str]:
    """What Linux says of the first processor ("model name", "flags", ...); empty elsewhere."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError), (root / "proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:  # the others' entries are the same, and a big machine has hundreds
            if not line.strip() and found:
                break
            name, _, value = line.partition(":")
            found[name.strip()] = " ".join(value.split())
    return found


# Arm's processors give numbers, not names: the ones that servers have (MIDR part numbers, implementer 0x41).
_ARM_PARTS = {
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse N1",
    "0xd40": "Neoverse V1",
    "0xd49": "Neoverse N2",
    "0xd4f": "Neoverse V2",
    "0xd84": "Neoverse V3",
}


@functools.cache
def cpu_model(root: Path = Path("/")) -> str:
    """The processor's name, as the system gives it; its architecture where it has none."""
    import platform

    info = cpuinfo(root)
    if info.get("model name"):
        return info["model name"]
    if info.get("CPU implementer") == "0x41" and info.get("CPU part") in _ARM_PARTS:
        return f"Arm {_ARM_PARTS[info['CPU part']]}"
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, timeout=1, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def keep_freed_memory() -> bool:
    """Ask the C library to keep large freed blocks instead of returning them to the system at every step.

    NumPy allocates each activation anew; with glibc's defaults every one of them is unmapped, mapped and zeroed
    page by page again, which costs a training step up to a third of its time. Process-wide, so that programs call
    it (the command line does), not the library. Returns whether it took effect; glibc only.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # from malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1))


def _proc_status(field: str) -> int | None:
    """A size from /proc/self/status, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return None


def _max_rss() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"

"""What this process may use of the machine: cores, quota, memory; and what the processor is.

All of it is read from the system; ``root`` is where /proc and /sys are, for tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


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


def blas_threads() -> int:
    """Threads for BLAS: as many as there are cores for this process, or fewer where the user says so."""
    asked = requested_threads()
    return allowed_cores() if asked is None else min(allowed_cores(), asked[1])


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


def memory_bytes(root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process may use: the machine's, or the container's limit where it is tighter."""
    sizes = []
    with contextlib.suppress(OSError):
        total = re.search(r"^MemTotal:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE)
        sizes += [int(total[1]) * 1024] if total else []
    if not sizes and root == Path("/") and hasattr(os, "sysconf"):  # macOS
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for folder in control_groups("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):  # v2: "max" is none; v1: then a number beyond all memory
            with contextlib.suppress(OSError, ValueError):
                sizes.append(int((folder / name).read_text()))
    return min(sizes, default=None)


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


@dataclass(frozen=True)
class Cache:
    """A data cache of ``bytes``, shared by ``cores`` logical cores; ``level`` 1 is the nearest."""

    level: int
    bytes: int
    cores: int


def caches(root: Path = Path("/")) -> list[Cache]:
    """The data caches that a core of this process uses, the nearest first; none where the system does not tell."""
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    folder = root / f"sys/devices/system/cpu/cpu{core}/cache"
    found = []
    for index in folder.glob("index*") if folder.is_dir() else ():
        with contextlib.suppress(OSError, ValueError):
            kind, level, size, shared = (
                (index / name).read_text().strip() for name in ("type", "level", "size", "shared_cpu_list")
            )
            match = re.fullmatch(r"(\d+)([KMG]?)", size)
            if kind in ("Data", "Unified") and match is not None:
                scale = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[match[2]]
                found.append(Cache(int(level), int(match[1]) * scale, _listed(shared)))
    return sorted(found, key=lambda cache: cache.level)


def _listed(text: str) -> int:
    """How many there are in a list of ranges: 5 in "0-3,8"."""
    ranges = [part.partition("-") for part in text.split(",")]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)


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
    page by page again, which slows a training step down. Process-wide, so that programs call
    it (the command line does), not the library. Returns whether it took effect; glibc only.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # from malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1))


def reset_peak_resident_memory() -> None:
    """Start ``peak_resident_memory`` anew, at what is resident now; freed memory is given back first. Linux only."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # proc_pid_clear_refs(5): 5 sets VmHWM to the resident size of now
        Path("/proc/self/clear_refs").write_text("5")


def resident_memory() -> int:
    """Bytes of this process in memory now (elsewhere than on Linux: the most there ever were)."""
    return _proc_status("VmRSS") or _max_rss()


def peak_resident_memory() -> int:
    """The most bytes in memory since ``reset_peak_resident_memory`` (elsewhere than on Linux: since the start)."""
    return _proc_status("VmHWM") or _max_rss()


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that may be asked for without pressing anyone else, by the system's own estimate; None elsewhere."""
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


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

"""How the cores' time was used, as the kernel counts it: by us and our processes, by others, by other machines.

All from /proc (proc_stat(5), proc_pid_stat(5)), in clock ticks since the start of the machine; ``root`` is where it is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_BUSY = (0, 1, 2, 5, 6)  # of a core's ticks: user, nice, system, interrupts, soft interrupts
_STEAL, _FIELDS = 7, 8  # the two after them are of guests, and counted as the user's already


@dataclass(frozen=True)
class CpuTimes:
    """Ticks so far: all of some cores' together, those in which something ran, those taken by the hypervisor, ours."""

    total: int
    busy: int
    steal: int
    own: int

    def others(self, later: CpuTimes) -> float | None:
        """Share of the cores' time until ``later`` that other processes ran."""
        busy = later.busy - self.busy - (later.own - self.own)
        return max(0.0, busy / (later.total - self.total)) if later.total > self.total else None

    def stolen(self, later: CpuTimes) -> float | None:
        """Share of the cores' time until ``later`` that other virtual machines had."""
        stolen = later.steal - self.steal  # which some hypervisors count back
        return max(0.0, stolen / (later.total - self.total)) if later.total > self.total else None


def read(root: Path = Path("/"), cores: Collection[int] | None = None, pid: int | None = None) -> CpuTimes | None:
    """The times of ``cores``, by default all of the machine, and of process ``pid``, by default this one, and its own.

    None where there is no /proc.
    """
    try:
        lines = (root / "proc/stat").read_text().splitlines()
    except OSError:
        return None
    total = busy = steal = 0
    for line in lines:
        name, *fields = line.split()
        if not name.startswith("cpu"):
            break  # the cores come first
        if name == "cpu" or (cores is not None and int(name[3:]) not in cores):
            continue
        ticks = [int(field) for field in fields[:_FIELDS]]
        ticks += [0] * (_FIELDS - len(ticks))  # an old kernel
        total += sum(ticks)
        busy += sum(ticks[field] for field in _BUSY)
        steal += ticks[_STEAL]
    return CpuTimes(total, busy, steal, _own(root, os.getpid() if pid is None else pid))


def own_processes(root: Path = Path("/"), pid: int | None = None) -> set[int]:
    """Process ``pid``, by default this one, with what it has started and what that has started."""
    return set(_descend(root, os.getpid() if pid is None else pid))


def allowed_cores() -> set[int] | None:
    """The numbers of the cores that this process may be put on; None where the system does not say."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _own(root: Path, pid: int) -> int:
    """Ticks of a process and all below it; those that have ended count with the one that has waited for them."""
    ticks = 0
    for one in _descend(root, pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (root / f"proc/{one}/stat").read_text().rpartition(")")[2].split()  # a name may hold anything
            ticks += sum(map(int, fields[11:15]))  # user and system time: its own, and of children that have ended
    return ticks


def _descend(root: Path, pid: int) -> list[int]:
    """A process and those below it. Without CONFIG_PROC_CHILDREN, itself."""
    found = [pid]
    for parent in found:  # grows
        for children in (root / f"proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError, ValueError):
                found += map(int, children.read_text().split())
    return found

"""Counters of energy in the hardware, a GPU's own and those of the CPU's packages, and who else adds to them.

Nothing is estimated here, from a data sheet or otherwise.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bareconv.bench import cpu_times, nvml
from bareconv.bench.nvml import Gpu, UnavailableError
from bareconv.device import CpuDevice, Device

POWERCAP = "sys/class/powercap"


class Counter(Protocol):
    """Something that counts joules."""

    name: str
    covers: str  # which parts of the machine it counts

    def read(self) -> float:
        """Joules since some moment; only differences mean anything. UnavailableError where it cannot be read."""
        ...


class GpuCounter:
    """The energy that a GPU's board has taken, counted by itself: Volta and newer."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.name = "NVML total energy"
        self.covers = f"the board of one {gpu.name}: chip and memory, not the machine around it"
        self.read()

    def read(self) -> float:
        joules = self._gpu.joules()
        if joules is None:
            raise UnavailableError(f"{self._gpu.name} counts no energy, or does not tell (Volta and newer do)")
        return joules


class PackageCounter:
    """The energy of the CPU's packages, all together, from Linux's powercap files (Intel and AMD).

    A file counts microjoules from 0 to ``max_energy_range_uj`` and begins again: within minutes under load, so that it
    has to be read more often than that. Source: the kernel's Documentation/power/powercap/powercap.rst.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._files = [zone / "energy_uj" for zone in _packages(root / POWERCAP)]
        if not self._files:
            raise UnavailableError(f"there is no counter of a CPU package in /{POWERCAP} (virtual machines have none)")
        self._ranges = [_number(file.with_name("max_energy_range_uj")) for file in self._files]
        self._last = [_number(file) for file in self._files]
        self._sum = 0
        self.name = "powercap package energy"
        many = f"all {len(self._files)} CPU packages" if len(self._files) > 1 else "the CPU package"
        self.covers = f"{many}: cores and caches, not the memory's chips"

    def read(self) -> float:
        for number, file in enumerate(self._files):
            microjoules = _number(file)
            rise = microjoules - self._last[number]
            if rise < 0:
                if self._ranges[number] <= 0:
                    raise UnavailableError(f"{file} began again, and does not say at which number it does")
                rise += self._ranges[number]
            self._sum += rise
            self._last[number] = microjoules
        return self._sum * 1e-6


def _packages(folder: Path) -> list[Path]:
    """The zone of each package once: not its parts (core, uncore, dram), nor the platform (psys) that it is part of.

    The same package may be there through two interfaces, intel-rapl and intel-rapl-mmio: the shorter name is kept.
    """
    zones: dict[str, Path] = {}
    for zone in sorted(folder.glob("*:*"), key=lambda zone: (len(zone.name), zone.name)):
        with contextlib.suppress(OSError):
            name = (zone / "name").read_text().strip()
            if re.fullmatch(r"package-\d+(-die-\d+)?", name) and zone.name.count(":") == 1:
                zones.setdefault(name, zone)
    return list(zones.values())


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except PermissionError:
        raise UnavailableError(
            f"{file} is readable for root only, as in Linux since CVE-2020-8694: run as root, or let root do "
            f"chmod o+r {file}"
        ) from None
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None


class Load(Protocol):
    """Looks at how much of what a counter covers others use."""

    sees_through: bool  # whether it tells our work from that of others, or only work from rest

    def begin(self) -> None:
        """From now on."""
        ...

    def others(self) -> float:
        """Their share of the time since ``begin``. UnavailableError where that is not known."""
        ...


class CpuLoad:
    """All cores of the machine, for the packages' counters count them all."""

    sees_through = True

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def begin(self) -> None:
        self._begun = cpu_times.read(self._root)

    def others(self) -> float:
        now = cpu_times.read(self._root)
        share = None if self._begun is None or now is None else self._begun.others(now)
        if share is None:
            raise UnavailableError("the system does not tell how busy its cores are")
        return share


class GpuLoad:
    """One GPU, of which only is known whether something runs on it."""

    sees_through = False

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def begin(self) -> None:
        """It looks back by itself, over up to a second."""

    def others(self) -> float:
        busy = self._gpu.busy()
        if busy is None:
            raise UnavailableError(f"{self._gpu.name} does not tell whether others use it")
        return busy


@dataclass(frozen=True)
class Source:
    """The counters of some work, which are added up, and the look-out for the load of others."""

    counters: Sequence[Counter]
    load: Load


@contextlib.contextmanager
def source_of(device: Device, root: Path = Path("/")) -> Iterator[Source]:
    """What counts the energy of work on ``device``: for a GPU its own board's. UnavailableError where nothing does.

    ``root``: where /proc and /sys are.
    """
    if isinstance(device, CpuDevice):
        yield Source([PackageCounter(root)], CpuLoad(root))
        return
    with nvml.opened(device) as gpu:
        yield Source([GpuCounter(gpu)], GpuLoad(gpu))

"""What the machine did while it was measured on: who else used it, how fast and how warm it was, what slowed it down.

A thread looks once a second, or less often where a look takes long: a look between the blocks of a measurement would
find the processors at rest. Some figures are of the whole time, from the system's own counts at its two ends: time that
other machines or programs took, a container's quota used up, heat. The others are samples.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bareconv import host
from bareconv.bench import cpu_times, nvml
from bareconv.bench.nvml import IDLE, SLOWED_BY, Gpu, UnavailableError
from bareconv.device import CpuDevice, Device
from bareconv.report.format import count, percent

EVERY = 1.0  # seconds between two looks
BURDEN = 0.001  # of a core's time, that looking may take

# From which share on something is a disturbance. Intervals of a few tenths of a per cent are what is quoted: what takes
# a hundredth of all cores' time may move a figure by more than that. Programs of a quiet machine take about as much.
STEAL = 0.01
OTHERS = 0.02
THROTTLED = 0.01
SLOWED = 0.01  # of a GPU's samples
CLOCK_RANGE = 0.05  # of a GPU's clock while it works; a step up or down is 15 MHz, below 1%

FREQUENCY_CORES = 4  # whose clock is read: that of each takes the kernel a while


@dataclass
class _Seen:
    """Samples of one GPU."""

    gpu: Gpu
    sm_clocks: list[float] = field(default_factory=list)
    memory_clocks: list[float] = field(default_factory=list)
    celsius: list[float] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)
    working_clocks: list[float] = field(default_factory=list)  # of the samples in which something ran
    reasons: Counter[int] = field(default_factory=Counter)  # how often each bit, in those samples
    working: int = 0
    strangers: set[int] = field(default_factory=set)
    lanes: tuple[int, int] | None = None

    def look(self, own: Collection[int]) -> None:
        """One sample more; ``own``: our processes."""
        sm, memory = self.gpu.clocks()
        for values, value in (
            (self.sm_clocks, sm),
            (self.memory_clocks, memory),
            (self.celsius, self.gpu.celsius()),
            (self.watts, self.gpu.watts()),
        ):
            if value is not None:
                values.append(value)
        reasons = self.gpu.reasons()
        if reasons is not None and not reasons & IDLE:
            self.working += 1
            self.reasons.update(bit for bit in SLOWED_BY if reasons & bit)
            if sm is not None:
                self.working_clocks.append(sm)
        there = self.gpu.processes() or set()
        if there & set(own):  # within a container the numbers may be others: then no stranger could be told
            self.strangers |= there - set(own)
        self.lanes = self.gpu.lanes() or self.lanes

    def record(self) -> dict[str, Any]:
        """The GPU's entry."""
        return {
            "name": self.gpu.name,
            "sm_clock_hz": self.sm_clocks,
            "memory_clock_hz": self.memory_clocks,
            "temperature_celsius": self.celsius,
            "watts": self.watts,
            "throttle_reasons": [SLOWED_BY[bit] for bit in sorted(self.reasons)],
            "throttled_shares": [self.reasons[bit] / self.working for bit in sorted(self.reasons)],
            "other_processes": len(self.strangers),
        }

    def remarks(self) -> list[str]:
        """What disturbed."""
        found = [
            f"the GPU was slowed down by {SLOWED_BY[bit]} in {percent(often / self.working, 0)} of the samples in "
            "which it worked"
            for bit, often in sorted(self.reasons.items())
            if often / self.working >= SLOWED
        ]
        if len(self.working_clocks) >= 10:
            tenths = statistics.quantiles(self.working_clocks, n=10)
            low, high = tenths[0], tenths[-1]
            if low < (1 - CLOCK_RANGE) * high:
                found.append(f"the GPU's clock went from {count(low / 1e6)} to {count(high / 1e6)} MHz while it worked")
        if self.strangers:
            found.append(f"other programs computed on the GPU ({count(len(self.strangers))})")
        if self.lanes is not None and self.lanes[0] < self.lanes[1]:
            found.append(f"the GPU had {self.lanes[0]} of its {self.lanes[1]} lanes to the machine (PCI Express)")
        return found


class Watcher:
    """Watches while it is in a ``with``; then ``record`` says what it saw.

    ``devices``: of the GPUs among them the samples are taken. ``every``: seconds between two looks, None for none but
    those that ``look`` is called for. ``root``: where /proc and /sys are; ``cores``: of which the time is counted,
    those that this process may be put on unless given.
    """

    def __init__(
        self,
        devices: Sequence[Device] = (),
        root: Path = Path("/"),
        *,
        every: float | None = EVERY,
        cores: Collection[int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._devices, self._root, self._every, self._clock = devices, root, every, clock
        self._cores = cpu_times.allowed_cores() if cores is None else set(cores)
        self._frequency_files = self._frequencies()
        self._temperature_files = _temperatures(root)
        self._groups = [folder / "cpu.stat" for folder in host.control_groups("cpu", root)]
        self._open = contextlib.ExitStack()
        self._gpus: list[_Seen] = []
        self._hertz: list[float] = []
        self._celsius: list[float] = []
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self.seconds = 0.0

    def __enter__(self) -> Watcher:
        for device in self._devices:
            if not isinstance(device, CpuDevice):
                with contextlib.suppress(UnavailableError):
                    self._gpus.append(_Seen(self._open.enter_context(nvml.opened(device))))
        self._begun = self._clock()
        self._times = self._later = cpu_times.read(self._root, self._cores)
        self._periods = self._periods_later = self._read_periods()
        self._heat = self._heat_later = self._read_heat()
        if self._every is not None:
            self._thread = threading.Thread(target=self._watch, args=(self._every,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        self.seconds = self._clock() - self._begun
        self._later = cpu_times.read(self._root, self._cores)
        self._periods_later = self._read_periods()
        self._heat_later = self._read_heat()
        self._open.close()

    def look(self) -> None:
        """Take a sample."""
        hertz = [1e3 * value for value in map(_number, self._frequency_files) if value is not None]
        if hertz:
            self._hertz.append(statistics.mean(hertz))
        celsius = [1e-3 * value for value in map(_number, self._temperature_files) if value is not None]
        if celsius:
            self._celsius.append(max(celsius))
        if self._gpus:
            own = cpu_times.own_processes(self._root)
            for gpu in self._gpus:
                gpu.look(own)

    def record(self) -> dict[str, Any]:
        """The ``conditions`` of a result."""
        times, later = self._times, self._later
        steal = others = None
        if times is not None and later is not None:
            steal, others = times.stolen(later), times.others(later)
        throttled = self._throttled()
        heat = None if self._heat is None or self._heat_later is None else self._heat_later - self._heat
        remarks = []
        if steal is not None and steal >= STEAL:
            remarks.append(f"other machines took {percent(steal, 1)} of the cores' time (steal)")
        if others is not None and others >= OTHERS:
            remarks.append(f"other programs took {percent(others, 1)} of the cores' time")
        if throttled is not None and throttled >= THROTTLED:
            remarks.append(
                f"the container's share of the cores was used up in {percent(throttled, 1)} of its periods, and what "
                "ran had to wait for the next"
            )
        if heat:
            remarks.append(f"the CPU was slowed down by heat ({count(heat)} times)")
        for gpu in self._gpus:
            remarks += gpu.remarks()
        return {
            "seconds": self.seconds,
            "remarks": remarks,
            "cpu": {
                "steal_share": steal,
                "others_share": others,
                "throttled_share": throttled,
                "heat_events": heat,
                "frequency_hz": self._hertz,
                "temperature_celsius": self._celsius,
            },
            "gpus": [gpu.record() for gpu in self._gpus],
        }

    def _watch(self, every: float) -> None:
        wait = every
        while not self._ending.wait(wait):
            begun = time.thread_time()
            self.look()
            wait = max(every, (time.thread_time() - begun) / BURDEN)

    def _frequencies(self) -> list[Path]:
        """Files with the clock of some of the cores, in kilohertz."""
        folder = self._root / "sys/devices/system/cpu"
        files = [folder / f"cpu{core}/cpufreq/scaling_cur_freq" for core in sorted(self._cores or ())]
        return [file for file in files if file.exists()][:FREQUENCY_CORES]

    def _read_periods(self) -> list[tuple[int, int]]:
        """(periods, those in which the quota was used up) of each control group around this process."""
        found = []
        for file in self._groups:
            with contextlib.suppress(OSError, ValueError):
                stat = dict(line.split() for line in file.read_text().splitlines())
                found.append((int(stat.get("nr_periods", 0)), int(stat.get("nr_throttled", 0))))
        return found

    def _throttled(self) -> float | None:
        """Of the group that was stopped most often; None where no group has a quota."""
        shares = []
        if len(self._periods) == len(self._periods_later):
            for (periods, throttled), (more, later) in zip(self._periods, self._periods_later, strict=True):
                if more > periods:
                    shares.append((later - throttled) / (more - periods))
        return max(shares, default=None)

    def _read_heat(self) -> int | None:
        """How often the packages have slowed themselves down so far, where the system counts it (Intel)."""
        pattern = "sys/devices/system/cpu/cpu*/thermal_throttle/package_throttle_count"
        counts = [_number(file) for file in self._root.glob(pattern)]
        # Every core shows the count of its package.
        return max((int(number) for number in counts if number is not None), default=None)


def _temperatures(root: Path) -> list[Path]:
    """Files with temperatures of the processor, in thousandths of a degree."""
    found = []
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        with contextlib.suppress(OSError):
            kind = (zone / "type").read_text().strip().lower()
            if "pkg" in kind or "cpu" in kind:
                found.append(zone / "temp")
    if found:
        return found
    for sensor in sorted(root.glob("sys/class/hwmon/hwmon*")):
        with contextlib.suppress(OSError):
            if (sensor / "name").read_text().strip() in ("coretemp", "k10temp", "zenpower", "cpu_thermal"):
                found.append(sensor / "temp1_input")  # of the whole package; the others are of its cores
    return found


def _number(file: Path) -> float | None:
    try:
        value = float(file.read_text())
    except (OSError, ValueError):
        return None
    return value if math.isfinite(value) else None

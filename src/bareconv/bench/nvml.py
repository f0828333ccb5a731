"""A GPU as NVML shows it, the management library of NVIDIA's driver: what it does now, and how it is set.

What a GPU or a driver does not tell is None; the library's own units become hertz, watts, joules and bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from bareconv.device import Device
from bareconv.errors import BareconvError

IDLE = 0x1  # of the reasons for the clocks: there is nothing to do

# Reasons that slow a GPU down, in words. Idleness is none, nor are clocks that someone has set: those were asked for.
SLOWED_BY = {
    0x4: "its power limit",
    0x8: "its hardware (heat or power)",
    0x10: "another GPU, with which it keeps step (sync boost)",
    0x20: "its temperature",
    0x40: "its temperature (in hardware)",
    0x80: "the power supply (power brake)",
    0x200: "its board's limit",
    0x400: "its voltage (reliability)",
}


class UnavailableError(BareconvError):
    """Something cannot be measured here; the message says why."""


class Gpu:
    """One GPU. ``library`` is pynvml, initialised; ``handle`` its handle of the GPU. ``name``: its maker's for it."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle
        name = self._ask("nvmlDeviceGetName")
        self.name = "GPU" if name is None else name.decode(errors="replace") if isinstance(name, bytes) else str(name)

    def joules(self) -> float | None:
        """Energy of the board since the driver was loaded."""
        return _scaled(self._ask("nvmlDeviceGetTotalEnergyConsumption"), 1e-3)

    def watts(self) -> float | None:
        """Power of the board, by the GPU's own average over some time."""
        return _scaled(self._ask("nvmlDeviceGetPowerUsage"), 1e-3)

    def celsius(self) -> float | None:
        """Temperature of the chip."""
        return _scaled(self._ask("nvmlDeviceGetTemperature", 0), 1)  # 0: NVML_TEMPERATURE_GPU

    def clocks(self) -> tuple[float | None, float | None]:
        """Hertz of the multiprocessors and of the memory, now."""
        return self._clocks("nvmlDeviceGetClockInfo")

    def reasons(self) -> int | None:
        """Why the clocks are not higher: bits, of which ``SLOWED_BY`` says what they mean."""
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            found = self._ask(name)  # the second is the name of older releases
            if found is not None:
                return int(found)
        return None

    def busy(self) -> float | None:
        """Share of the last moments, up to a second, in which something ran on it."""
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        return None if rates is None else rates.gpu / 100

    def processes(self) -> set[int] | None:
        """Numbers of the processes that compute on it, as the machine outside of any container counts them."""
        found = self._ask("nvmlDeviceGetComputeRunningProcesses")
        return None if found is None else {int(process.pid) for process in found}

    def lanes(self) -> tuple[int, int] | None:
        """(in use, possible) of its PCI Express link."""
        now, most = self._ask("nvmlDeviceGetCurrPcieLinkWidth"), self._ask("nvmlDeviceGetMaxPcieLinkWidth")
        return None if now is None or most is None else (int(now), int(most))

    def settings(self) -> dict[str, Any]:
        """How it is set: entries of ``environment.gpus`` in a result; those it does not tell are left out."""
        sm, memory = self.clocks()
        most_sm, most_memory = self._clocks("nvmlDeviceGetMaxClockInfo")
        ecc = self._ask("nvmlDeviceGetEccMode")  # (now, after the next start)
        persistence = self._ask("nvmlDeviceGetPersistenceMode")
        found = {
            "sm_clock_hz": sm,
            "sm_clock_max_hz": most_sm,
            "memory_clock_hz": memory,
            "memory_clock_max_hz": most_memory,
            "power_limit_watts": _scaled(self._ask("nvmlDeviceGetEnforcedPowerLimit"), 1e-3),
            "ecc": None if ecc is None else bool(ecc[0]),
            "persistence": None if persistence is None else bool(persistence),
        }
        return {name: value for name, value in found.items() if value is not None}

    def _clocks(self, function: str) -> tuple[float | None, float | None]:
        sm, memory = (_scaled(self._ask(function, which), 1e6) for which in (1, 2))  # NVML_CLOCK_SM, NVML_CLOCK_MEM
        return sm, memory

    def _ask(self, function: str, *arguments: Any) -> Any:
        """What the library answers; None where it has no such function, or the GPU no such thing."""
        try:
            return getattr(self._library, function)(self._handle, *arguments)
        except Exception:
            return None


@contextlib.contextmanager
def opened(device: Device) -> Iterator[Gpu]:
    """A CUDA device's GPU. UnavailableError where NVML, or the GPU within it, is not to be had."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:
        raise UnavailableError(f"NVML does not work here ({_one_line(error)})") from None
    try:
        try:
            handle = _handle(pynvml, device)
        except Exception as error:
            raise UnavailableError(f"NVML does not know {device.name} ({_one_line(error)})") from None
        yield Gpu(pynvml, handle)
    finally:
        pynvml.nvmlShutdown()


def _handle(library: Any, device: Device) -> Any:
    """By the place on the bus: CUDA may count the GPUs in another order, and hide some."""
    index: int = getattr(device, "index", 0)
    cuda = getattr(device.xp, "cuda", None)
    if cuda is None:
        return library.nvmlDeviceGetHandleByIndex(index)
    return library.nvmlDeviceGetHandleByPciBusId(cuda.runtime.deviceGetPCIBusId(index))


def _scaled(value: Any, unit: float) -> float | None:
    return None if value is None else float(value) * unit


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

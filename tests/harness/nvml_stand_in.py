"""A stand-in for pynvml with one GPU, whose figures a test sets, in the library's own units."""

from __future__ import annotations

import types
from typing import Any


class NvmlError(Exception):
    pass


class StandInNvml(types.ModuleType):
    """``values``: what each function answers, or a function of no arguments; what is not in it fails.

    ``open``: how often it was initialised and not shut down.
    """

    def __init__(self, **values: Any) -> None:
        super().__init__("pynvml")
        self.NVMLError = NvmlError
        self.open = 0
        self.values: dict[str, Any] = {
            "Name": b"NVIDIA Stand-In",  # old releases of the library give bytes
            "TotalEnergyConsumption": 5_000_000,
            "PowerUsage": 250_000,
            "Temperature": 41,
            "ClockInfo": {1: 1755, 2: 2619},
            "MaxClockInfo": {1: 1980, 2: 2619},
            "CurrentClocksEventReasons": 0,
            "UtilizationRates": types.SimpleNamespace(gpu=0, memory=0),
            "ComputeRunningProcesses": [],
            "CurrPcieLinkWidth": 16,
            "MaxPcieLinkWidth": 16,
            "EnforcedPowerLimit": 700_000,
            "EccMode": [1, 0],
            "PersistenceMode": 0,
            **values,
        }
        for name in self.values:
            setattr(self, f"nvmlDeviceGet{name}", self._answering(name))

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        if index != 0:
            raise NvmlError("Invalid Argument")
        return "the handle"

    def _answering(self, name: str) -> Any:
        def answer(handle: Any, which: int | None = None) -> Any:
            assert handle == "the handle"
            assert self.open > 0
            value = self.values[name]
            if value is None:
                raise NvmlError("Not Supported")
            value = value() if callable(value) else value
            return value[which] if isinstance(value, dict) else value

        return answer

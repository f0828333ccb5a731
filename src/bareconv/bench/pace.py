"""How fast the machine itself was, one result beside another: whatever both tell that no change of ours could move.

The ceilings that both measured, the clocks and the share of the time that other machines took, and peers: a library of
the same version that became slower shows that the machine did.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from bareconv.bench.changes import BETWEEN, Change
from bareconv.bench.measurements import Key

WORKING = 0.9  # of the samples of a clock, in ascending order: where it worked
UNITS = {"FLOP": "arithmetic", "byte": "memory", "launch": "launches"}


@dataclass(frozen=True)
class Pace:
    """The machine was ``times`` as fast in the result as in the baseline, by ``what``; for measurements on ``device``.

    ``device``: cpu or cuda.
    """

    what: str
    device: str
    times: float

    def applies(self, key: Key) -> bool:
        """Whether measurements of that key are on the device that it is about."""
        return key.device.startswith(self.device)

    def record(self) -> dict[str, Any]:
        """As a result file has it."""
        return vars(self)


def paces(baseline: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]) -> list[Pace]:
    """What ceilings and conditions tell, where every result has them; what differs less than processes do is left out.

    Of several results of a side the geometric mean.
    """
    before, after = (_mean([dict(_figures(result)) for result in side]) for side in (baseline, results))
    found = [
        Pace(what, device, after[device, what] / level)
        for (device, what), level in before.items()
        if (device, what) in after
    ]
    return [pace for pace in found if abs(math.log(pace.times)) > BETWEEN]


def from_peer(key: Key, change: Change) -> Pace | None:
    """What a peer of an unchanged version tells: only what its interval leaves no doubt of."""
    least = change.ratio.low if change.ratio.low > 1 else change.ratio.high if change.ratio.high < 1 else 1.0
    if abs(math.log(least)) <= BETWEEN:
        return None
    return Pace(f"{key.label}, of the same version, at least", key.device.partition(":")[0], least)


def _mean(sides: Sequence[Mapping[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    """The geometric mean of every figure that all have."""
    first, *others = sides
    common = [key for key in first if all(key in other for other in others)]
    return {key: math.exp(fmean(math.log(side[key]) for side in sides)) for key in common}


def _figures(result: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], float]]:
    """Figures of the machine that grow with its speed, each more than 0, by device and what it is."""
    for part in result.get("rooflines", []):
        device = part["device"].partition(":")[0]
        for unit, what in UNITS.items():
            logs = [math.log(one["per_second"]) for one in part["ceilings"] if one["unit"] == unit]
            if logs:
                yield (device, f"its ceilings of {what}"), math.exp(fmean(logs))
    conditions = result.get("conditions", {})
    cpu = conditions.get("cpu", {})
    taken = sum(cpu.get(name) or 0.0 for name in ("steal_share", "others_share"))
    for lost, what in ((taken, "the time that others left it"), (cpu.get("throttled_share") or 0.0, "its CPU quota")):
        if cpu and lost < 1:
            yield ("cpu", what), 1 - lost
    clocks = [("cpu", "the CPU's clock", cpu.get("frequency_hz", []))]
    for gpu in conditions.get("gpus", []):
        clocks += [
            ("cuda", f"the clock of {gpu['name']}", gpu.get("sm_clock_hz", [])),
            ("cuda", f"the clock of the memory of {gpu['name']}", gpu.get("memory_clock_hz", [])),
        ]
    for device, what, samples in clocks:
        # While it works: how much of the time it was at rest is no matter of the machine's.
        if samples and (working := float(np.quantile(samples, WORKING))) > 0:
            yield (device, what), working

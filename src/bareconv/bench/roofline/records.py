"""Ceilings, what bounds a launch, and the form in which a result has them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bareconv.device import Device

CASES = ("basic:64,256,1024:bfloat16", "basic:256:tf32,float32", "resnet9:512:bfloat16")

MEMORY, LAUNCH = "memory", "launch"
FITS = 0.5  # of a cache: what a launch moves stays there from one to the next
TRUSTED = 0.1  # of a step's time that marks may cost
NOT_MEASURED = "not measured"  # the ceiling of a part whose ceilings are not known
NONE = "none"  # the ceiling of a part that has no work

BATCH, FORWARD, DX, DW, BOTH, UPDATE, OTHER = "batch", "forward", "dX", "dW", "dX + dW", "update", "other"
BETWEEN = "between layers"  # the node of what belongs to none of them
DW_UPDATE, BOTH_UPDATE = "dW + update", "dX + dW + update"


@dataclass(frozen=True)
class Ceiling:
    """``per_second``: operations ("FLOP"), bytes or launches, whatever ``unit`` says; ``how`` it was measured.

    ``threads``: that it was measured with, on a CPU.
    """

    name: str
    per_second: float
    unit: str
    how: str
    threads: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As a result has it."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Roof:
    """What bounds a launch: ``ceilings`` by name, caches with the bytes that stay there, units by precision.

    ``caches``: (name of the ceiling, bytes of it in all, over all threads), the fastest first.
    """

    ceilings: Mapping[str, Ceiling]
    units: Mapping[str, str]
    caches: Sequence[tuple[str, float]] = ()

    def bound(self, precision: str, flops: float, moved: float, together: float | None = None) -> tuple[str, float]:
        """The ceiling that bounds a launch, and its seconds at least by that.

        ``moved``: bytes; ``together``: those of them that are in use at a time, all unless given. They come from the
        fastest cache that holds them, as at best they do. What has no ceiling here bounds nothing.
        """
        if not flops and not moved:
            return NONE, 0.0
        used = moved if together is None else together
        place = next((name for name, size in self.caches if used <= FITS * size), MEMORY)
        times = {
            name: work / self.ceilings[name].per_second
            for name, work in ((place, moved), (self.units.get(precision, ""), flops))
            if work and name in self.ceilings
        }
        if not times:
            return NOT_MEASURED, 0.0
        name = max(times, key=times.__getitem__)
        return name, times[name]

    def start(self) -> tuple[str, float]:
        """The ceiling of what starts a step, and its seconds at least."""
        if LAUNCH not in self.ceilings:
            return NOT_MEASURED, 0.0
        return LAUNCH, 1.0 / self.ceilings[LAUNCH].per_second


@dataclass(frozen=True)
class Part:
    """What a launch, or an operation, is and does: ``flops`` and ``bytes`` of a whole batch, ``seconds`` it took."""

    node: str
    phase: str
    operation: str
    kernel: str
    how: str
    seconds: float
    flops: float = 0.0
    bytes: float = 0.0
    beside: bool = False

    def to_json(self, bound: tuple[str, float]) -> dict[str, Any]:
        """A ``launches`` entry of a result, with the ceiling and the least seconds that ``bound`` says."""
        ceiling, least = bound
        return {
            **vars(self),
            "ceiling": ceiling,
            "least_seconds": least,
            "share": least / self.seconds if self.seconds > 0 else 0.0,
        }


def record(
    device: Device,
    ceilings: Mapping[str, Ceiling] | Iterable[Ceiling],
    steps: Iterable[Mapping[str, Any]],
    *,
    threads: int | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """One device's entry of the ``rooflines`` of a result."""
    found = ceilings.values() if isinstance(ceilings, Mapping) else ceilings
    return {
        "device": device.name,
        "device_description": device.description,
        **({"threads": threads} if threads is not None else {}),
        "ceilings": [ceiling.to_json() for ceiling in found],
        "steps": list(steps),
        **({"notes": list(notes)} if notes else {}),
    }


@dataclass(frozen=True)
class Group:
    """Launches of one kernel under one ceiling: how many, for what, their seconds in all, the least by the ceiling."""

    phase: str
    kernel: str
    node: str
    launches: int
    seconds: float
    least_seconds: float
    ceiling: str

    @property
    def share(self) -> float:
        """Of the roofline."""
        return _share(self.least_seconds, self.seconds)


def groups(step: Mapping[str, Any]) -> list[Group]:
    """A step's launches by phase, kernel and ceiling, those that take longest first."""
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for one in step["launches"]:
        found.setdefault((one["phase"], one["kernel"], one["ceiling"]), []).append(one)
    made = [
        Group(
            *(phase, kernel, some[0]["node"] if len(some) == 1 else f"{len(some)} launches", len(some)),
            *(math.fsum(one["seconds"] for one in some), math.fsum(one["least_seconds"] for one in some), ceiling),
        )
        for (phase, kernel, ceiling), some in found.items()
    ]
    return sorted(made, key=lambda group: -group.seconds)


@dataclass
class Operation:
    """All launches of one layer, or of several that run as one, for one operation: the sums over them."""

    node: str
    operation: str
    kernels: list[str] = field(default_factory=list)
    ceilings: dict[str, float] = field(default_factory=dict)  # least seconds under each
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0

    @property
    def least_seconds(self) -> float:
        """By the ceilings of its launches, one after another."""
        return math.fsum(self.ceilings.values())

    @property
    def ceiling(self) -> str:
        """The one under which most of the least seconds are."""
        return max(self.ceilings, key=self.ceilings.__getitem__)

    @property
    def share(self) -> float:
        """Of the roofline."""
        return _share(self.least_seconds, self.seconds)

    @property
    def intensity(self) -> float | None:
        """Operations for each byte; None where nothing is moved."""
        return self.flops / self.bytes if self.bytes else None


def by_operation(step: Mapping[str, Any]) -> list[Operation]:
    """A step's launches by layer and operation, in the order of a step."""
    found: dict[tuple[str, str], Operation] = {}
    for one in step["launches"]:
        operation = one.get("operation", one["phase"])
        into = found.setdefault((one["node"], operation), Operation(one["node"], operation))
        if one["kernel"] not in into.kernels:
            into.kernels.append(one["kernel"])
        into.ceilings[one["ceiling"]] = into.ceilings.get(one["ceiling"], 0.0) + one["least_seconds"]
        into.seconds += one["seconds"]
        into.flops += one["flops"]
        into.bytes += one["bytes"]
    return list(found.values())


def _share(least: float, seconds: float) -> float:
    return least / seconds if seconds > 0 else 0.0

"""Which figures of a result are to be trusted: every throughput with its judgement, the points that are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bareconv.report import format as fmt
from bareconv.report.candidates import Who, names, who, who_ran
from bareconv.report.ratios import mark
from bareconv.report.sweep import points


@dataclass(frozen=True)
class Measurement:
    """A candidate on a workload: who, what it is called there, its ``throughput``."""

    one: Who
    name: str
    workload: str
    steady: Mapping[str, Any]

    @property
    def stable(self) -> bool:
        return not self.mark

    @property
    def mark(self) -> str:
        """What must be seen beside it."""
        return mark(self.steady)


def measurements(result: Mapping[str, Any]) -> list[Measurement]:
    """Every throughput of the result once: those of peers' groups, then of runs that are in no group."""
    found: list[tuple[Who, str, Mapping[str, Any]]] = []
    seen: list[Any] = []
    for group in result.get("peers", ()):
        for candidate in group["candidates"]:
            if "throughput" in candidate:
                found.append((who(candidate, group), _workload(group), candidate["throughput"]))
                seen.append(candidate["throughput"]["samples"])
    for run in result["runs"]:
        if "throughput" in run and run["throughput"]["samples"] not in seen:
            found.append((who_ran(run), _workload(run), run["throughput"]))
    called = names([one for one, _, _ in found])
    return [
        Measurement(one, name.partition(" #")[0], workload, steady)
        for (one, workload, steady), name in zip(found, called, strict=True)
    ]


def _workload(entry: Mapping[str, Any]) -> str:
    return f"{entry['model']}, {fmt.count(entry['batch_size'])}"


def unsteady_points(result: Mapping[str, Any]) -> list[str]:
    """The points of sweeps that are not to be trusted, in words."""
    said = []
    for sweep in result.get("sweeps", ()):
        called = names([who(curve) for curve in sweep["curves"]])
        for name, curve in zip(called, sweep["curves"], strict=True):
            said += [
                f"{name}, {sweep['axis'].replace('_', ' ')} {fmt.count(p['value'])} ({word})"
                for p in points(curve)
                if (word := mark(p))
            ]
    return said


def figures(result: Mapping[str, Any]) -> tuple[int, int]:
    """How many figures are not to be trusted, and how many were judged at all."""
    judged = [m for m in measurements(result) if "noise" in m.steady]
    swept = [p for sweep in result.get("sweeps", ()) for c in sweep["curves"] for p in points(c) if "stable" in p]
    unstable = sum(not m.stable for m in judged) + sum(not p["stable"] for p in swept)
    return unstable, len(judged) + len(swept)

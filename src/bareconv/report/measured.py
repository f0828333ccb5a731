"""Whether a benchmark has measured anything: where the time was up too early, its parts are there without figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bareconv.report.consumption import is_known

PARTS = ("peers", "rooflines", "sweeps", "clocks", "learning", "energy")


def is_empty(result: Mapping[str, Any]) -> bool:
    """Whether there is no run, and not one figure in any part of a benchmark."""
    return not result.get("runs") and not any(_figures(result))


def is_of_benchmark(result: Mapping[str, Any]) -> bool:
    """Whether a benchmark was to be made, with figures or without."""
    return any(part in result for part in PARTS)


def _figures(result: Mapping[str, Any]) -> list[bool]:
    """For everything that may have a figure, whether it has one."""
    return [
        *("throughput" in candidate for group in result.get("peers", ()) for candidate in group["candidates"]),
        *(bool(found["ceilings"] or found["steps"]) for found in result.get("rooflines", ())),
        *(
            not point.get("error")
            for sweep in result.get("sweeps", ())
            for curve in sweep["curves"]
            for point in curve["points"]
        ),
        *(True for _ in result.get("clocks", ())),
        *(bool(candidate["steps"]) for entry in result.get("learning", ()) for candidate in entry["candidates"]),
        *(is_known(entry) for entry in result.get("energy", ())),
    ]

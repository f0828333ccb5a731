"""What the rungs of a ladder executed, as far as a result says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bareconv.report import format as fmt

_COUNTED_ELSE = ("plan engine", "Winograd")  # rungs of a step that do not execute what the direct method does


def slowest_and_fastest(problem: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """Of the rungs that were measured; None where none was."""
    rungs = sorted(measured(problem), key=lambda rung: rung["images_per_second"])
    return (rungs[0], rungs[-1]) if rungs else None


def measured(problem: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rungs that have figures."""
    return [rung for rung in problem["rungs"] if rung["status"] == "measured"]


def executed(problem: Mapping[str, Any], rung: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """FLOP/s that a measured rung executed, and their share of the peak; None where they were not counted.

    Results of before they were have there, of a step, what the direct method would have executed.
    """
    if _is_uncounted(problem, rung):
        return None, None
    return rung["executed_flops_per_second"], rung["peak_share"]


def _is_uncounted(problem: Mapping[str, Any], rung: Mapping[str, Any]) -> bool:
    return problem["name"] == "step" and rung["name"] in _COUNTED_ELSE and "counted" not in rung


def remarks(problem: Mapping[str, Any]) -> list[str]:
    """What to know of the executed operations: how they were counted, or that they were not."""
    rungs = measured(problem)
    said = [f"Executed, {rung['name']}: {rung['counted']}." for rung in rungs if "counted" in rung]
    without = [rung["name"] for rung in rungs if _is_uncounted(problem, rung)]
    if without:
        said.append(
            f"What {fmt.listed(without)} executed was not counted when this was measured. It is less than the direct "
            "method does, by which the effective rate counts and may so be above the peak."
        )
    return said

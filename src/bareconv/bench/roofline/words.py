"""Rooflines, for people: a ceiling, a step, a table for a terminal without colours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bareconv.bench.roofline.records import TRUSTED, groups
from bareconv.report.format import flops, metric, percent, seconds


def step_title(step: Mapping[str, Any]) -> str:
    """What a person calls it."""
    engine = step.get("engine", "plan")
    return f"{step['model']}, batch {step['batch_size']:,}, {step['precision']}" + (
        "" if engine == "plan" else f", {engine}"
    )


def value(ceiling: Mapping[str, Any]) -> str:
    """A ceiling's value: "4.12 TB/s", "67.0 TFLOP/s", "1.20 µs"."""
    per_second = ceiling["per_second"]
    if ceiling["unit"] == "FLOP":
        return flops(per_second)
    if ceiling["unit"] == "byte":
        return metric(per_second, "B/s")
    return seconds(1 / per_second)


def in_words(ceiling: Mapping[str, Any]) -> str:
    """A ceiling's name and value: "memory 4.12 TB/s"."""
    return f"{ceiling['name']} {value(ceiling)}"


def table(rooflines: Mapping[str, Any]) -> str:
    """The ceilings on a line, where there are any, and a few lines a step."""
    lines = [", ".join(map(in_words, rooflines["ceilings"]))] if rooflines["ceilings"] else []
    for step in rooflines["steps"]:
        every = step["launches"]
        alone = math.fsum(one["seconds"] for one in every)
        share = math.fsum(one["least_seconds"] for one in every) / alone
        lines.append(
            f"{step_title(step)}: {seconds(step['step_seconds'])} a step, {len(every)} launches of {seconds(alone)} "
            f"one by one, {percent(share, 0)} of the roofline"
        )
        for group in groups(step):
            what = f"{group.phase} {group.kernel} ({group.node})"
            lines.append(f"  {seconds(group.seconds):>8}  {percent(group.share, 0):>5} of {group.ceiling:<14} {what}")
    return "\n".join(lines)


def remarks(rooflines: Mapping[str, Any]) -> list[str]:
    """What a reader must know of these figures: times of parts that are not to be trusted, and what is missing."""
    found = list(rooflines.get("notes", ()))
    for step in rooflines["steps"]:
        cost = step.get("marks_cost", 0.0)
        if cost > TRUSTED:
            found.append(
                f"{step_title(step)}, on {rooflines['device']}: to time its parts made the step {percent(cost, 0)} "
                "slower, so that their times are not to be trusted."
            )
    return found

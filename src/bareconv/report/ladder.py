"""A ladder as a report tells it: what each rung executed, and the figure, a bar for each rung."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bareconv.report import format as fmt
from bareconv.report.canvas import WIDE, NothingToShow, new_figure, styled
from bareconv.report.marks import Look, bar_rows, legend, room_for_values, set_linear, set_log, swatches, titles
from bareconv.report.palette import LIGHT

_LOG_FROM = 20.0  # where the fastest is this many times the slowest, the axis is logarithmic


_COUNTED_ELSE = ("plan engine", "Winograd")  # rungs of a step that do not execute what the direct method does


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
    measured = [rung for rung in problem["rungs"] if rung["status"] == "measured"]
    said = [f"Executed, {rung['name']}: {rung['counted']}." for rung in measured if "counted" in rung]
    without = [rung["name"] for rung in measured if _is_uncounted(problem, rung)]
    if without:
        said.append(
            f"What {' and '.join(without)} executed was not counted when this was measured. It is less than the direct "
            "method does, by which the effective rate counts and may so be above the peak."
        )
    return said


@styled
def ladder_bars(result: dict[str, Any], *, width: float = WIDE) -> Figure:
    """Images a second of every rung that was measured, a panel for each problem."""
    problems = [
        (problem, [rung for rung in problem["rungs"] if rung["status"] == "measured"])
        for problem in result.get("ladder", {"problems": []})["problems"]
    ]
    problems = [(problem, rungs) for problem, rungs in problems if rungs]
    if not problems:
        raise NothingToShow("no rung was measured")
    heights = [len(rungs) * 0.3 + 0.75 for _, rungs in problems]
    figure = new_figure(width, sum(heights) + 0.3)
    boxes = np.ravel(figure.subplots(len(problems), 1, squeeze=False, height_ratios=heights))
    looks = [Look("CPU", LIGHT["cpu"], 1.0, (), False, False), Look("GPU", LIGHT["gpu"], 1.0, (), True, False)]
    any_gpu = False
    for axes, (problem, rungs) in zip(boxes, problems, strict=True):
        rates = [rung["images_per_second"] for rung in rungs]
        gpus = [rung["device"] != "cpu" for rung in rungs]
        any_gpu |= any(gpus)
        series = [
            (look, [rate if gpu is look.gpu else None for rate, gpu in zip(rates, gpus, strict=True)]) for look in looks
        ]
        names, room = [rung["name"] for rung in rungs], room_for_values(width - 1.2)
        if max(rates) / min(rates) > _LOG_FROM:
            low = min(rates) / 2
            bar_rows(axes, names, series, fmt.rate, base=low)
            set_log(axes, "x", low, max(rates) * (max(rates) / low) ** (room / (1 - room)), _tick)
            titles(axes, problem["description"], "images a second, logarithmic")
        else:
            bar_rows(axes, names, series, fmt.rate)
            set_linear(axes, "x", max(rates) / (1 - room), _tick)
            titles(axes, problem["description"], "images a second")
    if any_gpu:
        legend(figure, swatches(looks))
    return figure


def _tick(x: float) -> str:
    return fmt.count(x)

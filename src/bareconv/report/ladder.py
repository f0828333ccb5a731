"""The figure of a ladder: a bar for each rung, or a disc where the fastest is many times as fast as the slowest."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bareconv.report import format as fmt
from bareconv.report.canvas import WIDE, NothingToShow, new_figure, styled
from bareconv.report.marks import Look, bar_rows, legend, room_for_values, set_linear, set_log, swatches, titles
from bareconv.report.palette import LIGHT
from bareconv.report.rungs import measured

_LOG_FROM = 20.0  # where the fastest is this many times the slowest, the axis is logarithmic


@styled
def ladder_bars(result: dict[str, Any], *, width: float = WIDE) -> Figure:
    """Images a second of every rung that was measured, a panel for each problem."""
    problems = [(problem, measured(problem)) for problem in result.get("ladder", {"problems": []})["problems"]]
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
            bar_rows(axes, names, series, fmt.rate, dots=True)
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

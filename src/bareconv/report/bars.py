"""The bars of a result: speed-up, time by operation, memory by component.

Each takes the validated result and ``width`` in inches (canvas.WIDE or canvas.NARROW); each returns a Figure, or raises
NothingToShow where the result has no data for it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bareconv.report import format as fmt
from bareconv.report.canvas import NARROW, WIDE, NothingToShow, new_figure, styled
from bareconv.report.marks import (
    Look,
    bar_rows,
    fullest,
    legend,
    looks,
    room_for_values,
    set_bytes,
    set_linear,
    set_log,
    short,
    swatches,
    tick_seconds,
    titles,
)
from bareconv.report.palette import COMPONENTS, LIGHT
from bareconv.report.runs import PARTS, Speedup, operations, pairs, speedups

_MOST_ROWS = 20  # operations shown one by one


@styled
def speedup_bars(result: dict[str, Any], *, width: float = WIDE) -> Figure:
    """GPU over CPU, for the whole run, its parts and every operation; a bar to the left of 1 is the CPU's."""
    runs = result["runs"]
    style = looks(runs)
    measured = [(pair, speedups(runs, pair)) for pair in pairs(runs)]
    measured = [(pair, found) for pair, found in measured if found]
    if not measured:
        raise NothingToShow("there is no GPU run with a CPU run to compare it with")
    every = [s for _, found in measured for s in found]
    groups = [(group, _names([s for s in every if s.group == group])) for group in ("run", "operation")]
    groups = [(group, names) for group, names in groups if names]
    bar = 0.3 if len(measured) == 1 else 0.17 * len(measured) + 0.08
    heights = [len(names) * bar + 0.45 for _, names in groups]
    figure = new_figure(width, sum(heights) + (0.55 if len(measured) > 1 else 0.35))
    boxes = np.ravel(figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights))
    low, high = min(0.8, *(s.ratio for s in every)), max(1.25, *(s.ratio for s in every))
    room = room_for_values(width - 1.4)
    for axes, (group, names) in zip(boxes, groups, strict=True):
        series = []
        for pair, found in measured:
            ratios = {s.name: s.ratio for s in found if s.group == group}
            series.append((style[pair.gpu], [ratios.get(name) for name in names]))
        bar_rows(axes, names, series, fmt.ratio, base=1.0, left=LIGHT["cpu"])
        set_log(axes, "x", low / 1.05, high * (high / low) ** (room / (1 - room)), lambda x: short(fmt.ratio(x)), 7)
        axes.axvline(1, color=LIGHT["muted"], linewidth=1)
        titles(axes, "The run and its parts" if group == "run" else "By operation")
    boxes[-1].set_xlabel("times as fast as the CPU, logarithmic", loc="left")
    if len(measured) > 1:
        several = len({pair.cpu for pair, _ in measured}) > 1
        entries = [
            (handle, f"{name} over {style[pair.cpu].name}" if several else name)
            for (handle, name), (pair, _) in zip(
                swatches([style[pair.gpu] for pair, _ in measured]), measured, strict=True
            )
        ]
        legend(figure, entries, columns=1 if width <= NARROW and several else 2 if width <= NARROW else 4)
    return figure


def _names(found: list[Speedup]) -> list[str]:
    """The names in order; where there are more than a figure can hold, those that took the CPU longest."""
    longest: dict[str, float] = {}
    for s in found:
        longest[s.name] = max(s.seconds, longest.get(s.name, 0.0))
    kept = sorted(longest, key=lambda name: -longest[name])[:_MOST_ROWS]
    parts = {name: place for place, name in enumerate(PARTS)}
    return sorted((name for name in longest if name in kept), key=lambda name: parts.get(name, 0))


@styled
def operation_bars(result: dict[str, Any], *, width: float = WIDE) -> Figure:
    """The seconds of each operation of one step, forward and backward, a bar for each run.

    The axis is linear however far apart they are: a bar's length says how long it took, and a short one has its number.
    """
    shown, names = operations_by_run(result)
    if not shown:
        raise NothingToShow("no run was profiled by operation")
    every = [x for _, found in shown for times in found.values() for x in times if x > 0]
    if not every:
        raise NothingToShow("no operation took any time")
    narrow = width <= NARROW
    crowd = fullest([(look, [sum(found[n]) if n in found else None for n in names]) for look, found in shown])
    height = len(names) * (0.3 if crowd == 1 else 0.16 * crowd + 0.09) + 0.6
    figure = new_figure(width, (2 * height if narrow else height) + 0.35)
    boxes = np.ravel(figure.subplots(2 if narrow else 1, 1 if narrow else 2, squeeze=False))
    room = room_for_values(width - 1.2 if narrow else width / 2 - 0.6)
    for side, (axes, title) in enumerate(zip(boxes, ("Forward", "Backward"), strict=True)):
        series = [(look, [found[n][side] if n in found else None for n in names]) for look, found in shown]
        bar_rows(axes, names, series, fmt.seconds, names=narrow or side == 0)
        set_linear(axes, "x", max(every) / (1 - room), tick_seconds, 4)
        titles(axes, title, "seconds of one step")
    if len(shown) > 1:
        legend(figure, swatches([look for look, _ in shown]), columns=2 if narrow else 6)
    return figure


def operations_by_run(
    result: dict[str, Any],
) -> tuple[list[tuple[Look, dict[str, tuple[float, float]]]], list[str]]:
    """The profiled runs with their operations' seconds, and the names of all operations in order.

    Where there are more than a figure can hold, the quickest are summed up as one, the last. With several models a name
    begins with its model's.
    """
    models = {run["model"] for run in result["runs"]}
    shown = []
    every = operations(result["runs"])
    for i, (run, look) in enumerate(zip(result["runs"], looks(result["runs"]), strict=True)):
        found = {name: times for name, row in every.items() if (times := row[i]) is not None}
        if found:
            shown.append((look, {f"{run['model']} {n}" if len(models) > 1 else n: t for n, t in found.items()}))
    names = list(dict.fromkeys(name for _, found in shown for name in found))
    if len(names) > _MOST_ROWS:
        longest = {name: max(sum(found.get(name, (0.0, 0.0))) for _, found in shown) for name in names}
        kept = set(sorted(names, key=lambda name: -longest[name])[: _MOST_ROWS - 1])
        rest = f"{len(names) - len(kept)} others"
        cut = []
        for look, found in shown:
            less = {name: times for name, times in found.items() if name in kept}
            others = [times for name, times in found.items() if name not in kept]
            if others:
                less[rest] = (sum(f for f, _ in others), sum(b for _, b in others))
            cut.append((look, less))
        shown, names = cut, [name for name in names if name in kept] + [rest]
    return shown, names


@styled
def memory_bars(result: dict[str, Any], *, width: float = WIDE) -> Figure:
    """The peak memory of each run, split into its components where that is known."""
    runs = [(run, look) for run, look in zip(result["runs"], looks(result["runs"]), strict=True)]
    runs = [(run, look) for run, look in runs if run["peak_memory_bytes"] > 0]
    if not runs:
        raise NothingToShow("no run has a peak of memory")
    narrow = width <= NARROW
    parts = [part for part in COMPONENTS if any(run.get("memory", {}).get(part) for run, _ in runs)]
    whole = max(max(run["peak_memory_bytes"], sum(run.get("memory", {}).values())) for run, _ in runs)
    figure = new_figure(width, 0.46 * len(runs) + 0.55 + (0.22 * math.ceil(len(parts) / (3 if narrow else 6))))
    axes = figure.subplots()
    room = room_for_values(width - 1)
    per_inch = whole / (1 - room) / (width - 1.1)  # bytes that an inch of the axis stands for
    for y, (run, look) in enumerate(runs):
        split = [(part, run.get("memory", {}).get(part, 0)) for part in COMPONENTS]
        left = 0.0
        for part, size in split if any(size for _, size in split) else [("", run["peak_memory_bytes"])]:
            if not size:
                continue
            colour = LIGHT[part] if part else look.colour
            axes.barh(y, size, left=left, height=0.62, color=colour, edgecolor=LIGHT["paper"], linewidth=0.8)
            if part and size / per_inch > 0.62:
                axes.text(
                    left + size / 2,
                    y,
                    fmt.bytes_(size),
                    ha="center",
                    va="center_baseline",
                    fontsize=8.5,
                    color=LIGHT["paper"],
                )
            left += size
        axes.annotate(
            fmt.bytes_(run["peak_memory_bytes"]),
            (left, y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center_baseline",
            fontweight="bold",
            fontsize=9,
        )
    axes.set_yticks(range(len(runs)), [look.name for _, look in runs])
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"], labelsize=9.5)
    axes.set_ylim(len(runs) - 0.5, -0.5)
    set_bytes(axes, whole / (1 - room))
    axes.grid(visible=False, axis="y")
    axes.spines["bottom"].set_visible(False)
    if parts:
        legend(figure, [(Patch(color=LIGHT[part], linewidth=0), part) for part in parts], columns=3 if narrow else 6)
    return figure

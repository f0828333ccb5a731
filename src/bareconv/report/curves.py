"""The curves of a result: convergence of its runs, and how closely two sides agree step by step.

Each takes the validated result and ``width`` in inches (canvas.WIDE or canvas.NARROW); each returns a Figure, or raises
NothingToShow where the result has no data for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bareconv.report import format as fmt
from bareconv.report.canvas import NARROW, WIDE, NothingToShow, label, new_figure, styled
from bareconv.report.marks import (
    Line,
    Look,
    legend,
    log_ticks,
    looks,
    set_log,
    smooth,
    strokes,
    thin,
    titles,
)
from bareconv.report.palette import LIGHT
from bareconv.report.runs import Run

_POINTS = 360  # of one line; more than a chart's pixels show


@styled
def convergence(result: dict[str, Any], *, width: float = WIDE) -> Figure:
    """Loss by step and by time, accuracy by epoch and by time, of all runs laid over each other."""
    shown = [(run, look) for run, look in zip(result["runs"], looks(result["runs"]), strict=True)]
    shown = [(run, look) for run, look in shown if np.isfinite(_loss(run)).any()]
    if not shown:
        raise NothingToShow("no run has a history")
    by_time = len(shown) > 1 and all(run["train_seconds"] > 0 for run, _ in shown)
    rows: list[list[Callable[[Axes], None]]] = [[lambda axes: _losses(axes, shown, by_time=False)]]
    if by_time:
        rows[0].append(lambda axes: _losses(axes, shown, by_time=True))
    if any(len(_accuracies(run, shown)[1]) > 1 for run, _ in shown):
        accuracy = [lambda axes: _accuracy(axes, shown, by_time=False)]
        if by_time:
            accuracy.append(lambda axes: _accuracy(axes, shown, by_time=True))
        rows.append(accuracy)
    panels = [panel for row in rows for panel in row]
    columns = 1 if width <= NARROW else min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = new_figure(width, 0.35 + 2.45 * lines)
    for axes, panel in zip(np.ravel(figure.subplots(lines, columns, squeeze=False)), panels, strict=False):
        panel(axes)
    legend(figure, strokes([look for _, look in shown]), columns=2 if width <= NARROW else 6)
    return figure


def _losses(axes: Axes, shown: list[tuple[Run, Look]], *, by_time: bool) -> None:
    lowest, highest, end, first = math.inf, 0.0, 0.0, math.inf
    for run, look in shown:
        loss = _loss(run)
        step = run["train_seconds"] / loss.size if by_time else 1.0
        mean = smooth(loss, _window(loss))
        if not by_time:
            x, raw = thin(loss, 2 * _POINTS)
            axes.plot((x + 1) * step, raw, color=look.colour, alpha=min(0.25, 0.4 / len(shown)), linewidth=0.6)
        at = np.unique(np.geomspace(1, loss.size, _POINTS).astype(int)) - 1
        if not by_time:
            at = np.unique(np.linspace(0, loss.size - 1, _POINTS).astype(int))
        at = at[np.isfinite(mean[at])]
        _line(axes, (at + 1) * step, mean[at], look)
        good = mean[np.isfinite(mean)]
        lowest, highest = min(lowest, float(good.min())), max(highest, float(good.max()))
        end, first = max(end, loss.size * step), min(first, step)
    if lowest > 0 and highest / lowest > 5:
        set_log(axes, "y", lowest / 1.6, highest * 1.25, lambda x: f"{x:g}", 5)
    else:
        axes.set_ylim(min(0.0, lowest), highest * 1.1 if highest > 0 else 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    if by_time:
        set_log(axes, "x", first * 0.9, end * 1.15)
        titles(axes, "Training loss by time", "training time, logarithmic")
    else:
        axes.set_xlim(0, end * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: fmt.count(x)))
        titles(axes, "Training loss by step", _step(shown))


def _window(loss: Line) -> int:
    """Over how many steps the running mean is taken."""
    return max(1, loss.size // 25)


def _step(shown: list[tuple[Run, Look]]) -> str:
    windows = {_window(_loss(run)) for run, _ in shown}
    return f"step; bold: the mean of {windows.pop()} steps" if len(windows) == 1 and windows != {1} else "step"


def _accuracy(axes: Axes, shown: list[tuple[Run, Look]], *, by_time: bool) -> None:
    seconds: list[float] = []
    for run, look in shown:
        x, accuracy = _accuracies(run, shown)
        if by_time:
            total = np.cumsum([epoch["train_seconds"] for epoch in run["history"]["epochs"]])
            x = np.array([total[int(i)] for i in _with_accuracy(run, shown)])
            seconds += [float(s) for s in x if s > 0]
        _line(axes, x, accuracy, look, marker="o")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.4g}%"))
    name = f"{_split(shown).capitalize()} accuracy"
    if by_time and seconds:
        set_log(axes, "x", min(seconds) / 1.3, max(seconds) * 1.3)
        titles(axes, f"{name} by time", "training time, logarithmic")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        titles(axes, f"{name} by epoch", "epoch")


def _line(axes: Axes, x: Line, y: Line, look: Look, marker: str = "") -> None:
    size = 7 if look.broad else 4
    axes.plot(x, y, marker="o" if len(x) == 1 else marker, markersize=size, markeredgewidth=0, **look.stroke())


def _loss(run: Run) -> Line:
    return np.array([math.nan if x is None else x for x in run["history"]["loss"]], dtype=np.float64)


def _split(shown: list[tuple[Run, Look]]) -> str:
    """Which accuracy is shown: of the test or validation images where any epoch has one, else of the batches."""
    for run, _ in shown:
        if any(epoch.get("test_accuracy") is not None for epoch in run["history"]["epochs"]):
            return str(run.get("test_split") or "test")
    return "training"


def _with_accuracy(run: Run, shown: list[tuple[Run, Look]]) -> list[int]:
    key = "train_accuracy" if _split(shown) == "training" else "test_accuracy"
    return [i for i, epoch in enumerate(run["history"]["epochs"]) if epoch.get(key) is not None]


def _accuracies(run: Run, shown: list[tuple[Run, Look]]) -> tuple[Line, Line]:
    key = "train_accuracy" if _split(shown) == "training" else "test_accuracy"
    epochs = [run["history"]["epochs"][i] for i in _with_accuracy(run, shown)]
    return np.array([e["epoch"] for e in epochs], np.float64), np.array([e[key] for e in epochs], np.float64)


@styled
def parity_plot(result: dict[str, Any], *, width: float = WIDE) -> Figure:
    """How far apart two sides trained in lockstep are, step by step, on a logarithmic axis, with the tolerance."""
    tested = result.get("parity", [])
    if not tested:
        raise NothingToShow("no parity was measured")
    columns = 1 if width <= NARROW else min(2, len(tested))
    lines = math.ceil(len(tested) / columns)
    figure = new_figure(width, 0.4 + 2.5 * lines)
    for axes in np.ravel(figure.subplots(lines, columns, squeeze=False))[len(tested) :]:
        axes.set_axis_off()
    for axes, parity in zip(figure.axes, tested, strict=False):
        _parity(axes, parity)
    drawn: list[tuple[str, str, Any]] = [
        ("loss", LIGHT["ink"], "-"),
        ("weights", LIGHT["error"], "-"),
        ("tolerance", LIGHT["bad"], "--"),
    ]
    legend(figure, [(Line2D([], [], color=c, linestyle=d, linewidth=1.6), name) for name, c, d in drawn])
    return figure


def _parity(axes: Axes, parity: dict[str, Any]) -> None:
    tolerance = parity["tolerance"]
    lines = [np.array(parity[key], np.float64) for key in ("loss_difference", "weight_difference")]
    positive = np.concatenate([line[np.isfinite(line) & (line > 0)] for line in lines] + [np.array([tolerance])])
    # A logarithmic axis has no zero: exactly equal steps stand on a floor below all others, marked "0".
    floor = float(positive.min()) / 10
    exact = any((line == 0).any() for line in lines)
    for line, colour in zip(lines, (LIGHT["ink"], LIGHT["error"]), strict=True):
        x, y = thin(line, _POINTS)
        few = x.size <= 60
        axes.plot(
            x + 1, np.where(y > 0, y, floor), color=colour, linewidth=1.4, marker="o" if few else "", markersize=2.6
        )
    axes.axhline(tolerance, color=LIGHT["bad"], linestyle="--", linewidth=1.4)
    low, high = (floor if exact else float(positive.min())) / 2, float(positive.max()) * 4
    ticks = [t for t in log_ticks(low, high, 6) if not exact or t > floor * 1.5]
    set_log(axes, "y", low, high, fmt.scientific)
    axes.set_yticks(([floor] if exact else []) + ticks, (["0"] if exact else []) + [fmt.scientific(t) for t in ticks])
    axes.set_xlim(0, parity["steps"] + 1)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: fmt.count(x)))
    titles(axes, label(f"{parity['candidate']} against {parity['reference']}", 48), "step")

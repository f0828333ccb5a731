"""Accuracy over the time of training steps, of every candidate on every device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from bareconv.report import format as fmt
from bareconv.report.bench.lines import End, candidate_looks, draw_line, flags
from bareconv.report.candidates import Who
from bareconv.report.canvas import NARROW, WIDE, NothingToShow, new_figure, styled
from bareconv.report.lessons import Entry, candidates, goal, learning_table, seconds_to, workloads
from bareconv.report.marks import Look, set_log, titles
from bareconv.report.palette import LIGHT
from bareconv.report.sections import Block, Chart, Prose, Section, Words

Shown = tuple[Who, Look, list[float], list[float], Mapping[str, Any]]  # whose line, its points, its record

_TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)


def learning_section(result: Mapping[str, Any]) -> Section | None:
    """A chart for each workload, all devices in it; None where nobody learned anything."""
    blocks: list[Block] = []
    groups = workloads(result.get("learning", ()))
    for place, entries in enumerate(groups):
        first = entries[0]
        blocks.append(
            Chart(
                f"learning-{place}",
                lambda w, entries=entries: learning_chart(entries, width=w),  # type: ignore[misc]
                lambda entries=entries: learning_words(entries),  # type: ignore[misc]
            )
        )
        blocks.append(learning_table(entries))
        blocks.append(
            Prose(
                f"{first['model']}, batches of {fmt.count(first['batch_size'])}, {_precisions(entries)}: all begin "
                "with the same weights and take the same batches in the same order. The time is of the training steps "
                f"alone; the accuracy is of {fmt.count(first['test_images'])} test images.",
                "aside",
            )
        )
    return Section("learning", "Time to accuracy", "Learning", blocks) if blocks else None


def _precisions(entries: Sequence[Entry]) -> str:
    return " and ".join(dict.fromkeys(entry["precision"] for entry in entries))


@styled
def learning_chart(entries: Sequence[Entry], *, width: float = WIDE) -> Figure:
    """Accuracy on an axis where each half of the remaining errors takes the same room, over seconds, logarithmic."""
    everyone = candidates(entries)
    looks = candidate_looks([one for one, _, _ in everyone], [name for _, name, _ in everyone])
    smallest = 0.5 / max(1, entries[0]["test_images"])  # an error rate of none at all has no logarithm
    shown: list[Shown] = []
    for (one, _, record), look in zip(everyone, looks, strict=True):
        both = [(s, a) for s, a in zip(record["seconds"], record["accuracy"], strict=True) if s > 0]
        if both:
            shown.append((one, look, [s for s, _ in both], [_height(a, smallest) for _, a in both], record))
    if not shown:
        raise NothingToShow("no candidate learned for any time")
    height = (3.1 if width <= NARROW else 3.7) + 0.12 * len(shown)  # each has a name above or below the lines
    figure = new_figure(width, height)
    axes = figure.subplots()
    target = goal(entries)
    every = [y for _, _, _, ys, _ in shown for y in ys]
    low, high = min(every), max(every)
    room = max(0.05, 0.06 * (high - low))
    axes.set_ylim(low - room, high + room)
    _accuracy_ticks(axes, low, high, smallest)
    seconds = [s for _, _, xs, _, _ in shown for s in xs]
    set_log(axes, "x", min(seconds) / 1.2, max(seconds) * 1.15, most=4 if width <= NARROW else 7)
    if target is not None:
        y = _height(target, smallest)
        axes.axhline(y, color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"{fmt.percent(target, 1)} right",
            (0, y),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=8.5,
            color=LIGHT["muted"],
            va="bottom",
        )
    for _, look, xs, ys, _ in shown:
        draw_line(axes, look, xs, ys)
    reached, others = _ends(shown, target, smallest)
    for end in reached:
        _dot(axes, end)
    note = f"did not reach {fmt.percent(target, 1)}" if target is not None else ""
    flags(axes, reached, width - 0.7, height - 0.75, others, note)
    titles(axes, "Test accuracy", "seconds of training, logarithmic")
    return figure


def _ends(shown: Sequence[Shown], target: float | None, smallest: float) -> tuple[list[End], list[End]]:
    """Where names stand: of who reached the goal, at the moment on its line; of the others, at their last look."""
    reached, others = [], []
    for one, look, xs, ys, record in shown:
        moment = seconds_to(record, target)
        if target is not None and moment is not None:
            text = f"{look.name}, {fmt.seconds(moment)}"
            reached.append(End(moment, _height(target, smallest), look, text, one.ours))
        else:
            others.append(End(xs[-1], ys[-1], look, look.name, one.ours))
    return (others, []) if target is None else (reached, others)


def _dot(axes: Axes, end: End) -> None:
    """The moment at which the goal was reached."""
    axes.plot(
        [end.x],
        [end.y],
        linestyle="",
        marker="o",
        markersize=9,
        markerfacecolor=end.look.colour,
        markeredgecolor=LIGHT["paper"],
        markeredgewidth=1.4,
        zorder=6,
    )


def _height(accuracy: float, smallest: float) -> float:
    return -math.log10(max(1 - accuracy, smallest))


def _accuracy_ticks(axes: Axes, low: float, high: float, smallest: float) -> None:
    ticks = [t for t in _TICKS if low - 1e-9 <= _height(t, smallest) <= high + 0.05 * (high - low) + 1e-9]
    while len(ticks) > 7:
        ticks = ticks[-1::-2][::-1]
    axes.yaxis.set_major_locator(FixedLocator([_height(t, smallest) for t in ticks]))
    axes.yaxis.set_major_formatter(FixedFormatter([f"{100 * t:.4g}%" for t in ticks]))
    axes.yaxis.set_minor_locator(NullLocator())


def learning_words(entries: Sequence[Entry]) -> Words:
    """When each candidate reached what."""
    said = []
    for _, name, record in candidates(entries):
        if not record["accuracy"]:
            continue
        text = f"{name} reached {fmt.percent(record['accuracy'][-1])} after {fmt.seconds(record['seconds'][-1])}"
        said.append(text)
    caption = (
        "Each gridline up halves the errors, or nearly. Time is logarithmic: the distance between two lines is how "
        "many times as fast one is."
    )
    if (target := goal(entries)) is not None:
        caption += (
            f" Large dots: when {fmt.percent(target, 1)} was reached.{_order(entries, target)} Below the lines: who "
        )
        caption += "has not reached it."
    return Words(f"Line chart of test accuracy over the time of training. {'; '.join(said)}.", caption)


def _order(entries: Sequence[Entry], target: float) -> str:
    """Who reached the goal first, and who second, in a sentence."""
    moments = [(moment, name) for _, name, r in candidates(entries) if (moment := seconds_to(r, target)) is not None]
    said = [f"{name} after {fmt.seconds(moment)}" for moment, name in sorted(moments)[:2]]
    return f" First {', then '.join(said)}." if len(said) > 1 else ""

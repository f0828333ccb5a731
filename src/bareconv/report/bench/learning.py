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
from bareconv.report.candidates import Who, colour, names, who
from bareconv.report.canvas import NARROW, WIDE, NothingToShow, new_figure, styled
from bareconv.report.marks import Look, set_log, titles
from bareconv.report.palette import LIGHT
from bareconv.report.sections import Block, Cell, Chart, Column, Prose, Section, Table, Words, figures
from bareconv.report.verdict import seconds_to

_TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)

Entry = Mapping[str, Any]
Shown = tuple[Who, str, Mapping[str, Any]]  # a candidate, its name, its record


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


def workloads(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries that belong in one chart: one model, one batch size."""
    groups: dict[tuple[str, int], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry["model"], entry["batch_size"]), []).append(entry)
    return list(groups.values())


def candidates(entries: Sequence[Entry]) -> list[Shown]:
    """Everyone in a chart, with a name."""
    both = [(who(one, entry), one) for entry in entries for one in entry["candidates"]]
    called = names([one for one, _ in both])
    return [(one, name, record) for (one, record), name in zip(both, called, strict=True)]


def _precisions(entries: Sequence[Entry]) -> str:
    return " and ".join(dict.fromkeys(entry["precision"] for entry in entries))


@styled
def learning_chart(entries: Sequence[Entry], *, width: float = WIDE) -> Figure:
    """Accuracy on an axis where each half of the remaining errors takes the same room, over seconds, logarithmic."""
    everyone = candidates(entries)
    looks = candidate_looks([one for one, _, _ in everyone], [name for _, name, _ in everyone])
    smallest = 0.5 / max(1, entries[0]["test_images"])  # an error rate of none at all has no logarithm
    shown: list[tuple[Who, Look, list[float], list[float], Mapping[str, Any]]] = []
    for (one, _, record), look in zip(everyone, looks, strict=True):
        both = [(s, a) for s, a in zip(record["seconds"], record["accuracy"], strict=True) if s > 0]
        if both:
            shown.append((one, look, [s for s, _ in both], [_height(a, smallest) for _, a in both], record))
    if not shown:
        raise NothingToShow("no candidate learned for any time")
    height = 3.6 if width <= NARROW else 4.2
    figure = new_figure(width, height)
    axes = figure.subplots()
    targets = {entry["target"] for entry in entries if "target" in entry}
    every = [y for _, _, _, ys, _ in shown for y in ys] + [_height(t, smallest) for t in targets]
    low, high = min(every), max(every)
    room = max(0.05, 0.06 * (high - low))
    axes.set_ylim(low - room, high + room)
    _accuracy_ticks(axes, low, high, smallest)
    seconds = [s for _, _, xs, _, _ in shown for s in xs]
    set_log(axes, "x", min(seconds) / 1.2, max(seconds) * 1.15, most=4 if width <= NARROW else 7)
    for target in targets:
        y = _height(target, smallest)
        axes.axhline(y, color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"target {fmt.percent(target, 1)}",
            (0, y),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=8.5,
            color=LIGHT["muted"],
            va="bottom",
        )
    ends = []
    for one, look, xs, ys, record in shown:
        draw_line(axes, look, xs, ys)
        reached = seconds_to(record, next(iter(targets), None))
        text = f"{look.name}, {fmt.seconds(reached)}" if reached is not None else look.name
        ends.append(End(xs[-1], ys[-1], look, text, one.ours))
    flags(axes, ends, width, height)
    titles(axes, "Test accuracy", "seconds of training, logarithmic")
    return figure


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
    """When each candidate reached the target, or what it reached."""
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
    if any("target" in entry for entry in entries):
        caption += " Beside the names: when the target was reached."
    return Words(f"Line chart of test accuracy over the time of training. {'; '.join(said)}.", caption)


def learning_table(entries: Sequence[Entry]) -> Table:
    """A row for each candidate: when it reached the target, and where it ended."""
    targets = {id(record): entry.get("target") for entry in entries for record in entry["candidates"]}
    goal = next((entry["target"] for entry in entries if "target" in entry), None)
    rows = []
    for one, name, record in candidates(entries):
        reached = seconds_to(record, targets[id(record)])
        if record["error"] is not None and not record["accuracy"]:
            rows.append([Cell(name, device=colour(one)), Cell(fmt.MISSING, note=record["error"]), Cell(""), Cell("")])
            continue
        last = record["accuracy"][-1] if record["accuracy"] else None
        rows.append(
            [
                Cell(name, device=colour(one), strong=one.ours),
                Cell(fmt.seconds(reached) if reached is not None else "not reached", strong=one.ours),
                Cell(fmt.count(record["steps"][-1]) if record["steps"] else fmt.MISSING),
                Cell(fmt.percent(last), note=record["error"] or ""),
            ]
        )
    heading = f"To {fmt.percent(goal, 1)}" if goal is not None else "To the target"
    return Table("Time to accuracy", [Column("Candidate"), *figures(heading, "Steps", "Last accuracy")], rows)

"""How throughput and the time of a step grow along an axis: a curve for each candidate, and where curves cross."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bareconv.report import format as fmt
from bareconv.report.bench.lines import End, candidate_looks, draw_line, end_labels, set_ticks
from bareconv.report.candidates import Who, colour, variants_in_full, who
from bareconv.report.canvas import NARROW, WIDE, NothingToShow, new_figure, styled
from bareconv.report.marks import Look, set_log, short, titles
from bareconv.report.palette import LIGHT
from bareconv.report.ratios import mark, with_mark
from bareconv.report.sections import (
    Block,
    Cell,
    Chart,
    Column,
    Fold,
    Prose,
    Section,
    Table,
    Words,
    cells,
    figures,
)
from bareconv.report.sweep import (
    AXES,
    Curve,
    Sweep,
    crossover_sentences,
    curve_names,
    main_crossover,
    notes,
    points,
    without_time,
)

POOR = 0.2  # of a point, by which a fit misses it, that says: this is not how the time grows


def sweep_sections(result: Mapping[str, Any]) -> list[Section]:
    """A section for each sweep that has a figure."""
    sweeps = result.get("sweeps", [])
    several = len({(sweep["axis"], sweep["model"]) for sweep in sweeps}) > len({sweep["axis"] for sweep in sweeps})
    found = []
    for place, sweep in enumerate(sweeps):
        if not any(points(curve) for curve in sweep["curves"]):
            continue
        title, short_title, _, _ = AXES[sweep["axis"]]
        if several:
            title, short_title = f"{title}: {sweep['model']}", f"{short_title}, {sweep['model']}"
        found.append(Section(f"sweep-{place}", title, short_title, _blocks(sweep, place)))
    return found


def _blocks(sweep: Sweep, place: int) -> list[Block]:
    curved = any(len(points(curve)) > 1 for curve in sweep["curves"])
    blocks: list[Block] = [
        Chart(f"sweep-{place}", lambda w: throughput_chart(sweep, width=w), lambda: throughput_words(sweep))
        if curved
        else Prose(single_points(sweep))
    ]
    blocks += [Prose(text) for text in crossover_sentences(sweep)]
    blocks += [Prose(note, "aside") for note in notes(sweep)]
    blocks.append(Fold("Every point as numbers", [points_table(sweep)]))
    if curved and (any(curve["fit"] for curve in sweep["curves"]) or sweep["axis"] == "batch_size"):
        blocks.append(Chart(f"sweep-{place}-step", lambda w: step_chart(sweep, width=w), lambda: step_words(sweep)))
    if any(curve["fit"] for curve in sweep["curves"]):
        blocks.append(fit_table(sweep))
    if any("peak_memory_bytes" in p for curve in sweep["curves"] for p in points(curve)):
        blocks.append(Fold("Peak memory", [memory_table(sweep)]))
    return blocks


@styled
def throughput_chart(sweep: Sweep, *, width: float = WIDE) -> Figure:
    """Images a second along the axis, both logarithmic; a ring where the curves of a verdict cross."""
    shown = _shown(sweep)
    main = sweep["axis"] == "batch_size"
    height = (3.5 if main else 2.7) if width <= NARROW else (4.3 if main else 3.0)
    figure = new_figure(width, height)
    axes = figure.subplots()
    _values_axis(axes, sweep, shown, width)
    every = [p["images_per_second"] for _, _, found in shown for p in found]
    low, high = min(e["low"] for e in every), max(e["high"] for e in every)
    set_log(axes, "y", low / 1.35, high * 1.45, axis_count, 6)
    ends = []
    for one, look, found in shown:
        x, rates = [p["value"] for p in found], [p["images_per_second"] for p in found]
        draw_line(
            axes,
            look,
            x,
            [r["value"] for r in rates],
            bounds=([r["low"] for r in rates], [r["high"] for r in rates]),
            stable=[p.get("stable", True) for p in found],
        )
        ends.append(End(x[-1], rates[-1]["value"], look, strong=one.ours, alone=len(x) == 1))
    _mark_crossover(axes, sweep)
    end_labels(axes, ends, width, height)
    titles(axes, "Images a second", _below(sweep))
    return figure


@styled
def step_chart(sweep: Sweep, *, width: float = WIDE) -> Figure:
    """Seconds of a step along the axis, both logarithmic; thin: the fitted growth."""
    shown = [(one, look, [p for p in found if p.get("step_seconds")]) for one, look, found in _shown(sweep)]
    shown = [one for one in shown if one[2]]
    if not shown:
        raise NothingToShow("no point has the time of a step")
    height = 2.9 if width <= NARROW else 3.3
    figure = new_figure(width, height)
    axes = figure.subplots()
    _values_axis(axes, sweep, shown, width)
    every = [p["step_seconds"] for _, _, found in shown for p in found]
    set_log(axes, "y", min(e["low"] for e in every) / 1.35, max(e["high"] for e in every) * 1.45)
    ends = []
    fits = dict(zip(curve_names(sweep), (curve["fit"] for curve in sweep["curves"]), strict=True))
    for one, look, found in shown:
        x, taken = [p["value"] for p in found], [p["step_seconds"] for p in found]
        fit = fits[look.name]
        if fit is not None:
            grid = [x[0] * (x[-1] / x[0]) ** (i / 60) for i in range(61)]
            grown = [fit["fixed_seconds"]["value"] + fit["each_seconds"]["value"] * g ** fit["power"] for g in grid]
            axes.plot(grid, [max(y, 1e-12) for y in grown], color=look.colour, linewidth=1.1, alpha=0.8, zorder=1)
        draw_line(
            axes,
            look,
            x,
            [t["value"] for t in taken],
            bounds=([t["low"] for t in taken], [t["high"] for t in taken]),
            stable=[p.get("stable", True) for p in found],
            joined=fit is None,
        )
        ends.append(End(x[-1], taken[-1]["value"], look, strong=one.ours, alone=len(x) == 1))
    end_labels(axes, ends, width, height)
    titles(axes, "Time of one step", _below(sweep))
    return figure


def _shown(sweep: Sweep) -> list[tuple[Who, Look, list[Mapping[str, Any]]]]:
    everyone = [who(curve) for curve in sweep["curves"]]
    looks = candidate_looks(everyone, curve_names(sweep))
    found = [(one, look, points(c)) for one, look, c in zip(everyone, looks, sweep["curves"], strict=True)]
    found = [one for one in found if one[2]]
    if not found:
        raise NothingToShow("no point of the sweep has figures")
    return found


def _values_axis(axes: Axes, sweep: Sweep, shown: Sequence[tuple[Any, Any, list[Any]]], width: float) -> None:
    values = sorted({p["value"] for _, _, found in shown for p in found})
    room = (values[-1] / values[0]) ** 0.03 if len(values) > 1 else 2.0
    axes.set_xscale("log")
    axes.set_xlim(values[0] / room, values[-1] * room)
    set_ticks(axes, "x", values, axis_count, 6 if width <= NARROW else 12)


def _below(sweep: Sweep) -> str:
    text = f"{AXES[sweep['axis']][2]}, logarithmic"
    return text if sweep["axis"] == "batch_size" else f"{text}; batches of {fmt.count(sweep['batch_size'])}"


def axis_count(x: float) -> str:
    """A number at an axis: "0.5", "64", "1,024", "50k", "2M"."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if x >= 10 * size or (x >= size and x % size == 0):
            return short(fmt.significant(x / size)) + letter
    return fmt.count(x)


def _mark_crossover(axes: Axes, sweep: Sweep) -> None:
    found = main_crossover(sweep)
    if found is None:
        return
    y = _rate_at(sweep["curves"][found["ahead_below"]], found["value"])
    if y is None:
        return
    if found["low"] is not None and found["high"] is not None:
        axes.axvspan(found["low"], found["high"], color=LIGHT["muted"], alpha=0.16, linewidth=0, zorder=0)
    axes.plot(
        [found["value"]],
        [y],
        linestyle="",
        marker="o",
        markersize=11,
        markerfacecolor="none",
        markeredgecolor=LIGHT["ink"],
        zorder=6,
    )
    interval = (
        f" ({fmt.significant(found['low'])} to {fmt.significant(found['high'])})"
        if found["low"] is not None and found["high"] is not None
        else ""
    )
    left, right = axes.get_xlim()
    late = math.log(found["value"] / left) > 0.55 * math.log(right / left)
    axes.annotate(
        f"they cross at {fmt.significant(found['value'])}{interval}",
        ((found["low"] if late else found["high"]) or found["value"], 0.04),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if late else 5, 0),
        textcoords="offset points",
        ha="right" if late else "left",
        va="bottom",
        fontsize=8.5,
        color=LIGHT["ink"],
    )


def _rate_at(curve: Curve, value: float) -> float | None:
    """Images a second between two points, by a straight line through the logarithms."""
    found = points(curve)
    for a, b in itertools.pairwise(found):
        if a["value"] <= value <= b["value"]:
            t = math.log(value / a["value"]) / math.log(b["value"] / a["value"])
            rates = a["images_per_second"]["value"], b["images_per_second"]["value"]
            return float(rates[0] ** (1 - t) * rates[1] ** t)
    return None


def throughput_words(sweep: Sweep) -> Words:
    """Each curve's ends; what bands and hollow markers mean."""
    said = []
    for name, curve in zip(curve_names(sweep), sweep["curves"], strict=True):
        found = points(curve)
        ends = [f"{fmt.rate(p['images_per_second']['value'], 'images')} at {fmt.count(p['value'])}" for p in found]
        if found:
            said.append(f"{name} from {ends[0]} to {ends[-1]}" if len(found) > 1 else f"{name} {ends[0]} alone")
    caption = (
        f"{sweep['model']}. The band around a line is its 95% interval; where none is seen it is narrower than the "
    )
    caption += "line."
    if any(len(points(curve)) == 1 for curve in sweep["curves"]):
        caption += " Of one point alone it is a bar."
    if any(mark(p) for curve in sweep["curves"] for p in points(curve)):
        caption += " Hollow: the blocks of that point are too few, or differ too much, to be trusted."
    caption = f"{caption} {variants_in_full([who(curve) for curve in sweep['curves']], curve_names(sweep))}".strip()
    return Words(f"Line chart of images a second by {AXES[sweep['axis']][2]}. {'; '.join(said)}.", caption)


def single_points(sweep: Sweep) -> str:
    """What was measured, where every curve is one point: that makes no chart."""
    said, unit = [], AXES[sweep["axis"]][3]
    for name, curve in zip(curve_names(sweep), sweep["curves"], strict=True):
        for point in points(curve):
            figure = fmt.within(point["images_per_second"], lambda x: fmt.rate(x).removesuffix("/s"))
            said.append(with_mark(f"{name} {figure} images/s at {unit} {fmt.count(point['value'])}", mark(point)))
    full = variants_in_full([who(curve) for curve in sweep["curves"]], curve_names(sweep))
    each = " of each" if len(said) > 1 else ""
    return f"One point was measured{each}, which makes no curve: {'; '.join(said)}. {full}".strip()


def step_words(sweep: Sweep) -> Words:
    """What the lines are."""
    said = []
    for name, curve in zip(curve_names(sweep), sweep["curves"], strict=True):
        found = [p for p in points(curve) if p.get("step_seconds")]
        if found:
            first, last = (fmt.seconds(p["step_seconds"]["value"]) for p in (found[0], found[-1]))
            said.append(f"{name} from {first} to {last}")
    caption = "Markers: what was measured."
    if any(curve["fit"] for curve in sweep["curves"]):
        caption += " Lines: a fixed time plus a time for each, as fitted; the fixed time is what small steps cannot go "
        caption += "below."
    return Words(f"Line chart of the time of one step by {AXES[sweep['axis']][2]}. {'; '.join(said)}.", caption)


def points_table(sweep: Sweep) -> Table:
    """A row for each value, a column for each curve: images a second with its interval."""
    called = curve_names(sweep)
    columns = [Column(AXES[sweep["axis"]][2].capitalize()), *figures(*called)]
    left_out = without_time(sweep)
    values = sorted({p["value"] for curve in sweep["curves"] for p in curve["points"]} - set(left_out))
    rows = []
    for value in values:
        row = [Cell(fmt.count(value))]
        for curve in sweep["curves"]:
            point = next((p for p in curve["points"] if p["value"] == value), None)
            row.append(_point_cell(point))
        rows.append(row)
    return Table(f"Images a second by {AXES[sweep['axis']][2]}", columns, rows)


def _point_cell(point: Mapping[str, Any] | None) -> Cell:
    if point is None:
        return Cell(fmt.MISSING)
    rate = point.get("images_per_second")
    if not rate:
        return Cell(fmt.MISSING, note=point["error"] or "")
    text = fmt.between(rate["low"], rate["high"], lambda x: fmt.rate(x).removesuffix("/s"))
    return Cell(fmt.rate(rate["value"]), note=text, mark=mark(point))


def fit_table(sweep: Sweep) -> Table:
    """What each curve's growth was fitted by."""
    rows = []
    for name, curve in zip(curve_names(sweep), sweep["curves"], strict=True):
        fit = curve["fit"]
        if fit is None:
            continue
        fixed, each = fit["fixed_seconds"], fit["each_seconds"]
        rows.append(
            [
                Cell(name, device=colour(who(curve))),
                Cell(fmt.seconds(fixed["value"]), note=fmt.between(fixed["low"], fixed["high"], fmt.seconds)),
                Cell(fmt.seconds(each["value"]), note=fmt.between(each["low"], each["high"], fmt.seconds)),
                Cell(fmt.significant(fit["power"])),
                Cell(fmt.percent(fit["largest_error"], 1), mark="poor fit" if fit["largest_error"] > POOR else ""),
            ]
        )
    columns = [Column("A step takes"), *figures("Fixed", "and for each", "to the power", "Largest error")]
    return Table("The fitted growth of a step's time", columns, rows)


def memory_table(sweep: Sweep) -> Table:
    """Peak memory by value and curve."""
    values = sorted({p["value"] for curve in sweep["curves"] for p in curve["points"]})
    rows = []
    for value in values:
        sizes = [
            next((p.get("peak_memory_bytes") for p in curve["points"] if p["value"] == value), None)
            for curve in sweep["curves"]
        ]
        rows.append(cells(fmt.count(value), *(fmt.bytes_(size) for size in sizes)))
    columns = [Column(AXES[sweep["axis"]][2].capitalize()), *figures(*curve_names(sweep))]
    return Table(f"Peak memory by {AXES[sweep['axis']][2]}", columns, rows)

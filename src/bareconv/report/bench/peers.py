"""Our engines beside other libraries: rates with their intervals, and with which settings each was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bareconv.report import format as fmt
from bareconv.report.bench.lines import candidate_looks, whiskers
from bareconv.report.candidates import (
    Candidate,
    Group,
    Who,
    colour,
    everyone,
    group_title,
    left_out,
    pretty,
    status_word,
)
from bareconv.report.canvas import NARROW, WIDE, NothingToShow, label, new_figure, styled
from bareconv.report.marks import room_for_values, set_linear, titles
from bareconv.report.palette import LIGHT
from bareconv.report.ratios import mark, with_mark
from bareconv.report.sections import Block, Cell, Chart, Column, Fold, Heading, Prose, Section, Table, Words, figures
from bareconv.report.table import in_words

_ROW = 0.3  # inches of a bar


def peers_section(result: Mapping[str, Any]) -> Section | None:
    """Bars of all groups, a table for each, its settings and tries folded; None where there are no peers."""
    groups = result.get("peers", [])
    if not groups:
        return None
    blocks: list[Block] = [Chart("peers", lambda w: peers_chart(groups, width=w), lambda: peers_words(groups))]
    for place, group in enumerate(groups):
        blocks += [Heading(group_title(group), f"peers-{place}"), rates_table(group)]
        folds = [
            settings_table(group),
            *([tries_table(group)] if any(c.get("tries") for c in group["candidates"]) else []),
        ]
        blocks.append(Fold("Settings, effective flags and versions; what was tried", folds))
        failed = [f"{name}: {one['error']}." for _, name, one in everyone(group) if one["error"]]
        failed += [f"{pretty(name)} is absent: {reason}." for name, reason in group["absent"].items()]
        if failed:
            blocks.append(Prose(" ".join(failed), "aside"))
    return Section("peers", "Beside other libraries", "Libraries", blocks)


@styled
def peers_chart(groups: Sequence[Group], *, width: float = WIDE) -> Figure:
    """A panel for each group, in it a bar for each candidate that has figures, the fastest first."""
    shown = [(group, _measured(group)) for group in groups]
    shown = [(group, found) for group, found in shown if found]
    if not shown:
        raise NothingToShow("no candidate has figures")
    columns = 1 if width <= NARROW or len(shown) == 1 else 2
    lines = math.ceil(len(shown) / columns)
    rows = [max(len(found) for _, found in shown[i * columns : (i + 1) * columns]) for i in range(lines)]
    heights = [n * _ROW + 0.62 for n in rows]
    figure = new_figure(width, sum(heights) + 0.1)
    boxes = np.ravel(figure.subplots(lines, columns, squeeze=False, height_ratios=heights))
    for axes in boxes[len(shown) :]:
        axes.set_axis_off()
    for axes, (group, found), place in zip(boxes, shown, range(len(shown)), strict=False):
        _bars(axes, found, width / columns, rows[place // columns])
        titles(axes, group_title(group), "images a second")
    return figure


def _measured(group: Group) -> list[tuple[Who, str, Candidate]]:
    return [one for one in everyone(group) if "throughput" in one[2]]


def _bars(axes: Axes, found: Sequence[tuple[Who, str, Candidate]], width: float, rows: int) -> None:
    looks = candidate_looks([one for one, _, _ in found], [name for _, name, _ in found])
    most = max(c["throughput"]["interval"]["high"] for _, _, c in found)
    for y, ((one, _, candidate), look) in enumerate(zip(found, looks, strict=True)):
        steady = candidate["throughput"]
        rate, interval = steady["images_per_second"], steady["interval"]
        word = mark(steady)
        edge: dict[str, Any] = {"linewidth": 0} if not word else {"edgecolor": look.colour, "linewidth": 1.4}
        face = "none" if word else look.colour
        axes.barh(y, rate, height=0.66, color=face, alpha=1.0 if word else look.alpha, **edge)
        whiskers(axes, y, interval["low"], interval["high"], 0.26)
        axes.annotate(
            with_mark(fmt.rate(rate), word),
            (max(rate, interval["high"]), y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=8.5,
            fontweight="bold" if one.ours else "normal",
            annotation_clip=False,
        )
    axes.set_ylim(rows - 0.45, -0.55)
    axes.set_yticks(range(len(found)), [label(name, 22 if width <= NARROW + 1 else 30) for _, name, _ in found])
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"], labelsize=9)
    axes.grid(visible=False, axis="y")
    axes.spines["bottom"].set_visible(False)
    set_linear(axes, "x", most / (1 - room_for_values(width - 1.8)), fmt.count, 4)


def peers_words(groups: Sequence[Group]) -> Words:
    """Every rate; what the lines at the bars' ends are."""
    said = [
        f"{group_title(group)}: "
        + ", ".join(f"{name} {fmt.rate(c['throughput']['images_per_second'])}" for _, name, c in _measured(group))
        for group in groups
    ]
    caption = "Full: ours; pale: other libraries. The line at a bar's end is its 95% interval."
    everything = [c for group in groups for c in group["candidates"] if "throughput" in c]
    if any(mark(c["throughput"]) for c in everything):
        caption += " Hollow: the blocks of that bar are too few, or differ too much, to be trusted."
    return Words(f"Bar chart of images a second. {'. '.join(said)}.", caption)


def rates_table(group: Group) -> Table:
    """Rate and ratio with their intervals, compiling, memory, how near the first losses are to ours."""
    rows = []
    for one, name, candidate in everyone(group):
        steady = candidate.get("throughput")
        head = Cell(name, note=left_out(one, name), device=colour(one), strong=one.ours)
        if steady is None:
            rows.append([head, Cell(status_word(candidate)), *[Cell("")] * 6])
            continue
        ratio = candidate.get("ratio")
        interval = steady["interval"]
        rows.append(
            [
                head,
                Cell(fmt.rate(steady["images_per_second"]), strong=one.ours, mark=mark(steady)),
                Cell(fmt.between(interval["low"], interval["high"], _bare)),
                Cell(fmt.ratio(ratio["value"]) if ratio else ""),
                Cell(fmt.between(ratio["low"], ratio["high"], lambda x: fmt.significant(x)) if ratio else ""),
                Cell(fmt.seconds(steady["compile_seconds"])),
                Cell(fmt.bytes_(steady["peak_memory_bytes"])),
                Cell(fmt.scientific(candidate.get("loss_difference")) if not one.ours else ""),
            ]
        )
    ours = f"{'bareconv' if group.get('ours') == 'plan' else group.get('ours') or 'ours'} over it"
    columns = [
        Column("Candidate"),
        Column("Images a second", figures=True),
        Column("95% interval", quiet=True),
        Column(ours, figures=True),
        Column("95% interval", quiet=True),
        *figures("Compiling", "Peak memory", "Losses differ by"),
    ]
    return Table(f"Candidates: {group_title(group)}", columns, rows)


def _bare(x: float) -> str:
    return fmt.rate(x).removesuffix("/s")


def settings_table(group: Group) -> Table:
    """How each candidate was set, and what it says of itself."""
    rows = []
    for one, name, candidate in everyone(group):
        steady = candidate.get("throughput", {})
        rows.append(
            [
                Cell(name, device=colour(one)),
                Cell(_pairs(candidate["options"])),
                Cell(_pairs(steady.get("flags", {}))),
                Cell(fmt.count(steady.get("threads"))),
                Cell(", ".join(f"{library} {version}" for library, version in steady.get("versions", {}).items())),
            ]
        )
    columns = [
        Column("Candidate"),
        Column("Options", long=True),
        Column("Effective flags", long=True),
        Column("Threads", figures=True),
    ]
    return Table(f"Settings: {group_title(group)}", [*columns, Column("Versions", long=True)], rows)


def _pairs(values: Mapping[str, Any]) -> str:
    return in_words(dict(values)) if values else fmt.MISSING


def tries_table(group: Group) -> Table:
    """The variants that were tried briefly, of which the fastest was measured."""
    rows = []
    for candidate in group["candidates"]:
        for one in candidate.get("tries", ()):
            rate = fmt.rate(one["images_per_second"]) if one["images_per_second"] else fmt.MISSING
            rows.append(
                [
                    Cell(f"{pretty(candidate['name'])} {one['variant']}"),
                    Cell(rate),
                    Cell(fmt.seconds(one["compile_seconds"])),
                    Cell(one["error"] or one["status"]),
                ]
            )
    columns = [Column("Tried briefly"), *figures("Images a second", "Compiling"), Column("How it ended", long=True)]
    return Table(f"What was tried: {group_title(group)}", columns, rows)

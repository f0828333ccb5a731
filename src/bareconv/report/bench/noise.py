"""How steady the measurement was: every block beside its median, and a judgement of each candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bareconv.report import format as fmt
from bareconv.report import steadiness
from bareconv.report.bench.lines import candidate_looks
from bareconv.report.candidates import colour
from bareconv.report.canvas import NARROW, WIDE, NothingToShow, label, new_figure, styled
from bareconv.report.marks import titles
from bareconv.report.palette import LIGHT
from bareconv.report.ratios import block_rates
from bareconv.report.sections import Block, Cell, Chart, Column, Prose, Section, Table, Words, figures
from bareconv.report.steadiness import Measurement, measurements, unsteady_points

_MOST_ROWS = 24
_STOPPED = {
    "narrow": "the interval was narrow enough",
    "budget": "the time was up",
    "request": "it was asked to stop",
}


def noise_section(result: Mapping[str, Any]) -> Section | None:
    """A dot for each block, and the table of judgements; None where nothing was measured block by block."""
    found = measurements(result)
    unsteady = unsteady_points(result)
    if not found and not result.get("sweeps"):
        return None
    blocks: list[Block] = []
    number, whole = steadiness.figures(result)
    if number:
        text = f"{fmt.count(number)} of {fmt.counted(whole, 'figure')} {'are' if number > 1 else 'is'} marked: "
        text += "too few blocks, or blocks that differ too much, for the median to be trusted."
        blocks.append(Prose(text, "note"))
    elif whole:
        blocks.append(Prose(f"{fmt.counted(whole, 'figure')}, all stable: the blocks agree.", "good"))
    else:
        blocks.append(Prose("Whether the blocks agree was not judged when this was measured."))
    if found:
        blocks.append(Chart("noise", lambda w: noise_chart(found, width=w), lambda: noise_words(found)))
        blocks.append(noise_table(found))
    if unsteady:
        blocks.append(Prose(f"Marked points of sweeps: {'; '.join(unsteady)}.", "aside"))
    return Section("noise", "How steady it was", "Noise", blocks)


@styled
def noise_chart(found: Sequence[Measurement], *, width: float = WIDE) -> Figure:
    """A row for each candidate, in it a dot for each block: how much faster or slower it was than the median."""
    shown = [(m, rates) for m in found if (rates := block_rates(m.steady["samples"]))][:_MOST_ROWS]
    if not shown:
        raise NothingToShow("there are no blocks")
    looks = candidate_looks([m.one for m, _ in shown], [m.name for m, _ in shown])
    off = [np.array(rates) / float(np.median(rates)) - 1 for _, rates in shown]
    reach = max(0.01, *(float(np.abs(x).max()) for x in off)) * 1.08
    figure = new_figure(width, 0.27 * len(shown) + 0.75)
    axes = figure.subplots()
    axes.axvline(0, color=LIGHT["muted"], linewidth=0.9, zorder=1)
    for y, ((m, _), look, x) in enumerate(zip(shown, looks, off, strict=True)):
        interval, median = m.steady["interval"], m.steady["images_per_second"]
        if median:
            axes.barh(
                y,
                (interval["high"] - interval["low"]) / median,
                left=interval["low"] / median - 1,
                height=0.7,
                color=look.colour,
                alpha=0.2,
                linewidth=0,
                zorder=1,
            )
        # From top to bottom in the order in which they were taken, so that a drift is a slant.
        places = y + np.linspace(-0.27, 0.27, len(x))
        face = look.colour if m.stable else LIGHT["paper"]
        axes.plot(
            x,
            places,
            linestyle="",
            marker="o",
            markersize=3.4,
            markerfacecolor=face,
            markeredgecolor=look.colour,
            markeredgewidth=0 if m.stable else 1.0,
            alpha=0.85,
        )
    axes.set_xlim(-reach, reach)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    longest = 20 if width <= NARROW else 44
    axes.set_yticks(range(len(shown)), [label(f"{m.name}, {m.workload}", longest) for m, _ in shown])
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"], labelsize=8.5)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:+.3g}%" if abs(x) > 1e-9 else "median")
    axes.locator_params(axis="x", nbins=5 if width <= NARROW else 9)
    titles(axes, "Every block beside its median", "faster to the right")
    return figure


def noise_words(found: Sequence[Measurement]) -> Words:
    """What is seen in it."""
    said = [f"{m.name}, {m.workload}: {m.mark or 'stable'}" for m in found]
    caption = (
        "A dot for each block, from top to bottom in the order they were taken: a slant is a drift. The bar behind "
    )
    caption += "them is the median's 95% interval."
    if any(not m.stable for m in found):
        caption += " Hollow: too few, or too different."
    return Words(f"Dots of the relative rates of all blocks. {'; '.join(said)}.", caption)


def noise_table(found: Sequence[Measurement]) -> Table:
    """Median, interval, spread, drift, blocks, why no more of them were taken, and the judgement."""
    rows = []
    for m in found:
        noise = m.steady.get("noise", {})
        interval, median = m.steady["interval"], m.steady["images_per_second"]
        width = (interval["high"] - interval["low"]) / median if median else None
        remarks = list(noise.get("remarks", ()))
        if m.steady.get("warmed_up") is False:
            remarks.append("its steps had not become steady before the first block")
        rows.append(
            [
                Cell(m.name, device=colour(m.one), note=m.workload),
                Cell(fmt.rate(median), mark=m.mark),
                Cell(fmt.percent(width, 1)),
                Cell(fmt.percent(noise.get("spread"), 1)),
                Cell(fmt.percent(noise.get("drift"), 1)),
                Cell(fmt.count(len(m.steady["samples"]["seconds"]))),
                Cell("; ".join([*remarks, _STOPPED.get(m.steady.get("stopped", ""), "")]).strip("; ")),
            ]
        )
    columns = [
        Column("Candidate"),
        *figures("Images a second", "Interval's width", "Spread", "Drift", "Blocks"),
        Column("Remarks; why it ended", long=True),
    ]
    return Table("How steady each candidate was", columns, rows)

"""Energy of training steps, from the hardware's own counters, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bareconv.report import format as fmt
from bareconv.report.bench.lines import candidate_looks
from bareconv.report.candidates import colour, left_out
from bareconv.report.canvas import NARROW, WIDE, NothingToShow, label, new_figure, styled
from bareconv.report.consumption import Entry, everyone, is_known, unknown
from bareconv.report.marks import legend, room_for_values, set_linear, short, titles
from bareconv.report.palette import LIGHT
from bareconv.report.sections import Block, Cell, Chart, Column, Prose, Section, Table, Words, figures


def energy_section(result: Mapping[str, Any]) -> Section | None:
    """Bars of those that have figures, a table of all; None where nobody asked."""
    entries = result.get("energy", [])
    if not entries:
        return None
    blocks: list[Block] = []
    if any(map(is_known, entries)):
        blocks.append(Chart("energy", lambda w: energy_chart(entries, width=w), lambda: energy_words(entries)))
        blocks.append(energy_table(entries))
    blocks += [Prose(text) for text in unknown(entries)]
    return Section("energy", "Energy", "Energy", blocks)


@styled
def energy_chart(entries: Sequence[Entry], *, width: float = WIDE) -> Figure:
    """Joules for 1,000 images: what the work took, full, and what the device takes when idle, pale, behind it."""
    shown = [(one, name, e) for one, name, e in everyone(entries) if is_known(e)]
    if not shown:
        raise NothingToShow("no candidate's energy is known")
    looks = candidate_looks([one for one, _, _ in shown], [name for _, name, _ in shown])
    figure = new_figure(width, 0.34 * len(shown) + 0.95)
    axes = figure.subplots()
    most = max(e["joules_per_1000_images"] for _, _, e in shown) or 1.0
    for y, ((one, _, entry), look) in enumerate(zip(shown, looks, strict=True)):
        gross = entry["joules_per_1000_images"]
        net = min(max(entry.get("net_joules_per_1000_images", gross), 0.0), gross)
        axes.barh(y, net, height=0.62, color=look.colour, linewidth=0)
        axes.barh(y, gross - net, left=net, height=0.62, color=look.colour, alpha=0.3, linewidth=0)
        axes.annotate(
            fmt.metric(gross, "J"),
            (gross, y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=8.5,
            fontweight="bold" if one.ours else "normal",
            annotation_clip=False,
        )
    axes.set_ylim(len(shown) - 0.45, -0.55)
    axes.set_yticks(range(len(shown)), [label(look.name) for look in looks])
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"], labelsize=9)
    axes.grid(visible=False, axis="y")
    axes.spines["bottom"].set_visible(False)
    set_linear(axes, "x", most / (1 - room_for_values(width - 1.6)), lambda x: short(fmt.metric(x, "J")), 4)
    titles(axes, "Energy for 1,000 images", "joules")
    legend(
        figure,
        [
            (Patch(color=LIGHT["ink"], linewidth=0), "of the work"),
            (Patch(color=LIGHT["ink"], alpha=0.3, linewidth=0), "that an idle device takes too"),
        ],
        columns=1 if width <= NARROW else 2,
    )
    return figure


def energy_words(entries: Sequence[Entry]) -> Words:
    """Each figure."""
    said = [f"{name} {fmt.metric(e['joules_per_1000_images'], 'J')}" for _, name, e in everyone(entries) if is_known(e)]
    counters = "; ".join(dict.fromkeys(e["counter"] for e in entries if e.get("counter")))
    return Words(
        f"Bar chart of the energy for 1,000 images: {', '.join(said)}.",
        f"Read from: {counters}." if counters else "Read from a counter of the hardware.",
    )


def energy_table(entries: Sequence[Entry]) -> Table:
    """What was counted, over which time, and what of it is idle power."""
    rows = []
    for one, name, entry in everyone(entries):
        if not is_known(entry):
            continue
        joules, seconds = entry.get("joules"), entry.get("seconds")
        rows.append(
            [
                Cell(name, note=left_out(one, name), device=colour(one), strong=one.ours),
                Cell(fmt.metric(entry["joules_per_1000_images"], "J"), strong=one.ours),
                Cell(fmt.metric(entry.get("net_joules_per_1000_images"), "J")),
                Cell(fmt.metric(joules / seconds, "W") if joules is not None and seconds else fmt.MISSING),
                Cell(fmt.metric(entry.get("idle_watts"), "W")),
                Cell(fmt.count(entry.get("images"))),
                Cell(fmt.seconds(seconds)),
            ]
        )
    names_ = ("For 1,000 images", "less idle", "Power", "Idle power", "Images", "Over")
    return Table("Energy", [Column("Candidate"), *figures(*names_)], rows)

"""How near each operation of a step comes to what its device can do: the roofline.

An operation that needs W floating-point operations and must move B bytes has the intensity W / B; at that, a device of
P FLOP/s and M byte/s does at most min(P, M W / B). Source: Williams, Waterman, Patterson, "Roofline: an insightful
visual performance model for multicore architectures", 2009.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bareconv.report import format as fmt
from bareconv.report.bench.layers import MOST_GROUPS, workload_title, workloads
from bareconv.report.candidates import device_word
from bareconv.report.canvas import NARROW, POINT, WIDE, NothingToShow, label, new_figure, styled
from bareconv.report.marks import set_log, short, titles
from bareconv.report.nodes import operation
from bareconv.report.palette import LIGHT
from bareconv.report.sections import Block, Cell, Chart, Column, Prose, Section, Table, Words, figures

_NAMED = 12  # points with a name; all are in the table of operations
_WAYS = (
    (1, 0),
    (-1, 0),
    (0.7, -0.7),
    (-0.7, -0.7),
    (0.7, 0.7),
    (-0.7, 0.7),
    (0, -1),
    (0, 1),
    (0.9, -0.4),
    (-0.9, -0.4),
)
_ODD = 0.1  # of a ceiling, by which another that should not be above it is
_LETTER = 4.7 * POINT  # inches that a letter of 7.5 points takes, about

Rooflines = Mapping[str, Any]
Step = Mapping[str, Any]
Box = tuple[float, float, float, float]  # inches from the panel's lower left corner: left, bottom, right, top


def roofline_section(result: Mapping[str, Any]) -> Section | None:
    """A chart for each workload and a table of ceilings; None where there is none."""
    rooflines = [one for one in result.get("rooflines", ()) if one["ceilings"]]
    if not rooflines:
        return None
    blocks: list[Block] = []
    for place, group in enumerate(workloads(rooflines)[:MOST_GROUPS]):
        blocks.append(
            Chart(
                f"roofline-{place}",
                lambda w, group=group: roofline_chart(group, width=w),  # type: ignore[misc]
                lambda group=group: roofline_words(group),  # type: ignore[misc]
            )
        )
    blocks.append(ceilings_table(rooflines))
    blocks += [Prose(text, "aside") for text in ceiling_remarks(rooflines)]
    return Section("roofline", "How near to what the hardware can do", "Roofline", blocks)


@styled
def roofline_chart(group: Sequence[tuple[Rooflines, Step]], *, width: float = WIDE) -> Figure:
    """A panel for each device: ceilings as lines, each operation as a disc whose area is its share of the time."""
    shown = [(found, step, operations(step)) for found, step in group]
    shown = [one for one in shown if one[2]]
    if not shown:
        raise NothingToShow("no operation computes and moves anything")
    columns = 1 if width <= NARROW or len(shown) == 1 else 2
    lines = math.ceil(len(shown) / columns)
    height = 3.5 if columns == 2 or width <= NARROW else 4.0
    figure = new_figure(width, lines * height)
    boxes = np.ravel(figure.subplots(lines, columns, squeeze=False))
    for axes in boxes[len(shown) :]:
        axes.set_axis_off()
    for axes, (found, step, points) in zip(boxes, shown, strict=False):
        _panel(axes, found, points, (width / columns - 0.75, height - 0.75))
        several = len({s["precision"] for _, s in group}) > 1
        precision = f", {step['precision']}" if several else ""
        titles(
            axes, f"{device_word(found['device'])}{precision}: FLOP a second", "FLOP for each byte that must be moved"
        )
    return figure


def operations(step: Step) -> list[tuple[str, float, float, float]]:
    """(name, FLOP per byte, FLOP/s, share of the time) of every operation that computes and moves anything."""
    sums: dict[tuple[str, str], list[float]] = {}
    for launch in step["launches"]:
        total = sums.setdefault((launch["node"], operation(launch)), [0.0, 0.0, 0.0])
        for place, key in enumerate(("flops", "bytes", "seconds")):
            total[place] += launch[key]
    whole = math.fsum(seconds for _, _, seconds in sums.values()) or 1.0
    found = [
        (f"{node} {what}", work / moved, work / seconds, seconds / whole)
        for (node, what), (work, moved, seconds) in sums.items()
        if work > 0 and moved > 0 and seconds > 0
    ]
    return sorted(found, key=lambda one: -one[3])


def _panel(
    axes: Axes, found: Rooflines, points: Sequence[tuple[str, float, float, float]], inches: tuple[float, float]
) -> None:
    shade = LIGHT["cpu" if found["device"] == "cpu" else "gpu"]
    # A CPU's are there for several numbers of threads: those of the steps.
    there = [c for c in found["ceilings"] if c.get("threads") in (None, found.get("threads"))]
    roofs = [c for c in there if c["unit"] == "FLOP"]
    slopes = [c for c in there if c["unit"] == "byte"]
    peak = max((c["per_second"] for c in roofs), default=max(p[2] for p in points))
    ridges = [peak / c["per_second"] for c in slopes]
    left = min(p[1] for p in points) / 2.5
    right = max([p[1] for p in points] + ridges) * 3
    bottom = min(min(p[2] for p in points) / 3, peak / 100)
    set_log(axes, "x", left, right, _tick, 5)
    set_log(
        axes,
        "y",
        bottom,
        max(peak * 2.2, max(p[2] for p in points) * 1.6),
        lambda y: short(fmt.flops(y)).removesuffix("FLOP/s").strip(),
        5,
    )
    taken: list[Box] = []
    to_fraction = axes.transData + axes.transAxes.inverted()

    def place(x: float, y: float) -> tuple[float, float]:
        at = to_fraction.transform((x, y))
        return float(at[0]) * inches[0], float(at[1]) * inches[1]

    for ceiling in roofs:
        y = ceiling["per_second"]
        start = max(left, y / max((c["per_second"] for c in slopes), default=y / left))
        axes.plot([start, right], [y, y], color=LIGHT["ink"], linewidth=1.1)
        taken.append((*place(start, y), place(right, y)[0], place(right, y)[1] + 0.02))
        text = f"{label(ceiling['name'], 18)}, {fmt.flops(y)}"
        axes.annotate(
            text, (right, y), xytext=(-2, 3), textcoords="offset points", ha="right", fontsize=7.5, color=LIGHT["ink"]
        )
        at = place(right, y)
        taken.append((at[0] - len(text) * _LETTER, at[1], at[0], at[1] + 0.15))
    for ceiling in slopes:
        speed = ceiling["per_second"]
        begin, end = max(left, bottom / speed), min(right, peak / speed)
        if begin >= end:
            continue
        axes.plot([begin, end], [begin * speed, end * speed], color=LIGHT["muted"], linewidth=1.1)
        rise = place(end, end * speed)[1] - place(begin, begin * speed)[1]
        run = place(end, end * speed)[0] - place(begin, begin * speed)[0]
        for step in range(40):  # a slope as small boxes
            x = begin * (end / begin) ** (step / 40)
            taken.append((*place(x, x * speed), place(x, x * speed)[0] + run / 40, place(x, x * speed)[1] + rise / 40))
        x = begin * (end / begin) ** 0.04
        axes.annotate(
            f"{label(ceiling['name'], 18)}, {fmt.metric(speed, 'B/s')}",
            (x, x * speed),
            xytext=(-1, 5),
            textcoords="offset points",
            rotation=math.degrees(math.atan2(rise, run)),
            rotation_mode="anchor",
            ha="left",
            va="bottom",
            fontsize=7.5,
            color=LIGHT["muted"],
        )
        corner = place(x, x * speed)
        taken.append((corner[0], corner[1], corner[0] + 0.8, corner[1] + 0.8 * rise / max(run, 0.1) + 0.15))
    for _, x, y, share in points:
        axes.scatter([x], [y], s=18 + 520 * share, color=shade, alpha=0.62, linewidths=0.8, edgecolors=LIGHT["paper"])
        at, r = place(x, y), _radius(share)
        taken.append((at[0] - r, at[1] - r, at[0] + r, at[1] + r))
    names: list[Box] = []
    for name, x, y, share in points[:_NAMED]:
        _name(axes, name, place(x, y), (x, y), _radius(share), taken, names, inches)


def _radius(share: float) -> float:
    """Of a disc, in inches."""
    return math.sqrt((18 + 520 * share) / math.pi) * POINT


def _name(
    axes: Axes,
    name: str,
    at: tuple[float, float],
    point: tuple[float, float],
    radius: float,
    taken: list[Box],
    names: list[Box],
    inches: tuple[float, float],
) -> None:
    """A name beside its disc, or further off with a line to it, where nothing else lies; none without room."""
    text = label(name, 26)
    long, high = len(text) * _LETTER, 0.13
    for reach in (0.0, 0.16, 0.34, 0.54, 0.76, 1.0):
        for across, up in _WAYS:
            gap = radius + 0.03 + reach
            dx = across * gap - (long if across < 0 else long / 2 if across == 0 else 0.0)
            dy = up * gap - high / 2
            box = (at[0] + dx, at[1] + dy, at[0] + dx + long, at[1] + dy + high)
            if box[0] < 0.02 or box[2] > inches[0] or box[1] < 0.02 or box[3] > inches[1]:
                continue
            if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                continue
            # A line that is drawn must not go through a name, nor through the roof.
            way = [(at[0] + across * gap * i / 12, at[1] + up * gap * i / 12) for i in range(13)] if reach else []
            if (reach and up > 0) or any(b[0] < x < b[2] and b[1] < y < b[3] for x, y in way for b in names):
                continue
            taken.append(box)
            names.append(box)
            axes.annotate(
                text,
                point,
                xytext=(across * gap / POINT, up * gap / POINT),
                textcoords="offset points",
                ha="right" if across < 0 else "center" if across == 0 else "left",
                va="center",
                fontsize=7.5,
                arrowprops={
                    "arrowstyle": "-",
                    "color": LIGHT["muted"],
                    "linewidth": 0.6 if reach else 0,
                    "shrinkA": 0,
                    "shrinkB": 0,
                    "relpos": (1.0 if across < 0 else 0.5 if across == 0 else 0.0, 0.5),
                },
            )
            return


def _tick(x: float) -> str:
    return f"{x:g}" if x >= 0.001 else fmt.scientific(x)


def roofline_words(group: Sequence[tuple[Rooflines, Step]]) -> Words:
    """How much of the roofline each device's step reaches."""
    said, told = [], []
    for found, step in group:
        least = math.fsum(launch["least_seconds"] for launch in step["launches"])
        alone = math.fsum(launch["seconds"] for launch in step["launches"]) or 1.0
        device = device_word(found["device"])
        said.append(f"{device} {fmt.percent(least / alone, 0)}")
        told += [
            f"{device} {name}: {fmt.flops(speed)} at {fmt.significant(intensity)} FLOP a byte"
            for name, intensity, speed, _ in operations(step)[:12]
        ]
    caption = f"{workload_title(group)}. Both axes are logarithmic; a disc's area is its share of the step's time. "
    caption += (
        "Under the slope the memory is what bounds an operation, under a level line the arithmetic. All operations "
    )
    caption += f"together reach, of the time that they need at least: {', '.join(said)}. What computes nothing is not "
    caption += "shown."
    if any(launch["share"] > 1 for _, step in group for launch in step["launches"]):
        caption += " What lies above the roof does with less than the formula needs."
    return Words(f"Roofline charts. {'; '.join(told)}.", caption)


def ceilings_table(rooflines: Sequence[Rooflines]) -> Table:
    """What each device can do at best, and how that was measured."""
    rows = []
    for found in rooflines:
        for ceiling in found["ceilings"]:
            value = ceiling["per_second"]
            text = fmt.flops(value) if ceiling["unit"] == "FLOP" else fmt.metric(value, "B/s")
            if ceiling["unit"] == "launch":
                text = f"{fmt.seconds(1 / value)} each"
            threads = f", {fmt.counted(ceiling['threads'], 'thread')}" if "threads" in ceiling else ""
            rows.append(
                [
                    Cell(device_word(found["device"]), device="cpu" if found["device"] == "cpu" else "gpu"),
                    Cell(ceiling["name"]),
                    Cell(text),
                    Cell(ceiling["how"] + threads),
                ]
            )
    columns = [Column("Device"), Column("Ceiling"), *figures("At best"), Column("How it was measured", long=True)]
    return Table("What each device can do at best", columns, rows)


def ceiling_remarks(rooflines: Sequence[Rooflines]) -> list[str]:
    """What is odd about the ceilings: more threads that reach less, a memory that is faster than a cache."""
    said = []
    for found in rooflines:
        by_name: dict[str, dict[int, float]] = {}
        for ceiling in found["ceilings"]:
            if "threads" in ceiling and ceiling["unit"] != "launch":
                by_name.setdefault(ceiling["name"], {})[ceiling["threads"]] = ceiling["per_second"]
        device = device_word(found["device"])
        less = []
        for name, rates in by_name.items():
            most, best = max(rates), max(rates, key=lambda threads: rates[threads])
            if rates[most] < (1 - _ODD) * rates[best]:
                less.append(f"{name} {fmt.percent(rates[most] / rates[best], 0)} of what {best} reach")
        if less:
            most = max(threads for rates in by_name.values() for threads in rates)
            said.append(
                f"{device}: {most} threads reach less than fewer of them ({fmt.listed(less)}). Perhaps the machine "
                "does not give each of them a core of its own, or not all the time."
            )
        cache, memory = by_name.get("L3 cache", {}), by_name.get("memory", {})
        faster = [threads for threads in memory if threads in cache and memory[threads] > (1 + _ODD) * cache[threads]]
        if faster:
            several = fmt.listed([str(threads) for threads in sorted(faster)])
            said.append(
                f"{device}: memory was faster than the last cache (threads: {several}). Perhaps what was moved still "
                "lay in a cache, or another program used it meanwhile."
            )
    return said

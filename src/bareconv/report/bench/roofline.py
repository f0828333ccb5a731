"""How near each operation of a step comes to what its device can do: the roofline.

An operation that needs W floating-point operations and must move B bytes has the intensity W / B; at that, a device of
P FLOP/s and M byte/s does at most min(P, M W / B). Source: Williams, Waterman, Patterson, "Roofline: an insightful
visual performance model for multicore architectures", 2009.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from bareconv.report import format as fmt
from bareconv.report.bench.layers import MOST_GROUPS, workload_title, workloads
from bareconv.report.bench.lines import End, end_labels, flags
from bareconv.report.candidates import device_word
from bareconv.report.canvas import NARROW, POINT, WIDE, NothingToShow, label, new_figure, styled
from bareconv.report.marks import Look, set_log, short, titles
from bareconv.report.nodes import operation
from bareconv.report.palette import LIGHT
from bareconv.report.sections import Block, Cell, Chart, Column, Prose, Section, Table, Words, figures

_ODD = 0.1  # of a ceiling, by which another that should not be above it is
_WAYS = tuple((math.cos(turn * math.pi / 6), math.sin(turn * math.pi / 6)) for turn in (0, 6, 1, 5, 11, 7, 3, 9, 2, 4))
_REACHES = (0.0, 0.12, 0.24, 0.38, 0.54, 0.76, 1.0)  # inches between a disc and its letter
_LETTER = 6.2 * POINT  # inches that a letter takes, about
_NAME, _HIGH = 8.0, 0.13  # points of type, and inches that a letter is high
_KEY_LINE = 0.145  # inches of a line of the key
_CEILINGS = 1.15  # inches right of a panel, where the names of its ceilings stand

Rooflines = Mapping[str, Any]
Step = Mapping[str, Any]
Point = tuple[str, float, float, float]  # name, FLOP per byte, FLOP/s, share of the time
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
    height = 3.8 if columns == 2 or width <= NARROW else 4.2
    in_key = 2 if columns == 1 and width > NARROW else 1  # columns of a panel's key
    rows = [
        math.ceil(max(len(p) for _, _, p in shown[i : i + columns]) / in_key) for i in range(0, len(shown), columns)
    ]
    figure = new_figure(width, len(rows) * (height + 0.15) + _KEY_LINE * sum(rows))
    boxes = np.ravel(figure.subplots(len(rows), columns, squeeze=False))
    for axes in boxes[len(shown) :]:
        axes.set_axis_off()
    for axes, (found, step, points) in zip(boxes, shown, strict=False):
        _panel(axes, found, points, (width / columns - 0.45 - _CEILINGS, height - 0.75))
        _key(axes, points, in_key)
        several = len({s["precision"] for _, s in group}) > 1
        precision = f", {step['precision']}" if several else ""
        titles(
            axes, f"{device_word(found['device'])}{precision}: FLOP a second", "FLOP for each byte that must be moved"
        )
    return figure


def letters(number: int) -> list[str]:
    """What discs are called: "A" to "Z", then "A2", "B2" and so on."""
    of = string.ascii_uppercase
    return [of[i % len(of)] + (str(i // len(of) + 1) if i >= len(of) else "") for i in range(number)]


def _key(axes: Axes, points: Sequence[Point], columns: int) -> None:
    """Below a panel: what the letter of each disc stands for, and its share of the time."""
    named = [
        f"{letter}  {label(name, 48)}, {fmt.percent(share, 0)}"
        for letter, (name, _, _, share) in zip(letters(len(points)), points, strict=True)
    ]
    pad = 0.6  # in heights of its type
    below = ScaledTranslation(-pad * _NAME * POINT, -0.38, axes.figure.dpi_scale_trans)  # what the axis says
    axes.legend(
        [Line2D([], [], linestyle="") for _ in named],
        named,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=axes.transAxes + below,
        borderaxespad=0,
        borderpad=pad,
        ncols=columns,
        fontsize=_NAME,
        labelspacing=0.3,
        handlelength=0,
        handletextpad=0,
    )


def operations(step: Step) -> list[Point]:
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


def _panel(axes: Axes, found: Rooflines, points: Sequence[Point], inches: tuple[float, float]) -> None:
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
    top = max(peak * 1.5, max(p[2] for p in points) * 1.6)
    set_log(axes, "x", left, right, _tick, 5)
    set_log(axes, "y", bottom, top, lambda y: short(fmt.flops(y)).removesuffix("FLOP/s").strip(), 5)
    lines = []
    for ceiling in roofs:
        y = ceiling["per_second"]
        start = max(left, y / max((c["per_second"] for c in slopes), default=y / left))
        lines.append((_end(ceiling, (right, y), LIGHT["ink"], "\n"), (start, y)))
    shown = [c for c in slopes if max(left, bottom / c["per_second"]) < peak / c["per_second"]]
    for ceiling in shown:
        speed = ceiling["per_second"]
        begin, end = max(left, bottom / speed), peak / speed
        lines.append((_end(ceiling, (end, end * speed), LIGHT["muted"], ", "), (begin, begin * speed)))
    for at, (x, y) in lines:
        axes.plot([x, at.x], [y, at.y], color=at.look.colour, linewidth=1.1)
    flags(axes, [at for at, _ in lines[len(roofs) :]], *inches)
    end_labels(axes, [at for at, _ in lines[: len(roofs)]], NARROW, inches[1] + 0.4, top=0.0)
    _discs(axes, points, shade, [((x, y), (at.x, at.y)) for at, (x, y) in lines], inches)


def _end(ceiling: Mapping[str, Any], at: tuple[float, float], shade: str, between: str) -> End:
    """Where a ceiling's line ends, and its name: a level one's stands at the right, a slope's above its ridge."""
    value = ceiling["per_second"]
    amount = fmt.flops(value) if ceiling["unit"] == "FLOP" else fmt.metric(value, "B/s")
    name = label(ceiling["name"], 16)
    return End(*at, Look(name, shade, 1.0, (), False, False), f"{name}{between}{amount}")


def _discs(
    axes: Axes,
    points: Sequence[Point],
    shade: str,
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    inches: tuple[float, float],
) -> None:
    """Each operation's disc with its letter, which lies on no line, no disc and no other letter."""
    to_fraction = axes.transData + axes.transAxes.inverted()

    def place(x: float, y: float) -> tuple[float, float]:
        at = to_fraction.transform((x, y))
        return float(at[0]) * inches[0], float(at[1]) * inches[1]

    taken: list[Box] = []
    for begin, end in lines:
        (x, y), (x2, y2) = place(*begin), place(*end)
        for i in range(80):  # a line as small boxes
            at = x + (x2 - x) * i / 80, y + (y2 - y) * i / 80
            taken.append((at[0], at[1], at[0] + (x2 - x) / 80, at[1] + (y2 - y) / 80))
    for _, x, y, share in points:
        axes.scatter([x], [y], s=18 + 520 * share, color=shade, alpha=0.62, linewidths=0.8, edgecolors=LIGHT["paper"])
        at, r = place(x, y), _radius(share)
        taken.append((at[0] - r, at[1] - r, at[0] + r, at[1] + r))
    for letter, (_, x, y, share) in zip(letters(len(points)), points, strict=True):
        away = _free(letter, place(x, y), _radius(share), taken, inches)
        _letter(axes, letter, (x, y), away, _radius(share))


def _radius(share: float) -> float:
    """Of a disc, in inches."""
    return math.sqrt((18 + 520 * share) / math.pi) * POINT


def _free(
    text: str, at: tuple[float, float], radius: float, taken: list[Box], inches: tuple[float, float]
) -> tuple[float, float]:
    """How far from its disc a letter finds room, in inches; on the disc where there is none. Takes that room."""
    long = len(text) * _LETTER
    for reach in _REACHES:
        for across, up in _WAYS:
            dx, dy = (radius + 0.03 + reach + long / 2) * across, (radius + 0.03 + reach + _HIGH / 2) * up
            x, y = at[0] + dx, at[1] + dy
            box = (x - long / 2, y - _HIGH / 2, x + long / 2, y + _HIGH / 2)
            if box[0] < 0.02 or box[2] > inches[0] or box[1] < 0.02 or box[3] > inches[1]:
                continue
            if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                taken.append(box)
                return dx, dy
    return 0.0, 0.0


def _letter(axes: Axes, text: str, point: tuple[float, float], away: tuple[float, float], radius: float) -> None:
    """A letter so many inches from its disc, with a line to it where it does not stand beside it."""
    far = math.hypot(*away) > radius + 0.03 + _HIGH
    axes.annotate(
        text,
        point,
        xytext=(away[0] / POINT, away[1] / POINT),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=_NAME,
        fontweight="bold",
        arrowprops={"arrowstyle": "-", "color": LIGHT["muted"], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
        if far
        else None,
    )


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
    caption += "Below each panel stands what its letters are, with these shares. "
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
        most = max((threads for rates in by_name.values() for threads in rates), default=0)
        less = []
        for name, rates in by_name.items():
            best = max(rates, key=lambda threads: rates[threads])
            if rates.get(most, math.inf) < (1 - _ODD) * rates[best]:
                less.append(f"{name} {fmt.percent(rates[most] / rates[best], 0)} of what {best} reach")
        if less:
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

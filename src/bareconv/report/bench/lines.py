"""What charts of candidates share: how each looks, names at the ends of lines, bands of uncertainty, rows of bars.

The device gives the colour. Among those of one device the first of ours is a full line; the others have dashes and
markers of their own. Where a number is marked unstable its marker is hollow.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from bareconv.report.candidates import Who, colour, names
from bareconv.report.canvas import NARROW, POINT, label
from bareconv.report.marks import Look
from bareconv.report.palette import LIGHT

_DASHES: tuple[tuple[float, ...], ...] = ((), (7, 3), (2, 2.4), (9, 3, 2, 3), (12, 4))  # points
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_OTHERS_TINT = 0.5  # of a bar that is not ours

_NAME_POINTS = 11.5  # between two names at the ends of lines
_AT_THE_RIGHT = 0.9  # of an axis: from there on a name at its right is near enough
_LETTER = 5.0  # points that a letter of them takes, about


def candidate_looks(everyone: Sequence[Who], called: Sequence[str] | None = None) -> list[Look]:
    """A look for each; ours first among those of a device, whatever their order. ``called``: their names."""
    called = called or names(everyone)
    order = sorted(range(len(everyone)), key=lambda i: not everyone[i].ours)
    seen = {True: 0, False: 0}
    found: dict[int, Look] = {}
    for i in order:
        one = everyone[i]
        place = seen[one.gpu]
        seen[one.gpu] += 1
        found[i] = Look(
            name=called[i],
            colour=LIGHT[colour(one)],
            alpha=1.0 if one.ours else _OTHERS_TINT,
            dashes=_DASHES[place % len(_DASHES)],
            gpu=one.gpu,
            broad=False,
            marker=_MARKERS[place % len(_MARKERS)],
        )
    return [found[i] for i in range(len(everyone))]


def draw_line(
    axes: Axes,
    look: Look,
    x: Sequence[float],
    y: Sequence[float],
    *,
    bounds: tuple[Sequence[float], Sequence[float]] | None = None,
    stable: Sequence[bool] | None = None,
    joined: bool = True,
) -> None:
    """A candidate's markers, ``joined`` by its line; ``bounds``, the ends of its intervals, as a band behind it.

    One point alone is no line: it has a larger marker, and its interval is a bar.
    """
    alone = len(x) == 1
    if bounds is not None and alone:
        axes.vlines(x, bounds[0], bounds[1], color=look.colour, linewidth=1.4, zorder=3)
    elif bounds is not None:
        axes.fill_between(x, bounds[0], bounds[1], color=look.colour, alpha=0.2, linewidth=0, zorder=1)
    if joined and not alone:
        axes.plot(x, y, **look.stroke())
    for steady in (True, False):
        chosen = [i for i in range(len(x)) if (stable is None or stable[i]) == steady]
        axes.plot(
            [x[i] for i in chosen],
            [y[i] for i in chosen],
            linestyle="",
            marker=look.marker,
            markersize=(4.4 if steady else 6.4) + 3 * alone,
            markerfacecolor=look.colour if steady else LIGHT["paper"],
            markeredgecolor=look.colour,
            markeredgewidth=0 if steady else 1.4,
            zorder=4,
        )


@dataclass(frozen=True)
class End:
    """Where a line ends, and what stands there; ``alone``: it is one point without a line."""

    x: float
    y: float
    look: Look
    text: str = ""
    strong: bool = False
    alone: bool = False


def end_labels(axes: Axes, ends: Sequence[End], width: float, height: float, *, top: float = 0.35) -> None:
    """Names right of the axes at the heights where lines end, moved apart where they would lie on each other.

    The name of a point alone stands beside it: what leads to it from the right would look like its line.
    The axes' limits and scales must be set. ``width`` and ``height`` of the figure, or of its part, in inches; ``top``:
    inches of the height that are not the axes'.
    """
    to_fraction = axes.transData + axes.transAxes.inverted()
    at = [tuple(float(x) for x in to_fraction.transform((end.x, end.y))) for end in ends]
    texts = [_folded(end.text or end.look.name, narrow=width <= NARROW) for end in ends]
    lines = max((text.count("\n") + 1 for text in texts), default=1)
    gap = lines * _NAME_POINTS * POINT / max(0.5, height - top - 0.4)
    beside = {i: at[i] for i, end in enumerate(ends) if end.alone and at[i][0] < _AT_THE_RIGHT}
    others = [i for i in range(len(ends)) if i not in beside]
    for some, names_at in ((others, None), *_side_by_side(beside, 0.035 if width <= NARROW else 0.015)):
        for i, place in zip(some, _spread([at[i][1] for i in some], gap), strict=True):
            x = (1.04 if width <= NARROW else 1.02) if names_at is None else names_at
            _end_label(axes, ends[i], texts[i], (x, place), moved=abs(place - at[i][1]) > 0.2 * gap)


def _side_by_side(places: Mapping[int, tuple[float, ...]], away: float) -> list[tuple[list[int], float]]:
    """The points at each place along the axis, and where their names begin: right of it, or left in the right half."""
    columns: dict[float, list[int]] = {}
    for i, (x, _) in places.items():
        columns.setdefault(round(x, 3), []).append(i)
    return [(some, x + (-away if x > 0.5 else away)) for x, some in columns.items()]


def _end_label(axes: Axes, end: End, text: str, place: tuple[float, float], *, moved: bool) -> None:
    """A name at ``place``, in fractions of the axes, and a thin line to where its own ends."""
    inside = place[0] < 1
    leftwards = inside and place[0] > 0.5
    axes.annotate(
        text,
        (end.x, end.y),
        xytext=place,
        textcoords="axes fraction",
        va="center",
        ha="right" if leftwards else "left",
        fontsize=8.5,
        linespacing=1.0,
        color=end.look.colour,
        fontweight="bold" if end.strong else "normal",
        annotation_clip=False,
        zorder=5,
        bbox={"facecolor": LIGHT["paper"], "linewidth": 0, "pad": 0.4} if inside else None,
        arrowprops={
            "arrowstyle": "-",
            "color": end.look.colour,
            "linewidth": 0.6,
            "alpha": 0.7 if moved else 0.35,
            "shrinkA": 1,
            "shrinkB": 4,
            "relpos": (1 if leftwards else 0, 0.5),
        }
        if moved or not inside
        else None,
    )


def _folded(name: str, *, narrow: bool) -> str:
    """A name in one line at a desk, in two on a telephone where it is long; lines of its own are kept."""
    if "\n" in name:
        return "\n".join(label(line, 16) for line in name.split("\n"))
    if not narrow or len(name) <= 16:
        return label(name, 34)
    first, *rest = textwrap.wrap(label(name, 100), 16)
    return f"{label(first, 16)}\n{label(' '.join(rest), 16)}" if rest else label(first, 16)


def flags(
    axes: Axes, above: Sequence[End], width: float, height: float, below: Sequence[End] = (), note: str = ""
) -> None:
    """Names above places that lie side by side, each with a thin line to its place; ``below``: names under theirs.

    The axes' limits and scales must be set; the vertical limits are widened to make room. ``width`` and ``height`` of
    the axes in inches, about. ``note``: what is said of those below, in a line of its own.
    """
    line, gap = (_NAME_POINTS + 1.5) * POINT, 0.12
    sides = [(ends, _levels(axes, ends, width)) for ends in (above, below)]
    rooms = [(max(level for level, _ in found) + 1) * line + gap if found else 0.0 for _, found in sides]
    rooms[1] += line if below and note else 0.0
    tall = max(height, sum(rooms) / 0.7)
    scale = axes.yaxis.get_transform()
    low, high = scale.transform(np.asarray(axes.get_ylim(), np.float64))
    whole = (high - low) / (1 - sum(rooms) / tall)
    limits = low - rooms[1] / tall * whole, high + rooms[0] / tall * whole
    axes.set_ylim(*(float(y) for y in scale.inverted().transform(np.asarray(limits))))
    for (ends, found), room, up in zip(sides, rooms, (True, False), strict=True):
        for end, (level, leftwards) in zip(ends, found, strict=True):
            away = (room - gap - (level + 0.6) * line) / tall
            _flag(axes, end, 1 - away if up else away, leftwards=leftwards)
    if below and note:
        axes.text(
            0.01, 0.5 * line / tall, note, transform=axes.transAxes, va="center", color=LIGHT["muted"], fontsize=8.5
        )


def _levels(axes: Axes, ends: Sequence[End], width: float) -> list[tuple[int, bool]]:
    """How far out each name stands, so that none lies on another, and whether it reaches to the left of its place.

    Where all reach to one side, the left where there is room, it is over places whose own names are nearer, and no line
    crosses a name.
    """
    to_fraction = axes.transData + axes.transAxes.inverted()
    at = [float(to_fraction.transform((end.x, end.y))[0]) * width for end in ends]
    long = [len(end.text) * (_LETTER + 0.5 * end.strong) * POINT + 0.1 for end in ends]
    leftwards = [place + 0.3 > size for place, size in zip(at, long, strict=True)]
    if not all(leftwards) and all(place + size < width for place, size in zip(at, long, strict=True)):
        leftwards = [False] * len(ends)
    spans = [(x - size, x) if left else (x, x + size) for x, size, left in zip(at, long, leftwards, strict=True)]
    levels: dict[int, int] = {}
    for i in sorted(range(len(ends)), key=lambda i: (leftwards[i], at[i] if leftwards[i] else -at[i])):
        hit = [n for j, n in levels.items() if spans[i][0] < spans[j][1] and spans[j][0] < spans[i][1]]
        levels[i] = max(hit, default=-1) + 1
    return [(levels[i], leftwards[i]) for i in range(len(ends))]


def _flag(axes: Axes, end: End, y: float, *, leftwards: bool) -> None:
    """A name at the height ``y``, a fraction of the axes', and the line from it to its place."""
    axes.annotate(
        "",
        (end.x, end.y),
        xytext=(end.x, y),
        textcoords=("data", "axes fraction"),
        arrowprops={"arrowstyle": "-", "color": end.look.colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
    )
    axes.annotate(
        end.text,
        (end.x, y),
        xycoords=("data", "axes fraction"),
        xytext=(-3 if leftwards else 3, 0),
        textcoords="offset points",
        ha="right" if leftwards else "left",
        va="center",
        fontsize=8.5,
        color=end.look.colour,
        fontweight="bold" if end.strong else "normal",
        annotation_clip=False,
        zorder=4,  # where another's line has to pass, it passes behind the name
        bbox={"facecolor": LIGHT["paper"], "linewidth": 0, "pad": 0.4},
    )


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places as near as can be to the wanted ones, in their order, none nearer to another than ``gap``.

    Neighbours that are too near become one group, around the mean of what they want, and groups that then are too near
    become one in turn (the pool-adjacent-violators algorithm).
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[list[float]] = []  # of each: how many, and the sum of what they want less their own place in it

    def begin(group: list[float]) -> float:
        return group[1] / group[0]

    for i in order:
        groups.append([1, wanted[i]])
        while len(groups) > 1 and begin(groups[-1]) < begin(groups[-2]) + groups[-2][0] * gap:
            last = groups.pop()
            before = groups[-1][0]
            groups[-1] = [before + last[0], groups[-1][1] + last[1] - last[0] * before * gap]
    places = [begin(group) + j * gap for group in groups for j in range(int(group[0]))]
    result = [0.0] * len(wanted)
    for place, i in zip(places, order, strict=True):
        result[i] = place
    return result


def set_ticks(axes: Axes, which: str, values: Sequence[float], text: Callable[[float], str], most: int) -> None:
    """Ticks of a logarithmic axis at the values that were measured, every so many of them where they are many."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    every = -(-len(values) // most)
    ticks = list(values)[::-1][::every][::-1]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([text(t) for t in ticks]))
    axis.set_minor_locator(NullLocator())


def whiskers(axes: Axes, y: float, low: float, high: float, height: float) -> None:
    """An interval at the end of a horizontal bar."""
    kind: dict[str, Any] = {"color": LIGHT["ink"], "linewidth": 0.9, "zorder": 5}
    axes.plot([low, high], [y, y], **kind)
    for x in (low, high):
        axes.plot([x, x], [y - height / 2, y + height / 2], **kind)

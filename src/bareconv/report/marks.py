"""How a run looks in every figure, and the few things that charts share: axes of time, rows of bars, smoothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from bareconv.report import format as fmt
from bareconv.report.canvas import POINT, label
from bareconv.report.palette import LIGHT
from bareconv.report.runs import Run, is_gpu, labels

Line = NDArray[np.float64]

_LEGEND_LETTER = 5.4  # points, about
_TINTS = (1.0, 0.62, 0.38, 0.25)
_STEPS = ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))  # from dense to sparse
_DASHES: tuple[tuple[float, ...], ...] = ((), (9, 3.6), (3, 3), (11, 3, 3, 3))  # points


@dataclass(frozen=True)
class Look:
    """A run's name, its device's colour, and what tells it from other runs of that device: the tint or the dashes."""

    name: str
    colour: str
    alpha: float
    dashes: tuple[float, ...]
    gpu: bool
    broad: bool
    marker: str = ""

    def stroke(self) -> dict[str, Any]:
        """Its line: beside a GPU's a CPU's is broad, pale and below it, so that where they agree both are seen."""
        width = 4.0 if self.broad else 1.8
        # matplotlib counts dashes in widths of the line; in points they look alike for both.
        return {
            "color": self.colour,
            "alpha": 0.6 if self.broad else 1.0,
            "linewidth": width,
            "linestyle": (0, [x / width for x in self.dashes]) if self.dashes else "-",
            "solid_capstyle": "round",
            "zorder": 3 if self.gpu else 2,
        }


def looks(runs: Sequence[Run]) -> list[Look]:
    """One look for each run: the device gives the colour, its order among the device's runs the tint and dashes."""
    seen = {True: 0, False: 0}
    mixed = any(is_gpu(run) for run in runs)
    found = []
    for run, name in zip(runs, labels(list(runs)), strict=True):
        gpu = is_gpu(run)
        order = seen[gpu] % len(_TINTS)
        seen[gpu] += 1
        found.append(
            Look(label(name), LIGHT["gpu" if gpu else "cpu"], _TINTS[order], _DASHES[order], gpu, mixed and not gpu)
        )
    return found


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers in ``low`` to ``high`` for a logarithmic axis: 1-2-5 in a short range, decades in a long one."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return _fewest([[s * 10.0**d for d in decades for s in steps] for steps in _STEPS], low, high, most)


def time_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """The same for seconds: above a minute round numbers of minutes, above an hour of hours."""
    decades = range(math.floor(math.log10(low)), 2)
    choices = []
    for steps in _STEPS:
        below = [t for d in decades for s in steps if (t := s * 10.0**d) < 60]
        minutes = [t for ten in (60, 600) for s in steps if (t := s * ten) <= 1800]
        hours = [3600 * s * ten for ten in (1, 10, 100, 1000) for s in steps]
        choices.append([*below, *minutes, *hours])
    return _fewest(choices, low, high, most)


def _fewest(choices: list[list[float]], low: float, high: float, most: int) -> list[float]:
    """Of the densest choice that has at most ``most`` ticks within the limits; else every so many of the last."""
    for choice in choices:
        ticks = [t for t in choice if low <= t <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def set_log(
    axes: Axes, which: str, low: float, high: float, text: Callable[[float], str] | None = None, most: int = 6
) -> None:
    """Make one axis ("x", "y") logarithmic from ``low`` to ``high``, both positive, with ``text`` at round numbers.

    Without ``text`` it is an axis of seconds.
    """
    ticks = log_ticks(low, high, most) if text else time_ticks(low, high, most)
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([(text or tick_seconds)(t) for t in ticks]))
    axis.set_minor_locator(NullLocator())


def set_linear(axes: Axes, which: str, high: float, text: Callable[[float], str], most: int = 5) -> None:
    """Make one axis linear from 0 to ``high`` > 0, with ``text`` at round numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xlim if which == "x" else axes.set_ylim)(0, high)
    axis.set_major_locator(MaxNLocator(most))
    axis.set_major_formatter(FuncFormatter(lambda x, _: text(x)))


def set_bytes(axes: Axes, high: float, most: int = 6) -> None:
    """Make the horizontal axis one of bytes from 0 to ``high``, with ``most`` ticks or so at round numbers of its unit.

    So it is 256 MiB, not 244 MiB for 256,000,000 bytes.
    """
    unit = 1024 ** int(math.log(max(high, 1), 1024))
    units = high / unit
    step = next((s for s in (0.1, 0.2, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if units / s <= most), 512)
    axes.set_xlim(0, high)
    axes.set_xticks([i * step * unit for i in range(int(units / step) + 1)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(fmt.bytes_(x)) if x else "0"))


def short(text: str) -> str:
    """A formatted number without the zeros that only say how exact it is: "1.00 ms" is "1 ms", "10.0×" is "10×"."""
    number, rest = text, ""
    for i, c in enumerate(text):
        if c not in "0123456789.,-":
            number, rest = text[:i], text[i:]
            break
    return (number.rstrip("0").rstrip(".") if "." in number else number) + rest


def tick_seconds(x: float) -> str:
    """A duration at an axis: "10 ms", "2 s", "5 min", "1 h"."""
    for size, unit in ((3600, "h"), (60, "min")):
        if x >= size and (x / size).is_integer():
            return f"{x / size:g} {unit}"
    return short(fmt.seconds(x))


def smooth(values: Line, window: int) -> Line:
    """The mean of each value and those before it, ``window`` at most; NaN and infinities are passed over."""
    there = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(there, values, 0.0))])
    number = np.concatenate([[0], np.cumsum(there)])
    end = np.arange(1, values.size + 1)
    start = np.maximum(end - window, 0)
    with np.errstate(invalid="ignore"):
        mean: Line = (total[end] - total[start]) / np.where(
            number[end] > number[start], number[end] - number[start], np.nan
        )
    return mean


def thin(values: Line, most: int) -> tuple[Line, Line]:
    """A long series as a chart shows it: indices and values, of each stretch the lowest and the highest.

    Returns two arrays of at most about ``most`` finite values; peaks survive, unlike in an average or every n-th value.
    """
    index = np.flatnonzero(np.isfinite(values))
    if index.size > most:
        keep: list[int] = []
        for stretch in np.array_split(index, max(1, most // 2)):
            keep += {int(stretch[np.argmin(values[stretch])]), int(stretch[np.argmax(values[stretch])])}
        index = np.array(sorted(keep))
    return index.astype(np.float64), values[index]


def bar_rows(
    axes: Axes,
    rows: Sequence[str],
    series: Sequence[tuple[Look, Sequence[float | None]]],
    text: Callable[[float], str],
    *,
    names: bool = True,
    base: float = 0.0,
    left: str | None = None,
    dots: bool = False,
) -> None:
    """Horizontal bars: a group for each row, in it a bar for each series that has a number there, its value beside it.

    ``names``: whether the rows' names stand at the left. ``base``: where bars begin. ``left``: the colour of those that
    go to the left of it, where it is not the series' own. ``dots``: a disc at the end instead of the bar, for an axis
    on which lengths mean nothing.
    """
    many = fullest(series)
    thick = 0.8 / many
    for r in range(len(rows)):
        there = [(look, x) for look, values in series if (x := values[r]) is not None and math.isfinite(x)]
        for place, (look, value) in enumerate(there):
            y = r + (place - (len(there) - 1) / 2) * thick
            colour = left if left and value < base else look.colour
            if dots:
                axes.plot([value], [y], "o", color=colour, alpha=look.alpha, markersize=6, clip_on=False)
            else:
                axes.barh(y, value - base, left=base, height=thick * 0.86, color=colour, alpha=look.alpha, linewidth=0)
            axes.annotate(
                text(value),
                (max(value, base), y),
                xytext=(6 if dots else 3, 0),
                textcoords="offset points",
                va="center_baseline",
                fontsize=8.5 if many < 4 else 7.5,
                color=LIGHT["ink"],
                annotation_clip=False,
            )
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_yticks(range(len(rows)), [label(row) for row in rows] if names else [""] * len(rows))
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"], labelsize=9)
    axes.grid(visible=False, axis="y")
    axes.spines["bottom"].set_visible(False)


def fullest(series: Sequence[tuple[Look, Sequence[float | None]]]) -> int:
    """How many bars the fullest row has, at least one: with several models, not every series has a bar in every row."""
    by_row = zip(*(values for _, values in series), strict=True)
    return max((sum(x is not None for x in row) for row in by_row), default=1) or 1


def room_for_values(width: float) -> float:
    """The fraction of an axis ``width`` inches wide that a value beside its bar takes."""
    return min(0.45, 52 * POINT / width)


def swatches(shown: Sequence[Look]) -> list[tuple[Artist, str]]:
    """A legend's entries for bars."""
    return [(Patch(color=look.colour, alpha=look.alpha, linewidth=0), look.name) for look in shown]


def strokes(shown: Sequence[Look]) -> list[tuple[Artist, str]]:
    """A legend's entries for lines."""
    return [(Line2D([], [], **look.stroke()), look.name) for look in shown]


def legend(figure: Figure, entries: Sequence[tuple[Artist, str]], columns: int = 6) -> None:
    """A legend above the figure, from the left, read line by line: no line holds much less than another.

    ``columns``: at most as many, and no more than the figure is wide enough for.
    """
    lined = any(isinstance(handle, Line2D) for handle, _ in entries)
    columns = _columns([len(name) for _, name in entries], figure.get_figwidth() / POINT, columns, 46 if lined else 36)
    # matplotlib fills column by column.
    entries = [entry for first in range(columns) for entry in entries[first::columns]]
    figure.legend(
        [handle for handle, _ in entries],
        [name for _, name in entries],
        loc="outside upper left",
        ncols=columns,
        handlelength=2.2 if lined else 1.0,
        handleheight=0.9,
        columnspacing=1.6,
        borderpad=0.35,
        borderaxespad=0,
    )


def _columns(letters: Sequence[int], width: float, most: int, beside: float) -> int:
    """The fewest columns that make no more lines than the most that ``width`` points hold.

    A column takes ``beside`` and its longest name's letters.
    """

    def needed(columns: int) -> float:
        return sum(beside + _LEGEND_LETTER * max(letters[first::columns]) for first in range(columns))

    fitting = [n for n in range(1, min(most, len(letters)) + 1) if n == 1 or needed(n) <= width]
    lines = math.ceil(len(letters) / fitting[-1])
    return math.ceil(len(letters) / lines)


def titles(axes: Axes, title: str, below: str = "") -> None:
    """A panel's title above it and what its horizontal axis is below it, both from the left."""
    axes.set_title(title)
    if below:
        axes.set_xlabel(below, loc="left")

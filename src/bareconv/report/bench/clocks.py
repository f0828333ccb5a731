"""A whole training as a user meets it: with nothing compiled, with everything in its cache, and the steps alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bareconv.report import format as fmt
from bareconv.report.candidates import colour, names, who_ran
from bareconv.report.canvas import NARROW, POINT, WIDE, NothingToShow, new_figure, styled
from bareconv.report.marks import legend, room_for_values, set_linear, tick_seconds, titles
from bareconv.report.palette import LIGHT
from bareconv.report.sections import Block, Cell, Chart, Column, Prose, Section, Table, Words, cells, figures

PHASES = ("start", "import", "data", "model", "transfer", "compile", "first step", "training", "evaluation", "end")
_COLOURS = {  # the training itself has its device's colour
    "start": ("overhead", 0.45),
    "import": ("overhead", 1.0),
    "data": ("data", 1.0),
    "model": ("parameters", 1.0),
    "transfer": ("activations", 1.0),
    "compile": ("gradients", 1.0),
    "first step": ("optimizer", 1.0),
    "evaluation": ("", 0.45),
    "end": ("overhead", 0.7),
}
UNEXPLAINED = "not accounted for"
_LETTER = 5.2 * POINT

Clocks = Mapping[str, Any]


def clocks_section(result: Mapping[str, Any]) -> Section | None:
    """A chart of all trainings, and a table of their phases; None where none was timed."""
    clocks = result.get("clocks", [])
    if not clocks:
        return None
    blocks: list[Block] = [
        *(Prose(text) for text in sentences(clocks)),
        Chart("clocks", lambda w: clocks_chart(clocks, width=w), lambda: clocks_words(clocks)),
        phases_table(clocks),
        Prose(
            "The whole is seen from outside, from the start of the process to its end; the phases are what the process "
            "itself saw. Cold: with an empty cache of kernels. Warm: with the cache that the cold one left. Steady: "
            "the same steps at the rate of the benchmark.",
            "aside",
        ),
        *(Prose(note, "note") for one in clocks for note in one.get("notes", ())),
    ]
    return Section("clocks", "From the start of a process to a trained model", "Whole training", blocks)


def clock_names(clocks: Sequence[Clocks]) -> list[str]:
    """What each training is called."""
    called = names([who_ran(one) for one in clocks])
    if len({one["model"] for one in clocks}) > 1:
        called = [f"{name}, {one['model']}" for name, one in zip(called, clocks, strict=True)]
    return called


def sentences(clocks: Sequence[Clocks]) -> list[str]:
    """How much of a training is training, for each."""
    said = []
    for name, one in zip(clock_names(clocks), clocks, strict=True):
        cold, warm, steady = (one["cold"]["whole_seconds"], one["warm"]["whole_seconds"], one["steady_seconds"])
        accuracy = one.get("test_accuracy")
        reached = f", to {fmt.percent(accuracy)} accuracy" if accuracy is not None else ""
        take = "takes" if one["epochs"] == 1 else "take"
        said.append(
            f"{name}: {fmt.counted(one['epochs'], 'epoch')} of {one['model']} {take} "
            f"{fmt.seconds(cold)} cold and {fmt.seconds(warm)} warm{reached}; the steps alone would take "
            f"{fmt.seconds(steady)}, {fmt.percent(steady / cold if cold else None, 0)} of the cold time."
        )
    return said


@styled
def clocks_chart(clocks: Sequence[Clocks], *, width: float = WIDE) -> Figure:
    """A panel for each training, in it three bars, cold, warm and steady, of their phases behind one another."""
    if not clocks:
        raise NothingToShow("no training was timed")
    longest = [max(one["cold"]["whole_seconds"], one["warm"]["whole_seconds"], one["steady_seconds"]) for one in clocks]
    shared = max(longest) <= 8 * min(longest)
    figure = new_figure(width, len(clocks) * 1.5 + (0.75 if width <= NARROW else 0.55))
    boxes = np.ravel(figure.subplots(len(clocks), 1, squeeze=False))
    used: set[str] = set()
    for axes, one, name, own in zip(boxes, clocks, clock_names(clocks), longest, strict=True):
        most = max(longest) if shared else own
        inches = (width - 1.0) * (1 - room_for_values(width - 1))
        for y, (_, segments) in enumerate(bars(one)):
            used |= {phase for phase, _ in segments}
            _stack(axes, y, segments, LIGHT[colour(who_ran(one))], inches / (most or 1.0))
        axes.set_yticks(range(3), [bar for bar, _ in bars(one)])
        axes.set_ylim(2.55, -0.55)
        axes.tick_params(axis="y", labelcolor=LIGHT["ink"], labelsize=9)
        axes.grid(visible=False, axis="y")
        axes.spines["bottom"].set_visible(False)
        set_linear(axes, "x", (most or 1.0) / (1 - room_for_values(width - 1)), tick_seconds, 5)
        titles(axes, f"{name}: {one['model']}, {fmt.counted(one['epochs'], 'epoch')}")
    entries = [(Patch(**_face(phase, LIGHT["ink"])), phase) for phase in (*PHASES, UNEXPLAINED) if phase in used]
    legend(figure, [(patch, phase) for patch, phase in entries], columns=3 if width <= NARROW else 6)
    return figure


def bars(one: Clocks) -> list[tuple[str, list[tuple[str, float]]]]:
    """The three bars of a training: name, and phases with their seconds."""
    found = []
    for name in ("cold", "warm"):
        journey = one[name]
        segments = [(phase["name"], phase["seconds"]) for phase in journey["phases"]]
        rest = journey["whole_seconds"] - math.fsum(seconds for _, seconds in segments)
        if rest > 0:
            segments.append((UNEXPLAINED, rest))
        found.append((name, segments))
    return [*found, ("steady", [("training", one["steady_seconds"])])]


def _face(phase: str, own: str) -> dict[str, Any]:
    if phase == UNEXPLAINED:
        return {"facecolor": "none", "edgecolor": LIGHT["muted"], "linewidth": 0.8}
    name, alpha = _COLOURS.get(phase, ("", 1.0))
    return {"facecolor": LIGHT[name] if name else own, "alpha": alpha, "linewidth": 0}


def _stack(axes: Axes, y: float, segments: Sequence[tuple[str, float]], own: str, per_second: float) -> None:
    left = 0.0
    for phase, seconds in segments:
        axes.barh(y, seconds, left=left, height=0.66, **_face(phase, own))
        axes.plot([left + seconds] * 2, [y - 0.33, y + 0.33], color=LIGHT["paper"], linewidth=0.8)
        room = seconds * per_second - 0.08
        text = next((t for t in (f"{phase} {fmt.seconds(seconds)}", phase) if len(t) * _LETTER < room), "")
        pale = phase == UNEXPLAINED or _COLOURS.get(phase, ("", 1.0))[1] < 0.6
        if text:
            axes.text(
                left + seconds / 2,
                y,
                text,
                ha="center",
                va="center_baseline",
                fontsize=8.5,
                color=LIGHT["ink"] if pale else LIGHT["paper"],
            )
        left += seconds
    axes.annotate(
        fmt.seconds(left),
        (left, y),
        xytext=(4, 0),
        textcoords="offset points",
        va="center_baseline",
        fontsize=9,
        fontweight="bold",
        annotation_clip=False,
    )


def clocks_words(clocks: Sequence[Clocks]) -> Words:
    """The three times of each training."""
    caption = "A training in its device's colour, what comes with it in others."
    longest = [one["cold"]["whole_seconds"] for one in clocks]
    if len(clocks) > 1 and max(longest) > 8 * min(longest):
        caption += " Each panel has its own scale."
    return Words(f"Bar charts of the time of whole trainings. {' '.join(sentences(clocks))}", caption)


def phases_table(clocks: Sequence[Clocks]) -> Table:
    """A row for each phase, columns for every training cold and warm."""
    columns = [Column("Phase")]
    for name in clock_names(clocks):
        columns += figures(f"{name}, cold", f"{name}, warm")
    journeys = [journey for one in clocks for journey in (one["cold"], one["warm"])]
    rows = []
    for phase in PHASES:
        taken = [_seconds(journey, phase) for journey in journeys]
        if any(seconds is not None for seconds in taken):
            rows.append(cells(phase.capitalize(), *(fmt.seconds(seconds) for seconds in taken)))
    if any("compiled" in journey for journey in journeys):
        rows.append(cells("Kernels compiled", *(fmt.count(journey.get("compiled")) for journey in journeys)))
    rows.append(
        [
            Cell("Not accounted for"),
            *(
                Cell(fmt.percent(j["unexplained"], 1), mark="too much" if j["unexplained"] > 0.05 else "")
                for j in journeys
            ),
        ]
    )
    rows.append([Cell("Whole", strong=True), *(Cell(fmt.seconds(j["whole_seconds"]), strong=True) for j in journeys)])
    steady = [text for one in clocks for text in (fmt.seconds(one["steady_seconds"]), "")]
    rows.append(cells("Steady: the steps alone", *steady))
    return Table("Phases of whole trainings", columns, rows)


def _seconds(journey: Mapping[str, Any], phase: str) -> float | None:
    found = [one["seconds"] for one in journey["phases"] if one["name"] == phase]
    return math.fsum(found) if found else None

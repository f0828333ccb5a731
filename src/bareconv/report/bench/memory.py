"""Memory: what an engine said that it would need, and what was found; the peaks of everyone else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bareconv.report import format as fmt
from bareconv.report.bench.layers import Rooflines, Step
from bareconv.report.candidates import device_word
from bareconv.report.canvas import NARROW, WIDE, NothingToShow, new_figure, styled
from bareconv.report.marks import Look, bar_rows, legend, room_for_values, set_bytes, swatches, titles
from bareconv.report.palette import LIGHT
from bareconv.report.sections import Block, Cell, Chart, Column, Section, Table, Words, figures

_MOST_PANELS = 6


def memory_section(result: Mapping[str, Any]) -> Section | None:
    """Predicted beside measured memory of each step that has both; None where none has."""
    steps = [(found, step) for found in result.get("rooflines", ()) for step in found["steps"] if step.get("memory")]
    if not steps:
        return None
    blocks: list[Block] = [
        Chart("bench-memory", lambda w: memory_chart(steps, width=w), lambda: memory_words(steps)),
        memory_table(steps),
    ]
    return Section("bench-memory", "Memory: predicted and measured", "Memory", blocks)


def step_name(found: Rooflines, step: Step) -> str:
    """ "GPU, basic, batches of 64, float32"."""
    where = device_word(found["device"])
    engine = step.get("engine", "plan")
    return f"{where}, {step['model']}, batches of {fmt.count(step['batch_size'])}, {step['precision']}" + (
        "" if engine == "plan" else f", {engine}"
    )


def components(step: Step) -> list[str]:
    """Of the memory, in their order."""
    return list(dict.fromkeys([*step["memory"]["predicted"], *step["memory"]["measured"]]))


@styled
def memory_chart(steps: Sequence[tuple[Rooflines, Step]], *, width: float = WIDE) -> Figure:
    """A panel for each step, a row for each component: predicted pale, measured full."""
    steps = steps[:_MOST_PANELS]
    if not any(components(step) for _, step in steps):
        raise NothingToShow("no component of memory is known")
    columns = 1 if width <= NARROW or len(steps) == 1 else 2
    lines = math.ceil(len(steps) / columns)
    rows = max(len(components(step)) for _, step in steps)
    figure = new_figure(width, lines * (0.42 * rows + 0.62) + 0.3)
    boxes = np.ravel(figure.subplots(lines, columns, squeeze=False))
    for axes in boxes[len(steps) :]:
        axes.set_axis_off()
    for axes, (found, step) in zip(boxes, steps, strict=False):
        shade, gpu = LIGHT["cpu" if found["device"] == "cpu" else "gpu"], found["device"] != "cpu"
        both = step["memory"]["predicted"], step["memory"]["measured"]
        looks = [Look("predicted", shade, 0.45, (), gpu, False), Look("measured", shade, 1.0, (), gpu, False)]
        parts = components(step)
        series = [(look, [sizes.get(part) for part in parts]) for look, sizes in zip(looks, both, strict=True)]
        most = max((size for sizes in both for size in sizes.values()), default=1) or 1
        bar_rows(axes, parts, series, fmt.bytes_)
        set_bytes(axes, most / (1 - room_for_values(width / columns - 1.2)), 4)
        titles(axes, step_name(found, step))
    neutral = [
        Look(name, LIGHT["ink"], alpha, (), False, False) for name, alpha in (("predicted", 0.45), ("measured", 1.0))
    ]
    legend(figure, swatches(neutral))
    return figure


def memory_words(steps: Sequence[tuple[Rooflines, Step]]) -> Words:
    """The sums of both."""
    said = [
        f"{step_name(found, step)}: predicted {fmt.bytes_(_sum(step, 'predicted'))}, measured "
        f"{fmt.bytes_(_sum(step, 'measured'))}"
        for found, step in steps
    ]
    caption = "Predicted: what the engine said before its first step, from shapes alone. Measured: what was then found."
    return Words(f"Bar charts of memory by component. {'; '.join(said)}.", caption)


def _sum(step: Step, what: str) -> int:
    return sum(step["memory"][what].values())


def memory_table(steps: Sequence[tuple[Rooflines, Step]]) -> Table:
    """A row for each component of each step, with how far the prediction is off."""
    rows: list[list[Cell]] = []
    groups = {}
    for found, step in steps:
        groups[len(rows)] = step_name(found, step)
        predicted, measured = step["memory"]["predicted"], step["memory"]["measured"]
        for part in components(step):
            said, had = predicted.get(part), measured.get(part)
            off = fmt.percent(had / said - 1, 1) if said and had is not None else fmt.MISSING
            rows.append([Cell(part.capitalize()), Cell(fmt.bytes_(said)), Cell(fmt.bytes_(had)), Cell(off)])
    columns = [Column("Component"), *figures("Predicted", "Measured", "Measured over predicted, less 1")]
    return Table("Memory by component, predicted and measured", columns, rows, groups)

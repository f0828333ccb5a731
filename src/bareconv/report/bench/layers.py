"""Where the time of a step goes: each layer's forward, gradients and update, the CPU and the GPU side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bareconv.report import format as fmt
from bareconv.report.candidates import colour, device_word, who_ran
from bareconv.report.canvas import NARROW, WIDE, NothingToShow, label, new_figure, styled
from bareconv.report.marks import legend, room_for_values, set_linear, tick_seconds, titles
from bareconv.report.nodes import OPERATIONS, by_node, operation
from bareconv.report.palette import LIGHT
from bareconv.report.ratios import rate_of
from bareconv.report.sections import Block, Cell, Chart, Column, Fold, Prose, Section, Table, Words, figures

MOST_GROUPS = 4  # workloads with a chart
APART = 0.05  # of a step's time, by which two measurements of it differ so that it is worth a word
Rooflines = Mapping[str, Any]
Step = Mapping[str, Any]


def layers_section(result: Mapping[str, Any]) -> Section | None:
    """A chart for each workload; None where no step was taken apart."""
    groups = workloads(result.get("rooflines", ()))
    if not groups:
        return None
    blocks: list[Block] = []
    for place, group in enumerate(groups):
        if place < MOST_GROUPS:
            blocks.append(
                Chart(
                    f"layers-{place}",
                    lambda w, group=group: layers_chart(group, width=w),  # type: ignore[misc]
                    lambda group=group: layers_words(group),  # type: ignore[misc]
                )
            )
        blocks += [Prose(text, "aside") for text in doubts(group, result)]
        blocks.append(nodes_table(group))
        tables = [operations_table(found, step) for found, step in group]
        blocks.append(Fold(f"Every operation as numbers: {workload_title(group)}", tables))
    return Section("layers", "Where a step's time goes", "Layers", blocks)


def workloads(rooflines: Sequence[Rooflines]) -> list[list[tuple[Rooflines, Step]]]:
    """Steps that belong in one chart: of one engine, one model, one batch size, one precision where devices share it.

    A GPU's steps in a precision that the CPU has not are set beside the CPU's in float32.
    """
    every = [(found, step) for found in rooflines for step in found["steps"] if step["launches"]]
    groups: dict[tuple[str, str, int, str], list[tuple[Rooflines, Step]]] = {}
    cpu = {(*_engine_and_batch(s), s["precision"]): (f, s) for f, s in every if f["device"] == "cpu"}
    gpus = [(f, s) for f, s in every if f["device"] != "cpu"]
    for found, step in gpus:
        key = (*_engine_and_batch(step), step["precision"])
        beside = cpu.get(key) or cpu.get((*key[:3], "float32"))
        groups.setdefault(key, [beside] if beside else []).append((found, step))
    beside_some = {id(step) for group in groups.values() for _, step in group}
    for key, one in cpu.items():
        if id(one[1]) not in beside_some:
            groups.setdefault(key, []).append(one)
    return list(groups.values())


def _engine_and_batch(step: Step) -> tuple[str, str, int]:
    return step.get("engine", "plan"), step["model"], step["batch_size"]


def workload_title(group: Sequence[tuple[Rooflines, Step]]) -> str:
    """ "basic, batches of 64, float32", and the engine, unless it is the plan."""
    engine = _engine_and_batch(group[0][1])[0]
    precisions = " and ".join(dict.fromkeys(step["precision"] for _, step in group))
    return f"{group[0][1]['model']}, batches of {fmt.count(group[0][1]['batch_size'])}, {precisions}" + (
        "" if engine == "plan" else f", {engine}"
    )


@styled
def layers_chart(group: Sequence[tuple[Rooflines, Step]], *, width: float = WIDE) -> Figure:
    """A panel for each device, a row for each layer, in it the seconds of each operation behind one another."""
    shown = [(found, step, by_node(step)) for found, step in group]
    if not shown:
        raise NothingToShow("no step was taken apart")
    columns = 1 if width <= NARROW or len(shown) == 1 else 2
    lines = math.ceil(len(shown) / columns)
    rows = max(len(nodes) for _, _, nodes in shown)
    figure = new_figure(width, lines * (0.34 * rows + 0.62) + 0.35)
    boxes = np.ravel(figure.subplots(lines, columns, squeeze=False))
    for axes in boxes[len(shown) :]:
        axes.set_axis_off()
    for axes, (found, step, nodes) in zip(boxes, shown, strict=False):
        _stacks(axes, found, nodes, width / columns, rows)
        titles(axes, _panel_title(found, step, group), "of one step")
    there = [name for name in OPERATIONS if any(name in times for _, _, nodes in shown for times in nodes.values())]
    entries = [(Patch(color=LIGHT["ink"], alpha=OPERATIONS[name], linewidth=0), name) for name in there]
    legend(figure, [(patch, name) for patch, name in entries], columns=len(entries))
    return figure


def _panel_title(found: Rooflines, step: Step, group: Sequence[tuple[Rooflines, Step]]) -> str:
    several = len({s["precision"] for _, s in group}) > 1
    device = device_word(found["device"])
    precision = f" {step['precision']}" if several else ""
    return f"{device}{precision}: {fmt.seconds(step['step_seconds'])} a step"


def _stacks(axes: Axes, found: Rooflines, nodes: dict[str, dict[str, float]], width: float, rows: int) -> None:
    shade = LIGHT["cpu" if found["device"] == "cpu" else "gpu"]
    whole = math.fsum(s for times in nodes.values() for s in times.values()) or 1.0
    most = max(math.fsum(times.values()) for times in nodes.values())
    for y, times in enumerate(nodes.values()):
        left = 0.0
        for name, tint in OPERATIONS.items():
            seconds = times.get(name, 0.0)
            if seconds:
                axes.barh(y, seconds, left=left, height=0.66, color=shade, alpha=tint, linewidth=0)
                axes.plot([left + seconds] * 2, [y - 0.33, y + 0.33], color=LIGHT["paper"], linewidth=0.9)
                left += seconds
        axes.annotate(
            f"{fmt.seconds(left)}, {fmt.percent(left / whole, 0)}",
            (left, y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=8.5,
            annotation_clip=False,
        )
    axes.set_ylim(rows - 0.45, -0.55)
    axes.set_yticks(range(len(nodes)), [label(node, 22) for node in nodes])
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"], labelsize=9)
    axes.grid(visible=False, axis="y")
    axes.spines["bottom"].set_visible(False)
    set_linear(axes, "x", most / (1 - 1.25 * room_for_values(width - 1.4)), tick_seconds, 4)


def layers_words(group: Sequence[tuple[Rooflines, Step]]) -> Words:
    """Which layer takes the most on each device."""
    told, said = [], []
    for found, step in group:
        device, nodes = device_word(found["device"]), by_node(step)
        sums = {node: math.fsum(times.values()) for node, times in nodes.items()}
        top, whole = max(sums, key=lambda node: sums[node]), math.fsum(sums.values()) or 1.0
        said.append(f"on the {device} {top}, {fmt.percent(sums[top] / whole, 0)}")
        told.append(f"{device}: " + ", ".join(f"{node} {fmt.seconds(s)}" for node, s in sums.items()))
    caption = f"{workload_title(group)}. Most of the time goes to: {'; '.join(said)}."
    if len({found["device"] for found, _ in group}) > 1:
        caption += " Each side has its own scale."
    return Words(f"Bar charts of the time of each layer in one step. {'. '.join(told)}.", caption)


def doubts(group: Sequence[tuple[Rooflines, Step]], result: Mapping[str, Any]) -> list[str]:
    """What takes from the trust in the parts' times: their sum, and what ``result`` has of the same step elsewhere."""
    said = []
    for found, step in group:
        device = device_word(found["device"])
        alone = math.fsum(launch["seconds"] for launch in step["launches"])
        text = f"{device}: the parts together take {fmt.seconds(alone)}, a whole step among others "
        text += f"{fmt.seconds(step['step_seconds'])}."
        if any(launch["beside"] for launch in step["launches"]):
            text += " Some of the parts run beside each other in a step."
        cost = step.get("marks_cost")
        if cost is not None and cost > 0.1:
            text += f" Taking its time slowed the step down by {fmt.percent(cost, 0)}: do not trust the parts' times."
        said.append(text + _elsewhere(found, step, result))
    notes = dict.fromkeys(note for found, _ in group for note in found.get("notes", ()))
    return [" ".join(said), *notes]


def _elsewhere(found: Rooflines, step: Step, result: Mapping[str, Any]) -> str:
    """Where the step is also among the candidates that took turns, and took another time there."""
    same = {name: step[name] for name in ("model", "batch_size", "precision")}
    engine = step.get("engine", "plan")
    rate = rate_of(result["runs"], device=found["device"], engine=engine, **same)
    if rate is None:
        return ""
    seconds = step["batch_size"] / rate
    change = seconds / step["step_seconds"] - 1
    if abs(change) <= APART:
        return ""
    text = f" By turns with others it takes {fmt.seconds(seconds)}, {fmt.percent(abs(change), 0)} "
    text += f"{'more' if change > 0 else 'less'}: that was another process, at another time"
    learns = found["device"] == "cpu" and engine == "plan"  # which then visits only the gradients that are alive
    return text + (", and a network that had learned more or less." if learns else ".")


def nodes_table(group: Sequence[tuple[Rooflines, Step]]) -> Table:
    """A row for each layer of each device, a column for each operation; the sums first, which are always in sight."""
    shown = [(found, by_node(step)) for found, step in group]
    there = [name for name in OPERATIONS if any(name in times for _, nodes in shown for times in nodes.values())]
    rows = []
    for found, nodes in shown:
        whole = math.fsum(s for times in nodes.values() for s in times.values()) or 1.0
        for node, times in nodes.items():
            total = math.fsum(times.values())
            rows.append(
                [
                    Cell(node, device="cpu" if found["device"] == "cpu" else "gpu"),
                    Cell(device_word(found["device"])),
                    Cell(fmt.seconds(total), strong=True),
                    Cell(fmt.percent(total / whole, 0)),
                    *(Cell(fmt.seconds(times.get(name))) for name in there),
                ]
            )
    columns = [Column("Layer"), Column("Device"), *figures("Together", "Of the step", *there)]
    return Table(f"Layers of a step: {workload_title(group)}", columns, rows)


def operations_table(found: Rooflines, step: Step) -> Table:
    """Every launch of a step: its time, its work, what bounds it and how near to that it comes."""
    whole = math.fsum(launch["seconds"] for launch in step["launches"]) or 1.0
    rows = []
    for launch in step["launches"]:
        rows.append(
            [
                Cell(launch["node"], device=colour(who_ran({**step, "device": found["device"]}))),
                Cell(operation(launch)),
                Cell(launch["kernel"], note=launch["how"]),
                Cell(fmt.seconds(launch["seconds"])),
                Cell(fmt.percent(launch["seconds"] / whole, 1)),
                Cell(fmt.metric(launch["flops"], "FLOP")),
                Cell(fmt.bytes_(launch["bytes"])),
                Cell(launch["ceiling"]),
                Cell(fmt.percent(launch["share"], 0)),
            ]
        )
    columns = [
        *(Column(name) for name in ("Layer", "What", "Kernel")),
        *figures("Time", "Of the step", "Work", "Moved"),
        Column("Bounded by"),
        Column("Of that", figures=True),
    ]
    title = f"{device_word(found['device'])}, {step['model']}, batches of {fmt.count(step['batch_size'])}"
    return Table(f"Operations of a step: {title}, {step['precision']}", columns, rows)

"""``bareconv bench layers``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from bareconv.bench.deadline import Deadline
from bareconv.bench.depth import measure_depth
from bareconv.bench.roofline import Operation, by_operation, in_words, remarks, step_title
from bareconv.cli.bench.common import (
    Story,
    bench_options,
    chosen_device,
    conclude,
    data_notes,
    introduce,
    threads,
    workloads,
)
from bareconv.cli.screen import Bar, Screen, on_screen, stop_gently
from bareconv.report.format import MISSING, bytes_, flops, metric, percent, seconds, significant
from bareconv.report.terminal import bar as drawn

EPILOG = """\b
Examples:
  bareconv bench layers
  bareconv bench layers --model lenet5 --engine plan --engine reference --budget 10
  bareconv bench layers --model resnet9 --batch-size 64 --threads 1 --json
  bareconv bench layers --device cuda --precision bfloat16 --batch-size 256 --output layers.json
"""

_BAR = 12  # characters of a whole roofline
_BOUNDS = {"FLOP": "cyan", "byte": "magenta", "launch": "yellow"}  # colours of what bounds


@click.command(epilog=EPILOG, short_help="Each layer's forward, gradients and update beside what the machine can do.")
@bench_options(budget=20)
@on_screen
def layers(screen: Screen, **options: Any) -> int:
    """Take training steps apart: for each layer and operation its time, its work, and its share of the roofline.

    The work is what the formula needs: every multiply-add is two operations, every array is read or written once. At
    best a device takes as long for it as its arithmetic or its memory does, whichever is longer; both are measured in
    the same run ("bareconv bench ceilings" shows them alone). A kernel that does with less than the formula, such as
    Winograd's, may come out above 100%.

    It runs in a process of its own. What timing the parts costs is measured too, by steps without it. Memory is what
    the engine said before its first step, and what was found.

    Ctrl-C reports what there is. Exit code 1 if something could not be measured.
    """
    device = chosen_device(options)
    jobs = list(workloads(options))
    engines = list(dict.fromkeys(options["engines"]))
    notes = introduce(screen, options, f"{device.name} ({device.description.partition(', ')[0]})")
    notes += data_notes(jobs)
    with stop_gently(screen, "reporting what there is") as interrupt, Bar(screen) as bar:
        story = Story(screen, bar, interrupt, 1)
        story.begins("Layers")
        deadline = Deadline.after(options["budget"])
        found = measure_depth(jobs, device.name, engines, threads(options), deadline, story)
        stopped = interrupt.requested
    if stopped and not found["steps"]:
        raise KeyboardInterrupt
    for step in found["steps"]:
        _show(screen, found, step)
    said = remarks(found)
    notes += said
    for note in notes:
        screen.say(note)
    conclude(screen, options, screen.result(rooflines=[found], notes=notes))
    missing = len(found["steps"]) < len(jobs) * len(engines)
    return 130 if stopped else 1 if missing else 0


def _show(screen: Screen, found: Mapping[str, Any], step: Mapping[str, Any]) -> None:
    """What a step takes in all, its operations, its memory."""
    operations = by_operation(step)
    whole = math.fsum(one.seconds for one in operations)
    least = math.fsum(one.least_seconds for one in operations)
    units = {ceiling["name"]: ceiling["unit"] for ceiling in found["ceilings"]}
    screen.say()
    screen.say(Text(step_title(step), "bold"))
    line = f"{seconds(step['step_seconds'])} a step; its parts {seconds(whole)}, of which at least {seconds(least)} "
    line += f"are needed: {percent(least / whole if whole else 0.0, 0)} of the roofline"
    if "marks_cost" in step:
        line += f"; timing them cost {percent(max(0.0, step['marks_cost']), 1)}"
    screen.say(line + ".")
    wide = _table(screen, operations, whole, units, every=True)
    screen.show(wide if screen.fits(wide) else _table(screen, operations, whole, units, every=False))
    used = [c for c in found["ceilings"] if c["name"] in {one.ceiling for one in operations}]
    own = [c for c in used if c.get("threads") in (None, found.get("threads"))]
    if own:
        screen.say("Ceilings: " + ", ".join(map(in_words, own)) + ".")
    _memory(screen, step)


def _table(
    screen: Screen, operations: list[Operation], whole: float, units: Mapping[str, str], *, every: bool
) -> Table:
    """A row for each operation of each layer; ``every`` column, or those that a narrow terminal has room for."""
    more = ["bytes", "FLOP/byte", "FLOP/s"] if every else []
    table = screen.table("layer", "operation", "time", "of the step", "FLOP", *more, "of the roofline")
    table.columns[1].justify = "left"
    table.add_column("", justify="left")
    table.add_column("bounded by", justify="left")
    for one in operations:
        cells = [one.node, one.operation, seconds(one.seconds), percent(one.seconds / whole if whole else 0.0, 1)]
        cells.append(metric(one.flops, "").strip() if one.flops else "")
        if every:
            intensity = one.intensity
            cells.append(bytes_(one.bytes) if one.bytes else "")
            cells.append(significant(intensity) if intensity else "")
            cells.append(flops(one.flops / one.seconds) if one.flops and one.seconds else "")
        known = one.ceiling in units
        colour = _BOUNDS[units[one.ceiling]] if known else ""
        share = Text(drawn(min(one.share, 1.0), 1.0, _BAR) + ("▸" if one.share > 1 else ""), colour)
        table.add_row(*cells, percent(one.share, 0) if known else MISSING, share, one.ceiling if known else "")
    return table


def _memory(screen: Screen, step: Mapping[str, Any]) -> None:
    if "memory" not in step:
        return
    predicted, measured = step["memory"]["predicted"], step["memory"]["measured"]
    table = screen.table("memory", "predicted", "measured")
    for part in dict.fromkeys([*predicted, *measured]):
        table.add_row(part, *(bytes_(one[part]) if part in one else "" for one in (predicted, measured)))
    screen.show(table)

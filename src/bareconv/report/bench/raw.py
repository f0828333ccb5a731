"""Every number of a result: all blocks of all measurements as tables and as CSV, and the result itself as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bareconv.report import format as fmt
from bareconv.report.candidates import Who, names, who, who_ran
from bareconv.report.lessons import candidates as learners
from bareconv.report.lessons import workloads
from bareconv.report.sections import Block, Cell, Download, Fold, Prose, Section, Table, cells, figures

HEADINGS = (
    "part",
    "model",
    "batch_size",
    "precision",
    "device",
    "name",
    "variant",
    "axis",
    "value",
    "block",
    "seconds",
    "wall_seconds",
    "steps",
    "images",
    "images_per_second",
)


@dataclass(frozen=True)
class Taken:
    """The blocks of one measurement, and what was measured: the part of the result, who, on which workload."""

    part: str
    one: Who
    model: str
    batch_size: int
    samples: Mapping[str, Any]
    axis: str = ""
    value: float | None = None

    def blocks(self) -> Iterator[tuple[int, float, float | None, int, int]]:
        """Number from 1, seconds, wall seconds where they are known, steps and images of each block."""
        columns = [self.samples[key] for key in ("seconds", "steps", "images")]
        wall: Sequence[float] = self.samples.get("wall_seconds", ())
        for place, (seconds, steps, images) in enumerate(zip(*columns, strict=True)):
            yield place + 1, seconds, wall[place] if place < len(wall) else None, steps, images


def taken(result: Mapping[str, Any]) -> list[Taken]:
    """Everything that was measured block by block, in the order of the result."""
    found = [
        Taken("runs", who_ran(run), run["model"], run["batch_size"], run["throughput"]["samples"])
        for run in result["runs"]
        if "throughput" in run
    ]
    for group in result.get("peers", ()):
        found += [
            Taken("peers", who(one, group), group["model"], group["batch_size"], one["throughput"]["samples"])
            for one in group["candidates"]
            if "throughput" in one
        ]
    for sweep in result.get("sweeps", ()):
        for curve in sweep["curves"]:
            for point in curve["points"]:
                if "samples" in point:
                    size = int(point["value"]) if sweep["axis"] == "batch_size" else sweep["batch_size"]
                    one, value = who(curve), point["value"]
                    found.append(Taken("sweeps", one, sweep["model"], size, point["samples"], sweep["axis"], value))
    return found


def raw_section(result: Mapping[str, Any], name: str) -> Section:
    """Downloads of everything, and every block one click away. ``name`` of the result's file."""
    stem = name.removesuffix(".json")
    content = json.dumps(result, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
    blocks: list[Block] = [
        Download(f"{stem}.json", "application/json", content.encode("utf-8", "replace"), "The whole result, JSON")
    ]
    found = taken(result)
    if found:
        blocks.append(Download(f"{stem}-blocks.csv", "text/csv", csv_of(found), "Every block of steps, CSV"))
    blocks.append(Prose("Both are within this page: nothing is fetched from anywhere.", "aside"))
    for part, title in (("runs", "run"), ("peers", "candidate"), ("sweeps", "point")):
        some = [one for one in found if one.part == part]
        if some:
            number = sum(len(one.samples["seconds"]) for one in some)
            of_sweeps = " of sweeps" if part == "sweeps" else ""
            summary = f"All {fmt.counted(number, 'block')} of {fmt.counted(len(some), title)}{of_sweeps}"
            blocks.append(Fold(summary, [blocks_table(some, summary)], raw=True))
    for entries in workloads(result.get("learning", ())):
        blocks.append(Fold(f"Every accuracy of {entries[0]['model']}", [accuracies_table(entries)], raw=True))
    return Section("raw", "Every number", "Raw numbers", blocks)


def blocks_table(some: Sequence[Taken], label: str) -> Table:
    """A row for each block, those of one measurement under its name."""
    rows: list[Sequence[Cell]] = []
    groups = {}
    called = names([one.one for one in some])
    for name, one in zip(called, some, strict=True):
        what = f"{name.partition(' #')[0]}, {one.model}, batches of {fmt.count(one.batch_size)}, {one.one.precision}"
        if one.axis not in ("", "batch_size"):
            what += f", {one.axis.replace('_', ' ')} {fmt.count(one.value)}"
        groups[len(rows)] = what
        for block, seconds, wall, steps, images in one.blocks():
            rate = fmt.rate(images / seconds if seconds else None)
            numbers = (f"{seconds:.6f}", f"{wall:.6f}" if wall is not None else fmt.MISSING, fmt.count(steps))
            rows.append(cells(str(block), *numbers, fmt.count(images), rate))
    headings = ("Block", "Seconds", "Wall seconds", "Steps", "Images", "Images a second")
    return Table(label, figures(*headings), rows, groups)


def accuracies_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each time that a candidate was tested."""
    rows: list[Sequence[Cell]] = []
    groups = {}
    for _, name, record in learners(entries):
        groups[len(rows)] = name
        for steps, seconds, accuracy in zip(record["steps"], record["seconds"], record["accuracy"], strict=True):
            rows.append(cells(fmt.count(steps), f"{seconds:.6f}", fmt.percent(accuracy)))
    groups = {place: name for place, name in groups.items() if place < len(rows)}
    return Table("Every accuracy", figures("Steps", "Seconds", "Accuracy"), rows, groups)


def csv_of(found: Sequence[Taken]) -> bytes:
    """All blocks as one table, numbers as exact as they are known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADINGS)
    for one in found:
        what = (one.part, one.model, one.batch_size, one.one.precision, one.one.device, one.one.name, one.one.variant)
        for block, seconds, wall, steps, images in one.blocks():
            rate = images / seconds if seconds else ""
            writer.writerow([*what, one.axis, one.value, block, seconds, wall, steps, images, rate])
    return text.getvalue().encode("utf-8", "replace")

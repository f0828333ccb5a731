"""The rates of our engines' runs, and how they were measured, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bareconv.bench.estimates import FEW
from bareconv.report import format as fmt
from bareconv.report.candidates import colour, names, who_ran
from bareconv.report.ratios import mark
from bareconv.report.sections import Cell, Column, Prose, Section, Table, figures


def throughput_section(result: Mapping[str, Any]) -> Section | None:
    """A row for each run at its steady state; None where there is none."""
    runs = [run for run in result["runs"] if "throughput" in run]
    return Section("throughput", "Our engines", "Our engines", [runs_table(runs)]) if runs else None


def runs_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """Rate with its interval, the time of a step, compiling, memory."""
    rows = []
    for run, name in zip(runs, names([who_ran(run) for run in runs]), strict=True):
        steady = run["throughput"]
        interval = steady["interval"]
        rows.append(
            [
                Cell(name.partition(" #")[0], device=colour(who_ran(run))),
                Cell(run["model"]),
                Cell(fmt.count(run["batch_size"])),
                Cell(run["precision"]),
                Cell(fmt.rate(steady["images_per_second"]), strong=True, mark=mark(steady)),
                Cell(fmt.between(interval["low"], interval["high"], lambda x: fmt.rate(x).removesuffix("/s"))),
                Cell(fmt.seconds(run.get("seconds_per_iteration"))),
                Cell(fmt.seconds(steady["compile_seconds"])),
                Cell(fmt.bytes_(steady["peak_memory_bytes"])),
            ]
        )
    columns = [
        Column("Engine"),
        Column("Model"),
        Column("Batch", figures=True),
        Column("Precision"),
        Column("Images a second", figures=True),
        Column("95% interval", quiet=True),
        *figures("One step", "Compiling", "Peak memory"),
    ]
    return Table("Throughput of our engines", columns, rows)


def method_section() -> Section:
    """What a block is, what the intervals are, and what is left out of every figure."""
    return Section(
        "method",
        "How it was measured",
        "Method",
        [
            Prose(
                "Each candidate is a process of its own, with the same environment and threads. It compiles, takes its "
                "first steps and warms up, and only then is asked for blocks of training steps, a fraction of a second "
                "each. Only one candidate runs at a time, in an order that a machine which slows down slows all down "
                "alike: A B C, C B A, and so on."
            ),
            Prose(
                "A figure is the median of the blocks. Its interval is a bootstrap's: in 95% of many redrawings of the "
                "blocks the median lies in it. A ratio is redrawn from pairs of blocks that were taken one after the "
                "other. Time on a GPU is that of the device's own clock, with the device synchronised at both ends."
            ),
            Prose(
                "A figure is called unstable where the blocks differ too much, or drift, for their median to be "
                f"trusted; of fewer than {FEW} it says that they are few. Where an interval holds 1, one side is not "
                "called faster. Other libraries train our model from our weights on our batches, and must have our "
                "first losses, or their time is not shown."
            ),
        ],
    )

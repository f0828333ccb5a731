"""``bareconv bench ceilings``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from bareconv.bench.deadline import Deadline
from bareconv.bench.depth import measure_depth
from bareconv.bench.roofline import remarks
from bareconv.bench.roofline.words import value
from bareconv.cli.bench.common import OUTPUT, Story, budget_option, conclude, introduce, threads
from bareconv.cli.options import threads_of
from bareconv.cli.screen import Bar, Screen, on_screen, stop_gently
from bareconv.device import get_device
from bareconv.report.format import MISSING, counted

EPILOG = """\b
Examples:
  bareconv bench ceilings
  bareconv bench ceilings --threads 2 --budget 5 --json
  bareconv bench ceilings --device cuda --output ceilings.json
"""


@click.command(epilog=EPILOG, short_help="What this machine can do at best: arithmetic, memory, a launch.")
@click.option(
    "--device", default="cpu", show_default=True, metavar="NAME", help="What to measure: cpu, cuda, cuda:1 or auto."
)
@threads_of("Most threads of the CPU; one, and the powers of two between, are measured as well.")
@budget_option(15)
@OUTPUT
@on_screen
def ceilings(screen: Screen, **options: Any) -> int:
    """Measure what a device can do at best, by the instructions that our kernels use, in a process of its own.

    On a CPU: multiply-adds in registers, matrix products by NumPy's BLAS, in float32 and float64; the bandwidth of each
    cache and of memory; what it costs to start a step; for one thread, for all, and for powers of two between. On a
    GPU: multiply-adds on its cores and its matrix units in each precision, cache, memory, a kernel launch.

    Ctrl-C reports what there is. Exit code 1 if nothing could be measured.
    """
    device = get_device(options["device"])
    notes = introduce(screen, options, f"{device.name} ({device.description.partition(', ')[0]})")
    with stop_gently(screen, "reporting what there is") as interrupt, Bar(screen) as bar:
        story = Story(screen, bar, interrupt, 1)
        story.begins("Ceilings")
        found = measure_depth((), device.name, (), threads(options), Deadline.after(options["budget"]), story)
        stopped = interrupt.requested
    if stopped and not found["ceilings"]:
        raise KeyboardInterrupt
    show_ceilings(screen, found)
    notes += remarks(found)
    for note in notes:
        screen.say(note)
    conclude(screen, options, screen.result(rooflines=[found], notes=notes))
    return 130 if stopped else 0 if found["ceilings"] else 1


def show_ceilings(screen: Screen, found: Mapping[str, Any]) -> None:
    """A row each, a column for each number of threads where there are such; then how they were measured."""
    every = found["ceilings"]
    if not every:
        return
    names = list(dict.fromkeys(one["name"] for one in every))
    counts = sorted({one["threads"] for one in every if "threads" in one})
    by_place = {(one["name"], one.get("threads")): one for one in every}
    heads = [f"{counted(n, 'thread')}" for n in counts] or ["at best"]
    table = screen.table("ceiling", *heads)
    for name in names:
        there = [by_place.get((name, n)) for n in counts or [None]]
        table.add_row(name, *(value(one) if one else MISSING for one in there))
    screen.say()
    screen.show(table)
    screen.say()
    for name in names:
        how = next(one["how"] for one in reversed(every) if one["name"] == name)
        screen.say(f"{name}: {how}.")

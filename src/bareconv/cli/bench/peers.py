"""``bareconv bench peers``."""

from __future__ import annotations

from typing import Any

import click

from bareconv.bench.deadline import Deadline
from bareconv.bench.interleave import our_candidate
from bareconv.bench.peers import PEERS, Compared, Question, compare, find, record
from bareconv.bench.steady import run_record
from bareconv.cli.bench.common import (
    PYTHON,
    Story,
    bench_options,
    chosen_device,
    conclude,
    data_notes,
    doubts,
    interval,
    introduce,
    peer_option,
    threads,
    workloads,
)
from bareconv.cli.screen import Bar, Screen, on_screen, stop_gently
from bareconv.report.format import bytes_, rate, ratio, seconds

EPILOG = """\b
Examples:
  bareconv bench peers
  bareconv bench peers --model basic --model small --budget 300 --output peers.json
  bareconv bench peers --peer pytorch --python ~/torch/bin/python --no-compile
  bareconv bench peers --engine reference --peer dezero --batch-size 128
  bareconv bench peers --device cuda --precision bfloat16 --batch-size 256
"""


@click.command(epilog=EPILOG, short_help="Our engines beside other libraries, measured by turns.")
@bench_options(budget=120)
@peer_option("What to compare with", "all that are installed")
@PYTHON
@click.option(
    "--no-compile", is_flag=True, help="Leave out torch.compile and tinygrad's search, which may take minutes."
)
@on_screen
def peers(screen: Screen, **options: Any) -> int:
    """Compare the throughput of our engines with that of other libraries, on the CPU or on a GPU.

    All train the same model from the same weights on the same batches with the same optimizer, by turns, in short
    blocks and each in its own process. Of a library's variants (layouts, modes) the fastest is measured, found by
    trying each briefly, and the library as it comes. What differs from ours in its first losses is not shown. All of
    that is within the budget, most of which goes into getting ready.

    Ctrl-C ends the block at hand and reports what there is. Exit code 1 if something failed or disagrees.
    """
    device = chosen_device(options)
    jobs = list(workloads(options))
    found = find(
        list(dict.fromkeys(options["peers"])) or list(PEERS), options["python"], device.name, options["precision"]
    )
    notes = introduce(screen, options, f"{device.name} ({device.description.partition(', ')[0]})")
    notes += data_notes(jobs)
    notes += [f"{name} is absent: {reason}." for name, reason in found.absent.items()]
    for note in notes:
        screen.say(note)
    engines = [our_candidate(name, device.name, threads(options)) for name in dict.fromkeys(options["engines"])]
    done: list[Compared] = []
    with (
        stop_gently(screen, "finishing this block, then reporting what there is") as interrupt,
        Bar(screen) as bar,
    ):
        story = Story(screen, bar, interrupt, len(jobs))
        deadline = Deadline.after(options["budget"])
        for place, job in enumerate(jobs):
            story.begins(job.title)
            share, compiled = deadline.part(1 / (len(jobs) - place)), not options["no_compile"]
            question = Question(job, engines, found)
            done += compare([question], share, story, compiled=compiled, device=device.name)
            if any(side.rate is not None or side.error is not None for side in done[-1].sides):
                _show(screen, record(done[-1], found.absent))
            if interrupt.requested:
                break
        stopped = interrupt.requested
        runs = [run_record(one, side) for one in done for side in one.sides if side.candidate.ours]
        if stopped and not any(runs):
            raise KeyboardInterrupt
    if stopped:
        notes.append("Stopped early by request: the figures are of what was done by then.")
    doubtful = [note for one in done for note in doubts(one.workload.title, one.sides)]
    for note in doubtful:
        screen.say(note)
    notes += doubtful
    sides = [(one, side) for one in done for side in one.sides if side.error is not None]
    notes += [f"{one.workload.title}, {side.candidate.label}: {side.error}." for one, side in sides]
    comparisons = [record(one, found.absent) for one in done]
    conclude(screen, options, screen.result(runs=list(filter(None, runs)), peers=comparisons, notes=notes))
    return 130 if stopped else 1 if any(side.status != "unsupported" for _, side in sides) else 0


def _show(screen: Screen, comparison: dict[str, Any]) -> None:
    """A row a candidate; the ratios are of our first engine's images a second over each other's."""
    versus = f"{comparison['ours'] or 'ours'} / it"
    table = screen.table(
        "candidate", "images/s", "95% interval", versus, "95% interval", "compiling", "peak memory", "growth"
    )
    for candidate in comparison["candidates"]:
        steady, times = candidate.get("throughput"), candidate.get("ratio")
        cells = [f"{candidate['name']} {candidate['variant']}".strip()]
        if steady is None:
            cells += [candidate["status"], *[""] * 6]
        else:
            cells += [
                rate(steady["images_per_second"]).removesuffix("/s"),
                interval(steady["interval"]),
                ratio(times["value"]) if times else "",
                f"{ratio(times['low'])} to {ratio(times['high'])}" if times else "",
                seconds(steady["compile_seconds"]),
                bytes_(steady["peak_memory_bytes"]),
                bytes_(steady["memory_growth_bytes"]),
            ]
        table.add_row(*cells)
    screen.show(table)
    for candidate in comparison["candidates"]:
        label = f"{candidate['name']} {candidate['variant']}".strip()
        if candidate["error"] is not None:
            screen.warn(f"{label}: {candidate['error']}")
        for one in candidate.get("tries", []):
            if one["error"] is not None:
                screen.say(f"{candidate['name']} {one['variant']} was tried in vain: {one['error']}")

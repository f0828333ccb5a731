"""``bareconv bench run``."""

from __future__ import annotations

from typing import Any

import click

from bareconv.bench.deadline import Deadline
from bareconv.bench.interleave import our_candidate
from bareconv.bench.steady import measure, run_record
from bareconv.cli.bench.common import (
    Story,
    bench_options,
    chosen_device,
    conclude,
    doubts,
    interval,
    introduce,
    threads,
    workloads,
)
from bareconv.cli.screen import Bar, Screen, on_screen, stop_gently
from bareconv.report.format import bytes_, count, rate, seconds

EPILOG = """\b
Examples:
  bareconv bench run
  bareconv bench run --model basic --batch-size 64 --threads 2 --budget 10 --json
  bareconv bench run --model basic --model resnet9 --batch-size 32 --batch-size 256
"""


@click.command(epilog=EPILOG, short_help="How many images a second our engines train.")
@bench_options(budget=10)
@on_screen
def run(screen: Screen, **options: Any) -> int:
    """Measure the steady-state throughput of training steps: images a second, with a 95% interval.

    Each engine runs in its own process, which has warmed up and compiled before its first block; several engines take
    turns. A workload is a model with a batch size; the budget is divided among them. Images of 28x28x1 are MNIST's,
    others are drawn at random.

    Ctrl-C ends the block at hand and reports what there is. Exit code 1 if something could not be measured.
    """
    device = chosen_device(options)
    jobs = list(workloads(options))
    notes = introduce(screen, options, f"{device.name} ({device.description.partition(', ')[0]})")
    engines = [our_candidate(name, device.name, threads(options)) for name in dict.fromkeys(options["engines"])]
    runs: list[dict[str, Any]] = []
    failures: list[str] = []
    doubtful: list[str] = []
    for note in notes:
        screen.say(note)
    with (
        stop_gently(screen, "finishing this block, then reporting what there is") as interrupt,
        Bar(screen) as bar,
    ):
        story = Story(screen, bar, interrupt, len(jobs))
        deadline = Deadline.after(options["budget"])
        for place, job in enumerate(jobs):
            story.begins(job.title)
            measured = measure(job, engines, deadline.part(1 / (len(jobs) - place)), story)
            doubtful += doubts(job.title, measured.sides)
            for side in measured.sides:
                record = run_record(measured, side)
                if record is not None:
                    runs.append(record)
                    _say(screen, record)
                elif side.error is not None:
                    failures.append(f"{job.title}, {side.candidate.label}: {side.error}.")
                    screen.warn(failures[-1])
            if interrupt.requested:
                break
        stopped = interrupt.requested
        if stopped and not runs:
            raise KeyboardInterrupt
    if stopped:
        notes.append("Stopped early by request: the runs are those that were done, the last one perhaps in part.")
    _show(screen, runs)
    for note in doubtful:
        screen.say(note)
    conclude(screen, options, screen.result(runs=runs, notes=[*notes, *doubtful, *failures]))
    return 130 if stopped else 1 if failures else 0


def _say(screen: Screen, record: dict[str, Any]) -> None:
    steady = record["throughput"]
    screen.say(
        f"  {record['engine']}: {rate(steady['images_per_second'], 'images')} ({interval(steady['interval'])}), "
        f"{count(len(steady['samples']['seconds']))} blocks"
    )


def _show(screen: Screen, runs: list[dict[str, Any]]) -> None:
    if not runs:
        return
    table = screen.table(
        "model", "batch", "engine", "images/s", "95% interval", "one step", "compiling", "warm-up", "peak memory"
    )
    for record in runs:
        steady = record["throughput"]
        table.add_row(
            record["model"],
            count(record["batch_size"]),
            record["engine"],
            rate(steady["images_per_second"]).removesuffix("/s"),
            interval(steady["interval"]),
            seconds(record["seconds_per_iteration"]),
            seconds(steady["compile_seconds"]),
            seconds(steady["warm_up_seconds"]),
            bytes_(steady["peak_memory_bytes"]),
        )
    screen.say()
    screen.show(table)

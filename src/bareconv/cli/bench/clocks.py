"""``bareconv bench clocks``."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from bareconv.bench.clocks import EPOCHS, measure_clocks
from bareconv.bench.deadline import Deadline
from bareconv.bench.process import WorkerError
from bareconv.cli.bench.common import Story, bench_options, chosen_device, conclude, data_notes, introduce, workloads
from bareconv.cli.screen import Bar, Screen, on_screen, stop_gently
from bareconv.report.format import counted, percent, seconds

EPILOG = """\b
Examples:
  bareconv bench clocks
  bareconv bench clocks --device cuda --precision bfloat16 --batch-size 256
  bareconv bench clocks --model lenet5 --epochs 1 --engine plan --engine reference --budget 120
"""

COLOURS = {
    "start": "bright_black",
    "import": "blue",
    "data": "cyan",
    "model": "magenta",
    "transfer": "yellow",
    "compile": "red",
    "first step": "bright_yellow",
    "training": "green",
    "evaluation": "bright_cyan",
    "end": "bright_black",
}
BAR_CELLS = 60


@click.command(epilog=EPILOG, short_help="A whole training from cold, from warm, and at its steady rate.")
@bench_options(budget=60)
@click.option(
    "--epochs",
    type=click.IntRange(1),
    metavar="N",
    default=EPOCHS,
    show_default=True,
    help="How long the training is; shorter where the budget is not enough.",
)
@on_screen
def clocks(screen: Screen, **options: Any) -> int:
    """Time a whole training as a user meets it: a fresh process, from its start to its end, phase by phase.

    Cold has no compiled kernel in any cache; warm has those that the cold one left; steady is the time of the same
    training steps alone at the rate of a long training. The budget is over everything.

    Ctrl-C ends the training at hand and reports what there is. Exit code 1 if something could not be measured.
    """
    device = chosen_device(options)
    engines = list(dict.fromkeys(options["engines"]))
    jobs = [(job, engine) for job in workloads(options) for engine in engines]
    notes = introduce(screen, options, f"{device.name} ({device.description.partition(', ')[0]})")
    notes += data_notes([job for job, _ in jobs])
    for note in notes:
        screen.say(note)
    found: list[dict[str, Any]] = []
    failures: list[str] = []
    deadline = Deadline.after(options["budget"])
    with (
        stop_gently(screen, "ending this training, then reporting what there is") as interrupt,
        Bar(screen) as bar,
    ):
        story = Story(screen, bar, interrupt, len(jobs))
        for number, (job, engine) in enumerate(jobs):
            story.begins(f"{job.title}, {engine}")
            try:
                share = deadline.part(1 / (len(jobs) - number))
                record = measure_clocks(job, device, engine, share, story, options["epochs"])
            except WorkerError as error:
                failures.append(f"{job.title}, {engine}: {error}.")
                screen.warn(failures[-1])
                continue
            if record is None:
                break
            found.append(record)
            notes += [f"{job.title}, {engine}: {note}" for note in record["notes"]]
            bar.begin("")
            _show(screen, record)
        stopped = interrupt.requested
        if stopped and not found:
            raise KeyboardInterrupt
    if stopped:
        notes.append("Stopped early by request: the trainings are those that were done.")
    conclude(screen, options, screen.result(clocks=found, notes=[*notes, *failures]))
    return 130 if stopped else 1 if failures else 0


def _show(screen: Screen, record: dict[str, Any]) -> None:
    """A row a phase, and the same as bars where there are colours to tell the phases by."""
    table = screen.table("phase", "cold", "share", "warm", "share")
    seen = [record["cold"], record["warm"]]
    times = [{phase["name"]: phase["seconds"] for phase in one["phases"]} for one in seen]
    for name in times[0]:
        cells: list[str] = []
        for one, whole in zip(times, seen, strict=True):
            cells += [seconds(one[name]), percent(one[name] / whole["whole_seconds"], 1)]
        table.add_row(Text(name, COLOURS[name]), *cells)
    table.add_row("whole", *(cell for one in seen for cell in (seconds(one["whole_seconds"]), "")))
    table.add_row("unexplained", *(cell for one in seen for cell in ("", percent(one["unexplained"], 1))))
    images = f"{counted(record['epochs'], 'epoch')} of {counted(record['train_images'], 'image')}"
    screen.say(f"{record['engine']} on {record['device']}, {record['precision']}: {images}")
    screen.show(table)
    accuracy = record["test_accuracy"]
    screen.say(
        f"The same steps at their steady rate: {seconds(record['steady_seconds'])}"
        + (f"; accuracy {percent(accuracy)}" if accuracy is not None else "")
    )
    if screen.interactive:
        longest = max(record["steady_seconds"], *(one["whole_seconds"] for one in seen))
        steady = {"training": record["steady_seconds"]}
        for name, parts in (("cold", times[0]), ("warm", times[1]), ("steady", steady)):
            screen.say(_bar(name, parts, longest))
    for note in record["notes"]:
        screen.say(note)


def _bar(name: str, parts: dict[str, float], longest: float) -> Text:
    """Phases one after another, in their colours; ends are rounded to whole cells, so that lengths add up."""
    line, so_far, drawn = Text(f"{name:<8}"), 0.0, 0
    for phase, length in parts.items():
        so_far += length
        end = round(BAR_CELLS * so_far / longest)
        line.append("█" * (end - drawn), COLOURS[phase])
        drawn = end
    return line.append(f" {seconds(so_far)}")

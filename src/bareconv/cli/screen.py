"""What the verbs print: people read it on a console, programs read JSON on standard output."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from bareconv import training
from bareconv.bench import results
from bareconv.bench.environment import describe
from bareconv.device import CpuDevice, Device
from bareconv.report.format import percent, rate, seconds


class Screen:
    """Text for people: on standard output, or on standard error where standard output is for JSON."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:  # in a file or a pipe a table must not be folded to 80 columns
            self.console.width = 200
        # Before the work: the warnings among it look at how busy the machine is.
        self.environment = describe()

    def say(self, text: str = "") -> None:
        """A line."""
        self.console.print(text, markup=False)

    def show(self, table: Table) -> None:
        """A table."""
        self.console.print(table)

    def result(self, settings: dict[str, Any], **parts: Any) -> dict[str, Any]:
        """A result of this command, with ``parts`` of the schema (runs, evaluation, ...)."""
        words = click.get_current_context().find_root().obj
        return results.new(shlex.join(words), settings, environment=self.environment, **parts)

    def finish(self, result: dict[str, Any]) -> None:
        """The machine-readable result, where it was asked for."""
        results.validate(result)
        if self.as_json:
            json.dump(result, sys.stdout, indent=2, allow_nan=False)
            sys.stdout.write("\n")
            sys.stdout.flush()

    def table(self, *columns: str, title: str | None = None) -> Table:
        """A new table; the first column is text, the others figures."""
        table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        return table

    def device(self, device: Device) -> None:
        """Which device will work, and with how many threads."""
        self.say(f"Device: {device.name} ({device.description})")
        if isinstance(device, CpuDevice):
            for warning in self.environment["warnings"]:
                self.say(f"Warning: {warning}")


class TrainingBar:
    """A progress bar of a training: loss, accuracy, images a second, time left."""

    def __init__(self, screen: Screen) -> None:
        # Where nobody watches (a pipe, a log file), no bar; the epochs' lines tell enough.
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}"),
            console=screen.console,
            transient=True,
            disable=not screen.console.is_terminal,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> TrainingBar:
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()

    def begin(self, text: str, total: int) -> None:
        """A new count from 0 to ``total``."""
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(text, total=total, note="")

    def count(self, done: int, note: str = "") -> None:
        """So many are done."""
        if self.task is not None:
            self.progress.update(self.task, completed=done, note=note)

    def training(self, now: training.Progress) -> None:
        """A training has come that far."""
        if self.task is not None:
            self.progress.update(self.task, description=f"Epoch {now.epoch}/{now.epochs}")
        self.count(
            now.step,
            f"loss {now.loss:.4f}  accuracy {percent(now.accuracy)}  {rate(now.images_per_second, 'images')}  "
            f"{seconds(now.seconds_left)} left",
        )


def epoch_line(record: training.EpochRecord, epochs: int) -> str:
    """What a person wants to know of an epoch, in a line."""
    line = (
        f"Epoch {record.epoch}/{epochs}: loss {record.train_loss:.4f}, accuracy {percent(record.train_accuracy)}, "
        f"{seconds(record.train_seconds)}"
    )
    if record.test_accuracy is not None:
        line += f"; held out: loss {record.test_loss:.4f}, accuracy {percent(record.test_accuracy)}"
    return line


class Interrupt:
    """Set by the first Ctrl-C; the second one ends the process in the ordinary way."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self) -> bool:
        return self.requested

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def stop_gently(screen: Screen) -> Iterator[Interrupt]:
    """Within it, Ctrl-C only asks the work to stop after the step at hand."""
    interrupt = Interrupt()
    before = signal.signal(signal.SIGINT, interrupt._note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
        if interrupt.requested:
            screen.say("Interrupted: stopping after this step.")

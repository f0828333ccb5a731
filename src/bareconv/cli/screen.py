"""What the verbs print: people read it on a console, programs read JSON on standard output."""

from __future__ import annotations

import _thread
import contextlib
import functools
import json
import math
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bareconv import training
from bareconv.bench import results
from bareconv.bench.environment import describe
from bareconv.device import CpuDevice, Device
from bareconv.errors import BareconvError
from bareconv.report.format import counted, percent, rate, seconds

_REDRAW_SECONDS = 0.1
_ONE_PRESS_SECONDS = 0.3  # a Ctrl-C may come twice: from the terminal, and from what started this (timeout, make, uv)
_STOPPING = (signal.SIGINT, signal.SIGTERM)


class _Console(Console):
    """A console whose reader may go (| head): then it falls silent, and tells ``gone``."""

    def __init__(self, gone: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)
        self.gone = gone

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _forget(self.file)
        self.gone()


def _forget(stream: IO[str]) -> None:
    """Let what is still to be written to a stream that nobody reads any more go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class Screen:
    """Text for people: on standard output, or on standard error where standard output is for JSON.

    Where its reader goes, the work goes on, with its files and its exit code; unless it ``only_prints``.
    """

    def __init__(self, settings: dict[str, Any], as_json: bool) -> None:
        self.settings, self.as_json, self.finished = settings, as_json, False
        self.only_prints = False
        # What is printed comes from users and the system: brackets are no markup in it, and ":x:" is no emoji.
        self.console: Console = _Console(self._reader_gone, stderr=as_json, highlight=False, markup=False, emoji=False)
        self.interactive = self.console.is_interactive
        if not self.console.is_terminal:  # in a file or a pipe nothing is folded
            self.console.width = 10_000
        # Before the work: the warnings among it look at how busy the machine is.
        self.environment = describe()

    def _reader_gone(self) -> None:
        if self.only_prints:
            raise SystemExit(1)

    def say(self, text: str | Text = "") -> None:
        """A line, folded between words where the terminal is narrower."""
        self.console.print(text)

    def command(self, text: str) -> None:
        """A command on a line of its own, to be copied: never folded."""
        self.console.print("  " + text, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Something that the user should know, and may do something about."""
        self.console.print(Text("Warning: ", "yellow").append(text, "default"))

    def show(self, table: Table) -> None:
        """A table."""
        if self.console.is_terminal:
            self.console.print(table)
            return
        with self.console.capture() as captured:
            self.console.print(table)
        for line in captured.get().splitlines():  # rich fills the last column with spaces
            self.console.print(line.rstrip(), soft_wrap=True)

    def fits(self, table: Table) -> bool:
        """Whether the terminal is wide enough for all columns of ``table``."""
        return self.console.measure(table, options=self.console.options.update(width=10_000)).maximum <= (
            self.console.width
        )

    def table(self, *columns: str, title: str | None = None) -> Table:
        """A new table; the first column is text, the others figures."""
        table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None)
        table.pad_edge, table.padding = False, (0, 2, 0, 0)
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        return table

    def device(self, device: Device, *, measured: bool = False) -> None:
        """Which device will work, with how many threads, and what slows it down.

        ``measured``: times are what the verb is for, so that it matters how busy the machine is.
        """
        self.say(f"Device: {device.name} ({device.description})")
        if isinstance(device, CpuDevice):
            for warning in self.environment["warnings"]:
                if measured or "busy" not in warning:
                    self.warn(warning)

    def engine(self, engine: training.Engine, wanted: str) -> None:
        """Warn where another engine works than the one that was ``wanted``."""
        if engine.name == wanted:
            return
        reason = f" ({training.why_no_plan(engine.device, engine.precision)})" if wanted == "plan" else ""
        self.warn(f"no {wanted} on {engine.device.name}{reason}: the engine is {engine.description}")

    def batch_size(self, wanted: int, images: int) -> None:
        """Warn where a batch cannot be as large as is ``wanted``."""
        if wanted > images:
            self.warn(
                f"--batch-size {wanted:,}: there are only {counted(images, 'training image')}, so every step takes all"
            )

    def result(self, **parts: Any) -> dict[str, Any]:
        """A result of this command, with ``parts`` of the schema (runs, evaluation, ...)."""
        words = click.get_current_context().find_root().obj
        return results.new(shlex.join(words), self.settings, environment=self.environment, **parts)

    def finish(self, result: dict[str, Any]) -> None:
        """The machine-readable result, where it was asked for."""
        results.validate(result)
        self.finished = True
        if self.as_json:
            self.hand_out(json.dumps(result, indent=2, allow_nan=False) + "\n")

    def hand_out(self, text: str) -> None:
        """Text for programs on standard output, as it is."""
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            _forget(sys.stdout)


def on_screen(function: Callable[..., int]) -> Callable[..., int]:
    """Give a verb ``screen``, its first argument, and the option --json.

    With --json there is a result also where the work fails or is interrupted: its note says why. What the system
    refuses, such as to write on a full disk, becomes one line.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; all else on standard error.")
    @functools.wraps(function)
    def wrapped(as_json: bool, **options: Any) -> int:
        screen = Screen(_settings(click.get_current_context(), options), as_json)
        try:
            try:
                return function(screen, **options)
            except OSError as error:
                where = f"{error.filename}: " if error.filename else ""
                raise BareconvError(where + (error.strerror or str(error))) from error
            except MemoryError as error:
                raise BareconvError(f"out of memory ({error or 'no more to be had'}): try a smaller batch") from error
        except (BareconvError, KeyboardInterrupt) as error:
            if getattr(error, "exit_code", 1) == 1 and not screen.finished:
                screen.finish(screen.result(notes=[str(error) or "Interrupted."]))
            raise

    return wrapped


def _settings(ctx: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """The verb's options by the names that the user knows them by, with their values, for the result file."""
    names = {
        param.name: max(param.opts, key=len).lstrip("-").replace("-", "_")
        for param in ctx.command.params
        if param.name in options
    }
    settings = {}
    for name, shown in names.items():
        value = options[name or ""]
        if isinstance(value, tuple):
            value = list(map(str, value))
        settings[shown] = str(value) if isinstance(value, Path) else value
    return settings


class Bar:
    """A progress bar on the terminal's last line, and nothing where nobody watches: in a pipe or a log file.

    It is drawn when it is told something, not by a thread of its own, which would take time from what is measured.
    """

    def __init__(self, screen: Screen) -> None:
        self.console = screen.console
        self.live = Live(
            console=screen.console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self.on = screen.interactive
        self.text, self.total, self.drawn = "", 0, 0.0

    def __enter__(self) -> Bar:
        if self.on:
            self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.live.stop()

    def begin(self, text: str, total: int = 0) -> None:
        """Something new begins, of ``total`` parts, where it can be counted."""
        self.text, self.total, self.drawn = text, total, 0.0
        self.count(0)

    def count(self, done: int, note: str = "") -> None:
        """So many parts are done."""
        now = time.monotonic()
        if self.on and (now - self.drawn > _REDRAW_SECONDS or done == self.total):
            self.drawn = now
            self.live.update(self._line(done, note), refresh=True)

    def compiling(self, done: int, total: int) -> None:
        """So many kernels are compiled."""
        self.text, self.total = f"Compiling {done} of {counted(total, 'kernel')}", total
        self.count(done)

    def training(self, now: training.Progress) -> None:
        """A training has come that far."""
        self.text, self.total = f"Epoch {now.epoch}/{now.epochs}", now.total_steps
        self.count(
            now.step,
            f"loss {now.loss:.3f}, accuracy {percent(now.accuracy, 1)}, {rate(now.images_per_second, 'images')}, "
            f"{_clock(now.seconds_left)} left",
        )

    def _line(self, done: int, note: str) -> Text:
        """The text, the bar in the room that is left, the note: one line, with room for the terminal's own ^C."""
        room = self.console.width - 3
        line = Text(self.text)
        if self.total:
            width = max(4, min(30, room - len(self.text) - len(note) - 7))
            full = done * width // self.total
            line.append(" ").append("━" * full, "cyan").append("━" * (width - full), "bright_black")
            line.append(f" {100 * done // self.total:3d}%")
        line.append(f" {note}" if note else "")
        line.truncate(room, overflow="ellipsis")
        return line


def _clock(seconds_: float) -> str:
    """A time that runs down, in little room: 0:07, 12:34, 1:02:03."""
    minutes, rest = divmod(round(seconds_), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def epoch_line(record: training.EpochRecord, epochs: int) -> str:
    """What a person wants to know of an epoch, in a line of less than 80 characters."""
    line = f"Epoch {record.epoch}/{epochs}, {seconds(record.train_seconds)}: "
    line += f"loss {record.train_loss:.4f}, accuracy {percent(record.train_accuracy)}"
    if record.test_accuracy is not None:
        line += f"; held out: {record.test_loss:.4f}, {percent(record.test_accuracy)}"
    return line


def compiled_line(compiled: int, spent: float) -> str:
    """What was compiled, as a sentence's part: "compiled 17 kernels in 0.6 s"; empty where nothing was."""
    return f"compiled {counted(compiled, 'kernel')} in {seconds(spent)}" if compiled else ""


class Interrupt:
    """Set by the first Ctrl-C, or request to end (SIGTERM).

    The second one ends the process in the ordinary way, by a KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.requested = self.raised = False
        self.times = 0  # as the thread of ``stop_gently`` counts them

    def __call__(self) -> bool:
        return self.requested

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self.times > 1 and not self.raised:
            self.raised = True
            raise KeyboardInterrupt


@contextlib.contextmanager
def stop_gently(screen: Screen, what: str) -> Iterator[Interrupt]:
    """Within it, Ctrl-C only asks the work to stop after the step at hand, and says at once that it will: ``what``.

    So does SIGTERM, by which schedulers and containers end a process that has had its time.

    Python calls a signal's handler when the operation at hand returns, a large matrix product takes its time, and two
    signals in that time are one call; nor may a handler print, for it may have come in the middle of printing. So it
    is a thread that counts and answers, woken by the byte that Python writes to the "wakeup" socket the moment a
    signal comes.
    """
    interrupt = Interrupt()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def answer() -> None:
        last = -math.inf
        while signals := ours.recv(16):  # nothing: the other end was closed
            now = time.monotonic()
            if not set(_STOPPING) & set(signals) or now - last < _ONE_PRESS_SECONDS:
                continue
            last = now
            interrupt.times += 1
            if interrupt.times == 1:
                how = "Interrupted" if signal.SIGINT in signals else "Asked to end"
                screen.say(f"{how}: {what}. {'Ctrl-C' if signal.SIGINT in signals else 'SIGTERM'} again ends at once.")
            elif interrupt.times == 2:
                _thread.interrupt_main(signal.SIGINT)  # the handler may have come, and gone, before it was counted

    answering = threading.Thread(target=answer, daemon=True)
    answering.start()
    handlers = [signal.signal(number, interrupt._note) for number in _STOPPING]
    wakeup = signal.set_wakeup_fd(theirs.fileno())
    try:
        yield interrupt
    finally:
        signal.set_wakeup_fd(wakeup)
        theirs.close()
        answering.join()
        ours.close()
        for number, handler in zip(_STOPPING, handlers, strict=True):
            signal.signal(number, handler)

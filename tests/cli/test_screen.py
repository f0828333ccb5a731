"""The bar, the console, and the thread that answers Ctrl-C."""

from __future__ import annotations

import io
import os
import re
import signal
import threading
import time

import pytest
from rich.console import Console

from bareconv.cli.screen import Bar, Screen, _clock, stop_gently
from bareconv.training import Progress

NOW = Progress(123, 938, 1, 3, 0.43662, 0.98765, 12345.6, 127.3)


@pytest.fixture
def screen_of():
    """A screen on a terminal of some width, and what has been written to it."""

    def make(width, encoding="utf-8"):
        screen, written = Screen({}, False), io.TextIOWrapper(io.BytesIO(), encoding)
        screen.console = Console(
            file=written,
            force_terminal=True,
            width=width,
            markup=False,
            emoji=False,
            highlight=False,
            color_system=None,
        )
        screen.interactive = True
        return screen, written

    return make


def lines(written):
    written.flush()
    text = written.buffer.getvalue().decode(written.encoding)
    return [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)) if line]


@pytest.mark.parametrize("width", [20, 60, 80, 140, 300])
def test_the_bar_is_one_line(width, screen_of):
    """At 80 columns with all that the requirement names; at fewer cut; never folded, nor beside the terminal's ^C."""
    screen, written = screen_of(width)
    with Bar(screen) as bar:
        bar.begin("Training", NOW.total_steps)
        bar.drawn = 0.0  # a while ago
        bar.training(NOW)
    shown = [line for line in lines(written) if "Epoch" in line]
    assert shown
    assert all(len(line) <= width - 3 for line in shown)
    if width >= 80:
        assert re.fullmatch(r"Epoch 1/3 ━+  13% loss 0.437, accuracy 98.8%, 12,346 images/s, 2:07 left", shown[-1])
        assert shown[-1].count("━") == (7 if width == 80 else 30)


def test_the_bar_is_not_drawn_all_the_time(screen_of):
    """A step may take microseconds; the bar is drawn ten times a second, at the start, and at the end."""
    screen, written = screen_of(80)
    with Bar(screen) as bar:
        bar.begin("Counting", 100)
        for done in range(1, 101):
            bar.count(done)
    shown = lines(written)
    assert 2 <= len(shown) < 50
    assert shown[0].startswith("Counting ━")
    assert shown[-1].endswith(" 100%")


def test_no_bar_in_a_file(capsys):
    screen = Screen({}, False)
    with Bar(screen) as bar:
        bar.begin("Training", 10)
        bar.training(NOW)
        screen.say("a line")
    assert capsys.readouterr().out == "a line\n"


def test_lines_go_above_the_bar(screen_of):
    screen, written = screen_of(80)
    with Bar(screen) as bar:
        bar.begin("Counting", 2)
        screen.say("a line")
        bar.count(2)
    shown = lines(written)
    assert shown.index("a line") < len(shown) - 1
    assert shown[-1].startswith("Counting")


@pytest.mark.parametrize("text", ["[bold]x[/bold]", "[/]", "[red]", ":smile:", 'pip install "cupy-cuda12x[ctk]"'])
def test_nothing_is_markup(text, capsys):
    screen = Screen({}, False)
    screen.say(text)
    screen.warn(text)
    screen.command(text)
    table = screen.table("name")
    table.add_row(text)
    screen.show(table)
    assert capsys.readouterr().out == f"{text}\nWarning: {text}\n  {text}\nname\n{text}\n"


def test_a_long_line_is_folded_between_words_on_a_terminal_only(screen_of, capsys):
    screen, written = screen_of(30)
    screen.say("word " * 20 + "end")
    screen.command("command " * 10 + "end")
    shown = lines(written)
    assert all(len(line) <= 30 for line in shown[:-1])
    assert shown[-1] == "  " + "command " * 10 + "end"
    Screen({}, False).say("word " * 100 + "end")
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize(
    ("number", "answer"),
    [
        (signal.SIGINT, "Interrupted: stopping. Ctrl-C again ends at once.\n"),
        (signal.SIGTERM, "Asked to end: stopping. SIGTERM again ends at once.\n"),
    ],
)
def test_ctrl_c_is_answered_while_the_main_thread_is_busy(number, answer, capsys):
    """The answer does not wait for the operation at hand: it comes from a thread, while Python calls no handler."""
    before, threads = signal.getsignal(number), threading.active_count()
    answered = threading.Event()
    screen = Screen({}, False)
    screen.say = lambda text="": (print(text), answered.set())  # type: ignore[method-assign, assignment, func-returns-value]
    with stop_gently(screen, "stopping") as interrupt:
        assert not interrupt()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # as "timeout" and others do, which send it on
        assert answered.wait(5)
        time.sleep(0.5)
        assert interrupt()
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - which of the two is interrupted, is up to the system
            os.kill(os.getpid(), number)
            for _ in range(100):
                time.sleep(0.05)
    assert capsys.readouterr().out == answer
    assert signal.getsignal(number) is before
    assert threading.active_count() == threads


def test_nothing_is_said_where_nobody_interrupts(capsys):
    with stop_gently(Screen({}, False), "stopping") as interrupt:
        pass
    assert not interrupt()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("left", "text"), [(0, "0:00"), (7.4, "0:07"), (754, "12:34"), (3723.3, "1:02:03")])
def test_time_left(left, text):
    assert _clock(left) == text

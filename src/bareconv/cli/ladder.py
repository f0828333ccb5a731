"""``bareconv ladder``: one convolution and one training step, in every way that there is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from bareconv import host, report
from bareconv.bench import results
from bareconv.bench.ladder import climb, measure_peaks
from bareconv.bench.ladder import ladder as ladder_section
from bareconv.bench.problems import ConvProblem, Problem, StepProblem
from bareconv.bench.rungs import CONV_RUNGS, Rung
from bareconv.bench.step_rungs import step_rungs
from bareconv.cli.options import model_option, number, precision_option, threads_of
from bareconv.cli.screen import Bar, Screen, on_screen
from bareconv.device import get_device, why_no_cuda
from bareconv.errors import UsageError
from bareconv.files import check_writable, write_whole
from bareconv.ops.windows import Window
from bareconv.report.format import MISSING, counted, flops, percent, rate, scientific, significant
from bareconv.report.rungs import executed, remarks

EPILOG = """\b
Examples:
  bareconv ladder
  bareconv ladder --part layer --image 28x28x16 --filters 32 --kernel 5 --padding 2
  bareconv ladder --threads 1 --budget 60 --output ladder.json --plot ladder.png
"""

BAR = 24  # characters of the longest bar

Part = tuple[Problem, list[Rung[Any]]]


@click.command(epilog=EPILOG, short_help="From naive loops up: one convolution and one step, in every way.")
@click.option(
    "--part",
    type=click.Choice(["all", "layer", "step"]),
    metavar="NAME",
    default="all",
    show_default=True,
    help="What to climb: layer (one convolution), step (a training step) or all.",
)
@click.option("--image", metavar="HxWxC", default="26x26x32", show_default=True, help="The convolution's input.")
@number("--filters", 64, 1, "Its output channels.")
@number("--kernel", 3, 1, "Its kernel's height and width.")
@number("--stride", 1, 1, "Its stride.")
@number("--padding", 0, 0, "Its padding.")
@model_option
@number("--batch-size", 64, 1, "Images in a batch.")
@precision_option(several=False)
@threads_of("Of the CPU.")
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    default=40.0,
    show_default=True,
    help="Time for it all, about.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the result as JSON.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.png", help="Draw the rungs as bars."
)
@on_screen
def ladder(screen: Screen, **options: Any) -> int:
    """Do the same work by every rung of a ladder, from naive loops to the fastest kernel there is.

    Every rung is first checked against the readable path in float64; one that is wrong is said to be wrong, and not
    timed. Then they take turns. GFLOP/s count the work of the direct method, whatever a rung does instead; "executed"
    are those that it does, and "of peak" is their share of what the processor does in multiply-adds and nothing else.

    The defaults are the second convolution, and the training step, of basic. Exit code 1 if a rung is wrong.
    """
    host.keep_freed_memory()
    screen.only_prints = options["output"] is None and options["plot"] is None
    parts = _parts(options)
    for path in (options["output"], options["plot"]):
        if path is not None:
            check_writable(path, "output")
    screen.device(get_device("cpu"), measured=True)
    gpu = why_no_cuda() is None
    if gpu:
        screen.device(get_device("cuda"), measured=True)
    threads = parts[0][0].threads
    with Bar(screen) as bar:

        def progress(text: str, done: int, total: int) -> None:
            if not done or text != bar.text:
                bar.begin(text, total)
            bar.count(done)

        bar.begin("Measuring the peak")
        peaks = measure_peaks(options["precision"], threads, gpu)
        climbed = [climb(problem, rungs, peaks, options["budget"] / len(parts), progress) for problem, rungs in parts]
    for peak in peaks:
        also = f", {counted(peak.threads, 'thread')}" if peak.device == "cpu" else ""
        screen.say(f"Peak of {peak.device}{also}: {flops(peak.flops_per_second)} ({peak.how})")
    for problem in climbed:
        _show(screen, problem)
    result = screen.result(ladder=ladder_section(climbed, peaks))
    if options["output"] is not None:
        results.write(result, options["output"])
        screen.say(f"\nWrote {options['output']}")
    if options["plot"] is not None:
        write_whole(options["plot"], report.png(report.ladder_bars(result)))
        screen.say(f"Drew {options['plot']}")
    screen.finish(result)
    return int(any(rung["status"] == "wrong" for problem in climbed for rung in problem["rungs"]))


def _parts(options: dict[str, Any]) -> list[Part]:
    """The problems that the options name, each with its rungs."""
    threads = options["threads"] or host.blas_threads()
    common = {"batch_size": options["batch_size"], "precision": options["precision"], "threads": threads}
    found: list[Part] = []
    if options["part"] != "step":
        kernel, stride, padding = ((options[name],) * 2 for name in ("kernel", "stride", "padding"))
        conv = ConvProblem(
            in_shape=_image(options["image"]),
            filters=options["filters"],
            window=Window(kernel, stride, padding),
            **common,
        )
        conv.window.output_size(conv.in_shape[:2])  # raises where the kernel does not fit
        found.append((conv, list(CONV_RUNGS)))
    if options["part"] != "layer":
        found.append((StepProblem(model=options["model"], **common), list(step_rungs())))
    return found


def _image(text: str) -> tuple[int, int, int]:
    sizes = text.lower().split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise UsageError(f"--image {text!r}: expected height, width and channels, such as 26x26x32")
    H, W, C = map(int, sizes)
    return H, W, C


def _show(screen: Screen, problem: dict[str, Any]) -> None:
    """A table of the rungs that ran, and a line for each that did not."""
    screen.say(f"\n{problem['description']}, {problem['precision']}:")
    table = _table(screen, problem, changes=True)
    screen.show(table if screen.fits(table) else _table(screen, problem, changes=False))
    for rung in problem["rungs"]:
        if rung["status"] == "unavailable":
            screen.say(f"Not run: {rung['name']}: {rung['reason']}")
        elif rung["status"] == "measured" and rung["share"] < 1:
            screen.say(f"{rung['name']}: scaled up from {significant(100 * rung['share'], 2)}% of the batch's work")
    for remark in remarks(problem):
        screen.say(remark)


def _table(screen: Screen, problem: dict[str, Any], *, changes: bool) -> Table:
    table = screen.table(
        "rung", "images/s", "", "GFLOP/s", "executed", "of peak", "error", *(["what it changes"] if changes else [])
    )
    table.columns[2].justify = "left"
    if changes:
        table.columns[-1].justify = "left"
    there = [rung["images_per_second"] for rung in problem["rungs"] if rung["status"] == "measured"]
    for rung in problem["rungs"]:
        change = [rung["change"]] if changes else []
        if rung["status"] == "measured":
            done, of_peak = executed(problem, rung)
            colour = "cyan" if rung["device"] == "cpu" else "yellow"
            table.add_row(
                rung["name"],
                rate(rung["images_per_second"]).removesuffix("/s"),
                Text("━" * _bar(rung["images_per_second"], there), colour),
                significant(rung["effective_flops_per_second"] / 1e9),
                significant(done / 1e9) if done is not None else MISSING,
                percent(of_peak, 1),
                scientific(rung["error"]),
                *change,
            )
        elif rung["status"] == "wrong":
            table.add_row(rung["name"], Text("WRONG", "bold red"), "", "", "", "", scientific(rung["error"]), *change)
    return table


def _bar(value: float, values: list[float]) -> int:
    """Characters of a bar, logarithmic: the slowest has one, the fastest ``BAR``."""
    low, high = math.log(min(values)), math.log(max(values))
    return 1 + round((BAR - 1) * (math.log(value) - low) / (high - low)) if high > low else BAR

"""``bareconv bench run``: the whole benchmark, its result and its page."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bareconv.bench import results
from bareconv.bench.conditions import Watcher
from bareconv.bench.deadline import Deadline
from bareconv.bench.peers import PEERS, find
from bareconv.bench.suite import PARTS, Place, Suite, Watching
from bareconv.cli.bench.common import (
    AXIS_OPTIONS,
    PYTHON,
    Story,
    bench_options,
    data_notes,
    introduce,
    peer_option,
    several,
    workloads,
)
from bareconv.cli.folder import PAGE, RESULT, result_folder, tell_where, writing
from bareconv.cli.screen import Bar, Interrupt, Screen, on_screen, stop_gently
from bareconv.device import CpuDevice, Device, all_devices, get_device, why_no_cuda
from bareconv.errors import BareconvError, UnwrittenError, UsageError
from bareconv.files import Attempts
from bareconv.report import write_report
from bareconv.report.consumption import unknown
from bareconv.report.format import seconds
from bareconv.report.measured import is_empty
from bareconv.report.terminal import show_summary
from bareconv.training import PRECISIONS
from bareconv.training.precision import ON_GPU_ONLY

EPILOG = """\b
Examples:
  bareconv bench run
  bareconv bench run --model basic --model resnet9 --budget 900
  bareconv bench run --part throughput --part layers --budget 30 --json
  bareconv bench run --part sweep --sweep threads --sweep image-size --budget 120
  bareconv bench run --device cpu --threads 1 --peer pytorch --no-compile
"""

ON_CPU, ON_GPU = ("float32",), ("float32", "bfloat16")  # precisions, unless told otherwise
ENOUGH_SECONDS = 30.0  # for the first figures of the default workload on two cores
PAGE_SHARE, PAGE_SECONDS = 0.12, 20.0  # of the budget, and at most: for drawing the page

TITLES = {
    "layers": "Layers and ceilings",
    "throughput": "Throughput",
    "peers": "Other libraries",
    "sweep": "Sweeps",
    "clocks": "Cold, warm and steady clocks",
    "learning": "Accuracy over time",
    "energy": "Energy",
}


@click.command(epilog=EPILOG, short_help="The whole benchmark of this machine, with a page to look at.")
@bench_options(
    budget=300,
    engines=("plan", "reference"),
    output=click.option(
        "--output",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="FOLDER",
        help="Where the result and the page go. [default: results/TIME, and results/latest points to it]",
    ),
    device=click.option(
        "--device",
        default="all",
        show_default=True,
        metavar="NAME",
        help="Where to compute: all, cpu, cuda or cuda:1.",
    ),
    precision=click.option(
        "--precision",
        "precisions",
        type=click.Choice(PRECISIONS),
        metavar="NAME",
        multiple=True,
        help=f"{', '.join(PRECISIONS)}; {' and '.join(ON_GPU_ONLY)} on a GPU alone. May be repeated. [default: "
        f"{ON_CPU[0]}, on a GPU also {ON_GPU[1]}]",
    ),
)
@several("--part", "parts", PARTS, PARTS, "What to measure")
@several("--sweep", "sweeps", tuple(AXIS_OPTIONS), ("batch-size", "width"), "What to sweep along")
@peer_option("What to compare with", "all that are installed")
@PYTHON
@click.option("--no-compile", is_flag=True, help="Leave out torch.compile, which may take minutes to compile.")
@on_screen
def run(screen: Screen, **options: Any) -> int:
    """Measure all there is to know of this machine's training steps: what its GPU is worth, for which work, and why.

    Where the time of a step goes and how near that is to what the hardware can do; the throughput of our engines on
    the CPU and on the GPU, by turns, and beside other libraries; how it grows with the batch and the width, and from
    which on the GPU is ahead; whole trainings from a cold and a warm start; accuracy over time; energy, where it is
    counted.

    All of it ends within the budget, with the best that could be measured: a larger one gives narrower intervals. Each
    candidate is a process of its own. Ctrl-C ends the block at hand and reports what there is. Exit code 1 if
    something failed, or nothing could be measured.
    """
    devices = all_devices() if options["device"] == "all" else [get_device(options["device"])]
    jobs = list(workloads({**options, "precision": "float32"}))
    places = [_place(device, options) for device in devices]
    _check_precisions(options["precisions"], places)
    attempts = Attempts()
    with result_folder(options["output"]) as folder:
        names = ", ".join(f"{device.name} ({device.description.partition(', ')[0]})" for device in devices)
        notes = introduce(screen, {**options, "output": None}, names)
        notes += data_notes(jobs)
        reason = why_no_cuda()
        if options["device"] == "all" and reason is not None:
            notes.append(f"No GPU: {reason}.")
        for note in notes:
            screen.say(note)
        suite = Suite(
            jobs,
            places,
            list(dict.fromkeys(options["engines"])),
            parts=options["parts"],
            sweeps=[AXIS_OPTIONS[name] for name in dict.fromkeys(options["sweeps"])],
            compiled=not options["no_compile"],
            notes=notes,
        )
        budget = options["budget"]
        deadline = Deadline.after(budget - min(PAGE_SECONDS, PAGE_SHARE * budget))
        with (
            stop_gently(screen, "finishing this block, then reporting what there is") as interrupt,
            Bar(screen) as bar,
        ):
            story = _Parts(screen, bar, interrupt, deadline)
            with Watcher(devices) as watcher:

                def keep(made: dict[str, Any]) -> None:
                    if not is_empty(made):
                        with contextlib.suppress(UnwrittenError):  # the last one says so
                            results.write(screen.result(**made, notes=suite.notes), folder / RESULT)

                made = suite.run(deadline, story, keep)
            stopped = interrupt.requested
            if is_empty(made):
                if stopped:
                    raise KeyboardInterrupt
                raise BareconvError(_why_nothing(suite, made, budget))
            if stopped:
                suite.notes.append("Stopped early by request: the figures are of what was done by then.")
            bar.begin("Drawing the page")
            result = screen.result(**made, notes=suite.notes, conditions=watcher.record())
            with attempts.one():
                results.write(result, folder / RESULT)
            with attempts.one(), writing(folder / PAGE):
                write_report(result, None, folder)
    show_summary(screen, result)
    tell_where(screen, folder, attempts, last=options["output"] is None)
    screen.finish(result)
    attempts.conclude()
    return 130 if stopped else 1 if suite.failed else 0


def _why_nothing(suite: Suite, made: dict[str, Any], budget: float) -> str:
    """Why there is not one figure, and what to do: mostly the time was too short to get anything ready."""
    reasons = suite.notes if suite.failed else unknown(made.get("energy", ())) if suite.parts == ("energy",) else []
    if reasons:
        return f"nothing could be measured: {' '.join(reasons)}"
    return (
        f"nothing could be measured in {seconds(budget)}: give more time, such as --budget "
        f"{max(ENOUGH_SECONDS, 2 * budget):g}, or measure less, such as --part throughput"
    )


def _place(device: Device, options: dict[str, Any]) -> Place:
    """The device with the precisions that it computes in, and the peers that are there in each of them."""
    asked: Sequence[str] = options["precisions"]
    if isinstance(device, CpuDevice):
        precisions = tuple(precision for precision in asked if precision not in ON_GPU_ONLY) or ON_CPU
    else:
        precisions = tuple(asked) or ON_GPU
    names = list(dict.fromkeys(options["peers"])) or list(PEERS)
    wanted = names if "peers" in options["parts"] else []
    found = {precision: find(wanted, options["python"], device.name, precision) for precision in precisions}
    return Place(device, tuple(found), found)


def _check_precisions(asked: Sequence[str], places: Sequence[Place]) -> None:
    """UsageError where one is no device's."""
    for precision in asked:
        if not any(precision in place.precisions for place in places):
            raise UsageError(f"--precision {precision}: the CPU computes in float32 or float64; give --device cuda")


class _Parts(Story, Watching):
    """Tells how far the whole is, and how much of its time is left."""

    def __init__(self, screen: Screen, bar: Bar, interrupt: Interrupt, whole: Deadline) -> None:
        super().__init__(screen, bar, interrupt, 1)
        self.whole = whole

    def begins_part(self, name: str, deadline: Deadline) -> None:
        self.title = TITLES[name]
        self.screen.say(f"{self.title}: {seconds(round(deadline.left))} at most, {self._all_left()} left in all")

    def stage(self, text: str) -> None:
        self.bar.begin(f"{self.title} ({self._all_left()} left in all): {text}")

    def _all_left(self) -> str:
        return seconds(round(self.whole.left))

"""``bareconv bench sweep``."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bareconv import host
from bareconv.bench.axes import AXES, Axis, parse
from bareconv.bench.deadline import Deadline
from bareconv.bench.estimates import ratio as ratio_of
from bareconv.bench.interleave import Candidate, our_candidate
from bareconv.bench.peers import find
from bareconv.bench.sweep import is_of_time, measure_sweep, names, peer_candidate, rates
from bareconv.bench.workload import Workload, natural_shape
from bareconv.cli.bench.common import (
    AXIS_OPTIONS,
    LEARNING_RATE,
    OUTPUT,
    PYTHON,
    Story,
    budget_option,
    conclude,
    introduce,
    peer_option,
    several,
    threads,
)
from bareconv.cli.options import image_shape_option, model_option, number, precision_option, seed_option, threads_option
from bareconv.cli.screen import Bar, Interrupt, Screen, on_screen, stop_gently
from bareconv.device import CpuDevice, Device, all_devices, get_device, why_no_cuda
from bareconv.errors import UsageError
from bareconv.report.format import MISSING, counted, percent, rate, ratio
from bareconv.training import ENGINES, Settings
from bareconv.training.precision import ON_GPU_ONLY

EPILOG = """\b
Examples:
  bareconv bench sweep
  bareconv bench sweep --axis width --values 0.25,0.5,...,8 --batch-size 256
  bareconv bench sweep --axis images --values 1e3,1e5,1e7 --folder /scratch --budget 600
  bareconv bench sweep --axis threads --model small --engine plan --engine tuned
  bareconv bench sweep --device cpu --device cuda --precision float32 --precision bfloat16 --json
"""

_HEIGHTS = "▁▂▃▄▅▆▇█"


@click.command(epilog=EPILOG, short_help="How the cost grows, and where the GPU overtakes the CPU.")
@click.option(
    "--axis",
    type=click.Choice(list(AXIS_OPTIONS)),
    metavar="NAME",
    default="batch-size",
    show_default=True,
    help="What grows: batch-size, image-size, width (a factor on filters and hidden units), images (in the data set), "
    "threads.",
)
@click.option(
    "--values",
    metavar="LIST",
    help='Where to measure, such as 1,2,4,...,4096. [default: by the axis; for the batch size "1,2,4,...,4096"]',
)
@model_option
@number("--batch-size", 64, 1, "Images in a step, unless that is the axis.")
@several("--engine", "engines", ENGINES, (Settings.engine,), "Our engines to measure")
@precision_option(several=True)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="NAME",
    help="Where to compute: cpu, cuda or cuda:1. May be repeated. [default: the CPU, and a GPU where there is one]",
)
@peer_option("Measure another library beside ours", "none")
@PYTHON
@threads_option
@budget_option(180, "points that could not be measured by then are left out, and the curves are coarser")
@image_shape_option
@LEARNING_RATE
@seed_option
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="PATH",
    help="Where to write the images while it lasts: 10,000,000 of 28x28x1 take 7.3 GiB. [default: the system's]",
)
@OUTPUT
@on_screen
def sweep(screen: Screen, **options: Any) -> int:
    """Measure training steps along an axis: a curve of images a second for each engine, device and precision.

    At each value all candidates take turns, each in its own process. Says how the seconds of a step grow (a fixed part,
    and one for each image, pixel, ...) and where one curve overtakes another, with 95% intervals. A precision is
    measured on the devices that compute in it; the CPU computes in float32 where it has none of those asked for.

    The ends of the range are measured first, then the middle, then what lies between. What fails at a value, for want
    of memory say, has the reason there. With --axis images the images are drawn, written to a file and read from there
    by the batch, so that there may be more than memory; the file is removed at the end.

    Ctrl-C ends the block at hand and reports what there is. Exit code 1 if something could not be measured.
    """
    axis = AXES[AXIS_OPTIONS[options["axis"]]]
    values = axis.values if options["values"] is None else parse(axis, options["values"])
    if axis.name == "threads" and max(values) > host.allowed_cores():
        raise UsageError(f"--values {max(values):g}: this process may use {counted(host.allowed_cores(), 'core')}")
    _check_folder(options["folder"])
    devices = _devices(options["devices"], axis)
    workload = Workload(
        model=options["model"],
        image_shape=options["image_shape"] or natural_shape(options["model"]),
        batch_size=options["batch_size"],
        precision=next((one for one in options["precisions"] if one not in ON_GPU_ONLY), "float32"),
        lr=options["lr"],
        seed=options["seed"],
        threads=threads(options),
    )
    notes = introduce(
        screen, options, ", ".join(f"{one.name} ({one.description.partition(', ')[0]})" for one in devices)
    )
    if not options["devices"] and axis.name != "threads" and (reason := why_no_cuda()) is not None:
        notes.append(f"No GPU: {reason}.")
    candidates = _ours(options, devices)
    candidates += _peers(options, devices, workload, notes)
    for note in notes:
        screen.say(note)
    with (
        stop_gently(screen, "finishing this block, then reporting what there is") as interrupt,
        Bar(screen) as bar,
    ):
        story = _Story(screen, bar, interrupt)
        story.begins(f"{workload.model} over the {axis.noun}, {counted(len(values), 'point')}")
        measured = measure_sweep(
            axis.name,
            values,
            workload,
            candidates,
            Deadline.after(options["budget"]),
            story,
            folder=options["folder"],
            on_point=lambda text: screen.say(f"  {text}"),
        )
        stopped = interrupt.requested
    curves = measured["curves"]
    errors = [point["error"] for curve in curves for point in curve["points"]]
    if stopped and all(errors):
        raise KeyboardInterrupt
    if stopped:
        notes.append("Stopped early by request: the curves are of what was done by then.")
    _show(screen, axis, measured)
    conclude(screen, options, screen.result(sweeps=[measured], notes=notes))
    empty = any(all(point["error"] for point in curve["points"]) for curve in curves)
    failed = empty or any(error is not None and not is_of_time(error) for error in errors)
    return 130 if stopped else 1 if failed else 0


class _Story(Story):
    """There is one part only, and what begins says itself at which point it is."""

    def __init__(self, screen: Screen, bar: Bar, interrupt: Interrupt) -> None:
        super().__init__(screen, bar, interrupt, 1)

    def stage(self, text: str) -> None:
        self.bar.begin(text)


def _check_folder(folder: Path | None) -> None:
    """UsageError where nothing can be written there."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        where = tempfile.gettempdir() if folder is None else folder
        raise UsageError(
            f"--folder {where}: cannot write there: {error.strerror}; give a folder that can be written to"
        ) from None


def _devices(asked: Sequence[str], axis: Axis) -> list[Device]:
    """Those that were asked for, each once. UsageError where there is none."""
    found = [get_device(name) for name in asked] or all_devices()
    if axis.name == "threads":
        if any(not isinstance(device, CpuDevice) for device in found) and asked:
            raise UsageError("--axis threads: only the CPU has a number of threads to choose; leave --device out")
        return [get_device("cpu")]
    return list({device.name: device for device in found}.values())


def _ours(options: dict[str, Any], devices: Sequence[Device]) -> list[Candidate]:
    """Each engine on each device in each precision that it computes in. UsageError where there is none."""
    asked = list(dict.fromkeys(options["precisions"]))
    found = []
    for device in devices:
        for engine in dict.fromkeys(options["engines"]):
            on_gpu_only = not isinstance(device, CpuDevice) and engine == "plan"
            precisions = [one for one in asked if on_gpu_only or one not in ON_GPU_ONLY]
            if not precisions and isinstance(device, CpuDevice):
                precisions = ["float32"]
            found += [our_candidate(engine, device.name, threads(options), one) for one in precisions]
    if not found:
        raise UsageError(f"--precision {' '.join(asked)}: only the engine plan computes in it; leave --engine out")
    return found


def _peers(options: dict[str, Any], devices: Sequence[Device], workload: Workload, notes: list[str]) -> list[Candidate]:
    """The peers that are installed, on each device that they compute on; a note for those that are not."""
    found = []
    for device in devices if options["peers"] else ():
        there = find(list(dict.fromkeys(options["peers"])), options["python"], device.name, workload.precision)
        notes += [f"{name} is absent on {device.name}: {reason}." for name, reason in there.absent.items()]
        found += [peer_candidate(name, python, device.name, workload) for name, python in there.pythons.items()]
    return found


def _show(screen: Screen, axis: Axis, measured: dict[str, Any]) -> None:
    """The rates at every value; each curve as a line of bars with its fit; where curves cross; what failed."""
    curves = measured["curves"]
    called = names(curves)
    two = len(curves) == 2
    table = screen.table(axis.noun, *(f"{name}, images/s" for name in called), *(["second / first"] if two else []))
    for points in zip(*(curve["points"] for curve in curves), strict=True):
        cells = [_rate(point) for point in points]
        if two:
            there = all(point["error"] is None for point in points)
            lead = ratio_of(rates(points[1]["samples"]), rates(points[0]["samples"])) if there else None
            cells.append(ratio(lead.value) if lead else MISSING)
        table.add_row(axis.said(points[0]["value"]), *cells)
    screen.say()
    screen.show(table)
    screen.say("\nSeconds of a step:")
    lines, room = _bars(curves), max(map(len, called))
    for name, curve, line in zip(called, curves, lines, strict=True):
        found = curve["fit"]
        said = "too few points for a fit"
        if found is not None:
            said = f"{found['text']} (no point further off than {percent(found['largest_error'], 1)})"
        screen.say(f"  {name:{room}}  {line}  {said}")
    if measured["crossovers"]:
        screen.say("\nCrossovers:")
    for crossing in measured["crossovers"]:
        screen.say(f"  {crossing['text']}")
    for note in measured["notes"]:
        screen.say(note)
    for name, curve in zip(called, curves, strict=True):
        _warn(screen, axis, name, curve)


def _rate(point: dict[str, Any]) -> str:
    """ "12,345 ± 0.8%", with a mark where the blocks were too uneven to trust it."""
    if point["error"] is not None:
        return MISSING
    found = point["images_per_second"]
    half = (found["high"] - found["low"]) / 2 / found["value"]
    return f"{rate(found['value']).removesuffix('/s')} ± {percent(half, 1)}{'' if point['stable'] else ' ?'}"


def _bars(curves: Sequence[dict[str, Any]]) -> list[str]:
    """Each curve's images a second as bars, by their logarithms, all between the same two ends."""
    logs = [
        [None if point["error"] else math.log(point["images_per_second"]["value"]) for point in curve["points"]]
        for curve in curves
    ]
    known = [one for curve in logs for one in curve if one is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)

    def bar(one: float | None) -> str:
        if one is None:
            return " "
        return _HEIGHTS[round((one - low) / (high - low) * (len(_HEIGHTS) - 1)) if high > low else -1]

    return ["".join(map(bar, curve)) for curve in logs]


def _warn(screen: Screen, axis: Axis, name: str, curve: dict[str, Any]) -> None:
    """Why points of a curve are missing, each reason once."""
    reasons: dict[str, list[str]] = {}
    for point in curve["points"]:
        if point["error"] is not None:
            reasons.setdefault(point["error"], []).append(axis.said(point["value"]))
    for reason, places in reasons.items():
        screen.warn(f"{name} at {axis.in_a_sentence(', '.join(places))}: {reason}")

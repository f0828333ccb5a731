"""What the verbs of ``bareconv bench`` share: options, workloads, the story of a measurement on the screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from bareconv import host
from bareconv.bench import results
from bareconv.bench.axes import AXES
from bareconv.bench.estimates import noise
from bareconv.bench.interleave import Listener, Side
from bareconv.bench.peers import PEERS
from bareconv.bench.process import REMOVED, THREADS
from bareconv.bench.workload import LR, Workload, natural_shape
from bareconv.cli.options import image_shape_option, seed_option, threads_of
from bareconv.cli.screen import Bar, Interrupt, Screen
from bareconv.device import Device, get_device
from bareconv.errors import UsageError
from bareconv.files import check_writable
from bareconv.nn.layer import Shape
from bareconv.nn.models import ZOO
from bareconv.report.format import counted, rate, seconds, significant
from bareconv.training import ENGINES, PRECISIONS, Settings
from bareconv.training.precision import ON_GPU_ONLY

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]

_TICKS = 10  # parts of a second, as the bar counts


AXIS_OPTIONS = {name.replace("_", "-"): name for name in AXES}  # as they are written on the command line


def several(
    name: str, into: str, values: list[str] | tuple[str, ...], default: tuple[str, ...], text: str
) -> Callable[[F], F]:
    """An option of named values that may be given more than once."""
    return click.option(
        name,
        into,
        type=click.Choice(values),
        metavar="NAME",
        multiple=True,
        default=default,
        show_default=True,
        help=f"{text}: {', '.join(values)}. May be repeated.",
    )


OUTPUT = click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the result, as JSON, to this file.",
)
DEVICE = click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="NAME",
    help="Where to compute: cpu, cuda, cuda:1 or auto.",
)
PRECISION = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    metavar="NAME",
    default="float32",
    show_default=True,
    help=f"{', '.join(PRECISIONS)}; {' and '.join(ON_GPU_ONLY)} on a GPU.",
)


LEARNING_RATE = click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    metavar="RATE",
    default=LR,
    show_default=True,
    help="Learning rate, constant, of SGD with momentum 0.9.",
)
PYTHON = click.option(
    "--python",
    envvar="BARECONV_TORCH_PYTHON",
    metavar="PATH",
    help="A Python that has the peers, where this one has not. [default: BARECONV_TORCH_PYTHON, else this one]",
)


def budget_option(default: float, what: str = "what could not be measured by then is not, and says so") -> Decorator:
    """Seconds; ``what`` becomes of that for which there is no time."""
    return click.option(
        "--budget",
        type=click.FloatRange(0, min_open=True),
        metavar="SECONDS",
        default=default,
        show_default=True,
        help=f"Time for everything: {what}.",
    )


def peer_option(what: str, default: str) -> Decorator:
    """Other libraries, by name, none of them or many."""
    return click.option(
        "--peer",
        "peers",
        type=click.Choice(list(PEERS)),
        metavar="NAME",
        multiple=True,
        help=f"{what}: {', '.join(PEERS)}. May be repeated. [default: {default}]",
    )


def bench_options(
    budget: int,
    *,
    output: Decorator = OUTPUT,
    device: Decorator = DEVICE,
    precision: Decorator = PRECISION,
    engines: tuple[str, ...] = (Settings.engine,),
) -> Callable[[F], F]:
    """What to train, how, for how long, and where the result goes; ``workloads`` takes most of them.

    ``output``, ``device``, ``precision``: options in place of the ordinary ones.
    """

    def decorate(function: F) -> F:
        for option in (
            output,
            seed_option,
            LEARNING_RATE,
            image_shape_option,
            budget_option(budget),
            threads_of("Threads of each candidate."),
            device,
            precision,
            several("--engine", "engines", ENGINES, engines, "Our engines to measure"),
            click.option(
                "--batch-size",
                "batch_sizes",
                type=click.IntRange(1),
                metavar="N",
                multiple=True,
                default=(64,),
                show_default=True,
                help="Images in a step. May be repeated.",
            ),
            several("--model", "models", list(ZOO), ("basic",), "The networks"),
        ):
            function = option(function)
        return function

    return decorate


def chosen_device(options: dict[str, Any]) -> Device:
    """The device that was asked for. UsageError where there is none, or it does not compute in the precision."""
    device, precision = get_device(options["device"]), options["precision"]
    if device.name == "cpu" and precision in ON_GPU_ONLY:
        raise UsageError(f"--precision {precision}: the CPU computes in float32 or float64; give --device cuda")
    return device


def workloads(options: dict[str, Any]) -> Iterator[Workload]:
    """Each model with each batch size, once. UsageError where a model does not fit the images."""
    shape: Shape | None = options["image_shape"]
    for model in dict.fromkeys(options["models"]):
        for batch_size in dict.fromkeys(options["batch_sizes"]):
            yield Workload(
                model=model,
                image_shape=shape or natural_shape(model),
                batch_size=batch_size,
                precision=options["precision"],
                lr=options["lr"],
                seed=options["seed"],
                threads=threads(options),
            )


def data_notes(jobs: Sequence[Workload]) -> list[str]:
    """Of each workload whose batches are too large for the data that it would have."""
    return [
        f"{job.title}: MNIST has too few images for two such batches: the images are drawn at random."
        for job in jobs
        if job.image_shape == (28, 28, 1) and job.exceeds_mnist
    ]


def threads(options: dict[str, Any]) -> int:
    """As the user says, or as many as there are cores."""
    return options["threads"] or host.allowed_cores()


def introduce(screen: Screen, options: dict[str, Any], device: str) -> list[str]:
    """Say where it runs and what distorts it; returns what of that belongs into the result's notes."""
    check = options["output"]
    if check is not None:
        check_writable(check, "--output")
    screen.say(f"Device: {device}, {counted(threads(options), 'thread')} for each candidate")
    for warning in screen.environment["warnings"]:
        # What is measured has its own threads, and not the variables that are taken away.
        if not any(name in warning for name in (*REMOVED, *THREADS, "matrix products run")):
            screen.warn(warning)
    removed = [name for name in REMOVED if name in screen.environment["variables"]]
    return [f"{name} is set, and was removed from the environment of what is measured." for name in removed]


def conclude(screen: Screen, options: dict[str, Any], result: dict[str, Any]) -> None:
    """Write the result where it was asked for."""
    if options["output"] is not None:
        results.write(result, options["output"])
        screen.say(f"\nWrote {options['output']}")
    screen.finish(result)


def doubts(title: str, sides: Sequence[Side]) -> list[str]:
    """A note for each side whose blocks are too few, or differ too much, for their median to be trusted."""
    return [
        f"{title}, {side.candidate.label}: {'; '.join(judged.remarks)}."
        for side in sides
        if side.rate is not None and not (judged := noise(side.samples.rates)).stable
    ]


def interval(figure: dict[str, Any]) -> str:
    """The interval of a rate: "12,345 to 12,567"."""
    return f"{rate(figure['low']).removesuffix('/s')} to {rate(figure['high']).removesuffix('/s')}"


class Story(Listener):
    """Tells a person how the measurement goes on; on a bar, drawn between two blocks."""

    def __init__(self, screen: Screen, bar: Bar, interrupt: Interrupt, parts: int) -> None:
        self.screen, self.bar, self.interrupt = screen, bar, interrupt
        self.parts, self.part, self.seconds = parts, 0, 0.0

    def begins(self, title: str) -> None:
        """The next workload begins."""
        self.part += 1
        self.title = title
        self.screen.say(f"\n{title}:" if self.parts == 1 else f"\n{title} ({self.part} of {self.parts}):")

    def stage(self, text: str) -> None:
        self.bar.begin(f"{text} ({self.title})")

    def measuring(self, text: str, seconds: float) -> None:
        self.seconds = seconds
        self.bar.begin(text, max(1, round(seconds * _TICKS)))

    def block(self, side: Side, left: float) -> None:
        done = min(round((self.seconds - left) * _TICKS), self.bar.total)
        latest = f"{side.candidate.label}: {rate(side.samples.rates[-1], 'images')}, " if side.samples.seconds else ""
        self.bar.count(done, f"{latest}{_left(left)} left")

    def should_stop(self) -> bool:
        return self.interrupt.requested


def _left(x: float) -> str:
    return seconds(round(x)) if x >= 10 else f"{significant(x, 2)} s"

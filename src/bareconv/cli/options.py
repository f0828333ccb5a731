"""Options that several verbs share, and what they mean."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bareconv import data, host, optim
from bareconv.data import Dataset
from bareconv.errors import UsageError
from bareconv.nn.layer import Shape
from bareconv.nn.models import ZOO
from bareconv.report.format import counted
from bareconv.training import ENGINES, PRECISIONS, Settings
from bareconv.training.precision import ON_GPU_ONLY

F = TypeVar("F", bound=Callable[..., Any])

OPTIMIZER = ("optimizer", "lr", "momentum", "nesterov", "weight_decay")  # what ``optimizer_config`` takes


def choice(name: str, values: list[str] | tuple[str, ...], metavar: str, text: str, default: str) -> Callable[[F], F]:
    """An option of named values, which its help lists in words: the column of options stays narrow."""
    listed = f"{', '.join(values[:-1])} or {values[-1]}" if len(values) > 1 else values[0]
    return click.option(
        name, type=click.Choice(values), metavar=metavar, default=default, show_default=True, help=f"{text}: {listed}."
    )


def number(name: str, default: int, low: int, text: str) -> Callable[[F], F]:
    """An option of a whole number from ``low``."""
    return click.option(name, type=click.IntRange(low), metavar="N", default=default, show_default=True, help=text)


seed_option = number("--seed", 0, 0, "Draws the weights, the batches and what is held out.")
model_option = choice("--model", list(ZOO), "NAME", "The network", "basic")
device_option = click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="Where to compute: cpu, cuda, cuda:1 or auto."
)
devices_option = click.option(
    "--device", default="all", show_default=True, metavar="NAME", help="Where to compute: all, cpu, cuda or cuda:1."
)


engine_option = choice("--engine", ENGINES, "NAME", "What computes", Settings.engine)


def _threads(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    """No more than there are cores: threads wait for each other by spinning."""
    if value is not None and value > host.allowed_cores():
        raise click.BadParameter(f"{value:,}: this process may use {counted(host.allowed_cores(), 'core')}")
    return value


def threads_of(text: str) -> Callable[[F], F]:
    """The option --threads; ``text``: what they are of, without its default."""
    return click.option(
        "--threads",
        type=click.IntRange(1),
        callback=_threads,
        metavar="N",
        help=f"{text} [default: the cores that this process may use]",
    )


threads_option = threads_of("Threads of the plan on the CPU.")


def _image_shape(ctx: click.Context, param: click.Parameter, value: str | None) -> Shape | None:
    """28x28x1 as (28, 28, 1): height, width, channels."""
    if value is None:
        return None
    parts = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", value)
    if parts is None:
        raise click.BadParameter(f"{value!r}: expected height x width x channels, such as 28x28x1", ctx, param)
    return tuple(map(int, parts.groups()))


image_shape_option = click.option(
    "--image-shape",
    callback=_image_shape,
    metavar="HxWxC",
    help="Size of the images. [default: the model's own, 28x28x1 or 32x32x3]",
)


def data_options(function: F) -> F:
    """--data, --limit and --validation; ``load_data`` takes them."""
    for option in (
        click.option(
            "--validation",
            metavar="N|SHARE",
            help="Hold out N of the training images, or a share such as 0.1, and measure accuracy on them, in place of "
            "the test images; 0: none. [default: 0.1 where there is no test split, else none]",
        ),
        click.option("--limit", type=click.IntRange(1), metavar="N", help="Use only the first N training images."),
        click.option(
            "--data",
            "data_path",
            type=click.Path(path_type=Path),
            metavar="PATH",
            help="A Kaggle CSV, a folder of IDX files or an .npz. [default: digit-recognizer/train.csv if it is there, "
            "else the MNIST within bareconv]",
        ),
    ):
        function = option(function)
    return function


def training_options(epochs: int) -> Callable[[F], F]:
    """Model, data, and how to train; ``training_settings`` and ``optimizer_config`` take the last.

    ``epochs``: how many, unless the user says.
    """

    def decorate(function: F) -> F:
        for option in (
            threads_option,
            engine_option,
            seed_option,
            click.option(
                "--label-smoothing",
                type=float,
                metavar="SHARE",
                default=0.0,
                show_default=True,
                help="Share of every label spread over all classes.",
            ),
            click.option(
                "--clip-norm", type=float, metavar="NORM", help="Clip gradients to this norm. [default: none]"
            ),
            click.option(
                "--warmup",
                type=float,
                metavar="SHARE",
                help="Share of the steps in which the rate rises. [default: the schedule's own]",
            ),
            choice("--schedule", list(optim.SCHEDULES), "NAME", "How the learning rate changes", "one-cycle"),
            click.option(
                "--weight-decay",
                type=float,
                metavar="RATE",
                default=0.0,
                show_default=True,
                help="Pulls weights towards 0.",
            ),
            click.option("--nesterov", is_flag=True, help="Nesterov's momentum, for sgd."),
            click.option(
                "--momentum", type=float, metavar="SHARE", help="[default: 0.9 for sgd, 0 for rmsprop; no other has it]"
            ),
            click.option(
                "--lr",
                type=float,
                metavar="RATE",
                help="Learning rate, at its peak. [default: 0.05 for sgd, else 0.001]",
            ),
            choice("--optimizer", ["sgd", "rmsprop", "adam", "adamw"], "NAME", "The update rule", "sgd"),
            number("--batch-size", 64, 1, "Images in a step."),
            number("--epochs", epochs, 1, "Passes over the training images."),
        ):
            function = option(function)
        return model_option(data_options(function))

    return decorate


def precision_option(*, several: bool) -> Callable[[F], F]:
    """--precision, or, with ``several``, one or more of them as ``precisions``."""
    everywhere = " or ".join(name for name in PRECISIONS if name not in ON_GPU_ONLY)
    text = f"{everywhere}; {' or '.join(ON_GPU_ONLY)} with the plan on a GPU{'; may be repeated' if several else ''}."
    return click.option(
        "--precision",
        "precisions" if several else "precision",
        type=click.Choice(PRECISIONS),
        metavar="NAME",
        multiple=several,
        default=("float32",) if several else "float32",
        show_default=True,
        help=text,
    )


def load_data(data_path: Path | None, validation: str | None, limit: int | None, seed: int) -> Dataset:
    """The data that the options name. A tenth is held out where there is no test split and nothing else was said."""
    dataset = data.default() if data_path is None else data.load(data_path)
    if validation is None and dataset.evaluation is None:
        validation = "0.1"
    if validation is not None:
        amount = _amount(validation)
        if amount:
            dataset = dataset.hold_out(amount, seed)
    if limit is not None:
        dataset = dataset.take(min(limit, len(dataset.train)))
    return dataset


def optimizer_config(
    optimizer: str, lr: float | None, momentum: float | None, nesterov: bool, weight_decay: float
) -> dict[str, Any]:
    """The configuration of the optimizer that the options name. UsageError where one does not go with it."""
    rate = lr if lr is not None else 0.05 if optimizer == "sgd" else 0.001
    if optimizer in ("adam", "adamw") and momentum is not None:
        raise UsageError(f"--momentum goes with sgd and rmsprop; {optimizer} has none")
    if nesterov and optimizer != "sgd":
        raise UsageError(f"--nesterov goes with sgd; {optimizer} has none")
    made: optim.Optimizer
    if optimizer == "sgd":
        made = optim.SGD(rate, 0.9 if momentum is None else momentum, nesterov=nesterov, weight_decay=weight_decay)
    elif optimizer == "rmsprop":
        made = optim.RMSprop(rate, momentum=momentum or 0.0, weight_decay=weight_decay)
    elif optimizer == "adam":
        made = optim.Adam(rate, weight_decay=weight_decay)
    else:
        made = optim.AdamW(rate, weight_decay=weight_decay)
    return made.config()


def training_settings(options: dict[str, Any], **more: Any) -> Settings:
    """The settings among a verb's options; ``more`` goes first."""
    schedule = optim.schedule_from_name(options["schedule"])
    if options["warmup"] is not None:
        schedule = optim.schedule_from_config({**schedule.config(), "warmup": options["warmup"]})
    names = {f.name for f in dataclasses.fields(Settings)} - {"schedule"}
    given = {name: value for name, value in options.items() if name in names}
    return Settings(**{**given, "schedule": schedule, **more})


def given(ctx: click.Context, name: str) -> bool:
    """Whether the user gave that option, rather than its default."""
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def flag(ctx: click.Context, name: str) -> str:
    """An option by the name that the user knows it by: --batch-size, --data."""
    return next((max(param.opts, key=len) for param in ctx.command.params if param.name == name), name)


def _amount(text: str) -> int | float:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise UsageError(f"--validation {text!r}: expected a number of images, or a share between 0 and 1") from None

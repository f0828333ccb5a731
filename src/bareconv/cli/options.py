"""Options that several verbs share, and what they mean."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bareconv import data, optim
from bareconv.data import Dataset
from bareconv.errors import UsageError
from bareconv.nn.models import ZOO
from bareconv.training import ENGINES, Settings

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on standard output, all else on standard error."
)
device_option = click.option(
    "--device", default="auto", show_default=True, metavar="cpu|cuda|cuda:1|auto", help="Where to compute."
)


def data_options(function: F) -> F:
    """--data, --validation and --limit; ``load_data`` takes them."""
    for option in (
        click.option("--limit", type=click.IntRange(1), metavar="N", help="Use only the first N training images."),
        click.option(
            "--validation",
            metavar="N|SHARE",
            help="Hold out N images, or a share such as 0.1, of the training data. [default: 0.1 where there is no "
            "test split, else none]",
        ),
        click.option(
            "--data",
            "data_path",
            type=click.Path(path_type=Path),
            help="A Kaggle CSV, a folder of IDX files or an .npz. [default: digit-recognizer/train.csv if it is there, "
            "else the embedded MNIST]",
        ),
    ):
        function = option(function)
    return function


def training_options(function: F) -> F:
    """How to train; ``training_settings`` and ``optimizer_config`` take them."""
    for option in (
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
        click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True),
        click.option("--clip-norm", type=float, help="Clip the gradient to this global norm."),
        click.option(
            "--warmup", type=click.FloatRange(0, 1, max_open=True), help="Share of the steps that the rate rises."
        ),
        click.option("--schedule", type=click.Choice(list(optim.SCHEDULES)), default="one-cycle", show_default=True),
        click.option("--weight-decay", type=float, default=0.0, show_default=True),
        click.option("--nesterov", is_flag=True, help="Nesterov momentum (sgd)."),
        click.option("--momentum", type=float, help="[default: 0.9 for sgd, 0 for rmsprop]"),
        click.option("--lr", type=float, help="Peak learning rate. [default: 0.05 for sgd, else 0.001]"),
        click.option(
            "--optimizer",
            type=click.Choice(["sgd", "rmsprop", "adam", "adamw"]),
            default="sgd",
            show_default=True,
        ),
        click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True),
        click.option("--engine", type=click.Choice(ENGINES), default="reference", show_default=True),
        click.option("--model", type=click.Choice(list(ZOO)), default="basic", show_default=True),
    ):
        function = option(function)
    return function


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


def command_line(function: F) -> F:
    """Give the verb ``settings``: every option with its value, for the result file."""

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        settings = {
            name: str(value)
            if isinstance(value, Path)
            else list(map(str, value))
            if isinstance(value, tuple)
            else value
            for name, value in options.items()
        }
        return function(*args, settings=settings, **options)

    return wrapped  # type: ignore[return-value]


def _amount(text: str) -> int | float:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise UsageError(f"--validation {text!r}: expected a number of images, or a share between 0 and 1") from None

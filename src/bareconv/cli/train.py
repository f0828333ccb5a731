"""``bareconv train``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from bareconv import optim
from bareconv.bench.runs import run_record
from bareconv.cli.options import (
    command_line,
    data_options,
    device_option,
    json_option,
    load_data,
    optimizer_config,
    training_options,
    training_settings,
)
from bareconv.cli.screen import Screen, TrainingBar, epoch_line, stop_gently
from bareconv.device import get_device
from bareconv.errors import BareconvError, UsageError
from bareconv.host import keep_freed_memory
from bareconv.nn import models
from bareconv.nn.model import PRECISIONS
from bareconv.report.format import count, percent, rate, seconds
from bareconv.training import EpochRecord, Trainer
from bareconv.training.checkpoint import check_writable, load, save

EPILOG = """\b
Examples:
  bareconv train
  bareconv train --model lenet5 --optimizer adam --epochs 5 --checkpoint lenet5.safetensors
  bareconv train --data digit-recognizer/train.csv --validation 2000 --device cpu
  bareconv train --resume basic.safetensors
"""


@click.command(epilog=EPILOG, short_help="Train a model and save a checkpoint.")
@training_options
@click.option("--epochs", type=click.IntRange(1), default=1, show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), default="float32", show_default=True)
@data_options
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the model goes, after every epoch. [default: MODEL.safetensors]",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    help="Go on with the training that this checkpoint is of, with its settings and data.",
)
@device_option
@json_option
@command_line
def train(settings: dict[str, Any], as_json: bool, resume: Path | None, **options: Any) -> int:
    """Train a model and save it as a checkpoint.

    Ctrl-C finishes the step at hand, saves, and says how to go on from there.
    """
    keep_freed_memory()
    ctx = click.get_current_context()
    screen = Screen(as_json)
    path: Path = options["checkpoint"] or resume or Path(f"{options['model']}.safetensors")
    check_writable(path)
    device = get_device(options["device"])
    begun = time.perf_counter()
    device.reset_peak_memory()
    if resume is not None:
        _refuse_with_resume(ctx)
        kept = load(resume)
        dataset = load_data(options["data_path"], options["validation"], options["limit"], kept.settings.seed)
        trainer = kept.resume(dataset, device)
        if trainer.step >= trainer.total_steps:
            raise UsageError(f"{resume}: this training is done ({kept.settings.epochs} epochs); nothing to resume")
    else:
        dataset = load_data(options["data_path"], options["validation"], options["limit"], options["seed"])
        names = ("optimizer", "lr", "momentum", "nesterov", "weight_decay")
        optimizer = optim.from_config(optimizer_config(**{name: options[name] for name in names}))
        model = models.by_name(options["model"], dataset.image_shape, dataset.classes, options["seed"])
        trainer = Trainer(model, dataset, optimizer, training_settings(options), device)
    _introduce(screen, trainer)

    unsaved: BareconvError | None = None
    with stop_gently(screen) as interrupt, TrainingBar(screen) as bar:
        bar.begin("Training", trainer.total_steps)

        def on_epoch(record: EpochRecord) -> None:
            nonlocal unsaved
            screen.say(epoch_line(record, trainer.settings.epochs))
            unsaved = _try_to_save(path, trainer, screen)

        history = trainer.run(bar.training, on_epoch, interrupt)
        if history.stopped:
            unsaved = _try_to_save(path, trainer, screen)
    if unsaved is not None:
        raise unsaved

    total = time.perf_counter() - begun
    run = run_record(trainer, peak_memory=device.peak_memory(), total_seconds=total, checkpoint=str(path))
    screen.say(
        f"{count(history.iterations)} steps in {seconds(history.train_seconds)}: "
        f"{rate(history.images_per_second, 'images')}; saved {path}"
    )
    if run["test_accuracy"] is not None:
        screen.say(f"Accuracy on the {run['test_split']} images: {percent(run['test_accuracy'])}")
    if history.stopped:
        screen.say(f"Stopped at step {trainer.step} of {trainer.total_steps}. To go on:")
        screen.say(f"  {_resume_command(path, options)}")
    screen.finish(screen.result(settings, runs=[run]))
    return 130 if history.stopped else 0


def _introduce(screen: Screen, trainer: Trainer) -> None:
    data, settings, model = trainer.data, trainer.settings, trainer.model
    screen.device(trainer.device)
    held_out = data.evaluation
    screen.say(
        f"Data: {data.name}, {count(len(data.train))} training images"
        + (f", {count(len(held_out[1]))} {held_out[0]} images" if held_out else "")
    )
    screen.say(
        f"Model: {model.name}, {count(model.body.parameter_count())} parameters; "
        f"{trainer.device.effective_precision(settings.precision)}, engine {trainer.engine.name}"
    )
    screen.say(
        f"Training: {settings.epochs} epoch{'s' if settings.epochs > 1 else ''} of batches of "
        f"{trainer.history.batch_size}, {trainer.optimizer!r}, {settings.schedule!r}, seed {settings.seed}"
    )
    if trainer.step:
        screen.say(f"Resuming at step {trainer.step} of {trainer.total_steps}")


def _try_to_save(path: Path, trainer: Trainer, screen: Screen) -> BareconvError | None:
    """A disk that is full must not end a training: warn, go on, and say it again at the end."""
    try:
        save(path, trainer)
    except BareconvError as error:
        screen.say(f"Warning: the checkpoint was not saved: {error}")
        return error
    return None


def _refuse_with_resume(ctx: click.Context) -> None:
    """Settings come from the checkpoint: giving others would be ignored, so it is an error."""
    allowed = {"resume", "checkpoint", "device", "as_json", "data_path", "validation", "limit"}
    for name in ctx.params:
        source = ctx.get_parameter_source(name)
        if name not in allowed and source is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(f"--{name.replace('_', '-')} cannot change with --resume: the checkpoint's settings hold")


def _resume_command(path: Path, options: dict[str, Any]) -> str:
    words = ["bareconv train --resume", str(path)]
    for name, flag in (("data_path", "--data"), ("validation", "--validation"), ("limit", "--limit")):
        if options[name] is not None:
            words += [flag, str(options[name])]
    if options["device"] != "auto":
        words += ["--device", options["device"]]
    return " ".join(words)

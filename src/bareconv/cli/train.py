"""``bareconv train``."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import click

from bareconv import optim
from bareconv.bench.runs import run_record
from bareconv.cli.folder import check_apart
from bareconv.cli.options import (
    OPTIMIZER,
    device_option,
    flag,
    given,
    load_data,
    optimizer_config,
    precision_option,
    training_options,
    training_settings,
)
from bareconv.cli.screen import Bar, Screen, compiled_line, epoch_line, on_screen, stop_gently
from bareconv.data import Split
from bareconv.device import Device, get_device
from bareconv.errors import BareconvError, UsageError
from bareconv.files import check_writable
from bareconv.host import keep_freed_memory
from bareconv.nn import models
from bareconv.report.format import count, counted, percent, rate, seconds
from bareconv.training import EpochRecord, Trainer
from bareconv.training.checkpoint import load, save
from bareconv.training.evaluation import evaluate

FREE = ("--resume", "--checkpoint", "--device", "--data", "--validation", "--limit", "--json")  # with --resume
SAVE_SECONDS = 5.0  # epochs may be shorter than it takes to write a checkpoint

EPILOG = """\b
Examples:
  bareconv train
  bareconv train --model lenet5 --optimizer adam --epochs 5 --checkpoint lenet5.safetensors
  bareconv train --data digit-recognizer/train.csv --validation 2000 --device cpu
  bareconv train --resume basic.safetensors
"""


@click.command(epilog=EPILOG, short_help="Train a model and save a checkpoint.")
@training_options(epochs=1)
@precision_option(several=False)
@device_option
@click.option(
    "--evaluate-every",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Evaluate after every Nth epoch, and after the last.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where the model goes, after every epoch. [default: MODEL.safetensors]",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Go on with the training that this checkpoint is of, with its settings and data.",
)
@on_screen
def train(screen: Screen, resume: Path | None, **options: Any) -> int:
    """Train a model and save it as a checkpoint.

    Where images are held out (--validation) the accuracy by epoch is on those, and that on the test images, if there
    are any, comes once, at the end. Ctrl-C finishes the step at hand, saves, and says how to go on from there.
    """
    keep_freed_memory()
    path: Path = options["checkpoint"] or resume or Path(f"{options['model']}.safetensors")
    check_apart(path, [options["data_path"]])
    device = get_device(options["device"])
    begun = time.perf_counter()
    device.reset_peak_memory()
    trainer, test = _new(options, device) if resume is None else _resumed(screen, resume, options, device)
    check_writable(path, "checkpoint")
    _introduce(screen, trainer, test)
    epochs = trainer.settings.epochs

    unsaved: BareconvError | None = None
    saved_at = -SAVE_SECONDS
    with stop_gently(screen, "finishing this step, then saving") as interrupt, Bar(screen) as bar:
        bar.begin("Training", trainer.total_steps)

        def on_epoch(record: EpochRecord) -> None:
            nonlocal unsaved, saved_at
            last = record.epoch == epochs
            if last or record.epoch % trainer.settings.evaluate_every == 0:
                screen.say(epoch_line(record, epochs))
            if last or time.perf_counter() - saved_at >= SAVE_SECONDS:
                unsaved, saved_at = _try_to_save(path, trainer, screen), time.perf_counter()

        history = trainer.run(bar.training, on_epoch, interrupt, bar.compiling)
        if history.stopped:
            unsaved = _try_to_save(path, trainer, screen)
    if unsaved is not None:
        raise unsaved

    total = time.perf_counter() - begun
    run = run_record(trainer, peak_memory=device.peak_memory(), total_seconds=total, checkpoint=str(path))
    screen.say(
        f"{counted(history.iterations, 'step')} in {seconds(history.train_seconds)}, "
        f"{rate(history.images_per_second, 'images')}; saved {path}"
    )
    if compiled := compiled_line(run["compiled"], run["compile_seconds"]):
        screen.say(f"Before it, and in no other figure: {compiled}")
    if run["test_accuracy"] is not None:
        after = f" after epoch {history.epochs[-1].epoch}" if history.stopped else ""  # steps may have come since
        images = counted(run["test_images"], f"{run['test_split']} image")
        screen.say(f"Accuracy{after} on the {images}: {percent(run['test_accuracy'])}")
    notes = []
    if test is not None and not history.stopped:
        tested = evaluate(trainer.engine, test)
        notes.append(f"Accuracy on the {counted(len(test), 'test image')}: {percent(tested.accuracy)}")
        screen.say(notes[-1])
    if history.stopped:
        stopped, again = f"Stopped at step {trainer.step} of {trainer.total_steps}.", _resume_command(path, options)
        screen.say(f"{stopped} To go on:")
        screen.command(again)
        notes.append(f"{stopped} To go on: {again}")
    screen.finish(screen.result(runs=[run], notes=notes))
    return 130 if history.stopped else 0


def _new(options: dict[str, Any], device: Device) -> tuple[Trainer, Split | None]:
    """A new training, and the test images that it leaves for its end, where others are held out to judge it by."""
    # What is quickly found wrong comes before the data are read.
    optimizer = optim.from_config(optimizer_config(**{name: options[name] for name in OPTIMIZER}))
    settings = training_settings(options)
    every = load_data(options["data_path"], options["validation"], options["limit"], options["seed"])
    dataset, test = every.judged_while_trained()
    model = models.by_name(options["model"], dataset.image_shape, dataset.classes, options["seed"])
    return Trainer(model, dataset, optimizer, settings, device), test


def _resumed(screen: Screen, resume: Path, options: dict[str, Any], device: Device) -> tuple[Trainer, Split | None]:
    """Settings come from the checkpoint: others would be ignored, so to give them is an error."""
    ctx = click.get_current_context()
    for name in ctx.params:
        if flag(ctx, name) not in FREE and given(ctx, name):
            raise UsageError(f"{flag(ctx, name)} cannot change with --resume: the checkpoint's settings hold")
    screen.settings = {name: value for name, value in screen.settings.items() if f"--{name}" in FREE}
    kept = load(resume)
    if kept.history.iterations >= kept.history.steps_per_epoch * kept.settings.epochs:
        raise UsageError(
            f"{resume}: this training is done ({counted(kept.settings.epochs, 'epoch')}); nothing to resume"
        )
    every = load_data(options["data_path"], options["validation"], options["limit"], kept.settings.seed)
    dataset, test = every.judged_while_trained()
    return kept.resume(dataset, device), test


def _introduce(screen: Screen, trainer: Trainer, test: Split | None) -> None:
    data, settings, model = trainer.data, trainer.settings, trainer.model
    screen.device(trainer.device)
    held_out = data.evaluation
    screen.say(
        f"Data: {data.name}, {counted(len(data.train), 'training image')}"
        + (f", {counted(len(held_out[1]), f'{held_out[0]} image')}" if held_out else "")
        + (f", {counted(len(test), 'test image')} for the end" if test else "")
    )
    screen.say(
        f"Model: {model.name}, {count(model.body.parameter_count())} parameters; "
        f"{trainer.engine.precision}, engine {trainer.engine.description}"
    )
    screen.engine(trainer.engine, settings.engine)
    screen.batch_size(settings.batch_size, len(data.train))
    screen.say(
        f"Training: {counted(settings.epochs, 'epoch')} of batches of "
        f"{trainer.history.batch_size}, {trainer.optimizer!r}, {settings.schedule!r}, seed {settings.seed}"
    )
    if trainer.step:
        screen.say(f"Resuming after step {trainer.step} of {trainer.total_steps}")


def _try_to_save(path: Path, trainer: Trainer, screen: Screen) -> BareconvError | None:
    """A disk that is full must not end a training: warn, go on, and say it again at the end."""
    try:
        save(path, trainer)
    except BareconvError as error:
        screen.warn(f"the checkpoint was not saved: {error}")
        return error
    return None


def _resume_command(path: Path, options: dict[str, Any]) -> str:
    """What to type to go on, by the name under which this program was started."""
    words = [*_program(), "train", "--resume", str(path)]
    for name, option in (("data_path", "--data"), ("validation", "--validation"), ("limit", "--limit")):
        if options[name] is not None:
            words += [option, str(options[name])]
    if options["device"] != "auto":
        words += ["--device", options["device"]]
    return shlex.join(words)


def _program() -> list[str]:
    started, found = Path(sys.argv[0]), shutil.which("bareconv")
    if started.name == "__main__.py":
        return [sys.executable, "-m", "bareconv"]
    if found is not None and started.exists() and Path(found).samefile(started):
        return ["bareconv"]
    return [sys.argv[0]] if started.stem == "bareconv" else ["bareconv"]

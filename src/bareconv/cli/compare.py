"""``bareconv compare``: the main job."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from bareconv import data, optim
from bareconv.bench import results
from bareconv.bench.compare import Comparison, Job, Listener, check_precisions
from bareconv.bench.compare import compare as run_comparison
from bareconv.cli import tables
from bareconv.cli.folder import PAGE, RESULT, result_folder, tell_where, writing
from bareconv.cli.options import (
    OPTIMIZER,
    devices_option,
    flag,
    given,
    load_data,
    number,
    optimizer_config,
    precision_option,
    training_options,
    training_settings,
)
from bareconv.cli.screen import Bar, Interrupt, Screen, compiled_line, epoch_line, on_screen, stop_gently
from bareconv.data import Dataset
from bareconv.device import all_devices, get_device, why_no_cuda
from bareconv.errors import UsageError
from bareconv.files import Attempts
from bareconv.host import keep_freed_memory
from bareconv.report import write_report
from bareconv.report.format import count, counted, rate, seconds
from bareconv.training import EpochRecord, Progress, Settings, Trainer

EPILOG = """\b
Examples:
  bareconv compare
  bareconv compare --quick
  bareconv compare --model small --batch-size 256 --epochs 5
  bareconv compare --preset original
"""

QUICK_IMAGES, QUICK_TEST, QUICK_STEPS = 10_000, 2_000, 20
ORIGINAL_ROWS, ORIGINAL_HELD_OUT = 42_000, 1_000  # Kaggle's train.csv


@click.command(epilog=EPILOG, short_help="The same training on the CPU and on the GPU, compared.")
@click.option(
    "--quick", is_flag=True, help=f"One epoch of {QUICK_IMAGES:,} images and short proofs: well under a minute."
)
@click.option(
    "--preset",
    type=click.Choice(["original"]),
    help="original: the workload of the write-up that this project answers (784-10-10, full batch, 500 iterations).",
)
@training_options(epochs=3)
@precision_option(several=True)
@number("--parity-steps", 100, 0, "Steps of the parity proof; 0: none.")
@devices_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where the result goes. [default: results/TIME, and results/latest points to it]",
)
@on_screen
def compare(screen: Screen, **options: Any) -> int:
    """Train the same network on the CPU and on the GPU: the same initial weights, the same batches.

    Each side runs the engine plan, tuned for its processor. With --engine reference both run the same array program. To
    compare a tuned GPU with a CPU that is not, or the reverse, would say little of the two: where it cannot be helped,
    for want of an engine, the result says so. In tf32 and bfloat16 a GPU is compared with the CPU in float32.

    Prints and writes a table of times (total, per iteration, forward, backward, update, per operation), memory by
    component, accuracy and speed-up, a convergence plot, and the parity proof: how far losses and weights of the two
    drift apart in lockstep. Without a GPU it says why, and reports the CPU.

    Ctrl-C finishes the step at hand and reports what there is. Exit code 1 if a parity proof fails.
    """
    keep_freed_memory()
    options["precisions"] = tuple(dict.fromkeys(options["precisions"]))
    ctx = click.get_current_context()
    devices = all_devices() if options["device"] == "all" else [get_device(options["device"])]
    check_precisions(options["engine"], options["precisions"], devices)
    job, dataset = _preset_original(ctx, options) if options["preset"] else _job(ctx, options)
    attempts = Attempts()
    with result_folder(options["output"]) as folder:
        _introduce(screen, job, dataset)
        screen.batch_size(job.settings.batch_size, len(dataset.train))
        for device in devices:
            screen.device(device, measured=True)
        reason = why_no_cuda()
        if options["device"] == "all" and reason is not None:
            screen.say(f"No GPU: {reason}.")

        with stop_gently(screen, "finishing this step, then reporting what there is") as interrupt, Bar(screen) as bar:
            listener = _Printer(screen, bar, interrupt, job)
            comparison = run_comparison(job, dataset, devices, listener, folder / "model.safetensors")
            stopped = interrupt.requested
            if not comparison.runs:
                raise KeyboardInterrupt  # before the first step: there is nothing to report
            bar.begin("Drawing the page")
            result = screen.result(runs=comparison.runs, parity=comparison.parity, notes=comparison.notes)
            attempts.failed(comparison.unsaved)
            with attempts.one():
                results.write(result, folder / RESULT)
            with attempts.one(), writing(folder / PAGE):
                write_report(result, comparison.gallery, folder)
    _show(screen, comparison)
    tell_where(screen, folder, attempts, last=options["output"] is None)
    screen.finish(result)
    attempts.conclude()
    if stopped:
        return 130
    return 0 if not comparison.failed and all(proof["passed"] for proof in comparison.parity) else 1


def _introduce(screen: Screen, job: Job, dataset: Dataset) -> None:
    settings, held_out = job.settings, dataset.evaluation
    screen.say(
        f"Comparing {job.model}: {counted(settings.epochs, 'epoch')} of batches of "
        f"{min(settings.batch_size, len(dataset.train)):,} on {counted(len(dataset.train), 'image')} of {dataset.name}"
        + (f", tested on {count(len(held_out[1]))}" if held_out else "")
        + (" that were held out" if held_out and held_out[0] == "validation" else "")
    )


class _Printer(Listener):
    """Tells a person what the comparison is doing."""

    def __init__(self, screen: Screen, bar: Bar, interrupt: Interrupt, job: Job) -> None:
        self.screen, self.bar, self.interrupt, self.job = screen, bar, interrupt, job
        self.text = ""

    def stage(self, text: str) -> None:
        self.text = text
        self.bar.begin(text)
        if text.startswith("Parity"):
            self.screen.say(f"\n{text}")  # it may take a while, also where there is no bar

    def run_begins(self, trainer: Trainer) -> None:
        engine = trainer.engine
        self.screen.say(
            f"\n{trainer.device.name} ({trainer.device.description}), {engine.precision}, engine {engine.description}:"
        )
        self.screen.engine(trainer.engine, trainer.settings.engine)
        self.bar.begin("Training", trainer.total_steps)

    def compiling(self, done: int, total: int) -> None:
        self.bar.compiling(done, total)

    def progress(self, progress: Progress) -> None:
        self.bar.training(progress)

    def epoch(self, record: EpochRecord) -> None:
        every = self.job.settings.evaluate_every
        if record.epoch % every == 0 and (record.epoch // every) % max(1, self.job.settings.epochs // every // 10) == 0:
            self.screen.say(f"  {epoch_line(record, self.job.settings.epochs)}")

    def run_ends(self, run: dict[str, Any]) -> None:
        self.screen.say(
            f"  trained in {seconds(run['train_seconds'])} ({rate(run['images_per_second'], 'images')}), "
            f"{seconds(run['total_seconds'])} with set-up and evaluation"
        )
        if compiled := compiled_line(run["compiled"], run["compile_seconds"]):
            self.screen.say(f"  before that, and in no other figure: {compiled}")

    def count(self, done: int, total: int) -> None:
        if done == 1:
            self.bar.begin(self.text, total)
        self.bar.count(done)

    def should_stop(self) -> bool:
        return self.interrupt.requested


def _job(ctx: click.Context, options: dict[str, Any]) -> tuple[Job, Dataset]:
    every = load_data(options["data_path"], options["validation"], options["limit"], options["seed"])
    dataset, _ = every.judged_while_trained()
    epochs, steps = options["epochs"], options["parity_steps"]
    if options["quick"]:
        if not given(ctx, "limit"):
            dataset = dataset.take(min(QUICK_IMAGES, len(dataset.train)))
        if dataset.evaluation is not None:
            dataset = dataset.take(None, min(QUICK_TEST, len(dataset.evaluation[1])))
        epochs = epochs if given(ctx, "epochs") else 1
        steps = steps if given(ctx, "parity_steps") else QUICK_STEPS
    job = Job(
        model=options["model"],
        settings=training_settings(options, epochs=epochs),
        optimizer=optimizer_config(**{name: options[name] for name in OPTIMIZER}),
        precisions=options["precisions"],
        parity_steps=steps,
    )
    return job, dataset


def _preset_original(ctx: click.Context, options: dict[str, Any]) -> tuple[Job, Dataset]:
    """784-10-10, uniform in +-0.5, one batch of 41,000 rows, 500 iterations of descent at 0.1, 1,000 held out."""
    allowed = {
        "preset",
        "quick",
        "data_path",
        "device",
        "parity_steps",
        "output",
        "as_json",
        "seed",
        "precisions",
        "engine",
        "threads",
    }
    for name in ctx.params:
        if name not in allowed and given(ctx, name):
            raise UsageError(f"{flag(ctx, name)} is set by --preset original; leave one of the two out")
    dataset = data.default() if options["data_path"] is None else data.load(options["data_path"])
    dataset = dataclasses.replace(dataset, validation=None, test=None)
    dataset = dataset.take(min(ORIGINAL_ROWS, len(dataset.train))).hold_out(ORIGINAL_HELD_OUT, options["seed"])
    job = Job(
        model="mlp",
        settings=Settings(
            epochs=50 if options["quick"] else 500,
            batch_size=len(dataset.train),
            schedule=optim.Constant(),
            engine=options["engine"],
            threads=options["threads"],
            seed=options["seed"],
            evaluate_every=50,
        ),
        optimizer=optim.SGD(0.1).config(),
        precisions=options["precisions"] if given(ctx, "precisions") else ("float32", "float64"),
        parity_steps=options["parity_steps"] if given(ctx, "parity_steps") or not options["quick"] else QUICK_STEPS,
    )
    return job, dataset


def _show(screen: Screen, comparison: Comparison) -> None:
    """The tables, the speed-up, the parity proofs, and what else a reader should know."""
    for group in tables.groups(comparison.runs):
        screen.say()
        screen.show(tables.measured(screen, group))
        for table in tables.operations(screen, group):
            screen.say()
            screen.show(table)
    for lines in (tables.speedups(comparison.runs), [tables.verdict(proof) for proof in comparison.parity]):
        for place, line in enumerate(lines):
            screen.say(Text("" if place else "\n") + line)
    for note in comparison.notes:
        if not note.startswith("No GPU"):  # which was said at the start
            screen.say(f"\n{note}")

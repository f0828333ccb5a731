"""``bareconv compare``: the main job."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from bareconv import data, optim
from bareconv.bench import results
from bareconv.bench.compare import Comparison, Job, Listener
from bareconv.bench.compare import compare as run_comparison
from bareconv.cli.options import (
    command_line,
    data_options,
    json_option,
    load_data,
    optimizer_config,
    training_options,
    training_settings,
)
from bareconv.cli.screen import Interrupt, Screen, TrainingBar, epoch_line, stop_gently
from bareconv.data import Dataset
from bareconv.device import all_devices, get_device, why_no_cuda
from bareconv.errors import BareconvError, UsageError
from bareconv.host import keep_freed_memory
from bareconv.nn.model import PRECISIONS
from bareconv.report import write_report
from bareconv.report.format import bytes_, count, percent, rate, ratio, scientific, seconds
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
@training_options
@click.option("--epochs", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    default=("float32",),
    show_default=True,
    help="May be given twice.",
)
@data_options
@click.option("--device", default="all", show_default=True, metavar="all|cpu|cuda|cuda:1", help="Where to run.")
@click.option(
    "--parity-steps", type=click.IntRange(0), default=100, show_default=True, help="Steps of the parity proof; 0: none."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the result goes. [default: results/TIME, and results/latest points to it]",
)
@json_option
@command_line
def compare(settings: dict[str, Any], as_json: bool, **options: Any) -> int:
    """Train the same network on the CPU and on the GPU: the same initial weights, the same batches.

    Prints and writes a table of times (total, per iteration, forward, backward, update, per operation), memory by
    component, accuracy and speed-up, a convergence plot, and the parity proof: how far losses and weights of the two
    drift apart in lockstep. Without a GPU it says why, and reports the CPU.
    """
    keep_freed_memory()
    ctx = click.get_current_context()
    screen = Screen(as_json)
    job, dataset = _preset_original(ctx, options) if options["preset"] else _job(ctx, options)
    devices = all_devices() if options["device"] == "all" else [get_device(options["device"])]
    folder = options["output"] or results.results_folder()
    folder.mkdir(parents=True, exist_ok=True)

    held_out = dataset.evaluation
    screen.say(
        f"Comparing {job.model}: {job.settings.epochs} epoch{'s' if job.settings.epochs > 1 else ''} of batches of "
        f"{min(job.settings.batch_size, len(dataset.train)):,} on {count(len(dataset.train))} images of {dataset.name}"
        + (f", tested on {count(len(held_out[1]))}" if held_out else "")
    )
    for device in devices:
        screen.device(device)
    reason = why_no_cuda()
    if options["device"] == "all" and reason is not None:
        screen.say(f"No GPU: {reason}.")

    with stop_gently(screen) as interrupt, TrainingBar(screen) as bar:
        listener = _Printer(screen, bar, interrupt, job)
        comparison = run_comparison(job, dataset, devices, listener, folder / "model.safetensors")
    if not comparison.runs:
        raise BareconvError("interrupted before the first step: there is nothing to report")
    result = screen.result(settings, runs=comparison.runs, parity=comparison.parity, notes=comparison.notes)
    results.write(result, folder / "result.json")
    page = write_report(result, comparison.gallery, folder)
    latest = None if options["output"] else results.point_latest(folder)
    _show(screen, comparison)
    screen.say(f"\nWrote {page}" + (f" ({latest / page.name})" if latest else ""))
    screen.finish(result)
    if interrupt.requested:
        return 130
    return 0 if all(proof["passed"] for proof in comparison.parity) else 1


class _Printer(Listener):
    """Tells a person what the comparison is doing."""

    def __init__(self, screen: Screen, bar: TrainingBar, interrupt: Interrupt, job: Job) -> None:
        self.screen, self.bar, self.interrupt, self.job = screen, bar, interrupt, job
        self.text = ""

    def stage(self, text: str) -> None:
        self.text = text
        self.bar.begin(text, 1)
        if text.startswith("Parity"):
            self.screen.say(f"\n{text}")

    def run_begins(self, trainer: Trainer) -> None:
        precision = trainer.device.effective_precision(trainer.settings.precision)
        self.screen.say(f"\n{trainer.device.name} ({trainer.device.description}), {precision}:")
        self.bar.begin("Training", trainer.total_steps)

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

    def count(self, done: int, total: int) -> None:
        if done == 1:
            self.bar.begin(self.text, total)
        self.bar.count(done)

    def should_stop(self) -> bool:
        return self.interrupt.requested


def _job(ctx: click.Context, options: dict[str, Any]) -> tuple[Job, Dataset]:
    dataset = load_data(options["data_path"], options["validation"], options["limit"], options["seed"])
    epochs, steps = options["epochs"], options["parity_steps"]
    if options["quick"]:
        if not _given(ctx, "limit"):
            dataset = dataset.take(min(QUICK_IMAGES, len(dataset.train)))
        if dataset.evaluation is not None:
            dataset = dataset.take(None, min(QUICK_TEST, len(dataset.evaluation[1])))
        epochs = epochs if _given(ctx, "epochs") else 1
        steps = steps if _given(ctx, "parity_steps") else QUICK_STEPS
    names = ("optimizer", "lr", "momentum", "nesterov", "weight_decay")
    job = Job(
        model=options["model"],
        settings=training_settings(options, epochs=epochs),
        optimizer=optimizer_config(**{name: options[name] for name in names}),
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
    }
    for name in ctx.params:
        if name not in allowed and _given(ctx, name):
            raise UsageError(f"--{name.replace('_', '-')} is set by --preset original; leave one of the two out")
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
            seed=options["seed"],
            evaluate_every=10,
        ),
        optimizer=optim.SGD(0.1).config(),
        precisions=options["precisions"] if _given(ctx, "precisions") else ("float32", "float64"),
        parity_steps=options["parity_steps"] if _given(ctx, "parity_steps") or not options["quick"] else QUICK_STEPS,
    )
    return job, dataset


def _given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _show(screen: Screen, comparison: Comparison) -> None:
    """The table: a column a run, and the speed-up where two devices did the same."""
    runs = comparison.runs
    table = screen.table("", *(f"{run['device']} {run['precision']}" for run in runs))
    rows: list[tuple[str, Any]] = [
        ("total time", lambda run: seconds(run["total_seconds"])),
        ("training time", lambda run: seconds(run["train_seconds"])),
        ("  per iteration", lambda run: seconds(run["seconds_per_iteration"])),
        ("  forward", lambda run: seconds(run["phases"]["forward"])),
        ("  backward", lambda run: seconds(run["phases"]["backward"])),
        ("  update", lambda run: seconds(run["phases"]["update"])),
        ("images/s", lambda run: rate(run["images_per_second"])),
        ("accuracy", lambda run: percent(run["test_accuracy"])),
        ("peak memory", lambda run: bytes_(run["peak_memory_bytes"])),
    ]
    rows += [(f"  {part}", lambda run, part=part: bytes_(run["memory"][part])) for part in runs[0]["memory"]]
    screen.say()
    for name, cell in rows:
        table.add_row(name, *(cell(run) for run in runs))
    screen.show(table)
    screen.say()
    operations = screen.table(
        "operation", *(f"{run['device']} {run['precision']} {d}" for run in runs for d in ("fwd", "bwd"))
    )
    for i, operation in enumerate(runs[0]["operations"]):
        times = [run["operations"][i][f"{d}_seconds"] for run in runs for d in ("forward", "backward")]
        operations.add_row(operation["name"], *map(seconds, times))
    screen.show(operations)
    for cpu in (run for run in runs if run["device"] == "cpu"):
        for gpu in (run for run in runs if run["device"] != "cpu" and run["precision"] == cpu["precision"]):
            screen.say(
                f"\nSpeed-up of {gpu['device']} over the CPU in {cpu['precision']}: "
                f"{ratio(cpu['train_seconds'] / gpu['train_seconds'])} training, "
                f"{ratio(cpu['total_seconds'] / gpu['total_seconds'])} in total"
            )
    for proof in comparison.parity:
        screen.say(
            f"\nParity of {proof['candidate']} with {proof['reference']}, {proof['steps']} steps: largest difference "
            f"of the losses {scientific(proof['max_loss_difference'])}, of the final weights "
            f"{scientific(proof['final_weight_difference'])}; tolerance {scientific(proof['tolerance'])}: "
            + ("passed" if proof["passed"] else "FAILED")
        )
    for note in comparison.notes:
        screen.say(f"\n{note}")

"""``bareconv evaluate``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from bareconv.bench import results
from bareconv.cli.folder import RESULT, result_folder
from bareconv.cli.options import data_options, device_option, engine_option, load_data, number
from bareconv.cli.screen import Screen, on_screen
from bareconv.data import Dataset, Split
from bareconv.device import get_device
from bareconv.errors import UsageError
from bareconv.host import keep_freed_memory
from bareconv.report.format import count, counted, percent, rate
from bareconv.training import Evaluation, make_engine
from bareconv.training import evaluate as run_evaluation
from bareconv.training.checkpoint import load

EPILOG = """\b
Examples:
  bareconv evaluate basic.safetensors
  bareconv evaluate basic.safetensors --data digit-recognizer/train.csv --split train --output evaluation
"""


@click.command(epilog=EPILOG, short_help="Accuracy, loss, confusion and worst mistakes of a checkpoint.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@data_options
@click.option(
    "--split",
    type=click.Choice(["test", "validation", "train"]),
    metavar="NAME",
    help="Which images: test, validation or train. [default: the first of them that there is]",
)
@number("--mistakes", 24, 1, "How many mistakes to show in the picture.")
@device_option
@engine_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where the pictures and result.json go. [default: results/TIME]",
)
@on_screen
def evaluate(screen: Screen, checkpoint: Path, **options: Any) -> int:
    """How good a checkpoint is: accuracy, loss, precision and recall of every class, the confusion matrix as a table
    and a picture, and a picture of the most confidently wrong images.

    A validation split is drawn with the seed that the checkpoint was trained with: the same images.
    """
    from bareconv.report.pictures import confusion_picture, mistakes_picture

    keep_freed_memory()
    kept = load(checkpoint)
    dataset = load_data(options["data_path"], options["validation"], options["limit"], kept.settings.seed)
    if dataset.image_shape != kept.model.input_shape:
        raise UsageError(
            f"{dataset.name} has images of {dataset.image_shape}; {checkpoint} was trained on {kept.model.input_shape}"
        )
    name, split = _split(dataset, options["split"])
    if int(split.labels.max()) >= kept.model.output_shape[0]:
        raise UsageError(
            f"{dataset.name} has labels up to {int(split.labels.max())}; {checkpoint} knows classes "
            f"0 to {kept.model.output_shape[0] - 1}"
        )
    device = get_device(options["device"])
    with result_folder(options["output"]) as folder:
        screen.device(device)
        engine = make_engine(options["engine"], kept.model.to(device), kept.optimizer)
        screen.engine(engine, options["engine"])
        begun = time.perf_counter()
        evaluation = run_evaluation(engine, split)
        throughput = len(split) / (time.perf_counter() - begun - engine.compile_seconds)

        worst = evaluation.most_confidently_wrong(options["mistakes"])
        pictures = [folder / "confusion.png"]
        confusion_picture(evaluation.confusion, pictures[0])
        if len(worst):
            pictures.append(folder / "mistakes.png")
            mistakes_picture(
                split.images[worst],
                split.labels[worst],
                evaluation.predicted[worst],
                evaluation.confidence[worst],
                pictures[1],
                most=len(worst),
            )
        record = {
            "checkpoint": str(checkpoint),
            "data": dataset.name,
            "split": name,
            "images": len(split),
            "accuracy": evaluation.accuracy,
            "loss": evaluation.loss,
            "images_per_second": throughput,
            "classes": [
                {"class": c, "images": int(row.sum()), "precision": precision, "recall": recall}
                for c, (row, (precision, recall)) in enumerate(
                    zip(evaluation.confusion, evaluation.precision_recall(), strict=True)
                )
            ],
            "confusion": evaluation.confusion.tolist(),
            "worst": [
                {
                    "index": int(i),
                    "label": int(split.labels[i]),
                    "predicted": int(evaluation.predicted[i]),
                    "confidence": float(evaluation.confidence[i]),
                }
                for i in worst
            ],
            "pictures": [str(picture) for picture in pictures],
        }
        result = screen.result(evaluation=record)
        results.write(result, folder / RESULT)

    mistakes = int((evaluation.predicted != evaluation.labels).sum())
    screen.say(f"{checkpoint}: {kept.model.name} on {counted(len(split), f'{name} image')} of {dataset.name}")
    screen.say(
        f"Accuracy {percent(evaluation.accuracy)} ({counted(mistakes, 'mistake')}), loss {evaluation.loss:.4f}; "
        f"{rate(throughput, 'images')}\n"
    )
    _show(screen, evaluation)
    screen.say(f"\nWrote {', '.join(str(path.name) for path in pictures)} and {RESULT} in {folder}")
    screen.finish(result)
    return 0


def _split(dataset: Dataset, wanted: str | None) -> tuple[str, Split]:
    splits = {"test": dataset.test, "validation": dataset.validation, "train": dataset.train}
    if wanted is not None:
        chosen = splits[wanted]
        if chosen is None:
            there = ", ".join(name for name, split in splits.items() if split is not None)
            raise UsageError(f"{dataset.name} has no {wanted} split; expected one of {there}")
        return wanted, chosen
    return next((name, split) for name, split in splits.items() if split is not None)


def _show(screen: Screen, evaluation: Evaluation) -> None:
    """The confusion matrix with precision and recall; without the matrix where the terminal is too narrow for it."""
    confusion = evaluation.confusion
    whole = screen.table("true", *map(str, range(evaluation.classes)), "precision", "recall")
    short = screen.table("class", "images", "precision", "recall")
    whole.padding = (0, 1, 0, 0)
    for c, (precision, recall) in enumerate(evaluation.precision_recall()):
        cells = [Text(str(n) if n else "·", "bold" if other == c else "") for other, n in enumerate(confusion[c])]
        whole.add_row(str(c), *cells, percent(precision), percent(recall))
        short.add_row(str(c), count(int(confusion[c].sum())), percent(precision), percent(recall))
    if screen.fits(whole):
        screen.say("Confusion: rows are the true class, columns the predicted one")
        screen.show(whole)
    else:
        screen.show(short)

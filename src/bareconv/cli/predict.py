"""``bareconv predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from bareconv import data
from bareconv.cli.folder import check_apart, writing
from bareconv.cli.options import device_option, engine_option
from bareconv.cli.screen import Screen, on_screen
from bareconv.device import get_device
from bareconv.errors import DataError, UsageError
from bareconv.files import check_writable, write_whole
from bareconv.host import keep_freed_memory
from bareconv.report.format import count, percent
from bareconv.training import make_engine
from bareconv.training import predict as run_predict
from bareconv.training.checkpoint import load

EPILOG = """\b
Examples:
  bareconv predict basic.safetensors digit-recognizer/test.csv -o submission.csv
  bareconv predict basic.safetensors my-seven.png photo-of-a-three.jpg -o seen.png
"""


@click.command(epilog=EPILOG, short_help="Predict a Kaggle test.csv or drawn digits.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="For a CSV, the submission; for images, a picture (PNG) of what the model saw. [default: submission.csv for a "
    "CSV, no picture for images]",
)
@device_option
@engine_option
@on_screen
def predict(
    screen: Screen, checkpoint: Path, inputs: tuple[Path, ...], output: Path | None, device: str, engine: str
) -> int:
    """Predict INPUTS: one CSV as Kaggle's test.csv, or any number of PNG or JPEG images of a digit.

    A CSV gives a Kaggle submission (ImageId,Label; ids from 1). An image may have any size, dark ink on light ground or
    light on dark: it is inverted, cropped, scaled and centred as MNIST's images were.
    """
    keep_freed_memory()
    tables = [path for path in inputs if path.name.lower().endswith((".csv", ".csv.gz"))]
    if tables and len(inputs) > 1:
        raise UsageError(f"expected one CSV, or images; got {tables[0]} among {len(inputs)} inputs")
    if tables:
        output = output or Path("submission.csv")
    elif output is not None and output.suffix.lower() != ".png":
        raise UsageError(f"--output {output}: for images it is a picture; expected a name that ends in .png")
    if output is not None:
        check_apart(output, [checkpoint, *inputs])
    kept = load(checkpoint)
    images = data.read_csv(tables[0], labelled=False)[0] if tables else data.read_images(inputs)
    if images.shape[1:] != kept.model.input_shape:
        raise DataError(
            f"{inputs[0]}: images of {images.shape[1:]}; {checkpoint} was trained on images of {kept.model.input_shape}"
        )
    if output is not None:
        check_writable(output, "output")
    labels, confidence = run_predict(make_engine(engine, kept.model.to(get_device(device)), kept.optimizer), images)

    record: dict[str, Any] = {"checkpoint": str(checkpoint), "count": len(labels), "output": str(output or "") or None}
    if tables:
        assert output is not None
        lines = ["ImageId,Label", *(f"{number},{label}" for number, label in enumerate(labels.tolist(), start=1))]
        write_whole(output, ("\n".join(lines) + "\n").encode())
        shares = np.bincount(labels, minlength=kept.model.output_shape[0])
        screen.say(f"Wrote {output}: {count(len(labels))} predictions, ids 1 to {len(labels)}")
        screen.say("Predicted: " + ", ".join(f"{n} x {c}" for c, n in enumerate(shares.tolist()) if n))
    else:
        table = screen.table("image", "digit", "confidence")
        for path, label, sure in zip(inputs, labels, confidence, strict=True):
            table.add_row(str(path), str(label), percent(sure))
        screen.show(table)
        record["images"] = [
            {"image": str(path), "label": int(label), "confidence": float(sure)}
            for path, label, sure in zip(inputs, labels, confidence, strict=True)
        ]
        if output is not None:
            from bareconv.report.pictures import predictions_picture

            with writing(output):
                predictions_picture(images, labels, confidence, output, most=len(images))
            screen.say(f"Wrote {output}: the images as the model saw them")
    screen.finish(screen.result(predictions=record))
    return 0

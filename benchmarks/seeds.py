"""Whether every device and precision learns as well: the same training with ten seeds each, and one of them twice.

    python benchmarks/seeds.py --output benchmarks/results/seeds-MACHINE.json

The difference of two sides' mean accuracies is held against its standard error (Welch's t): below 3 it is noise. Two
runs with one seed must leave the same weights, bit for bit.
"""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from bareconv import data, optim
from bareconv.bench import results
from bareconv.bench.environment import describe
from bareconv.bench.runs import run_record
from bareconv.device import get_device, why_no_cuda
from bareconv.errors import BareconvError
from bareconv.nn import models
from bareconv.training import Settings, Trainer

NOISE = 3.0  # standard errors


def trained(model: str, device: str, precision: str, seed: int, epochs: int, dataset: data.Dataset) -> Trainer:
    """A finished training."""
    settings = Settings(epochs=epochs, batch_size=64, precision=precision, seed=seed)
    built = models.by_name(model, dataset.image_shape, dataset.classes, seed)
    trainer = Trainer(built, dataset, optim.SGD(0.05, momentum=0.9), settings, device)
    trainer.run()
    return trainer


def weights(trainer: Trainer) -> list[np.ndarray[Any, Any]]:
    """All parameters, on the host."""
    return [trainer.device.to_host(array) for array in trainer.model.parameters().values()]


def apart(a: list[float], b: list[float]) -> float:
    """Welch's t of two samples."""
    error = math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b))
    return (statistics.mean(a) - statistics.mean(b)) / error if error else 0.0


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--model", default="basic", show_default=True)
@click.option("--seeds", default=10, show_default=True, type=click.IntRange(2))
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(1))
@click.option("--limit", type=int, help="Training images. [default: all]")
def main(output: Path, model: str, seeds: int, epochs: int, limit: int | None) -> None:
    """Train, compare, write."""
    environment, dataset = describe(), data.default()
    if limit is not None:
        dataset = dataset.take(limit)
    sides = [("cpu", "float32")]
    if why_no_cuda() is None:
        sides += [("cuda", precision) for precision in ("float32", "tf32", "bfloat16")]
    runs, notes = [], []
    accuracies: dict[tuple[str, str], list[float]] = {}
    for device, precision in sides:
        accuracies[device, precision] = []
        for seed in range(seeds):
            get_device(device).reset_peak_memory()
            begun = time.perf_counter()
            trainer = trained(model, device, precision, seed, epochs, dataset)
            seconds = time.perf_counter() - begun
            runs.append(run_record(trainer, peak_memory=trainer.device.peak_memory(), total_seconds=seconds))
            history = runs[-1]["history"]
            history["loss"] = [round(loss, 5) for loss in history["loss"]]
            assert trainer.evaluation is not None
            accuracies[device, precision].append(trainer.evaluation.accuracy)
        again = trained(model, device, precision, seeds - 1, epochs, dataset)
        same = all(np.array_equal(a, b) for a, b in zip(weights(trainer), weights(again), strict=True))
        said = "the same weights, bit for bit" if same else "DIFFERENT weights"
        notes.append(f"{device}, {precision}: two runs with seed {seeds - 1} left {said}.")
        found = accuracies[device, precision]
        notes.append(
            f"{device}, {precision}: accuracy {statistics.mean(found):.4%} over {seeds} seeds, "
            f"standard deviation {statistics.stdev(found):.4%}."
        )
        if (device, precision) != sides[0]:
            t = apart(found, accuracies[sides[0]])
            notes.append(f"{device}, {precision} against {' '.join(sides[0])}: t = {t:.2f}, {_verdict(t)}.")
        for note in notes[-3:]:
            print(note, flush=True)
    try:
        result = results.new(
            "benchmarks/seeds.py",
            {"model": model, "seeds": seeds, "epochs": epochs, "limit": limit},
            runs=runs,
            notes=notes,
            environment=environment,
        )
        results.write(result, output)
    except BareconvError as error:
        raise click.ClickException(str(error)) from None
    print(f"Wrote {output}")


def _verdict(t: float) -> str:
    return "noise" if abs(t) < NOISE else "more than noise"


if __name__ == "__main__":
    main()

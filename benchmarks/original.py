"""The workload of the original write-up, whole processes from CSV to accuracy: written plainly, and by bareconv.

    python benchmarks/original.py --output benchmarks/results/original-MACHINE.json

The write-up's scripts are described, not included: 784-10-10, weights and biases uniform in +-0.5, one batch of 41,000
rows as columns, relu, softmax, 500 steps of gradient descent at 0.1, float64, 1,000 rows held out. ``plain`` below is
that description in a few lines of NumPy or CuPy, as such tutorials write it (its bias gradient is the right one, a sum
over the batch for each unit; the write-up's two scripts differ there). bareconv's side is ``bareconv train``. The sides
take turns; a figure is the median of the whole processes' wall times.
"""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from bareconv import data
from bareconv.bench import results
from bareconv.bench.environment import describe
from bareconv.device import all_devices, get_device

ROWS, HELD_OUT, STEPS, RATE = 42_000, 1_000, 500, 0.1


def plain(xp: Any, path: Path) -> tuple[float, float]:
    """(accuracy on the rows held out, seconds of the training loop)."""
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    np.random.default_rng(0).shuffle(table)
    held_out, train = xp.asarray(table[:HELD_OUT].T), xp.asarray(table[HELD_OUT:].T)
    labels, pixels = train[0].astype(int), train[1:] / 255.0
    count = pixels.shape[1]
    xp.random.seed(0)
    w1, b1, w2, b2 = (xp.random.rand(*shape) - 0.5 for shape in ((10, 784), (10, 1), (10, 10), (10, 1)))

    def forward(x: Any) -> tuple[Any, Any, Any]:
        z1 = w1 @ x + b1
        a1 = xp.maximum(z1, 0)
        e = xp.exp(w2 @ a1 + b2)
        return z1, a1, e / e.sum(axis=0)

    begun = time.perf_counter()
    for _ in range(STEPS):
        z1, a1, a2 = forward(pixels)
        one_hot = xp.zeros((10, count))
        one_hot[labels, xp.arange(count)] = 1
        dz2 = a2 - one_hot
        dz1 = (w2.T @ dz2) * (z1 > 0)
        w2, b2 = w2 - RATE / count * dz2 @ a1.T, b2 - RATE / count * dz2.sum(axis=1, keepdims=True)
        w1, b1 = w1 - RATE / count * dz1 @ pixels.T, b1 - RATE / count * dz1.sum(axis=1, keepdims=True)
    float(w1[0, 0])  # waits for the device
    seconds = time.perf_counter() - begun
    predicted = forward(held_out[1:] / 255.0)[2].argmax(axis=0)
    return float((predicted == held_out[0]).mean()), seconds


def run_plain(device: str, path: Path) -> dict[str, Any]:
    """``plain`` in a process of its own."""
    words = [sys.executable, __file__, "--plain", device, "--data", str(path)]
    answer = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return dict(answer)


def run_bareconv(device: str, precision: str, path: Path, folder: Path) -> dict[str, Any]:
    """``bareconv train`` with the same settings, in a process of its own."""
    options = {
        "--model": "mlp",
        "--data": path,
        "--validation": HELD_OUT,
        "--batch-size": ROWS - HELD_OUT,
        "--epochs": STEPS,
        "--evaluate-every": STEPS,
        "--optimizer": "sgd",
        "--momentum": 0,
        "--lr": RATE,
        "--schedule": "constant",
        "--device": device,
        "--precision": precision,
        "--checkpoint": folder / "model.safetensors",
    }
    words = [sys.executable, "-m", "bareconv", "train", "--json", *(str(w) for pair in options.items() for w in pair)]
    run = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)["runs"][0]
    return {key: run[key] for key in ("engine", "train_seconds", "test_accuracy", "peak_memory_bytes")}


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--repeats", default=3, show_default=True)
@click.option("--data", "path", type=click.Path(path_type=Path), help="Kaggle's train.csv. [default: made from MNIST]")
@click.option("--plain", "only_plain", metavar="DEVICE", help="Run the plain side once and print what it found.")
def main(output: Path | None, repeats: int, path: Path | None, only_plain: str | None) -> None:
    """Time both sides on every device there is, turn by turn."""
    if only_plain and path:
        place = get_device(only_plain)
        place.reset_peak_memory()
        with place.activate():
            accuracy, seconds = plain(place.xp, path)
        peak = place.peak_memory()
        print(json.dumps({"test_accuracy": accuracy, "train_seconds": seconds, "peak_memory_bytes": peak}))
        return
    environment = describe()
    sides: dict[tuple[str, str, str], Callable[[], dict[str, Any]]] = {}
    described = {device.name: device.description for device in all_devices()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        table = path or write_csv(folder / "train.csv")
        for name in described:
            sides[name, "write-up", "float64"] = functools.partial(run_plain, name, table)
            for precision in ("float64", "float32"):
                sides[name, "bareconv", precision] = functools.partial(run_bareconv, name, precision, table, folder)
        walls: dict[tuple[str, str, str], list[float]] = {side: [] for side in sides}
        answers: dict[tuple[str, str, str], list[dict[str, Any]]] = {side: [] for side in sides}
        for repeat in range(repeats):
            for side, work in sides.items():
                begun = time.perf_counter()
                answers[side].append(work())
                walls[side].append(time.perf_counter() - begun)
                print(f"{repeat + 1}/{repeats}", *side, f"{walls[side][-1]:.2f} s", answers[side][-1], flush=True)
    runs = []
    for (device, program, precision), wall in walls.items():
        found = answers[device, program, precision]
        train = statistics.median(answer["train_seconds"] for answer in found)
        runs.append(
            {
                "device": device,
                "device_description": described[device],
                "engine": found[0].get("engine", program),  # the one that ran
                "model": "mlp",
                "precision": precision,
                "batch_size": ROWS - HELD_OUT,
                "epochs": STEPS,
                "iterations": STEPS,
                "total_seconds": statistics.median(wall),
                "train_seconds": train,
                "images_per_second": (ROWS - HELD_OUT) * STEPS / train,
                "test_accuracy": statistics.median(answer["test_accuracy"] for answer in found),
                "test_split": "validation",
                "peak_memory_bytes": max(answer["peak_memory_bytes"] for answer in found),
                "history": {"loss": [], "epochs": []},
                "samples": {"total_seconds": wall, "train_seconds": [answer["train_seconds"] for answer in found]},
            }
        )
    notes = [
        "total_seconds: wall time of the whole process, from its start over reading the CSV to its end; median. "
        "engine write-up: the plain program of benchmarks/original.py; others: bareconv train."
    ]
    result = results.new(
        "benchmarks/original.py", {"repeats": repeats}, runs=runs, notes=notes, environment=environment
    )
    if output is not None:
        results.write(result, output)


def write_csv(path: Path) -> Path:
    """A file as Kaggle's train.csv, of the first 42,000 of MNIST's training images."""
    split = data.mnist().train
    table = np.concatenate([split.labels[:ROWS, None], split.images[:ROWS].reshape(ROWS, -1)], axis=1)
    header = ",".join(["label", *(f"pixel{i}" for i in range(784))])
    np.savetxt(path, table, fmt="%d", delimiter=",", header=header, comments="")
    return path


if __name__ == "__main__":
    main()

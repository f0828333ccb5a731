"""Results and galleries such as bareconv writes, computed here so that the tests need no training."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

import jsonschema.exceptions
import numpy as np

from bareconv.report import Gallery

# name, type, output shape, forward and backward seconds on the CPU, speed-ups on the GPU
OPERATIONS: list[tuple[str, str, list[int], float, float, float, float]] = [
    ("conv1", "Conv2d", [28, 28, 32], 9.1e-3, 7.9e-3, 38.0, 31.0),
    ("relu1", "ReLU", [28, 28, 32], 1.2e-3, 1.6e-3, 22.0, 24.0),
    ("conv2", "Conv2d", [28, 28, 64], 41.0e-3, 88.0e-3, 61.0, 52.0),
    ("relu2", "ReLU", [28, 28, 64], 2.5e-3, 3.1e-3, 30.0, 31.0),
    ("pool", "MaxPool2d", [14, 14, 64], 5.3e-3, 7.7e-3, 44.0, 47.0),
    ("flatten", "Flatten", [12544], 1.1e-6, 1.3e-6, 0.4, 0.4),
    ("dense1", "Dense", [128], 1.9e-3, 4.2e-3, 14.0, 17.0),
    ("relu3", "ReLU", [128], 11e-6, 14e-6, 0.9, 1.1),
    ("dropout", "Dropout", [128], 44e-6, 12e-6, 1.6, 0.7),
    ("dense2", "Dense", [10], 31e-6, 62e-6, 0.8, 1.2),
    ("loss", "SoftmaxCrossEntropy", [10], 58e-6, 21e-6, 0.7, 0.5),
]


def environment(*, gpu: bool = True) -> dict[str, Any]:
    """A machine, with or without a GPU."""
    gpus = [
        {
            "name": "NVIDIA H100 80GB HBM3",
            "memory_bytes": 85_520_809_984,
            "compute_capability": "9.0",
            "driver": "570.86.15",
            "driver_cuda": "12.8",
        }
    ]
    return {
        "platform": "Linux-6.8.0-x86_64-with-glibc2.36",
        "python": "3.11.7",
        "cpu": {
            "model": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            "cores": 208,
            "cores_allowed": 16,
            "affinity": 208,
            "quota": 16.0,
            "simd": ["AVX2", "AVX512F", "AVX512BW"],
            "memory_bytes": 137_438_953_472,
        },
        "blas": {"library": "OpenBLAS", "version": "0.3.30", "architecture": "SkylakeX", "threads": 16},
        "gpus": gpus if gpu else [],
        "cuda_missing": None if gpu else "no NVIDIA driver was found, so there is no GPU to use",
        "packages": {"numpy": "2.4.6", "cupy": "13.6.0" if gpu else None, "matplotlib": "3.11.2"},
        "variables": {"OMP_NUM_THREADS": "16"},
        "warnings": ["the CPU's frequency governor is powersave"],
    }


def confusion(seed: int, errors: int = 110) -> list[list[int]]:
    """A matrix of 10,000 images with a few errors, more of them between digits that look alike."""
    rng = np.random.default_rng(seed)
    counts = np.diag([980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])
    alike = [(4, 9), (9, 4), (7, 2), (3, 5), (5, 3), (8, 3), (7, 1), (6, 0), (2, 7), (9, 7)]
    for _ in range(errors):
        i, j = alike[rng.integers(10)] if rng.random() < 0.6 else rng.choice(10, 2, replace=False)
        counts[i, i] -= 1
        counts[i, j] += 1
    return [[int(x) for x in row] for row in counts]


def run(
    device: str = "cpu",
    *,
    precision: str = "float32",
    speed: float = 1.0,
    epochs: int = 5,
    steps: int = 469,
    seed: int = 1,
    **changes: Any,
) -> dict[str, Any]:
    """A complete run; ``speed`` makes it that many times faster than the CPU, ``changes`` overwrite or add fields."""
    gpu = device.startswith("cuda")
    rng = np.random.default_rng(seed)
    t = np.arange(epochs * steps)
    smooth = 2.2 * np.exp(-t / 90) + 0.16 * np.exp(-t / 900) + 0.012
    loss = smooth * np.random.default_rng(7).lognormal(-0.05, 0.35, t.size) * (1 + 1e-4 * rng.standard_normal(t.size))
    seconds = 0.181 * t.size / speed
    found = confusion(seed, 104 + seed)
    accuracy = sum(found[i][i] for i in range(10)) / 10_000
    history = []
    for e in range(epochs):
        part = loss[e * steps : (e + 1) * steps]
        history.append(
            {
                "epoch": e + 1,
                "iterations": (e + 1) * steps,
                "train_loss": float(part.mean()),
                "train_accuracy": float(1 - 0.3 * min(1.0, part.mean())),
                "train_seconds": seconds / epochs,
                "learning_rate": 1e-3 * 0.8**e,
                "test_loss": float(part.mean() * 0.9),
                "test_accuracy": float(accuracy - 0.014 * np.exp(-1.1 * e) + 3e-4 * rng.standard_normal()),
            }
        )
    operations = []
    for name, kind, shape, forward, backward, f, b in OPERATIONS:
        scale = (speed / 40 * f, speed / 40 * b) if gpu else (1.0, 1.0)
        operations.append(
            {
                "name": name,
                "type": kind,
                "output_shape": [128, *shape],
                "forward_seconds": forward / scale[0],
                "backward_seconds": backward / scale[1],
                "forward_flops": 1_000_000,
                "backward_flops": 2_000_000,
            }
        )
    memory = {
        "parameters": 6_600_000,
        "gradients": 6_600_000,
        "optimizer": 13_200_000,
        "activations": 148_000_000,
        "data": 54_880_000,
        "overhead": 92_000_000 if gpu else 388_000_000,
    }
    made = {
        "device": device,
        "device_description": "NVIDIA H100 80GB HBM3" if gpu else "Intel(R) Xeon(R) Platinum 8481C, 16 threads",
        "engine": "cupy" if gpu else "numpy",
        "model": "basic",
        "precision": precision,
        "batch_size": 128,
        "epochs": epochs,
        "iterations": epochs * steps,
        "parameters": 1_625_866,
        "flops_per_image": 87_000_000,
        "data": "mnist",
        "train_images": 60_000,
        "seed": 42,
        "optimizer": "adam",
        "schedule": "cosine",
        "total_seconds": seconds * 1.06 + 2.4,
        "train_seconds": seconds,
        "evaluate_seconds": seconds * 0.05,
        "seconds_per_iteration": seconds / (epochs * steps),
        "images_per_second": 128 * epochs * steps / seconds,
        "test_accuracy": accuracy,
        "test_loss": 0.0312,
        "test_split": "test",
        "test_images": 10_000,
        "peak_memory_bytes": sum(memory.values()),
        "checkpoint": None,
        "memory": memory,
        "phases": {
            "batch": 1.1e-3 / speed,
            "forward": 0.061 / speed,
            "backward": 0.112 / speed,
            "update": 0.0062 / speed,
            "profiled_steps": 20,
        },
        "operations": operations,
        "confusion": found,
        "history": {"loss": [float(x) for x in loss], "epochs": history},
    }
    return {key: value for key, value in (made | changes).items() if value is not ...}


def parity(*, passed: bool = True, steps: int = 50) -> dict[str, Any]:
    """A lockstep test whose differences grow from rounding, the first step exactly equal."""
    rng = np.random.default_rng(3)
    loss = [0.0, *(float(x) for x in 6e-8 * np.exp(rng.standard_normal(steps - 1) * 0.7) * np.arange(1, steps))]
    weights = [float(x) for x in 4e-8 * np.arange(1, steps + 1) ** 1.1]
    tolerance = 1e-3 if passed else 1e-6
    return {
        "reference": "cpu float32",
        "candidate": "cuda:0 float32",
        "model": "basic",
        "precision": "float32",
        "steps": steps,
        "loss_difference": loss,
        "weight_difference": weights,
        "max_loss_difference": max(loss),
        "final_weight_difference": weights[-1],
        "worst_tensor": "conv2.weight",
        "tolerance": tolerance,
        "passed": passed,
    }


def evaluation() -> dict[str, Any]:
    """What `bareconv evaluate` found."""
    counts = confusion(1, 105)
    return {
        "checkpoint": "basic.safetensors",
        "data": "mnist",
        "split": "test",
        "images": 10_000,
        "accuracy": sum(counts[i][i] for i in range(10)) / 10_000,
        "loss": 0.031,
        "classes": [{"class": i, "images": sum(counts[i]), "precision": None, "recall": 0.99} for i in range(10)],
        "confusion": counts,
    }


def result(runs: list[dict[str, Any]], *, gpu: bool = True, **changes: Any) -> dict[str, Any]:
    """A result of these runs that has passed the schema."""
    made = {
        "schema": "bareconv.result",
        "schema_version": 2,
        "created": "2026-11-22T21:04:11+00:00",
        "bareconv": "0.1.0",
        "commit": "6b0a4761f5c8",
        "command": "bareconv compare --model basic --epochs 5 --batch-size 128",
        "environment": environment(gpu=gpu),
        "settings": {"model": "basic", "epochs": 5, "batch_size": 128, "limit": None, "parity": True, "seeds": [42]},
        "runs": runs,
    } | changes
    check(made)
    return made


def check(made: dict[str, Any]) -> None:
    """Raise where ``made`` is not what the schema says a result is."""
    error = jsonschema.exceptions.best_match(validator().iter_errors(made))
    if error is not None:
        raise error


@functools.cache
def validator() -> jsonschema.Draft202012Validator:
    """Of results."""
    schema = json.loads(resources.files("bareconv.bench").joinpath("result.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def cpu_only() -> dict[str, Any]:
    """A machine without a GPU: one run, one epoch, nothing to compare."""
    return result(
        [run(epochs=1)], gpu=False, notes=["no GPU run: no NVIDIA driver was found, so there is no GPU to use"]
    )


def both() -> dict[str, Any]:
    """The usual comparison: a CPU and a GPU."""
    return result([run(), run("cuda:0", speed=42.0, seed=2)], parity=[parity()])


def four() -> dict[str, Any]:
    """Two precisions on each device, one of them failing parity."""
    runs = [
        run(),
        run(precision="float64", speed=0.55, seed=3),
        run("cuda:0", speed=42.0, seed=2),
        run("cuda:0", precision="tf32", speed=71.0, seed=4),
    ]
    second = parity(passed=False) | {"candidate": "cuda:0 tf32", "precision": "tf32"}
    return result(runs, parity=[parity(), second])


def minimal() -> dict[str, Any]:
    """Only what the schema requires, and of that the least."""
    bare = {
        "device": "cpu",
        "engine": "numpy",
        "model": "mlp",
        "precision": "float32",
        "batch_size": 1,
        "epochs": 0,
        "iterations": 0,
        "train_seconds": 0.0,
        "images_per_second": 0.0,
        "test_accuracy": None,
        "peak_memory_bytes": 0,
        "history": {"loss": [], "epochs": []},
    }
    made = {
        "schema": "bareconv.result",
        "schema_version": 2,
        "created": "2026-11-22T21:04:11Z",
        "bareconv": "0.1.0",
        "command": "bareconv train",
        "environment": {
            "platform": "Linux",
            "python": "3.11.7",
            "cpu": {"model": "a CPU", "cores": 2, "cores_allowed": 2},
            "blas": {"library": "unknown"},
            "gpus": [],
            "packages": {},
        },
        "settings": {},
        "runs": [bare],
    }
    check(made)
    return made


def gallery(number: int = 40, size: int = 28, channels: int = 1) -> Gallery:
    """Pictures of noise with a bright bar, some of them "misread"."""
    rng = np.random.default_rng(11)
    images = rng.integers(0, 60, (number, size, size, channels)).astype(np.uint8)
    labels = np.arange(number) % 10
    for image, at in zip(images, labels, strict=True):
        image[4:-4, 2 + 2 * at : 5 + 2 * at] = 230
    predicted = np.where(np.arange(number) % 5 == 3, (labels + 5) % 10, labels)
    return Gallery(
        filters=rng.standard_normal((5, 5, channels, 32)).astype(np.float32),
        digit=images[0],
        feature_maps={
            "conv1": rng.random((size, size, 32), np.float32),
            "conv2": rng.random((size, size, 64), np.float32),
            "pool": rng.random((size // 2, size // 2, 64), np.float32),
        },
        images=images,
        labels=labels,
        predicted=predicted,
        confidence=rng.random(number).astype(np.float32),
    )

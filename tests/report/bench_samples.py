"""Results such as `bareconv bench run` writes, computed here: a machine with a GPU, and one without but with peers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import report_samples as samples

GPU, CPU = "cuda:0", "cpu"
XEON = "Intel(R) Xeon(R) Processor @ 2.70GHz"

# Fixed seconds of a step and seconds for each image of it, by library, variant, device and precision.
COSTS: dict[tuple[str, str, str, str], tuple[float, float]] = {
    ("plan", "", CPU, "float32"): (0.35e-3, 0.118e-3),
    ("plan", "", GPU, "float32"): (0.92e-3, 1.93e-6),
    ("plan", "", GPU, "tf32"): (0.90e-3, 0.61e-6),
    ("pytorch", "channels_last compile", CPU, "float32"): (1.1e-3, 0.362e-3),
    ("pytorch", "default", CPU, "float32"): (1.4e-3, 0.431e-3),
    ("pytorch", "channels_last graph", GPU, "float32"): (1.31e-3, 3.4e-6),
    ("pytorch", "default", GPU, "float32"): (4.9e-3, 4.1e-6),
    ("dezero", "", CPU, "float32"): (4.0e-3, 2.31e-3),
    ("reference", "", CPU, "float32"): (0.9e-3, 0.78e-3),
}

Key = tuple[str, str, str, str]


def estimate(values: Sequence[float]) -> dict[str, float]:
    """A median, and an interval from the ranks of the sorted values: no bootstrap, so that it is not the code's own."""
    ranked = sorted(values)
    reach = max(1, round(0.98 * math.sqrt(len(ranked))))
    middle = (len(ranked) - 1) / 2
    low, high = ranked[max(0, math.floor(middle - reach))], ranked[min(len(ranked) - 1, math.ceil(middle + reach))]
    return {"value": float(np.median(ranked)), "low": low, "high": high}


def blocks(step_seconds: float, batch: int, *, number: int = 8, spread: float = 0.006, seed: int = 0) -> dict[str, Any]:
    """The samples of so many blocks of about 50 ms."""
    rng = np.random.default_rng([seed, batch, number])
    steps = max(1, round(0.05 / step_seconds))
    seconds = [float(steps * step_seconds * x) for x in rng.lognormal(0, spread, number)]
    return {
        "seconds": seconds,
        "wall_seconds": [s * 1.004 for s in seconds],
        "steps": [steps] * number,
        "images": [steps * batch] * number,
    }


def rates(made: dict[str, Any]) -> list[float]:
    """Images a second, block by block."""
    return [images / seconds for images, seconds in zip(made["images"], made["seconds"], strict=True)]


def point(value: float, step: float, batch: int, *, stable: bool = True, seed: int = 0) -> dict[str, Any]:
    """A point of a curve that was measured."""
    made = blocks(step, batch, spread=0.006 if stable else 0.09, seed=seed)
    return {
        "value": value,
        "error": None,
        "images_per_second": estimate(rates(made)),
        "step_seconds": estimate([s / n for s, n in zip(made["seconds"], made["steps"], strict=True)]),
        "stable": stable,
        "samples": made,
        "peak_memory_bytes": int(220e6 + 1.1e6 * batch),
    }


def curve(
    key: Key, points: list[dict[str, Any]], *, threads: int = 2, fit: tuple[float, float] | None = (1.0, 1.0)
) -> dict[str, Any]:
    """A candidate's curve, with the fit that it was made from: a factor on what an image takes, and the power."""
    name, variant, device, precision = key
    fixed, each = COSTS[key]
    factor, power = fit or (1.0, 1.0)

    def around(x: float) -> dict[str, float]:
        return {"value": x, "low": 0.97 * x, "high": 1.03 * x}

    fitted = {
        "fixed_seconds": around(fixed),
        "each_seconds": around(factor * each),
        "power": power,
        "largest_error": 0.021,
        "text": "a step takes a fixed time and a time for each image",
    }
    return {
        "name": name,
        "variant": variant,
        "ours": name in ("plan", "reference"),
        "device": device,
        "precision": precision,
        "threads": threads if device == CPU else None,
        "points": points,
        "fit": fitted if fit is not None else None,
    }


def crossing(one: Key, other: Key) -> float:
    """Where the steps of two candidates take the same time."""
    (a, b), (c, d) = COSTS[one], COSTS[other]
    return (c - a) / (b - d)


def batch_sweep(
    keys: Sequence[Key], *, model: str = "basic", unstable: tuple[int, int] | None = None
) -> dict[str, Any]:
    """A sweep over the batch size. ``unstable``: (curve, batch) of a point that is."""
    sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    curves = []
    for number, key in enumerate(keys):
        fixed, each = COSTS[key]
        points: list[dict[str, Any]] = [
            point(size, fixed + each * size, size, stable=unstable != (number, size), seed=number) for size in sizes
        ]
        if key[0] == "dezero":
            points[-1] = {"value": 1024, "error": "was not ready when the time was up"}
        curves.append(curve(key, points))
    crossovers: list[dict[str, Any]] = []
    for second in range(1, len(keys)):
        at = crossing(keys[0], keys[second])
        if at > 1:
            crossovers.append(
                {"ahead_below": 0, "ahead_above": second, "value": at, "low": 0.93 * at, "high": 1.08 * at, "text": ""}
            )
        else:
            ahead = 0 if COSTS[keys[0]][1] < COSTS[keys[second]][1] else second
            crossovers.append({"ahead_below": ahead, "ahead_above": ahead, "value": None, "low": None, "high": None})
    return {"axis": "batch_size", "model": model, "batch_size": 1, "curves": curves, "crossovers": crossovers}


def other_sweep(axis: str, keys: Sequence[Key]) -> dict[str, Any]:
    """A sweep along another axis, batches of 64."""
    axes: dict[str, tuple[list[float], Callable[[float], float]]] = {
        "image_size": ([16, 20, 28, 40, 56, 80], lambda x: (x / 28) ** 2),
        "width": ([0.5, 1, 1.5, 2, 3], lambda x: x**1.8),
        "images": ([1e3, 1e4, 1e5, 1e6], lambda x: 1 + 0.03 * math.log10(x / 1e3)),
        "threads": ([1, 2], lambda x: 1.92 / x),
    }
    values, growth = axes[axis]
    curves = []
    for number, key in enumerate(keys):
        fixed, each = COSTS[key]
        points = [point(x, fixed + each * 64 * growth(x), 64, seed=number) for x in values]
        fits = {"image_size": (64 / 28**2, 2.0), "width": (64.0, 1.8)}
        curves.append(curve(key, points, fit=fits.get(axis)))
    return {"axis": axis, "model": "basic", "batch_size": 64, "curves": curves, "crossovers": []}


def noise(stable: bool = True) -> dict[str, Any]:
    """How much blocks differ."""
    if stable:
        return {"stable": True, "spread": 0.008, "drift": -0.002, "remarks": []}
    remark = "the blocks differ by more than 10%: end other programs and measure again"
    return {"stable": False, "spread": 0.14, "drift": 0.06, "remarks": [remark]}


def throughput(key: Key, batch: int, *, stable: bool = True, number: int = 20, seed: int = 0) -> dict[str, Any]:
    """The steady state of a candidate."""
    fixed, each = COSTS[key]
    made = blocks(fixed + each * batch, batch, number=number, spread=0.006 if stable else 0.12, seed=seed)
    found = estimate(rates(made))
    peer = key[0] == "pytorch"
    return {
        "images_per_second": found["value"],
        "interval": {"low": found["low"], "high": found["high"]},
        "samples": made,
        "stopped": "narrow" if stable else "budget",
        "noise": noise(stable),
        "warmed_up": True,
        "flags": {"matmul precision": "highest", "TF32": "off", "deterministic": "no"} if peer else {},
        "warm_up_seconds": 4.1 if peer else 0.9,
        "compile_seconds": 21.4 if "compile" in key[1] else 0.0 if peer else 0.7,
        "peak_memory_bytes": 612_000_000 if peer else 241_000_000,
        "memory_growth_bytes": 180_000_000 if peer else 120_000_000,
        "threads": 2,
        "variables": {"OMP_NUM_THREADS": "2"},
        "versions": {"python": "3.11.7", "torch": "2.13.0"} if peer else {"python": "3.11.7", "bareconv": "0.1.0"},
    }


def run(key: Key, batch: int = 64, *, stable: bool = True, seed: int = 0) -> dict[str, Any]:
    """One of our engines' runs, as `bench run` has it."""
    steady = throughput(key, batch, stable=stable, seed=seed)
    seconds, steps = sum(steady["samples"]["seconds"]), sum(steady["samples"]["steps"])
    return {
        "device": key[2],
        "device_description": "NVIDIA T4" if key[2] == GPU else f"{XEON}, 2 threads",
        "engine": key[0],
        "model": "basic",
        "precision": key[3],
        "batch_size": batch,
        "epochs": 1.5,
        "iterations": steps,
        "parameters": 1_199_882,
        "flops_per_image": 66_000_000,
        "data": "MNIST (embedded)",
        "train_images": 59_968,
        "train_seconds": seconds,
        "seconds_per_iteration": seconds / steps,
        "images_per_second": steady["images_per_second"],
        "test_accuracy": None,
        "peak_memory_bytes": steady["peak_memory_bytes"],
        "history": {"loss": [], "epochs": []},
        "throughput": steady,
    }


def peer_group(
    keys: Sequence[Key], batch: int = 64, *, model: str = "basic", slower: float = 1.0, unstable: int | None = None
) -> dict[str, Any]:
    """Candidates beside each other, ours first; ``slower``: a factor on what the peers take."""
    candidates = []
    ours: list[float] = []
    for number, key in enumerate(keys):
        steady = throughput(key, batch, stable=number != unstable, seed=number)
        if number:
            for name in ("seconds", "wall_seconds"):
                steady["samples"][name] = [slower * x for x in steady["samples"][name]]
            found = estimate(rates(steady["samples"]))
            steady |= {"images_per_second": found["value"], "interval": {"low": found["low"], "high": found["high"]}}
        mine = rates(steady["samples"])
        ours = ours or mine
        entry: dict[str, Any] = {
            "name": key[0],
            "variant": key[1],
            "ours": key[0] in ("plan", "reference"),
            "options": {"engine": key[0]} if key[0] == "plan" else {"mode": key[1] or "eager"},
            "status": "measured",
            "error": None,
            "first_losses": [2.355, 2.236, 2.104],
            "loss_difference": None if number == 0 else 3.1e-6,
            "throughput": steady,
        }
        if number:
            entry["ratio"] = estimate([a / b for a, b in zip(ours, mine, strict=True)])
        if key[0] == "pytorch" and key[1] != "default":
            entry["tries"] = [
                {
                    "variant": variant,
                    "options": {"mode": variant},
                    "status": status,
                    "error": error,
                    "images_per_second": speed,
                    "compile_seconds": 0.0,
                }
                for variant, status, error, speed in (
                    (key[1], "measured", None, mine[0]),
                    ("nchw eager", "measured", None, 0.9 * mine[0]),
                    ("nchw compile", "failed", "was not ready when the time was up", None),
                )
            ]
        candidates.append(entry)
    failed = {
        "name": "tinygrad",
        "variant": "",
        "ours": False,
        "options": {},
        "status": "disagrees",
        "error": "its first 5 losses differ from ours by up to 2.1e-01 (tolerance 0.001): it computes something else",
    }
    return {
        "model": model,
        "batch_size": batch,
        "precision": keys[0][3],
        "device": keys[0][2],
        "data": "MNIST (embedded)",
        "train_images": 59_968,
        "checked_steps": 5,
        "tolerance": 1e-3,
        "ours": "plan",
        "candidates": [*candidates, failed],
        "absent": {"jax": "jax is not installed for /usr/bin/python3"},
    }


NODES: list[tuple[str, list[tuple[str, str, str, float, float, float]]]] = [
    # name, then of each launch: phase, operation, kernel, FLOP of an image, bytes of an image, seconds on the CPU
    (
        "conv1 + relu1",
        [
            ("forward", "forward", "correlate", 0.45e6, 9e4, 0.42e-3),
            ("backward", "dW", "weight_gradient", 0.45e6, 9e4, 0.51e-3),
            ("update", "update", "update", 3e2, 4e1, 0.004e-3),
        ],
    ),
    (
        "conv2 + relu2 + pool1",
        [
            ("forward", "forward", "correlate_pool", 5e6, 1.1e5, 1.9e-3),
            ("backward", "dX", "correlate", 5e6, 1.3e5, 2.1e-3),
            ("backward", "dW", "weight_gradient", 5e6, 1.3e5, 1.8e-3),
            ("update", "update", "update", 2e4, 3e3, 0.012e-3),
        ],
    ),
    (
        "dense1 + relu3",
        [
            ("forward", "forward", "product", 2.4e6, 8e4, 0.34e-3),
            ("backward", "dX", "product", 2.4e6, 8e4, 0.29e-3),
            ("backward", "dW", "product", 2.4e6, 9e4, 0.36e-3),
            ("update", "update", "update", 1.2e6, 1.9e5, 0.31e-3),
        ],
    ),
    (
        "dense2 + loss",
        [("forward", "forward", "head", 4e3, 2e3, 0.03e-3), ("backward", "dX + dW", "head", 8e3, 3e3, 0.04e-3)],
    ),
    ("batch", [("batch", "batch", "gather", 0.0, 4e3, 0.05e-3)]),
]


def rooflines(device: str, *, speed: float = 1.0) -> dict[str, Any]:
    """The parts of a step of basic with 64 images beside what the device can do."""
    gpu = device == GPU
    ceilings: list[dict[str, Any]] = (
        [
            {"name": "FFMA", "per_second": 7.6e12, "unit": "FLOP", "how": "80 blocks of 256 threads"},
            {"name": "memory", "per_second": 2.7e11, "unit": "byte", "how": "reading 512.0 MiB"},
            {"name": "cache", "per_second": 1.1e12, "unit": "byte", "how": "reading 2.0 MiB, 16 times in a launch"},
            {"name": "launch", "per_second": 4.1e5, "unit": "launch", "how": "an empty kernel"},
        ]
        if gpu
        else [
            {"name": "FMA", "per_second": 1.62e11, "unit": "FLOP", "threads": 2, "how": "operands in registers"},
            {"name": "memory", "per_second": 1.9e10, "unit": "byte", "threads": 2, "how": "reading 512.0 MiB"},
            {"name": "cache", "per_second": 9.4e10, "unit": "byte", "threads": 2, "how": "reading 1.0 MiB"},
        ]
    )
    peak, memory = ceilings[0], ceilings[1]
    launches: list[dict[str, Any]] = []
    for node, parts in NODES:
        for phase, operation, kernel, flops, size, seconds in parts:
            taken = max(seconds / speed, 3e-6) if gpu else seconds
            work, moved = 64 * flops, 64 * size
            least = {one["name"]: x / one["per_second"] for one, x in ((peak, work), (memory, moved))}
            bound = max(least, key=lambda name: least[name])
            taken = max(taken, least[bound] / (0.82, 0.55, 0.37, 0.68, 0.24)[len(launches) % 5])
            launches.append(
                {
                    "node": node,
                    "phase": phase,
                    "operation": operation,
                    "kernel": kernel,
                    "how": "40 x 256 threads" if gpu else "2 threads",
                    "beside": False,
                    "flops": work,
                    "bytes": moved,
                    "seconds": taken,
                    "ceiling": bound,
                    "least_seconds": least[bound],
                    "share": least[bound] / taken,
                }
            )
    total = sum(launch["seconds"] for launch in launches)
    parts_of = {"parameters": 4_800_000, "gradients": 4_800_000, "optimizer": 4_800_000, "activations": 71_000_000}
    return {
        "device": device,
        "device_description": "NVIDIA T4" if gpu else XEON,
        "threads": None if gpu else 2,
        "ceilings": ceilings,
        "steps": [
            {
                "model": "basic",
                "batch_size": 64,
                "precision": "float32",
                "engine": "plan",
                "step_seconds": 1.04 * total,
                "marked_seconds": 1.06 * total,
                "marks_cost": 0.02,
                "memory": {
                    "predicted": parts_of,
                    "measured": {name: round(1.03 * size) for name, size in parts_of.items()},
                },
                "launches": launches,
            }
        ],
    }


def clocks(device: str) -> dict[str, Any]:
    """A whole training of three epochs as a user meets it."""
    gpu = device == GPU
    training = 4.4 if gpu else 22.9
    cold = {
        "start": 0.03,
        "import": 1.6 if gpu else 0.42,
        "data": 0.21,
        "model": 0.04,
        "transfer": 0.11 if gpu else 0.0,
        "compile": 7.9 if gpu else 1.3,
        "first step": 0.3 if gpu else 0.05,
        "training": training,
        "evaluation": 0.2 if gpu else 1.4,
        "end": 0.05,
    }
    warm = cold | {"compile": 0.4 if gpu else 0.06}

    def journey(phases: dict[str, float]) -> dict[str, Any]:
        whole = 1.012 * sum(phases.values())
        return {
            "whole_seconds": whole,
            "phases": [{"name": name, "seconds": seconds} for name, seconds in phases.items() if seconds],
            "unexplained": 1 - sum(phases.values()) / whole,
            "compiled": 14 if phases["compile"] > 1 else 0,
        }

    return {
        "device": device,
        "device_description": "NVIDIA T4" if gpu else XEON,
        "engine": "plan",
        "model": "basic",
        "precision": "float32",
        "batch_size": 64,
        "epochs": 3,
        "train_images": 60_000,
        "threads": None if gpu else 2,
        "cold": journey(cold),
        "warm": journey(warm),
        "steady_seconds": 0.96 * training,
        "test_accuracy": 0.9893,
    }


def learning(device: str, keys: Sequence[Key], *, target: float = 0.98) -> dict[str, Any]:
    """Accuracy over the time of steps: the same by step, each at its own pace."""
    steps = [0, 20, 40, 80, 120, 180, 240, 320, 420, 540, 700, 937]
    candidates = []
    for number, key in enumerate(keys):
        fixed, each = COSTS[key]
        rng = np.random.default_rng(number)
        accuracy = [
            float(0.1 if n == 0 else min(0.9899, 1 - 0.9 * math.exp(-(n**0.5) / 5.6) - 0.006 * rng.random()))
            for n in steps
        ]
        reached = next((i for i, a in enumerate(accuracy) if a >= target), len(steps) - 1)
        candidates.append(
            {
                "name": key[0],
                "variant": key[1],
                "ours": key[0] == "plan",
                "error": None,
                "steps": steps[: reached + 1],
                "seconds": [n * (fixed + each * 64) for n in steps[: reached + 1]],
                "accuracy": accuracy[: reached + 1],
            }
        )
    candidates.append(
        {
            "name": "tinygrad",
            "variant": "",
            "ours": False,
            "error": "was not ready when the time was up",
            "steps": [],
            "seconds": [],
            "accuracy": [],
        }
    )
    return {
        "model": "basic",
        "batch_size": 64,
        "precision": "float32",
        "device": device,
        "data": "MNIST (embedded)",
        "test_images": 10_000,
        "candidates": candidates,
    }


def energy(key: Key, *, joules: float | None) -> dict[str, Any]:
    """What a candidate's steps took, or why nobody knows."""
    entry: dict[str, Any] = {
        "name": key[0],
        "variant": key[1],
        "device": key[2],
        "model": "basic",
        "batch_size": 64,
        "precision": key[3],
        "unavailable": None if joules is not None else "this machine has no counter of the CPU's energy (RAPL)",
    }
    if joules is not None:
        images, seconds, idle = 120_000, 6.0, 11.0
        entry |= {
            "counter": "NVML total energy: the whole board",
            "seconds": seconds,
            "images": images,
            "joules": joules,
            "idle_watts": idle,
            "net_joules": joules - idle * seconds,
            "joules_per_1000_images": 1000 * joules / images,
            "net_joules_per_1000_images": 1000 * (joules - idle * seconds) / images,
        }
    return entry


def conditions(*, gpu: bool, remarks: Sequence[str] = ()) -> dict[str, Any]:
    """What the machine did meanwhile."""
    rng = np.random.default_rng(5)
    made: dict[str, Any] = {
        "seconds": 118.0,
        "remarks": list(remarks),
        "cpu": {
            "steal_share": 0.004,
            "others_share": 0.011,
            "heat_events": None,
            "throttled_share": 0.0,
            "frequency_hz": [float(x) for x in 2.7e9 * (1 + 0.01 * rng.standard_normal(60))],
            "temperature_celsius": [],
        },
    }
    if gpu:
        made["gpus"] = [
            {
                "name": "NVIDIA T4",
                "sm_clock_hz": [float(x) for x in 1.59e9 - 2e7 * (np.arange(60) > 30)],
                "memory_clock_hz": [5.0e9] * 60,
                "temperature_celsius": [float(x) for x in 44 + 20 * (1 - np.exp(-np.arange(60) / 20))],
                "watts": [float(x) for x in 62 + 4 * rng.standard_normal(60)],
                "throttle_reasons": ["power"],
                "throttled_shares": [0.5],
                "other_processes": 0,
            }
        ]
    return made


def environment(*, gpu: bool) -> dict[str, Any]:
    """Two cores, and a GPU of the smaller kind."""
    made = samples.environment(gpu=gpu)
    made["cpu"] |= {"model": XEON, "cores": 2, "cores_allowed": 2, "affinity": 2, "quota": None}
    made["cpu"]["memory_bytes"] = 8_206_000_000
    made["blas"]["threads"] = 2
    made["warnings"] = []
    made["variables"] = {}
    if gpu:
        t4 = {"name": "NVIDIA T4", "memory_bytes": 16_106_127_360, "compute_capability": "7.5"}
        made["gpus"] = [made["gpus"][0] | t4]
    return made


CPU_KEYS: list[Key] = [
    ("plan", "", CPU, "float32"),
    ("pytorch", "channels_last compile", CPU, "float32"),
    ("pytorch", "default", CPU, "float32"),
    ("dezero", "", CPU, "float32"),
]
GPU_KEYS: list[Key] = [
    ("plan", "", GPU, "float32"),
    ("pytorch", "channels_last graph", GPU, "float32"),
    ("pytorch", "default", GPU, "float32"),
]


def result(*, gpu: bool, **parts: Any) -> dict[str, Any]:
    """A valid result of `bench run` with these parts."""
    made = {
        "environment": environment(gpu=gpu),
        "command": "bareconv bench run --budget 120",
        "settings": {"models": ["basic"], "batch_sizes": [64], "budget": 120.0, "device": "all"},
    }
    return samples.result(parts.pop("runs", []), gpu=gpu, **(made | parts))


def with_gpu(**changes: Any) -> dict[str, Any]:
    """Everything, on two cores and a GPU."""
    parts: dict[str, Any] = {
        "runs": [run(CPU_KEYS[0]), run(GPU_KEYS[0], seed=1), run(("plan", "", GPU, "tf32"), seed=2)],
        "peers": [peer_group(CPU_KEYS), peer_group(GPU_KEYS)],
        "sweeps": [
            batch_sweep(
                [CPU_KEYS[0], GPU_KEYS[0], ("plan", "", GPU, "tf32"), CPU_KEYS[1], GPU_KEYS[1]], unstable=(3, 16)
            ),
            other_sweep("image_size", [CPU_KEYS[0], GPU_KEYS[0]]),
            other_sweep("images", [CPU_KEYS[0], GPU_KEYS[0]]),
        ],
        "learning": [learning(CPU, CPU_KEYS[:3]), learning(GPU, GPU_KEYS)],
        "rooflines": [rooflines(CPU), rooflines(GPU, speed=40.0)],
        "clocks": [clocks(CPU), clocks(GPU)],
        "energy": [
            energy(CPU_KEYS[0], joules=None),
            energy(GPU_KEYS[0], joules=372.0),
            energy(GPU_KEYS[1], joules=431.0),
        ],
        "conditions": conditions(gpu=True, remarks=["The GPU lowered its clock by 20 MHz while it was measured."]),
        "notes": ["Batch 1,024 of dezero was not ready when the time was up."],
    }
    return result(gpu=True, **(parts | changes))


def with_peers(**changes: Any) -> dict[str, Any]:
    """Two cores alone, beside other libraries."""
    parts: dict[str, Any] = {
        "runs": [run(CPU_KEYS[0]), run(("reference", "", CPU, "float32"), seed=1)],
        "peers": [peer_group(CPU_KEYS), peer_group(CPU_KEYS[:2], 256, unstable=1)],
        "sweeps": [batch_sweep(CPU_KEYS, unstable=(1, 8)), other_sweep("threads", [CPU_KEYS[0]])],
        "learning": [learning(CPU, CPU_KEYS[:3])],
        "rooflines": [rooflines(CPU)],
        "clocks": [clocks(CPU)],
        "energy": [energy(CPU_KEYS[0], joules=None)],
        "conditions": conditions(gpu=False),
    }
    return result(gpu=False, **(parts | changes))


def throughput_only() -> dict[str, Any]:
    """What `bench run` wrote when it knew nothing else: runs."""
    return result(gpu=False, runs=[run(CPU_KEYS[0]), run(CPU_KEYS[0], 256)])

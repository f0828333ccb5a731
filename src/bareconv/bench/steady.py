"""Steady-state throughput of training steps: our engines on one workload, each in its own process."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bareconv import optim
from bareconv.bench.environment import speed_variables
from bareconv.bench.interleave import Budget, Candidate, Limits, Listener, Side, interleave, prepare
from bareconv.bench.process import StoppedError
from bareconv.bench.workload import MOMENTUM, Workload
from bareconv.device import Device


@dataclass
class Measured:
    """What came of a workload: its data's name, the sides in the order given. ``stopped``: by request, early."""

    workload: Workload
    data: str
    images: int
    sides: list[Side] = field(default_factory=list)
    stopped: bool = False


def measure(
    workload: Workload,
    candidates: Sequence[Candidate],
    seconds: float,
    listener: Listener,
    limits: Limits | None = None,
) -> Measured:
    """Measure candidates on a workload, by turns, for ``seconds`` in all; what fails is in its side's ``error``."""
    budget = Budget(seconds)
    with tempfile.TemporaryDirectory(prefix="bareconv-") as name:
        folder = Path(name)
        dataset = workload.write(folder)
        measured = Measured(workload, dataset.name, len(dataset.train))
        try:
            for candidate in candidates:
                measured.sides.append(prepare(candidate, folder, budget, 1, listener, limits or Limits()))
            left = budget.left(measured.sides)
            listener.measuring(f"Measuring {workload.title}", left)
            interleave(measured.sides, left, listener)
        except StoppedError:
            pass
        finally:
            for side in measured.sides:
                side.finish()
        measured.stopped = listener.should_stop()
    return measured


def run_record(measured: Measured, side: Side, device: Device) -> dict[str, Any] | None:
    """The ``run`` object of a result for one of our engines; None where it has no figures."""
    rate, workload, samples = side.rate, measured.workload, side.samples
    if rate is None:
        return None
    model, steps, seconds = workload.network(), sum(samples.steps), sum(samples.seconds)
    return {
        "device": device.name,
        "device_description": device.description,
        "engine": side.engine,
        "model": workload.model,
        "precision": device.effective_precision(workload.precision),
        "batch_size": workload.batch_size,
        "epochs": round(sum(samples.images) / measured.images, 6),
        "iterations": steps,
        "parameters": model.body.parameter_count(),
        "flops_per_image": model.flops(),
        "data": measured.data,
        "train_images": measured.images,
        "seed": workload.seed,
        "optimizer": repr(optim.SGD(workload.lr, MOMENTUM)),
        "schedule": repr(optim.Constant()),
        "train_seconds": seconds,
        "warm_up_seconds": side.warm_up_seconds,
        "seconds_per_iteration": seconds / steps,
        "images_per_second": rate.value,
        "test_accuracy": None,
        "peak_memory_bytes": side.memory["peak"],
        "stopped": measured.stopped,
        "history": {"loss": [], "epochs": []},
        "throughput": throughput(side, workload.threads),
    }


def throughput(side: Side, threads: int) -> dict[str, Any]:
    """The ``throughput`` object of a result: the samples of a side with a rate, and what they were taken with."""
    rate = side.rate
    assert rate is not None
    return {
        "images_per_second": rate.value,
        "interval": rate.interval(),
        "samples": {"seconds": side.samples.seconds, "steps": side.samples.steps, "images": side.samples.images},
        "warm_up_seconds": side.warm_up_seconds,
        "compile_seconds": side.compile_seconds,
        "peak_memory_bytes": side.memory["peak"],
        "memory_growth_bytes": max(0, side.memory["peak"] - side.memory["baseline"]),
        "threads": threads,
        "variables": speed_variables(side.candidate.environment),
        "versions": side.versions,
    }

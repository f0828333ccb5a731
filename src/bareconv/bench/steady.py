"""Steady-state throughput of training steps: our engines on one workload, each in its own process."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bareconv import optim
from bareconv.bench.deadline import Deadline
from bareconv.bench.environment import speed_variables
from bareconv.bench.estimates import noise
from bareconv.bench.interleave import READY, Candidate, Limits, Listener, Side, at_once, interleave, prepare_all
from bareconv.bench.process import StoppedError
from bareconv.bench.workload import MOMENTUM, Workload
from bareconv.device import get_device


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
    deadline: Deadline,
    listener: Listener,
    limits: Limits | None = None,
) -> Measured:
    """Measure candidates on a workload, by turns, until the deadline; what fails is in its side's ``error``."""
    ready = deadline.part(READY)
    with tempfile.TemporaryDirectory(prefix="bareconv-") as name, ThreadPoolExecutor(at_once(candidates)) as pool:
        folder = Path(name)
        dataset = workload.write(folder)
        measured = Measured(workload, dataset.name, len(dataset.train))
        try:
            jobs = [(one, folder) for one in candidates]
            prepare_all(pool, jobs, measured.sides, ready, 1, listener, limits or Limits())
            listener.measuring(f"Measuring {workload.title}", deadline.left)
            interleave([side for side in measured.sides if side.alive], deadline, listener)
        except StoppedError:
            pass
        finally:
            for side in measured.sides:
                side.finish()
        measured.stopped = listener.should_stop()
    return measured


def run_record(measured: Measured, side: Side) -> dict[str, Any] | None:
    """The ``run`` object of a result for one of our engines; None where it has no figures."""
    rate, workload, samples = side.rate, measured.workload, side.samples
    if rate is None:
        return None
    options = side.candidate.options
    device = get_device(options.get("device", "cpu"))
    model, steps, seconds = workload.network(), sum(samples.steps), sum(samples.seconds)
    return {
        "device": device.name,
        "device_description": device.description,
        "engine": side.engine,
        "model": workload.model,
        "precision": device.effective_precision(options.get("precision", workload.precision)),
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
    rate, samples = side.rate, side.samples
    assert rate is not None
    found = {} if side.stopped is None else {"stopped": side.stopped}
    return {
        "images_per_second": rate.value,
        "interval": rate.interval(),
        "samples": vars(samples),
        "noise": dataclasses.asdict(noise(samples.rates)),
        "warmed_up": side.warmed_up,
        **found,
        "warm_up_seconds": side.warm_up_seconds,
        "compile_seconds": side.compile_seconds,
        "peak_memory_bytes": side.memory["peak"],
        "memory_growth_bytes": max(0, side.memory["peak"] - side.memory["baseline"]),
        "threads": threads,
        "variables": speed_variables(side.candidate.environment),
        "versions": side.versions,
        "flags": side.flags,
    }

"""The ladder: the same work done by every rung, each checked, then timed in turns.

Every rung's result is first held against float64; one that is off by more than the tolerance is shown as wrong, and not
timed. Then they take turns, round after round, so that whatever else the machine does falls on all of them alike; the
median of the rounds is the figure. All samples are kept.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from bareconv.bench.ceilings import Peak, measured_peak
from bareconv.bench.problems import Problem, Task
from bareconv.bench.rungs import Rung
from bareconv.device import get_device
from bareconv.errors import BareconvError

ROUNDS = 7
AT_LEAST = 3  # rounds, also where the budget is spent

P = TypeVar("P", bound=Problem)
Progress = Callable[[str, int, int], None]  # what is being done, and how much of how much is done


def measure_peaks(precision: str, threads: int, gpu: bool) -> list[Peak]:
    """Of one thread, of all threads, and of the GPU where there is one that works."""
    cpu = get_device("cpu")
    peaks = [measured_peak(cpu, precision, count) for count in sorted({1, threads})]
    return [*peaks, measured_peak(get_device("cuda"), precision, 1)] if gpu else peaks


def climb(
    problem: P, rungs: Sequence[Rung[P]], peaks: Sequence[Peak], budget: float, progress: Progress = lambda *_: None
) -> dict[str, Any]:
    """Check and time every rung within about ``budget`` seconds: a ``problem`` of the result's ladder."""
    deadline = time.perf_counter() + budget
    expected = problem.reference()
    entries: list[dict[str, Any]] = []
    tasks: dict[int, Task] = {}
    for number, rung in enumerate(rungs):
        progress(f"Checking {rung.name}", number, len(rungs))
        entry, task = _checked(problem, rung, expected)
        entries.append(entry)
        if task is not None:
            tasks[number] = task
    progress("Timing", 0, ROUNDS)
    samples: dict[int, list[float]] = {number: [] for number in tasks}
    slot = (deadline - time.perf_counter()) / (ROUNDS * max(len(tasks), 1))
    repeats = {
        number: max(1, int(slot / max(_seconds(task, 1, rungs[number].device, problem.threads), 1e-9)))
        for number, task in tasks.items()
    }
    for done in range(ROUNDS):
        for number, task in tasks.items():
            samples[number].append(_seconds(task, repeats[number], rungs[number].device, problem.threads))
        progress("Timing", done + 1, ROUNDS)
        if done + 1 >= AT_LEAST and time.perf_counter() > deadline:
            break
    most = {peak.device: peak.flops_per_second for peak in sorted(peaks, key=lambda peak: peak.flops_per_second)}
    for number, task in tasks.items():
        entries[number] |= _figures(problem, task, samples[number], most.get(rungs[number].device))
    return {
        "name": problem.name,
        "description": problem.describe(),
        "batch_size": problem.batch_size,
        "flops_per_image": problem.flops_per_image,
        "precision": problem.precision,
        "threads": problem.threads,
        "tolerance": problem.tolerance,
        "rungs": entries,
    }


def ladder(problems: Sequence[dict[str, Any]], peaks: Sequence[Peak]) -> dict[str, Any]:
    """The ``ladder`` of a result."""
    return {"peaks": [asdict(peak) for peak in peaks], "problems": list(problems)}


def _checked(problem: P, rung: Rung[P], expected: Any) -> tuple[dict[str, Any], Task | None]:
    """The rung's entry so far, and its task where it may be timed."""
    entry: dict[str, Any] = {"name": rung.name, "change": rung.change, "device": rung.device}
    reason = rung.available(problem)
    if reason is not None:
        return {**entry, "status": "unavailable", "reason": reason}, None
    try:
        task = rung.prepare(problem)
        _seconds(task, 1, rung.device, problem.threads)
        error = relative_error(task.result(), task.part(expected))
    except BareconvError as problem_met:
        return {**entry, "status": "unavailable", "reason": str(problem_met)}, None
    entry |= {"error": error if np.isfinite(error) else None, "share": task.share}
    if not error <= problem.tolerance:  # NaN is no small error
        return {**entry, "status": "wrong"}, None
    return {**entry, "status": "measured"}, task


def relative_error(result: Any, expected: Any) -> float:
    """||result - expected|| / ||expected||; infinite where the shapes differ."""
    if result.shape != expected.shape:
        return float("inf")
    norm = float(np.linalg.norm(expected)) or 1.0
    return float(np.linalg.norm(np.asarray(result, np.float64) - expected)) / norm


def _seconds(task: Task, runs: int, name: str, threads: int) -> float:
    """Seconds of one run, the mean of ``runs``; the device is idle before and after."""
    from threadpoolctl import threadpool_limits

    device = get_device(name)
    with device.activate(), threadpool_limits(threads):
        device.synchronize()
        begun = time.perf_counter()
        for _ in range(runs):
            task.run()
        device.synchronize()
        return (time.perf_counter() - begun) / runs


def _figures(problem: Problem, task: Task, samples: list[float], peak: float | None) -> dict[str, Any]:
    """Of the whole batch, from samples of ``task.share`` of it."""
    seconds = statistics.median(samples) / task.share
    direct = problem.batch_size * problem.flops_per_image
    executed = (direct if task.flops is None else task.flops) / seconds
    return {
        "samples": samples,
        "seconds": seconds,
        "images_per_second": problem.batch_size / seconds,
        "effective_flops_per_second": direct / seconds,
        "executed_flops_per_second": executed,
        "peak_share": None if not peak else executed / peak,
        **({"counted": task.counted} if task.counted else {}),
    }

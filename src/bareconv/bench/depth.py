"""The parts of training steps beside what their device can do: measured in a process of its own, by a deadline.

The process has the environment that all candidates get: nothing in it steers a BLAS. It measures the ceilings, those
that matter most first, and then one step after another; what is not ready when the time is up is left out, with a note.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bareconv.bench import process
from bareconv.bench.deadline import Deadline
from bareconv.bench.interleave import Listener
from bareconv.bench.process import StoppedError, Worker, WorkerError
from bareconv.bench.roofline.cpu import CpuEffort, thread_counts
from bareconv.bench.roofline.records import Ceiling, record
from bareconv.bench.roofline.words import step_title
from bareconv.bench.workload import Workload
from bareconv.device import CudaDevice, Device, get_device
from bareconv.report.format import counted
from bareconv.training import why_no_plan
from bareconv.training.precision import stored

UNREADY = "was not ready when the time was up"
_SHARE = 0.8  # of the time of a part, that its measuring may take: the rest is for compiling, data, the way to and fro
_FIRST = 0.6  # of the time for ceilings, for those of the steps' own number of threads
_LATE = 0.2  # seconds, that a process which has to be ended may live longer
_LEAST = 0.05  # seconds, for less than which nothing is begun


@dataclass(frozen=True)
class Effort:
    """``ceilings``: the share of the time for them, where there are steps too; bytes of memory to go through at most;
    steps of each kind, with marks and without, at least, however little time there is."""

    ceilings: float = 0.3
    memory_bytes: int = CpuEffort.memory_bytes
    least_steps: int = 2


@dataclass
class _Found:
    ceilings: list[Ceiling] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def measure_depth(
    workloads: Sequence[Workload],
    device_name: str,
    engines: Sequence[str],
    threads: int,
    deadline: Deadline,
    listener: Listener,
    effort: Effort | None = None,
) -> dict[str, Any]:
    """A ``rooflines`` entry of a result: the device's ceilings, and a step of each engine on each workload.

    On a CPU steps are taken on ``threads``, and the ceilings are those of that many, of one, and of the powers of two
    between. Engines that do not compute in a plan's own precision are left out of it where the workload is there in
    float32 as well. Ends by the deadline, or at once when the listener says so, with what there is by then; its "notes"
    say what is missing.
    """
    device, effort = get_device(device_name), effort or Effort()
    found = _Found()
    with tempfile.TemporaryDirectory(prefix="bareconv-") as name, _Asked(device, threads, Path(name)) as asked:
        try:
            part = deadline.part(effort.ceilings) if workloads else deadline
            _ceilings(asked, found, workloads, part, deadline, listener, effort)
            jobs = [
                (workload, engine)
                for workload in workloads
                for engine in dict.fromkeys(engines)
                if engine == "plan" or not _is_there_as_stored(workload, workloads)
            ]
            for place, (workload, engine) in enumerate(jobs):
                share = deadline.part(_SHARE / (len(jobs) - place))
                _step(asked, found, workload, engine, share, deadline, listener, effort)
        except StoppedError:
            found.notes.append("Stopped early by request: what was not measured by then is missing.")
    of_steps = None if isinstance(device, CudaDevice) else threads
    return record(device, found.ceilings, found.steps, threads=of_steps, notes=found.notes)


def _is_there_as_stored(workload: Workload, workloads: Sequence[Workload]) -> bool:
    """Whether it is in a plan's precision alone, and among the workloads in that of the model's arrays as well."""
    precision = stored(workload.precision)
    return precision != workload.precision and replace(workload, precision=precision) in workloads


class _Asked:
    """The process that measures, started when it is first asked, and again after it has ended."""

    def __init__(self, device: Device, threads: int, folder: Path) -> None:
        self.device, self.threads, self.folder = device, threads, folder
        self._worker: Worker | None = None

    def __enter__(self) -> _Asked:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def ask(self, do: str, part: Deadline, deadline: Deadline, listener: Listener, **message: Any) -> dict[str, Any]:
        """What it says, having been told to be done by ``part``; it is ended at the ``deadline``.

        WorkerError, with what to tell a reader, and StoppedError, as ``Worker.ask``.
        """
        if deadline.left < _LEAST:
            raise WorkerError(UNREADY)
        if listener.should_stop():
            raise StoppedError
        given: dict[str, Any] = {"device": self.device.name, **message}
        try:
            if self._worker is None:
                variables = process.with_this_package(process.environment(self.threads))
                self._worker = Worker(process.our_command("bareconv.bench.workers.depth"), variables, self.folder)
                self._worker.ask("begin", self._patience(deadline), listener.should_stop)
            given["seconds"] = max(part.left, _LEAST)
            return self._worker.ask(do, self._patience(deadline), listener.should_stop, **given)
        except (WorkerError, StoppedError) as error:
            ended = self._worker is None or self._worker.process.poll() is not None
            if ended:
                self._close()
            if isinstance(error, WorkerError) and ended and deadline.left <= _LATE:
                raise WorkerError(UNREADY) from None
            raise

    def _patience(self, deadline: Deadline) -> float:
        return max(deadline.left - _LATE, _LEAST)

    def _close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def _ceilings(
    asked: _Asked,
    found: _Found,
    workloads: Sequence[Workload],
    part: Deadline,
    deadline: Deadline,
    listener: Listener,
    effort: Effort,
) -> None:
    on_gpu = isinstance(asked.device, CudaDevice)
    precisions = list(dict.fromkeys(workload.precision for workload in workloads)) or ["float32", "float64"]
    if not on_gpu:  # of others its steps say that there are none
        precisions = [one for one in precisions if one in ("float32", "float64")] or ["float32"]
        if (reason := why_no_plan()) is not None:
            found.notes.append(f"There are no multiply-adds alone, caches and launches among the ceilings: {reason}.")
    counts = [asked.threads] if on_gpu else thread_counts(asked.threads)
    for place, threads in enumerate(counts):
        what = "Ceilings" if on_gpu else f"Ceilings of {counted(threads, 'thread')}"
        if place and part.passed:
            found.notes.append(f"{what}: {UNREADY}.")
            continue
        listener.stage(what)
        share = part.part(_SHARE * max(_FIRST if place == 0 else 0.0, 1 / (len(counts) - place)))
        message = {"threads": threads, "precisions": precisions, "memory_bytes": effort.memory_bytes}
        try:
            answer = asked.ask("ceilings", share, deadline, listener, **message)
        except WorkerError as error:
            found.notes.append(f"{what}: {error}.")
            continue
        found.ceilings += [Ceiling(**one) for one in answer["ceilings"]]


def _step(
    asked: _Asked,
    found: _Found,
    workload: Workload,
    engine: str,
    part: Deadline,
    deadline: Deadline,
    listener: Listener,
    effort: Effort,
) -> None:
    title = f"{workload.title}, {workload.precision}, {engine}"
    listener.stage(f"The parts of a step: {title}")
    given = asdict(workload) | {"threads": asked.threads}
    ceilings = [one.to_json() for one in found.ceilings if one.threads in (None, asked.threads)]
    message = {"workload": given, "engine": engine, "ceilings": ceilings, "least": effort.least_steps}
    try:
        step = asked.ask("step", part, deadline, listener, **message)["step"]
    except WorkerError as error:
        found.notes.append(f"{title}: {error}.")
        return
    if step["engine"] != engine:
        found.notes.append(f"{title}: it is not there; what was measured is {step_title(step)}.")
    found.steps.append(step)

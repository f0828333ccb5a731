"""Three clocks on one training: cold, warm, and at its steady rate.

Cold is a fresh process that finds no compiled kernel: the caches of our kernels, of CuPy and of the CUDA driver are
empty folders. Warm is the same again, with what the cold one left there. Both are the whole of it as a user meets it,
from the start of the interpreter to its end, seen from outside; the process itself tells of its phases, on a clock that
both share. Files of libraries may be in memory already, and Python's own bytecode is in place, for both. Steady is the
time of the same training steps alone, at the rate that a long training has.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bareconv.bench import process, steady
from bareconv.bench.deadline import Deadline
from bareconv.bench.interleave import Listener, our_candidate
from bareconv.bench.process import StoppedError, TimeUpError, WorkerError
from bareconv.bench.workers.journey import now
from bareconv.bench.workload import MOMENTUM, Workload
from bareconv.data import embedded
from bareconv.device import Device
from bareconv.report.format import count, counted, percent

EPOCHS = 3
UNEXPLAINED = 0.05  # of the whole, from which on the phases do not tell where the time went

# Of the time that there is: how much the steady rate may take to be found; how much of a journey's the training steps
# may, for start, imports, compiling and evaluation are not known beforehand.
STEADY_SHARE = 0.25
STEPS_SHARE = 0.4

HELD_OUT = 10_000  # images to evaluate on, as many as MNIST has, where they are drawn at random

_POLL_SECONDS = 0.1
KINDS = ("cold", "warm")
_CACHES = ("BARECONV_CACHE_DIR", "CUPY_CACHE_DIR", "CUDA_CACHE_PATH")
_PHASES = ("import", "data", "model", "transfer", "compile", "first step", "training", "evaluation")


@dataclass(frozen=True)
class Journey:
    """What ``workers.journey`` is to train; ``data``: a file of images, None for MNIST."""

    model: str
    batch_size: int
    precision: str
    lr: float
    momentum: float
    seed: int
    threads: int
    engine: str
    device: str
    data: str | None
    epochs: int
    train_images: int


def measure_clocks(
    workload: Workload,
    device: Device,
    engine: str,
    deadline: Deadline,
    listener: Listener,
    epochs: int = EPOCHS,
    *,
    rate: float | None = None,
) -> dict[str, Any] | None:
    """The ``clocks`` entry of a result, of ``workload`` trained by ``engine`` on ``device``; None where it was stopped.

    ``rate``: images a second at the steady state, where it is known; it is measured where it is not. ``epochs``: at
    most; fewer, or fewer images, where they would not be ready by the deadline, of which a note tells. Raises
    WorkerError where a training fails, or is not ready when the time is up: its process is ended then.
    """
    try:
        if rate is None:
            rate = _steady_rate(workload, device, engine, deadline.part(STEADY_SHARE), listener)
        with tempfile.TemporaryDirectory(prefix="bareconv-") as name:
            return _measure(workload, device, engine, deadline, listener, epochs, rate, Path(name))
    except StoppedError:
        return None


def _measure(
    workload: Workload,
    device: Device,
    engine: str,
    deadline: Deadline,
    listener: Listener,
    epochs: int,
    rate: float,
    folder: Path,
) -> dict[str, Any]:
    path, images = _write_data(workload, folder)
    affordable = rate * STEPS_SHARE * deadline.left / 2  # images of one of the two journeys
    fewer, images_of_each = training_size(images, workload.batch_size, epochs, affordable)
    journey = Journey(
        *(workload.model, workload.batch_size, workload.precision, workload.lr, MOMENTUM, workload.seed),
        *(workload.threads, engine, device.name, path, fewer, images_of_each),
    )
    command = [*process.our_command("bareconv.bench.workers.journey"), json.dumps(asdict(journey))]
    variables = process.with_this_package(process.environment(workload.threads))
    variables |= {name: str(folder / name.lower()) for name in _CACHES}
    seen = {}
    for kind in KINDS:
        listener.stage(f"Training from a {kind} start: {engine} on {device.name}")
        try:
            seen[kind] = see(command, variables, folder, deadline, listener.should_stop)
        except WorkerError as error:
            done = f" (the cold one took {seen['cold'].whole:.3g} s)" if "cold" in seen else ""
            raise type(error)(f"the {kind} training {error}{done}", unsupported=error.unsupported) from None
    told = seen["warm"].told
    record = {
        "device": device.name,
        "device_description": device.description,
        "engine": told["engine"],
        "model": workload.model,
        "precision": device.effective_precision(told["precision"]),
        "batch_size": workload.batch_size,
        "epochs": fewer,
        "train_images": images_of_each,
        "threads": told["threads"],
        **{kind: one.record() for kind, one in seen.items()},
        "steady_seconds": fewer * images_of_each / rate,
        "test_accuracy": told["accuracy"] if path is None else None,
    }
    return {**record, "notes": _notes(record, epochs, images)}


def training_size(images: int, batch_size: int, epochs: int, affordable: float) -> tuple[int, int]:
    """(epochs, images of each) that ``affordable`` images are enough for: fewer epochs, then one of fewer images.

    At least two batches: with one there would be nothing after the first step.
    """
    whole = min(epochs, int(affordable // images))
    if whole:
        return whole, images
    return 1, min(images, max(2, int(affordable // batch_size)) * batch_size)


@dataclass(frozen=True)
class Seen:
    """A journey from outside: the moments when its process was started and was seen to have ended, what it ``told``."""

    begun: float
    ended: float
    told: Mapping[str, Any]

    @property
    def whole(self) -> float:
        """Seconds from start to end."""
        return self.ended - self.begun

    def record(self) -> dict[str, Any]:
        """The ``journey`` of a result."""
        inside = dict(self.told["phases"])
        phases = {
            "start": self.told["begun"] - self.begun,
            **{name: inside[name] for name in _PHASES},
            "end": self.ended - self.told["ended"],
        }
        return {
            "whole_seconds": self.whole,
            "phases": [{"name": name, "seconds": max(0.0, seconds)} for name, seconds in phases.items()],
            "compiled": self.told["compiled"],
            "unexplained": 1 - sum(phases.values()) / self.whole,
        }


def see(
    command: Sequence[str],
    variables: Mapping[str, str],
    folder: Path,
    deadline: Deadline,
    should_stop: Callable[[], bool] = lambda: False,
) -> Seen:
    """Run a journey to its end. WorkerError where it fails or the time is up, StoppedError where it is to stop.

    In both cases the process is ended, with what it has started.
    """
    with tempfile.TemporaryFile(dir=folder) as answer, tempfile.TemporaryFile(dir=folder) as said:
        begun = now()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=answer,
            stderr=said,
            cwd=folder,
            env=dict(variables),
            start_new_session=True,  # Ctrl-C on the terminal is for us, who ask whether to stop
        )
        ended: list[float] = []

        def wait() -> None:  # without a limit: with one, Python looks only now and then whether the process has ended
            child.wait()
            ended.append(now())

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        try:
            while waiting.is_alive():
                waiting.join(min(_POLL_SECONDS, deadline.left))
                if waiting.is_alive() and deadline.passed:
                    raise TimeUpError("was not ready when the time was up")
                if waiting.is_alive() and should_stop():
                    raise StoppedError
        finally:
            _end(child)
            waiting.join()
        if child.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise WorkerError(f"ended with exit code {child.returncode}: {' '.join(lines[-1].split())[:300]}")
        answer.seek(0)
        return Seen(begun, ended[0], json.loads(answer.read()))


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process, and its group where the system has such, if it has not ended by itself."""
    if child.poll() is None:
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(child.pid, signal.SIGKILL)
        child.kill()


def _steady_rate(workload: Workload, device: Device, engine: str, deadline: Deadline, listener: Listener) -> float:
    """Images a second of the steady state. WorkerError where there is none; StoppedError."""
    candidate = our_candidate(engine, device.name, workload.threads)
    sides = steady.measure(workload, [candidate], deadline, listener).sides
    side = sides[0] if sides else None  # none where it was stopped while it got ready
    if side is not None and side.rate is not None:
        return side.rate.value
    if listener.should_stop():
        raise StoppedError
    if side is None or side.status == "interrupted":
        raise TimeUpError("the steady rate could not be measured: there was no time")
    raise WorkerError(f"the steady rate could not be measured: {side.error}")


def _write_data(workload: Workload, folder: Path) -> tuple[str | None, int]:
    """(the file that a journey loads its images from, how many there are to train on); None: it loads MNIST itself."""
    dataset = workload.dataset()
    train = dataset.train
    if dataset.name == embedded.NAME:
        return None, len(train)
    held_out = train.part(slice(HELD_OUT))
    path = folder / "images.npz"
    np.savez(path, x_train=train.images, y_train=train.labels, x_test=held_out.images, y_test=held_out.labels)
    return str(path), len(train)


def _notes(record: Mapping[str, Any], epochs: int, images: int) -> list[str]:
    """What a reader should know."""
    notes = []
    trained = record["epochs"], record["train_images"]
    if trained != (epochs, images):
        notes.append(
            f"{_in_words(*trained)} instead of {_in_words(epochs, images)}, for the budget was not enough for more."
        )
    for kind in KINDS:
        unexplained = record[kind]["unexplained"]
        if abs(unexplained) > UNEXPLAINED:
            notes.append(
                f"The phases of the {kind} training leave {percent(unexplained, 1)} of its time unexplained: other "
                "processes may have taken it."
            )
    if record["warm"]["compiled"]:
        notes.append(
            f"The warm training compiled {counted(record['warm']['compiled'], 'kernel')} that the cold one had."
        )
    return notes


def _in_words(epochs: int, images: int) -> str:
    return f"{counted(epochs, 'epoch')} of {count(images)} images"

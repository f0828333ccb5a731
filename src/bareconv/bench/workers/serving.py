"""A candidate, driven over standard input and output: one JSON object a line, one answer a line.

    {"do": "prepare", "folder": ..., "options": ..., "checks": n, "warm_up": s}
        -> losses of the first n steps, seconds of a step after warming up until steps are steady, s seconds at most,
           warmed_up (whether they are), compile_seconds, versions, flags (effective settings), engine (the one that
           runs, which may be another than the one asked for; empty where it has no name), steps taken so far
    {"do": "restart", "checks": n}
        -> the same, from the first weights and the first batch again, not warmed up
    {"do": "run", "seconds": s, "lead": l}  or  {"do": "run", "steps": n}
        -> steps, images, seconds (by the device's own clock), wall_seconds, loss of the last step; l seconds of steps
           come first, outside the clock
    {"do": "accuracy"}  -> accuracy (the fraction right of the job's test images), seconds that finding it took
    {"do": "memory"}  -> baseline (what the process held before the model and the data), peak, in bytes
    {"do": "quit"}    -> the process ends

What cannot be done is answered by {"error": one line, "unsupported": whether it is only that the candidate lacks it}.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv import host
from bareconv.bench.estimates import WINDOW, is_steady

WARM_UP_BLOCK = 0.1  # seconds
CHUNK = 256  # steps between two looks at the clock, at most, unless a candidate says otherwise
EVALUATED = 500  # images at once, where an accuracy is found


class UnsupportedError(Exception):
    """The candidate lacks something that the job needs: a layer, a setting."""


@dataclass(frozen=True)
class Job:
    """What to train, as ``bench.workload`` writes it into a folder.

    images: uint8 (N, H, W, C), perhaps mapped from a file; labels: int32 (N,); order: int64 (epochs, N), the images of
    each epoch in order, of which every ``batch_size`` are a batch; weights: the model's state by the names of our
    layers, in our layouts (HWIO, (in, out)); test_images, test_labels: as images and labels, held out, None where there
    are none. ``settings`` holds the rest: the tree of layers, the optimizer's numbers, precision, threads.
    """

    settings: Mapping[str, Any]
    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    order: NDArray[np.int64]
    weights: Mapping[str, NDArray[Any]]
    test_images: NDArray[np.uint8] | None = None
    test_labels: NDArray[np.int32] | None = None

    @classmethod
    def read(cls, folder: Path) -> Job:
        """The job in that folder."""
        settings = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        labels, order = (np.load(folder / f"{name}.npy") for name in ("labels", "order"))
        mapped = settings.get("mapped_images")
        if mapped is None:
            images = np.load(folder / "images.npy")
        else:  # there may be more of them than memory
            images = np.memmap(mapped["path"], np.uint8, "r", shape=tuple(mapped["shape"]))
        with np.load(folder / "weights.npz") as archive:
            weights = {name: archive[name] for name in archive.files}
        held_out = []
        if (folder / "test_images.npy").exists():
            # Not read before they are asked for: they are no part of a training's memory.
            held_out = [np.load(folder / f"test_{name}.npy", mmap_mode="r") for name in ("images", "labels")]
        return cls(settings, images, labels, order, weights, *held_out)

    @property
    def batch_size(self) -> int:
        """Images in every step; it divides their number."""
        return int(self.settings["batch_size"])

    @property
    def total_steps(self) -> int:
        """Steps until the order of the batches begins anew."""
        return self.order.size // self.batch_size

    def batch(self, step: int) -> NDArray[np.int64]:
        """Which images that step trains on."""
        return self.order.reshape(-1, self.batch_size)[step]


def in_parts(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Images (N, H, W, C) to evaluate, some after the others, in memory."""
    for start in range(0, len(images), EVALUATED):
        yield np.array(images[start : start + EVALUATED])


def blas_flags() -> dict[str, str]:
    """NumPy's BLAS, as NumPy tells it, and the threads that the environment gives it."""
    config: Any = np.show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"]
    asked = host.requested_threads()
    return {
        "blas": f"{blas['name']} {blas.get('version', '')}".strip(),
        **({} if asked is None else {asked[0]: str(asked[1])}),
    }


class Candidate:
    """Something that takes training steps. It imports what it needs when it is made, before memory is looked at."""

    chunk = CHUNK

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def build(self, job: Job) -> None:
        """Make model, data and optimizer. UnsupportedError where something of the job is lacking."""
        raise NotImplementedError

    def restart(self, job: Job) -> None:
        """From the first weights again. What has to compile for long keeps what it has compiled."""
        self.build(job)

    def steps(self, first: int, count: int) -> float:
        """``count`` steps from step ``first``, all done on return; the last one's loss."""
        raise NotImplementedError

    def timed(self, first: int, count: int) -> tuple[float, float]:
        """``steps``, and the seconds that they took: by the wall clock, or by the device's own where it has one."""
        begun = time.perf_counter()
        loss = self.steps(first, count)
        return loss, time.perf_counter() - begun

    def accuracy(self, images: NDArray[np.uint8], labels: NDArray[np.int32]) -> float:
        """The fraction of these images that the model, as it is now and in evaluation mode, gives their labels."""
        raise NotImplementedError

    def engine(self) -> str:
        """What runs, where it may be another than what was asked for."""
        return ""

    def compile_seconds(self, first_step: float, step: float) -> float:
        """Seconds of compiling so far; ``first_step`` took that long, later ones ``step``."""
        return 0.0

    def versions(self) -> dict[str, str]:
        """What computes, with its versions."""
        return {"numpy": np.__version__}

    def flags(self) -> dict[str, str]:
        """Settings that change speed or rounding, as they are in effect."""
        return {}

    def memory(self) -> int:
        """Bytes held now."""
        return host.resident_memory()

    def peak_memory(self) -> int:
        """The most bytes ever held."""
        return host.peak_resident_memory()


class _Server:
    def __init__(self, make: Callable[[Mapping[str, Any]], Candidate]) -> None:
        self.make = make
        self.has_looked = False  # at the accuracy

    def prepare(self, folder: str, options: Mapping[str, Any], checks: int, warm_up: float) -> dict[str, Any]:
        self.candidate = self.make(options)
        self.baseline = self.candidate.memory()
        self.job = Job.read(Path(folder))
        self.candidate.build(self.job)
        return self._begin(checks, warm_up)

    def restart(self, checks: int) -> dict[str, Any]:
        self.candidate.restart(self.job)
        return self._begin(checks, warm_up=0.0)

    def _begin(self, checks: int, warm_up: float) -> dict[str, Any]:
        """The first steps of what is built."""
        self.step, self.step_seconds = 0, 0.0
        begun = time.perf_counter()
        losses = [self._advance(steps=1)["loss"]]
        first_step = time.perf_counter() - begun
        losses += [self._advance(steps=1)["loss"] for _ in range(checks - 1)]
        warmed_up = self._warm_up(warm_up)
        return {
            "losses": losses,
            "step_seconds": self.step_seconds,
            "warmed_up": warmed_up,
            "compile_seconds": self.candidate.compile_seconds(first_step, self.step_seconds),
            "versions": {"python": sys.version.split()[0], **self.candidate.versions()},
            "flags": self.candidate.flags(),
            "engine": self.candidate.engine(),
            "steps": self.step,
        }

    def _warm_up(self, seconds: float) -> bool:
        """Steps until they are steady, for ``seconds`` at most; whether they are."""
        taken: list[float] = []
        left = seconds
        while left > 0 and not is_steady(taken):
            part = self._advance(seconds=min(WARM_UP_BLOCK, seconds / (2 * WINDOW)))
            taken.append(part["seconds"] / part["steps"])
            left -= part["wall_seconds"]
        return is_steady(taken)

    def run(self, seconds: float = 0.0, steps: int = 1, lead: float = 0.0) -> dict[str, Any]:
        if lead:
            self._advance(seconds=lead)
        return self._advance(seconds, steps)

    def accuracy(self) -> dict[str, Any]:
        images, labels = self.job.test_images, self.job.test_labels
        if images is None or labels is None:
            raise UnsupportedError(f"{self.job.settings['data']} has no test images: the accuracy is found on MNIST's")
        if not self.has_looked:  # what compiles does so now: how long the next look takes is not known otherwise
            self.candidate.accuracy(images[:EVALUATED], labels[:EVALUATED])
            self.has_looked = True
        begun = time.perf_counter()
        found = self.candidate.accuracy(images, labels)
        return {"accuracy": found, "seconds": time.perf_counter() - begun}

    def memory(self) -> dict[str, Any]:
        return {"baseline": self.baseline, "peak": self.candidate.peak_memory()}

    def _advance(self, seconds: float = 0.0, steps: int = 1) -> dict[str, Any]:
        """At least ``steps`` steps, and steps for at least ``seconds``."""
        total, done, loss, elapsed, begun = self.job.total_steps, 0, 0.0, 0.0, time.perf_counter()
        while done < steps or elapsed < seconds:
            left = (seconds - elapsed) / self.step_seconds if self.step_seconds else 0
            first = self.step % total
            count = min(max(steps - done, int(left), 1), self.candidate.chunk, total - first)
            loss, took = self.candidate.timed(first, count)
            self.step, done, elapsed = self.step + count, done + count, elapsed + took
            self.step_seconds = elapsed / done
        wall = time.perf_counter() - begun
        images = done * self.job.batch_size
        return {"steps": done, "images": images, "seconds": elapsed, "wall_seconds": wall, "loss": loss}


def end_with_parent() -> None:
    """Be killed when the one who asks is: while this process is stopped, it could not see it. Linux only."""
    pr_set_pdeathsig = 1  # prctl(2)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def serve(make: Callable[[Mapping[str, Any]], Candidate]) -> None:
    """Answer commands until "quit" or the end of standard input. Whatever else is printed goes to standard error."""
    end_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print too
    server = _Server(make)
    with answers:
        for line in sys.stdin:
            message = json.loads(line)
            do = message.pop("do")
            if do == "quit":
                return
            commands: dict[str, Callable[..., dict[str, Any]]]
            commands = {
                "prepare": server.prepare,
                "restart": server.restart,
                "run": server.run,
                "accuracy": server.accuracy,
                "memory": server.memory,
            }
            try:
                answer = commands[do](**message)
            except Exception as error:  # whatever it is: the one who asked has to know
                text = " ".join(str(error).split())[:500]
                kind = type(error).__name__
                unsupported = isinstance(error, UnsupportedError)
                answer = {"error": text if unsupported else f"{kind}: {text}", "unsupported": unsupported}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()

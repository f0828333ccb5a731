"""What an engine is: how batches become losses and updates, behind one protocol. ``training.engines`` has them.

The trainer names the images of a step, or of many; an engine does the rest. One that does a step at a time (on a CPU,
or layer by layer) gets the steps one after another; one that takes many at once (the plan on a GPU) gets as many as
the trainer can do without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bareconv.device import Array, Device, namespace
from bareconv.errors import UsageError
from bareconv.kernels.cache import OnCompile
from bareconv.nn.model import Model
from bareconv.optim import Optimizer
from bareconv.training.precision import check_known

PREDICT_IMAGES = 256  # laid out for, where an engine predicts and no training says how large its batches are
CHUNK = 200  # images to predict at once: enough to fill a GPU, little enough for a processor's cache, a laptop's memory


@dataclass(frozen=True)
class Batch:
    """One step's images: of ``images`` (uint8) and ``labels``, both on the device, those that ``chosen`` names.

    ``chosen`` None: all of them, in their order.
    """

    images: Array
    labels: Array
    chosen: Array | None
    step: int

    def __len__(self) -> int:
        return len(self.images if self.chosen is None else self.chosen)


@dataclass(frozen=True)
class Batches:
    """The images of ``count`` steps that follow each other, from step ``step`` on.

    ``chosen`` names them, ``size`` a step, the last perhaps fewer; None: each step takes all images.
    """

    images: Array
    labels: Array
    chosen: Array | None
    size: int
    count: int
    step: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Batch:
        if not 0 <= number < self.count:
            raise IndexError(f"batch {number} of {self.count}")
        chosen = self.chosen
        if chosen is not None:
            chosen = chosen[number * self.size : (number + 1) * self.size]
        return Batch(self.images, self.labels, chosen, self.step + number)


class Engine(Protocol):
    """Training steps, and prediction. Arrays stay on the model's device; nothing waits for it."""

    name: str
    model: Model
    optimizer: Optimizer

    many_steps: bool  # whether it gains from being given many steps at once
    predict_images: int  # to be given at once, at most

    @property
    def device(self) -> Device: ...

    @property
    def precision(self) -> str:
        """As it computes: "float32", "float64", "tf32" or "bfloat16"."""
        ...

    @property
    def compiled(self) -> int:
        """Kernels so far, of those that were in no cache."""
        ...

    @property
    def compile_seconds(self) -> float:
        """Spent so far on machine code, apart from training."""
        ...

    @property
    def threads(self) -> int | None:
        """Of the CPU; None on another device."""
        ...

    @property
    def description(self) -> str:
        """Its name, and what of the machine it uses: "plan (AVX-512, 2 threads)"."""
        ...

    def prepare(self, on_compile: OnCompile | None = None) -> None:
        """Do now what the first step would have to do: compile, lay out memory."""
        ...

    def train(self, batch: Batch, lr: float) -> tuple[Array, Array]:
        """One step: (mean loss, number of correct predictions), arrays of no axes, on the device."""
        ...

    def train_steps(self, batches: Batches, rates: Sequence[float]) -> tuple[Array, Array]:
        """A step for each of ``rates``: (mean losses, numbers of correct predictions), an element each a step.

        The same numbers as from as many calls of ``train``.
        """
        ...

    def predict(self, images: Array) -> Array:
        """Logits (N, classes) of uint8 images."""
        ...

    def kept_bytes(self) -> dict[str, int]:
        """What it keeps between steps, by component: of activations, gradients."""
        ...


class StepByStep:
    """What engines share that do one step at a time."""

    model: Model
    many_steps = False
    predict_images = CHUNK

    def train(self, batch: Batch, lr: float) -> tuple[Array, Array]:
        """One step; as ``Engine.train``."""
        raise NotImplementedError

    def train_steps(self, batches: Batches, rates: Sequence[float]) -> tuple[Array, Array]:
        """One after another; as ``Engine.train_steps``."""
        results = [self.train(batches[number], rate) for number, rate in enumerate(rates)]
        stack = self.model.device.xp.stack
        return stack([loss for loss, _ in results]), stack([hits for _, hits in results])


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is told of a training, apart from model and optimizer. ``precision`` None: the model's own."""

    batch_size: int = PREDICT_IMAGES
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    threads: int | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UsageError(f"label smoothing {self.label_smoothing}: expected at least 0 and less than 1")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UsageError(f"gradient norm to clip at, {self.clip_norm}: expected more than 0")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads {self.threads}: expected at least 1")
        if self.precision is not None:
            check_known(self.precision)


def count_correct(logits: Array, labels: Array) -> Array:
    """How many rows have their largest logit at the label: an array of no axes."""
    return (logits.argmax(axis=1) == labels).sum(dtype=namespace(logits).int64)


def threads_in_words(count: int | None) -> str:
    """ "1 thread", "2 threads"."""
    return f"{count} thread{'s' if count != 1 else ''}"

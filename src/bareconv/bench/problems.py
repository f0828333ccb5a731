"""What every rung of the ladder has to do: one convolution, or one training step; and what comes out, in float64."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from bareconv import data, ops
from bareconv.device import Array
from bareconv.errors import UsageError
from bareconv.nn import models
from bareconv.nn.model import Model
from bareconv.ops.windows import Window
from bareconv.optim import SGD, Constant
from bareconv.training import Settings, Trainer

# Largest relative difference, in the Euclidean norm, of a result from float64's.
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}


def _whole(result: Array) -> Array:
    return result


@dataclass(frozen=True)
class Task:
    """A problem as one rung has set it up.

    ``run`` does the work once, and is what is timed; ``result`` then gives, on the host, what came out. Where a rung is
    too slow for all of it, ``share`` is the share of the problem's work that it does, and ``part`` takes from the whole
    result what that gives. ``flops``: executed in one run, where they are not the direct method's; ``counted``: how,
    where a reader should know.
    """

    run: Callable[[], object]
    result: Callable[[], Array]
    share: float = 1.0
    part: Callable[[Array], Array] = _whole
    flops: float | None = None
    counted: str = ""


class Problem(Protocol):
    """One batch of work, with its reference."""

    @property
    def name(self) -> str: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def precision(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def flops_per_image(self) -> int:
        """By the direct method; a multiply-add counts two."""

    def reference(self) -> Array:
        """What must come out, in float64."""

    def describe(self) -> str:
        """In words."""


@dataclass(frozen=True)
class ConvProblem:
    """conv2d + bias, forward, of one batch. The default is the second convolution of ``basic``."""

    batch_size: int = 64
    in_shape: tuple[int, int, int] = (26, 26, 32)
    filters: int = 64
    window: Window = field(default_factory=lambda: Window((3, 3)))
    precision: str = "float32"
    threads: int = 1
    name: str = "layer"

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """(P, Q, K)."""
        return (*self.window.output_size(self.in_shape[:2]), self.filters)

    @property
    def flops_per_image(self) -> int:
        return 2 * math.prod(self.out_shape) * math.prod(self.window.kernel) * self.in_shape[2]

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.precision]

    @functools.cached_property
    def arrays(self) -> tuple[Array, Array, Array]:
        """(x, w, b): activations as a relu leaves them, weights of the usual size."""
        rng = np.random.default_rng(0)
        R, S, C = *self.window.kernel, self.in_shape[2]
        x = np.maximum(rng.standard_normal((self.batch_size, *self.in_shape), dtype=np.float32), 0)
        w = rng.standard_normal((R, S, C, self.filters)) * math.sqrt(2 / (R * S * C))
        x, w, b = (array.astype(self.precision) for array in (x, w, rng.standard_normal(self.filters)))
        return x, w, b

    def reference(self) -> Array:
        x, w, b = (array.astype(np.float64) for array in self.arrays)
        return ops.conv2d_forward(x, w, b, self.window)[0]

    def describe(self) -> str:
        (H, W, C), (R, S) = self.in_shape, self.window.kernel
        extra = "".join(
            f", {name} {value[0]} x {value[1]}"
            for name, value, usual in (
                ("stride", self.window.stride, 1),
                ("padding", self.window.padding, 0),
                ("dilation", self.window.dilation, 1),
            )
            if value != (usual, usual)
        )
        return (
            f"conv2d forward, {H} x {W} x {C} -> {self.filters} filters {R} x {S}{extra}, batches of {self.batch_size}"
        )


@dataclass(frozen=True)
class StepProblem:
    """One training step of a model of the zoo on a batch of MNIST: forward, loss, backward, SGD with momentum."""

    model: str = "basic"
    batch_size: int = 64
    precision: str = "float32"
    threads: int = 1
    name: str = "step"

    @property
    def flops_per_image(self) -> int:
        return self.make_model().flops()

    @property
    def tolerance(self) -> float:
        """Wider than a layer's: where rounding flips a relu, all gradients below it change."""
        return 10 * TOLERANCES[self.precision]

    def make_model(self) -> Model:
        """The model, new."""
        return models.by_name(self.model, self.dataset.image_shape, self.dataset.classes)

    @functools.cached_property
    def dataset(self) -> data.Dataset:
        """One batch: so that it is prepared once, and not a part of the step."""
        digits = data.mnist()
        if self.batch_size > len(digits.train):
            raise UsageError(f"batches of {self.batch_size}: MNIST has {len(digits.train)} training images")
        return digits.take(self.batch_size, 1)

    def trainer(self, engine: str, device: str = "cpu", precision: str | None = None) -> Trainer:
        """A trainer whose steps leave the weights where they are: at a learning rate of 0 they cost the same."""
        settings = Settings(
            batch_size=self.batch_size,
            schedule=Constant(),
            engine=engine,
            precision=precision or self.precision,
            threads=self.threads,
        )
        return Trainer(self.make_model(), self.dataset, SGD(0.0, momentum=0.9), settings, device)

    def reference(self) -> Array:
        trainer = self.trainer("reference", precision="float64")
        with trainer.device.activate():
            trainer.train_step(0)
        return gradient_of_first_step(trainer.optimizer.state(), trainer.device)

    def describe(self) -> str:
        return f"training step of {self.model}, batches of {self.batch_size}"


def gradient_of_first_step(state: dict[str, Array], device: Any) -> Array:
    """All gradients in one vector: after one step the optimizer's velocity is the gradient, in every engine."""
    return np.concatenate([device.to_host(state[name]).ravel() for name in sorted(state)])

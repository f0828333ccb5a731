"""A plan and the reference side by side: the same model twice, the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv.nn.layer import Layer, Shape
from bareconv.nn.model import Model
from bareconv.optim import SGD, Optimizer
from bareconv.plan.cpu.plan import CpuPlan
from bareconv.training import EngineSettings, ReferenceEngine

MakeLayers = Callable[[], Sequence[Layer]]
STRICT = 1e-9  # float64: what sums taken in another order leave
DRAWN = 1e-7  # of models at random: a norm of numbers that hardly differ multiplies rounding by a million
UNSTEADY = 1e-6  # smaller than this, a relative error says nothing: the exact one is zero
CANCELLED = (
    1e-2  # of the largest array's norm: what is smaller is a difference of larger numbers, and is off by their rounding
)


def model_of(layers: Sequence[Layer], shape: Shape, precision: str = "float64", **options: Any) -> Model:
    """The model on the CPU; its batch norms do not start from 1 and 0, nor its biases from 0."""
    model = Model(list(layers), shape, **options).to("cpu", precision)
    drawn = np.random.default_rng(99)
    for array in model.parameters().values():
        if array.ndim == 1:
            array += (0.2 * drawn.standard_normal(array.shape)).astype(precision)
    return model


def data_of(shape: Shape, classes: int, images: int = 40, seed: int = 5) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images of noise, and labels."""
    drawn = np.random.default_rng(seed)
    return drawn.integers(0, 256, (images, *shape), np.uint8), drawn.integers(0, classes, images)


def orders(images: int, batch: int, steps: int, last: int | None = None) -> list[NDArray[np.int64]]:
    """The images of each step; the last batch has ``last`` only."""
    drawn = np.random.default_rng(11)
    made = [drawn.permutation(images)[:batch].astype(np.int64) for _ in range(steps)]
    return [*made[:-1], made[-1][: last or batch]]


class Reference:
    """The reference's step with a plan's signature."""

    def __init__(self, model: Model, optimizer: Optimizer, **options: Any) -> None:
        self.model, self.optimizer = model, optimizer
        self.engine = ReferenceEngine(model, optimizer, EngineSettings(1, **options))

    def step(
        self, pixels: NDArray[np.uint8], labels: NDArray[np.int64], order: NDArray[np.int64], lr: float, step: int = 0
    ) -> tuple[float, int]:
        loss, correct = self.engine.forward(self.model.prepare(pixels[order]), labels[order], step)
        self.engine.backward()
        self.engine.update(lr)
        return float(loss), int(correct)


@contextmanager
def planned(model: Model, optimizer: Optimizer, batch: int, **options: Any) -> Iterator[CpuPlan]:
    """A plan, closed at the end."""
    plan = CpuPlan(model, optimizer, batch, **options)
    try:
        yield plan
    finally:
        plan.close()


def off(found: NDArray[Any], expected: NDArray[Any], least: float = 0.0) -> float:
    """The relative error in the 2-norm, of at least ``least``; of what is as good as zero, the error itself."""
    scale = max(least, float(np.linalg.norm(expected.astype(np.float64))))
    difference = float(np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64)))
    return difference / scale if scale > UNSTEADY else difference


def assert_same(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]], tolerance: float, what: str) -> None:
    """Every array the same, by name."""
    assert found.keys() == expected.keys()
    least = CANCELLED * max(float(np.linalg.norm(array.astype(np.float64))) for array in expected.values())
    errors = {name: off(found[name], expected[name], least) for name in expected}
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not wrong, f"{what}: {', '.join(f'{name} is off by {error:.1e}' for name, error in wrong.items())}"


def compare_step(
    make: MakeLayers,
    shape: Shape,
    classes: int,
    *,
    batch: int = 5,
    short: int = 3,
    tolerance: float = STRICT,
    **options: Any,
) -> None:
    """Loss, hits, every gradient, running statistics and the prediction of a plan are the reference's, in float64:
    of a full batch, and of a short one after it."""
    pixels, labels = data_of(shape, classes)
    model, other = model_of(make(), shape), model_of(make(), shape)
    reference = Reference(other, SGD(0.05))
    # A norm that is never reached makes the plan keep its gradients.
    with planned(model, SGD(0.05), batch, clip_norm=1e30, **options) as plan:
        for step, order in enumerate(orders(len(pixels), batch, 3, short)):
            loss, hits = plan.step(pixels, labels, order, 0.05, step)
            expected_loss, expected_hits = reference.step(pixels, labels, order, 0.05, step)
            where = f"step {step}, {len(order)} images"
            assert abs(loss - expected_loss) <= tolerance * max(1.0, abs(expected_loss)), where
            assert hits == expected_hits, where
            assert_same(plan.gradients(), other.gradients(), tolerance, f"{where}, gradients")
            assert_same(model.state(), other.state(), tolerance, f"{where}, parameters and statistics")
        few = pixels[:7]
        assert off(plan.predict(few), reference.engine.predict(few)) <= tolerance, "prediction"

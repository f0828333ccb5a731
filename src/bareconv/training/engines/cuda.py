"""The planned step on a CUDA GPU: graphs of many steps, which the host only starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bareconv.device import Array, Device
from bareconv.nn.model import Model
from bareconv.optim import Optimizer
from bareconv.training.engine import Batch, Batches, EngineSettings, OnCompile

if TYPE_CHECKING:
    from bareconv.plan.explain import Explanation


class CudaPlanEngine:
    """The planned step. What it has compiled and laid out lasts as long as it does."""

    name = "plan"
    many_steps = True
    predict_images = 1 << 16  # of which the plan lays out a few at a time; more would only be more logits

    def __init__(self, model: Model, optimizer: Optimizer, settings: EngineSettings) -> None:
        self.model, self.optimizer, self._settings = model, optimizer, settings
        self._plan: Any = None

    @property
    def device(self) -> Device:
        return self.model.device

    @property
    def precision(self) -> str:
        return self._settings.precision or self.model.precision

    @property
    def threads(self) -> int | None:
        return None

    @property
    def description(self) -> str:
        return f"plan (CUDA, {self.plan.runtime.limits.architecture})"

    @property
    def compiled(self) -> int:
        return self._plan.compiled if self._plan is not None else 0

    @property
    def compile_seconds(self) -> float:
        return self._plan.compile_seconds if self._plan is not None else 0.0

    @property
    def plan(self) -> Any:
        """The plan, made when it is first asked for."""
        if self._plan is None:
            from bareconv.plan.cuda.plan import CudaPlan

            settings = self._settings
            with self.device.activate():
                self._plan = CudaPlan(
                    *(self.model, self.optimizer, settings.batch_size),
                    precision=self.precision,
                    label_smoothing=settings.label_smoothing,
                    clip_norm=settings.clip_norm,
                )
        return self._plan

    def prepare(self, on_compile: OnCompile | None = None) -> None:
        with self.device.activate():
            self.plan.prepare(on_compile)

    def train(self, batch: Batch, lr: float) -> tuple[Array, Array]:
        losses, hits = self.plan.steps(batch.images, batch.labels, batch.chosen, [lr], batch.step)
        return losses[0], hits[0]

    def train_steps(self, batches: Batches, rates: Sequence[float]) -> tuple[Array, Array]:
        losses, hits = self.plan.steps(batches.images, batches.labels, batches.chosen, rates, batches.step)
        return losses, hits

    def predict(self, images: Array) -> Array:
        return self.plan.predict(images)

    def kept_bytes(self) -> dict[str, int]:
        return self.plan.kept_bytes()

    def explain(self) -> Explanation:
        """What the plan has chosen."""
        return self.plan.explain()

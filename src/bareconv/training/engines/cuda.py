"""The planned step on a CUDA GPU: graphs of many steps, which the host only starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bareconv.device import Array
from bareconv.kernels.cache import OnCompile
from bareconv.training.engine import Batch, Batches
from bareconv.training.engines.planned import PlannedEngine


class CudaPlanEngine(PlannedEngine):
    """The planned step, many at a time, on a GPU."""

    many_steps = True
    predict_images = 1 << 16  # of which the plan lays out a few at a time; more would only be more logits

    def _make_plan(self) -> Any:
        from bareconv.plan.cuda.plan import CudaPlan

        settings = self._settings
        with self.device.activate():
            return CudaPlan(
                *(self.model, self.optimizer, settings.batch_size),
                precision=self.precision,
                label_smoothing=settings.label_smoothing,
                clip_norm=settings.clip_norm,
            )

    @property
    def precision(self) -> str:
        return self._settings.precision or self.model.precision

    @property
    def threads(self) -> int | None:
        return None

    @property
    def description(self) -> str:
        return f"plan (CUDA, {self.plan.runtime.limits.architecture})"

    def prepare(self, on_compile: OnCompile | None = None) -> None:
        with self.device.activate():
            super().prepare(on_compile)

    def train(self, batch: Batch, lr: float) -> tuple[Array, Array]:
        losses, hits = self.plan.steps(batch.images, batch.labels, batch.chosen, [lr], batch.step)
        return losses[0], hits[0]

    def train_steps(self, batches: Batches, rates: Sequence[float]) -> tuple[Array, Array]:
        losses, hits = self.plan.steps(batches.images, batches.labels, batches.chosen, rates, batches.step)
        return losses, hits

    def predict(self, images: Array) -> Array:
        return self.plan.predict(images)

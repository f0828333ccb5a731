"""The planned step on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from bareconv import host
from bareconv.device import Array
from bareconv.nn.model import Model
from bareconv.optim import Optimizer
from bareconv.training.engine import Batch, EngineSettings, StepByStep, threads_in_words
from bareconv.training.engines.planned import PlannedEngine


class PlanEngine(PlannedEngine, StepByStep):
    """The planned step, one at a time, on this process's cores."""

    def __init__(self, model: Model, optimizer: Optimizer, settings: EngineSettings) -> None:
        super().__init__(model, optimizer, settings)
        self._labels: tuple[Array, Array] | None = None  # as they came, and as the kernels read them

    def _make_plan(self) -> Any:
        from bareconv.plan.cpu.plan import CpuPlan

        settings = self._settings
        return CpuPlan(
            *(self.model, self.optimizer, settings.batch_size),
            label_smoothing=settings.label_smoothing,
            clip_norm=settings.clip_norm,
            threads=settings.threads,
        )

    @property
    def precision(self) -> str:
        return self.model.precision

    @property
    def threads(self) -> int | None:
        return self._settings.threads or host.blas_threads()

    @property
    def description(self) -> str:
        return f"plan ({self.plan.target.name}, {threads_in_words(self.threads)})"

    def train(self, batch: Batch, lr: float) -> tuple[Array, Array]:
        if self._labels is None or self._labels[0] is not batch.labels:
            self._labels = batch.labels, np.ascontiguousarray(batch.labels, np.int64)
        chosen = np.arange(len(batch)) if batch.chosen is None else batch.chosen
        loss, hits = self.plan.step(np.ascontiguousarray(batch.images), self._labels[1], chosen, lr, batch.step)
        return np.asarray(loss, np.float64), np.asarray(hits, np.int64)

    def predict(self, images: Array) -> Array:
        return self.plan.predict(np.ascontiguousarray(images))

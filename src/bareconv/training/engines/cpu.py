"""The planned step on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bareconv import host
from bareconv.device import Array, Device
from bareconv.nn.model import Model
from bareconv.optim import Optimizer
from bareconv.training.engine import Batch, EngineSettings, OnCompile, StepByStep, threads_in_words

if TYPE_CHECKING:
    from bareconv.plan.explain import Explanation


class PlanEngine(StepByStep):
    """The planned step. What it has compiled and laid out lasts as long as it does."""

    name = "plan"

    def __init__(self, model: Model, optimizer: Optimizer, settings: EngineSettings) -> None:
        self.model, self.optimizer, self._settings = model, optimizer, settings
        self._plan: Any = None
        self._labels: tuple[Array, Array] | None = None  # as they came, and as the kernels read them

    @property
    def device(self) -> Device:
        return self.model.device

    @property
    def precision(self) -> str:
        return self.model.precision

    @property
    def threads(self) -> int | None:
        return self._settings.threads or host.blas_threads()

    @property
    def description(self) -> str:
        return f"plan ({self.plan.target.name}, {threads_in_words(self.threads)})"

    @property
    def compiled(self) -> int:
        return self.plan.compiled if self._plan is not None else 0

    @property
    def compile_seconds(self) -> float:
        return self.plan.compile_seconds if self._plan is not None else 0.0

    @property
    def plan(self) -> Any:
        """The plan, made when it is first asked for."""
        if self._plan is None:
            from bareconv.plan.cpu.plan import CpuPlan

            settings = self._settings
            self._plan = CpuPlan(
                *(self.model, self.optimizer, settings.batch_size),
                label_smoothing=settings.label_smoothing,
                clip_norm=settings.clip_norm,
                threads=settings.threads,
            )
        return self._plan

    def prepare(self, on_compile: OnCompile | None = None) -> None:
        self.plan.prepare(on_compile)

    def train(self, batch: Batch, lr: float) -> tuple[Array, Array]:
        if self._labels is None or self._labels[0] is not batch.labels:
            self._labels = batch.labels, np.ascontiguousarray(batch.labels, np.int64)
        chosen = np.arange(len(batch)) if batch.chosen is None else batch.chosen
        loss, hits = self.plan.step(np.ascontiguousarray(batch.images), self._labels[1], chosen, lr, batch.step)
        return np.asarray(loss, np.float64), np.asarray(hits, np.int64)

    def predict(self, images: Array) -> Array:
        if images.shape[1:] != self.model.input_shape:
            self.model.prepare(images[:1])  # which says what is wrong
        return self.plan.predict(np.ascontiguousarray(images))

    def kept_bytes(self) -> dict[str, int]:
        return self.plan.kept_bytes()

    def explain(self) -> Explanation:
        """What the plan has chosen."""
        return self.plan.explain()

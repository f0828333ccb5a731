"""The step by tuned NumPy kernels, for a CPU without a compiler."""

from __future__ import annotations

from typing import Any

import numpy as np

from bareconv import host
from bareconv.device import Array
from bareconv.kernels.cache import OnCompile
from bareconv.nn.model import Model
from bareconv.optim import Optimizer
from bareconv.training.engine import Batch, EngineSettings, threads_in_words
from bareconv.training.engines.reference import ReferenceEngine


class TunedEngine(ReferenceEngine):
    """Loss, gradients and predictions by the tuned NumPy kernels; the update is the reference's."""

    name = "tuned"

    def __init__(self, model: Model, optimizer: Optimizer, settings: EngineSettings) -> None:
        super().__init__(model, optimizer, settings)
        self._settings = settings
        self._made: Any = None

    @property
    def threads(self) -> int | None:
        return self._settings.threads or host.blas_threads()

    @property
    def description(self) -> str:
        return f"tuned (NumPy, {threads_in_words(self.threads)})"

    def prepare(self, on_compile: OnCompile | None = None) -> None:
        if self._made is None:
            from bareconv.plan.tuned.step import TunedNumpyStep

            settings = self._settings
            self._made = TunedNumpyStep(
                *(self.model, settings.batch_size),
                threads=settings.threads,
                label_smoothing=settings.label_smoothing,
            )

    def train(self, batch: Batch, lr: float) -> tuple[Array, Array]:
        result = self.gradients(*self.inputs(batch), batch.step)
        self.update(lr)
        return result

    def gradients(self, x: Array, labels: Array, step: int) -> tuple[Array, Array]:
        """Forward and backward of prepared images: (mean loss, number of correct predictions)."""
        self.prepare()
        loss, hits = self._made.forward_backward(x, labels, step)
        return np.asarray(loss, np.float64), np.asarray(hits, np.int64)

    def predict(self, images: Array) -> Array:
        self.prepare()
        return self._made.predict(self.model.prepare(images))

    def kept_bytes(self) -> dict[str, int]:
        """Activations are the groups' outputs and their gradients; what the kernels need besides is not counted."""
        self.prepare()
        arrays = [*self._made.outputs, *self._made.gradients]
        return {**super().kept_bytes(), "activations": sum(int(array.nbytes) for array in arrays if array is not None)}

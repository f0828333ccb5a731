"""Softmax cross-entropy with its gradient, over one slice of a batch. The formulas are those of ``ops.loss``."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from bareconv.device import Array
from bareconv.errors import ShapeError
from bareconv.kernels.tuned.memory import expect, float_type


class SoftmaxCrossEntropyBlock:
    """Loss and dZ of logits (n, K), n <= ``images``, with label smoothing."""

    def __init__(self, classes: int, *, images: int, smoothing: float = 0.0, dtype: DTypeLike = np.float32) -> None:
        self.classes, self.images, self.smoothing, self.dtype = classes, images, smoothing, float_type(dtype)
        self.z = np.empty((images, classes), self.dtype)
        self.targets = np.empty((images, classes), self.dtype)
        self.hit = np.empty((images, classes), bool)
        self.column = np.empty((images, 1), self.dtype)
        self.numbers = np.arange(classes)

    def forward_backward(self, logits: Array, labels: Array, batch: int, dlogits: Array) -> tuple[float, int]:
        """(this slice's part of the mean loss over ``batch`` rows, its correct predictions); overwrites ``dlogits``."""
        n = len(logits)
        if n > self.images or len(labels) != n:
            raise ShapeError(f"logits: {n} rows and {len(labels)} labels for a block of at most {self.images}")
        for name, array in (("logits", logits), ("dlogits", dlogits)):
            expect(name, array, (n, self.classes), self.dtype)
        z, t, hit, column = self.z[:n], self.targets[:n], self.hit[:n], self.column[:n]
        np.equal(labels[:, None], self.numbers, out=hit)
        np.multiply(hit, 1.0 - self.smoothing, out=t)
        t += self.smoothing / self.classes

        np.max(logits, axis=1, keepdims=True, out=column)
        np.subtract(logits, column, out=z)
        np.exp(z, out=dlogits)
        np.sum(dlogits, axis=1, keepdims=True, out=column)
        np.divide(dlogits, column, out=dlogits)  # the probabilities
        # -sum t log p = log sum exp z - sum t z, for t sums to 1.
        np.log(column, out=column)
        loss = float(column.sum()) - float(np.vdot(t, z))
        np.subtract(dlogits, t, out=dlogits)
        np.multiply(dlogits, 1.0 / batch, out=dlogits)
        return loss / batch, int((logits.argmax(axis=1) == labels).sum())

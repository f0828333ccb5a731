"""How good a model is on a split: loss, accuracy, and every image's prediction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bareconv import ops
from bareconv.data import Split
from bareconv.device import Array
from bareconv.training.engine import Engine


@dataclass(frozen=True)
class Evaluation:
    """Per image, in the split's order: the predicted class (int64) and its probability; labels as given."""

    loss: float
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    labels: NDArray[np.int32]
    classes: int

    @property
    def accuracy(self) -> float:
        """Share of right predictions."""
        return float((self.predicted == self.labels).mean())

    @property
    def confusion(self) -> NDArray[np.int64]:
        """(classes, classes) counts; rows: the true class, columns: the predicted one."""
        flat = np.bincount(self.labels * self.classes + self.predicted, minlength=self.classes**2)
        return flat.reshape(self.classes, self.classes)

    def precision_recall(self) -> list[tuple[float | None, float | None]]:
        """(precision, recall) of each class; None where a class was never predicted, or has no image."""
        confusion = self.confusion
        hits, predicted, true = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
        return [
            (float(h / p) if p else None, float(h / t) if t else None)
            for h, p, t in zip(hits, predicted, true, strict=True)
        ]

    def most_confidently_wrong(self, count: int) -> NDArray[np.int64]:
        """Indices of the wrong predictions, the most confident first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:count]


def evaluate(engine: Engine, split: Split, images: Array | None = None) -> Evaluation:
    """Predict all of ``split``; ``images`` are its images on the engine's device, if they are there already."""
    device, chunk = engine.device, engine.predict_images
    with device.activate():
        xp = device.xp
        images = device.asarray(split.images) if images is None else images
        all_labels = device.asarray(split.labels)
        losses, sizes, predicted, confidence = [], [], [], []
        for start in range(0, len(split), chunk):
            labels = all_labels[start : start + chunk]
            logits = engine.predict(images[start : start + chunk])
            loss, p, _ = ops.softmax_cross_entropy_forward(logits, labels)
            losses.append(loss)
            sizes.append(len(labels))
            predicted.append(logits.argmax(axis=1))  # p may tie where the logits do not
            confidence.append(p.max(axis=1))
        # Only now is the device waited for.
        means = device.to_host(xp.stack(losses)).tolist()
        classes, sure = (device.to_host(xp.concatenate(parts)) for parts in (predicted, confidence))
    return Evaluation(
        loss=sum(mean * size for mean, size in zip(means, sizes, strict=True)) / len(split),
        predicted=classes,
        confidence=sure.astype(np.float64),
        labels=split.labels,
        classes=engine.model.output_shape[0],
    )


def predict(engine: Engine, images: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(class, its probability) for each of uint8 images (N, H, W, C) on the host."""
    device, chunk = engine.device, engine.predict_images
    with device.activate():
        parts = [
            device.to_host(engine.predict(device.asarray(images[start : start + chunk])))
            for start in range(0, len(images), chunk)
        ]
    logits = np.concatenate(parts)
    return logits.argmax(axis=1), ops.softmax(logits).max(axis=1).astype(np.float64)

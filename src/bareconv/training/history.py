"""What happened in a training: every step's loss, every epoch's figures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class EpochRecord:
    """One epoch. ``train_loss`` and ``train_accuracy`` are of the batches as they were met, before their update."""

    epoch: int  # counted from 1
    iterations: int  # from the start of the training
    train_loss: float
    train_accuracy: float
    train_seconds: float  # of this epoch's steps alone
    learning_rate: float  # of its last step
    test_loss: float | None = None
    test_accuracy: float | None = None


@dataclass
class History:
    """The course of a training. Seconds are wall time, the device synchronised at both ends.

    ``loss`` and ``correct``: mean loss and number of correct predictions of every step. ``train_seconds``: the steps
    alone. ``stopped``: ended before its last epoch, by request.
    """

    batch_size: int
    train_images: int
    loss: list[float] = field(default_factory=list)
    correct: list[int] = field(default_factory=list)
    epochs: list[EpochRecord] = field(default_factory=list)
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    stopped: bool = False

    @property
    def iterations(self) -> int:
        """Training steps done."""
        return len(self.loss)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch; its last batch may be short."""
        return -(-self.train_images // self.batch_size)

    @property
    def images_seen(self) -> int:
        """Images that went through a training step."""
        return self._images(0, self.iterations)

    @property
    def images_per_second(self) -> float:
        """Training throughput; 0 before the first step."""
        return self.images_seen / self.train_seconds if self.train_seconds else 0.0

    @property
    def test_accuracy(self) -> float | None:
        """After the last finished epoch; None without data to test on."""
        return self.epochs[-1].test_accuracy if self.epochs else None

    @property
    def test_loss(self) -> float | None:
        """After the last finished epoch; None without data to test on."""
        return self.epochs[-1].test_loss if self.epochs else None

    def since(self, first: int, end: int | None = None) -> tuple[float, float]:
        """(mean loss, accuracy) of the images of the steps from ``first`` to the last, or to the one before ``end``."""
        end = self.iterations if end is None else end
        sizes = [self._images(i, i + 1) for i in range(first, end)]
        count = sum(sizes)
        if not count:
            return 0.0, 0.0
        total = sum(loss * size for loss, size in zip(self.loss[first:end], sizes, strict=True))
        return total / count, sum(self.correct[first:end]) / count

    def to_json(self) -> dict[str, Any]:
        """The ``history`` of a result file: the steps' losses and the epochs."""
        return {"loss": self.loss, "epochs": [dataclasses.asdict(epoch) for epoch in self.epochs]}

    def _images(self, first: int, end: int) -> int:
        """Images of the steps first .. end-1; the last step of every epoch has what is left over."""
        whole, begun = divmod(end, self.steps_per_epoch)
        whole_before, begun_before = divmod(first, self.steps_per_epoch)
        return (whole - whole_before) * self.train_images + (begun - begun_before) * self.batch_size

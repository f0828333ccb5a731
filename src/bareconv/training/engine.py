"""The engine of one training step: forward with the loss, backward, update.

``ReferenceEngine`` is the readable path, layer by layer, the same program on every device. Other engines offer the same
three phases and are tested against it.
"""

from __future__ import annotations

from typing import Protocol

from bareconv import ops
from bareconv.device import Array, Device, namespace
from bareconv.errors import UsageError
from bareconv.nn.layer import Layer, Watch
from bareconv.nn.model import Model
from bareconv.optim import Optimizer, clip_grad_norm

ENGINES = ("reference",)


class Engine(Protocol):
    """One training step in three phases, and prediction. Arrays stay on the model's device; nothing waits for it."""

    name: str
    model: Model
    optimizer: Optimizer
    loss: Layer  # the loss by the name that profiles and checks give it

    @property
    def device(self) -> Device: ...

    def forward(self, x: Array, labels: Array, step: int, watch: Watch | None = None) -> tuple[Array, Array]:
        """(mean loss, number of correct predictions) of prepared images: arrays of no axes."""
        ...

    def backward(self, watch: Watch | None = None) -> None:
        """The gradients of the last forward's loss."""
        ...

    def update(self, lr: float) -> None:
        """One optimizer step with the last backward's gradients."""
        ...

    def predict(self, images: Array) -> Array:
        """Logits (N, classes) of uint8 images."""
        ...


class SoftmaxCrossEntropy(Layer):
    """The loss, as profiles and checks name it; the engine computes it."""

    kind = "loss"


class ReferenceEngine:
    """The model's own layers, called one after another."""

    name = "reference"

    def __init__(
        self, model: Model, optimizer: Optimizer, label_smoothing: float = 0.0, clip_norm: float | None = None
    ) -> None:
        if not 0.0 <= label_smoothing < 1.0:
            raise UsageError(f"label smoothing {label_smoothing}: expected at least 0 and less than 1")
        if clip_norm is not None and clip_norm <= 0:
            raise UsageError(f"gradient norm to clip at, {clip_norm}: expected more than 0")
        self.model, self.optimizer = model, optimizer
        self.label_smoothing, self.clip_norm = label_smoothing, clip_norm
        self.loss: Layer = SoftmaxCrossEntropy()
        self.loss.name = "loss"
        self._loss_saved: tuple[Array, Array] | None = None

    @property
    def device(self) -> Device:
        return self.model.device

    def forward(self, x: Array, labels: Array, step: int, watch: Watch | None = None) -> tuple[Array, Array]:
        logits = self.model.forward(x, training=True, step=step, watch=watch)
        loss, p, t = ops.softmax_cross_entropy_forward(logits, labels, self.label_smoothing)
        self._loss_saved = p, t
        if watch:
            watch("forward", self.loss, loss)
        return loss, count_correct(logits, labels)

    def backward(self, watch: Watch | None = None) -> None:
        assert self._loss_saved is not None, "backward needs a forward before it"
        dlogits = ops.softmax_cross_entropy_backward(*self._loss_saved)
        self._loss_saved = None
        if watch:
            watch("backward", self.loss, dlogits)
        self.model.backward(dlogits, watch=watch)

    def update(self, lr: float) -> None:
        gradients = self.model.gradients()
        if self.clip_norm is not None:
            clip_grad_norm(gradients, self.clip_norm)
        self.optimizer.update(self.model.parameters(), gradients, lr)

    def predict(self, images: Array) -> Array:
        return self.model.forward(self.model.prepare(images))


def make_engine(
    name: str, model: Model, optimizer: Optimizer, label_smoothing: float = 0.0, clip_norm: float | None = None
) -> Engine:
    """The engine of that name; UsageError where there is none."""
    if name not in ENGINES:
        raise UsageError(f"engine {name!r}: expected {', '.join(ENGINES)}")
    return ReferenceEngine(model, optimizer, label_smoothing, clip_norm)


def count_correct(logits: Array, labels: Array) -> Array:
    """How many rows have their largest logit at the label: an array of no axes."""
    return (logits.argmax(axis=1) == labels).sum(dtype=namespace(logits).int64)

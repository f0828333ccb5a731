"""The readable path: the model's own layers, one after another, the same program on every device."""

from __future__ import annotations

from bareconv import host, ops
from bareconv.device import Array, CpuDevice, Device
from bareconv.kernels.cache import OnCompile
from bareconv.nn.layer import Layer, Watch
from bareconv.nn.model import Model
from bareconv.optim import Optimizer, clip_grad_norm
from bareconv.training.engine import Batch, EngineSettings, StepByStep, count_correct


class SoftmaxCrossEntropy(Layer):
    """The loss, as profiles and checks name it; the engine computes it."""

    kind = "loss"


class ReferenceEngine(StepByStep):
    """The model's own layers, one after another. ``forward``, ``backward`` and ``update`` are its step in parts."""

    name = "reference"
    compiled, compile_seconds = 0, 0.0

    def __init__(self, model: Model, optimizer: Optimizer, settings: EngineSettings | None = None) -> None:
        settings = settings or EngineSettings()
        self.model, self.optimizer = model, optimizer
        self.label_smoothing, self.clip_norm = settings.label_smoothing, settings.clip_norm
        self.loss: Layer = SoftmaxCrossEntropy()
        self.loss.name = "loss"
        self._loss_saved: tuple[Array, Array] | None = None
        self._whole: tuple[Array, Array] | None = None  # images that are all trained on at once, and prepared

    @property
    def device(self) -> Device:
        return self.model.device

    @property
    def precision(self) -> str:
        return self.device.effective_precision(self.model.precision)

    @property
    def threads(self) -> int | None:
        return host.blas_threads() if isinstance(self.device, CpuDevice) else None

    @property
    def description(self) -> str:
        return self.name

    def prepare(self, on_compile: OnCompile | None = None) -> None:
        """Nothing to do."""

    def train(self, batch: Batch, lr: float) -> tuple[Array, Array]:
        x, labels = self.inputs(batch)
        result = self.forward(x, labels, batch.step)
        self.backward()
        self.update(lr)
        return result

    def inputs(self, batch: Batch) -> tuple[Array, Array]:
        """(prepared images, labels). A batch of everything is prepared once."""
        if batch.chosen is not None:
            return self.model.prepare(batch.images[batch.chosen]), batch.labels[batch.chosen]
        if self._whole is None or self._whole[0] is not batch.images:
            self._whole = batch.images, self.model.prepare(batch.images)
        return self._whole[1], batch.labels

    def forward(self, x: Array, labels: Array, step: int, watch: Watch | None = None) -> tuple[Array, Array]:
        """(mean loss, number of correct predictions) of prepared images."""
        logits = self.model.forward(x, training=True, step=step, watch=watch)
        loss, p, t = ops.softmax_cross_entropy_forward(logits, labels, self.label_smoothing)
        self._loss_saved = p, t
        if watch:
            watch("forward", self.loss, loss)
        return loss, count_correct(logits, labels)

    def backward(self, watch: Watch | None = None) -> None:
        """The gradients of the last forward's loss."""
        assert self._loss_saved is not None, "backward needs a forward before it"
        dlogits = ops.softmax_cross_entropy_backward(*self._loss_saved)
        self._loss_saved = None
        if watch:
            watch("backward", self.loss, dlogits)
        self.model.backward(dlogits, watch=watch)

    def update(self, lr: float) -> None:
        """One optimizer step with the last backward's gradients."""
        gradients = self.model.gradients()
        if self.clip_norm is not None:
            clip_grad_norm(gradients, self.clip_norm)
        self.optimizer.update(self.model.parameters(), gradients, lr)

    def predict(self, images: Array) -> Array:
        return self.model.forward(self.model.prepare(images))

    def kept_bytes(self) -> dict[str, int]:
        prepared = int(self._whole[1].nbytes) if self._whole else 0
        gradients = sum(int(array.nbytes) for array in self.model.gradients().values())
        return {"gradients": gradients, "data": prepared}

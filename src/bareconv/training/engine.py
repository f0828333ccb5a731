"""The engine of a training step: how a batch becomes a loss and an update.

plan        the whole step planned at once, on kernels written for its shapes (``bareconv.plan.cpu``)
tuned       the same groups of layers by tuned NumPy kernels, without a compiler (``bareconv.plan.tuned``)
reference   the readable path, layer by layer, the same program on every device

The reference is the specification: the others offer the same step and are tested against it. The first two run on the
CPU; where one of them cannot run, ``make_engine`` gives the next, and the engine's name says which it is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bareconv import host, ops
from bareconv.device import Array, CpuDevice, Device, namespace
from bareconv.errors import UsageError
from bareconv.nn.layer import Layer, Watch
from bareconv.nn.model import Model
from bareconv.optim import Optimizer, clip_grad_norm

if TYPE_CHECKING:
    from bareconv.plan.explain import Explanation

ENGINES = ("plan", "tuned", "reference")

OnCompile = Callable[[int, int], None]  # (kernels compiled, kernels to compile)

PREDICT_IMAGES = 256  # laid out for, where an engine predicts and no training says how large its batches are


@dataclass(frozen=True)
class Batch:
    """One step's images: of ``images`` (uint8) and ``labels``, both on the device, those that ``chosen`` names.

    ``chosen`` None: all of them, in their order.
    """

    images: Array
    labels: Array
    chosen: Array | None
    step: int

    def __len__(self) -> int:
        return len(self.images if self.chosen is None else self.chosen)


class Engine(Protocol):
    """A training step, and prediction. Arrays stay on the model's device; nothing waits for it."""

    name: str
    model: Model
    optimizer: Optimizer

    @property
    def device(self) -> Device: ...

    @property
    def compiled(self) -> int:
        """Kernels so far, of those that were in no cache."""
        ...

    @property
    def compile_seconds(self) -> float:
        """Spent so far on machine code, apart from training."""
        ...

    @property
    def threads(self) -> int | None:
        """Of the CPU; None on another device."""
        ...

    @property
    def description(self) -> str:
        """Its name, and what of the machine it uses: "plan (AVX-512, 2 threads)"."""
        ...

    def prepare(self, on_compile: OnCompile | None = None) -> None:
        """Do now what the first step would have to do: compile, lay out memory."""
        ...

    def train(self, batch: Batch, lr: float) -> tuple[Array, Array]:
        """One step: (mean loss, number of correct predictions), arrays of no axes, on the device."""
        ...

    def predict(self, images: Array) -> Array:
        """Logits (N, classes) of uint8 images."""
        ...

    def kept_bytes(self) -> dict[str, int]:
        """What it keeps between steps, by component: of activations, gradients."""
        ...


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is told of a training, apart from model and optimizer."""

    batch_size: int = PREDICT_IMAGES
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UsageError(f"label smoothing {self.label_smoothing}: expected at least 0 and less than 1")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UsageError(f"gradient norm to clip at, {self.clip_norm}: expected more than 0")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads {self.threads}: expected at least 1")


class SoftmaxCrossEntropy(Layer):
    """The loss, as profiles and checks name it; the engine computes it."""

    kind = "loss"


class ReferenceEngine:
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
        return f"tuned (NumPy, {_threads(self.threads)})"

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


class PlanEngine:
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
    def threads(self) -> int | None:
        return self._settings.threads or host.blas_threads()

    @property
    def description(self) -> str:
        return f"plan ({self.plan.target.name}, {_threads(self.threads)})"

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


def why_no_plan() -> str | None:
    """Why there is no planned step on this machine; None where there is one."""
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed: pip install llvmlite"
    from bareconv.kernels.cpu.target import host_target

    try:
        host_target()
    except UsageError as error:
        return str(error)
    return None


def make_engine(
    name: str,
    model: Model,
    optimizer: Optimizer,
    settings: EngineSettings | None = None,
    device: Device | None = None,
) -> Engine:
    """The engine of that name for a model on ``device`` (its own unless given); UsageError where there is none.

    Where "plan" or "tuned" cannot run, the reference, or for "plan" on a CPU the tuned one.
    """
    if name not in ENGINES:
        raise UsageError(f"engine {name!r}: expected {', '.join(ENGINES)}")
    settings = settings or EngineSettings()
    if not isinstance(device or model.device, CpuDevice) or name == "reference":
        return ReferenceEngine(model, optimizer, settings)
    if name == "plan" and why_no_plan() is None:
        return PlanEngine(model, optimizer, settings)
    return TunedEngine(model, optimizer, settings)


def _threads(count: int | None) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def count_correct(logits: Array, labels: Array) -> Array:
    """How many rows have their largest logit at the label: an array of no axes."""
    return (logits.argmax(axis=1) == labels).sum(dtype=namespace(logits).int64)

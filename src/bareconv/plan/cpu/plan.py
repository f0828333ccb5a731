"""The plan of a model's training step on a CPU: compiled, laid out in memory, ready to run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv.errors import ShapeError, UsageError
from bareconv.host import blas_threads
from bareconv.kernels.cache import OnCompile
from bareconv.kernels.cpu.target import Target, host_target
from bareconv.kernels.cpu.workers import Workers
from bareconv.nn import layers
from bareconv.nn.model import Model
from bareconv.optim import Optimizer, clip_grad_norm
from bareconv.optim.rule import Rule, scalars
from bareconv.plan.cpu.binding import Bound
from bareconv.plan.cpu.covers import is_sparse, is_updated_at_once, lays_out_its_gradient
from bareconv.plan.cpu.lowering import Lowered, lower
from bareconv.plan.cpu.parameters import Parameters
from bareconv.plan.cpu.record import RecordedStage
from bareconv.plan.cpu.step import Step
from bareconv.plan.explain import Explanation
from bareconv.plan.graph import graph_of

PREDICT_IMAGES = 256  # of one call of the inference program


class CpuPlan:
    """A training step and a prediction, planned for batches of up to ``batch_size`` images.

    ``threads``: workers, by default as many as there are cores for this process. The model's parameters and the
    optimizer's state become views of the plan's memory: both stay what they are, and may be read and written between
    steps. ``clip_norm`` and an optimizer that has no kernel are applied by the reference, to gradients that the plan
    made.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        batch_size: int,
        *,
        label_smoothing: float = 0.0,
        clip_norm: float | None = None,
        threads: int | None = None,
        simd: str | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"threads {threads}: expected at least 1")
        self.model, self.optimizer, self.batch_size = model, optimizer, batch_size
        self.clip_norm, self._smoothing = clip_norm, label_smoothing
        self.target: Target = host_target(model.precision, simd)
        self.workers = Workers(threads or blas_threads())
        self.compile_seconds = 0.0
        self.compiled = 0  # kernels that were in no cache
        graph = graph_of(model)
        mapped = {f"{node.layers[0].name}.weight" for node in graph.nodes if is_sparse(node, self.target)}
        mapped |= {f"{leaf.name}.weight" for leaf in model.leaves() if lays_out_its_gradient(leaf, self.target)}
        dense = {f"{leaf.name}.weight" for leaf in model.leaves() if is_updated_at_once(leaf)}
        self.parameters = Parameters(model, mapped, dense)
        self.rule = Rule.of(optimizer, clip_norm)
        self._update_on_host = self.rule.name == "gradient"
        self._graph = graph
        self._training: Bound | None = None
        self._inference: Bound | None = None

    def prepare(self, on_compile: OnCompile | None = None) -> None:
        """Compile and lay out a training step, which the first step does otherwise."""
        self._prepared(on_compile)

    def _prepared(self, on_compile: OnCompile | None = None) -> Bound:
        if self._training is None:
            step = Step(self._graph, self.model, self.target, self.parameters, self.rule, self.batch_size)
            lowered = lower(step, self._smoothing)
            self._training = self._bound(lowered, self.batch_size, on_compile)
        return self._training

    def _bound(self, lowered: Lowered, images: int, on_compile: OnCompile | None) -> Bound:
        optimizer = None if self._update_on_host else self.optimizer
        bound = Bound(lowered, images, self.workers, optimizer, on_compile)
        self.compile_seconds += bound.compiled.seconds
        self.compiled += bound.compiled.written
        return bound

    def step(
        self, pixels: NDArray[np.uint8], labels: NDArray[np.int64], order: NDArray[np.int64], lr: float, step: int = 0
    ) -> tuple[float, int]:
        """Train on the images (N, H, W, C) and labels that ``order`` chooses; (mean loss, correct predictions)."""
        loss, hits = self._gradients(pixels, labels, order, lr, step)
        if self._update_on_host:
            gradients = self.gradients()
            if self.clip_norm is not None:
                clip_grad_norm(gradients, self.clip_norm)
            self.optimizer.update(self.model.parameters(), gradients, lr)
        else:
            self.optimizer.step += 1
        return loss, hits

    def _gradients(
        self, pixels: NDArray[np.uint8], labels: NDArray[np.int64], order: NDArray[np.int64], lr: float, step: int
    ) -> tuple[float, int]:
        self._check(pixels, labels, order)
        self.parameters.take_over()
        if not self._update_on_host:
            self.parameters.adopt(self.optimizer)
        bound = self._prepared()
        if not self._update_on_host:
            numbers = scalars(self.optimizer, lr)
            bound.scalars[: len(numbers)] = numbers
        bound.run(pixels, order, labels, step)
        images = len(order)
        return float(bound.losses[:images].sum()) / images, int(bound.hits[:images].sum())

    def _check(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64], order: NDArray[np.int64]) -> None:
        """Machine code believes what it is given."""
        self.model.check_pixels(pixels)
        if not (len(order) and order.min() >= 0 and order.max() < len(pixels)):
            raise ShapeError(f"order of {len(order)} images: expected at least one, each from 0 to {len(pixels) - 1}")
        if len(labels) != len(pixels) or labels.dtype != np.int64:
            raise ShapeError(
                f"labels {labels.shape} of {labels.dtype}: expected an int64 for each of {len(pixels)} images"
            )
        if len(order) > self.batch_size:
            raise UsageError(f"a batch of {len(order)} images: the plan was made for at most {self.batch_size}")

    def gradients(self) -> dict[str, NDArray[Any]]:
        """The last step's gradients by parameter, where the plan keeps them: not where it updates at once."""
        if not self._update_on_host:
            raise UsageError("this plan updates parameters where their gradients are made; it keeps none")
        return self.parameters.gradients()

    def predict(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Logits (N, classes) of uint8 images."""
        self.model.check_pixels(pixels)
        if self._inference is None:
            graph = graph_of(self.model, drop=(layers.Dropout,))
            step = Step(graph, self.model, self.target, self.parameters, self.rule, PREDICT_IMAGES, training=False)
            lowered = lower(step)
            self._inference = self._bound(lowered, PREDICT_IMAGES, None)
        self.parameters.take_over()
        bound = self._inference
        out = np.empty((len(pixels), *self.model.output_shape), self.model.precision)
        for start in range(0, len(pixels), PREDICT_IMAGES):
            part = np.arange(start, min(start + PREDICT_IMAGES, len(pixels)))
            bound.run(pixels, part, None, 0)
            out[start : start + len(part)] = bound.view(*bound.lowered.logits, len(part)).reshape(len(part), -1)
        return out

    def explain(self) -> Explanation:
        """A row for every call of a step: what it is for, its kernel, its work, and the time it has taken so far."""
        bound = self._prepared()
        title = f"{self.model.name}: {self.target.name}, {self.target.dtype}, {self.workers.count} thread"
        title += "s" if self.workers.count > 1 else ""
        title += f", batches of up to {self.batch_size}"
        return Explanation(title, tuple(bound.rows()), bound.waiting_seconds(), sum(self.kept_bytes().values()))

    def clear_times(self) -> None:
        """Begin the times that ``explain`` shows anew."""
        self._prepared().clear_times()

    def time_calls(self, on: bool) -> None:
        """Whether the calls of a step are timed, as they are to begin with; else ``explain``'s times stand still."""
        self._prepared().time_calls(on)

    def seconds(self) -> list[float]:
        """Since ``clear_times``: of each row of ``explain()``, Python's too, and last the waiting of a thread."""
        return self._prepared().seconds()

    def stages(self) -> list[RecordedStage]:
        """A training step as it was written down: its calls in order, stage by stage."""
        return self._prepared().lowered.stages

    def kept_bytes(self) -> dict[str, int]:
        """What the plan has allocated: activations with their gradients and scratch memory; gradients of parameters."""
        bound = [one for one in (self._training, self._inference) if one is not None]
        gradients = sum(one.partial.nbytes for one in bound)
        if self._update_on_host:
            gradients += self.parameters.gradient.nbytes
        return {"activations": sum(one.memory.nbytes for one in bound), "gradients": gradients}

    def close(self) -> None:
        """End the threads."""
        self.workers.close()

"""A training step of a model by the tuned NumPy kernels, over slices of the batch on several threads.

    forward, loss and backward   every slice on its own thread, layer group by layer group, in buffers made once
    gradients                    the slices' shares added up in their order; those of dense weights over the whole batch

Slices and order are fixed by the number of threads, so that with the same number the same bits come out. BLAS is held
at one thread meanwhile: threads that each start threads get in each other's way. Where a layer looks at the batch as a
whole (batch normalisation, dropout) there is one slice, and BLAS keeps its threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from bareconv import host
from bareconv.device import Array, CpuDevice
from bareconv.errors import ShapeError, UsageError
from bareconv.kernels.slices import slices
from bareconv.kernels.tuned import SoftmaxCrossEntropyBlock
from bareconv.nn.layer import Layer, Shape
from bareconv.nn.model import Model
from bareconv.plan.tuned.units import DenseUnit, Unit, grouped, make_unit, per_image, weight_gradient

T = TypeVar("T")


@dataclass(frozen=True)
class Covered:
    """A row of ``explain``: layers, what computes them, their output, FLOPs of an image forward and backward."""

    layers: str
    kernel: str
    out_shape: Shape
    forward_flops: int
    backward_flops: int


class TunedNumpyStep:
    """Loss and gradients of ``model``, on the CPU, for batches of up to ``batch_size``.

    Build it when the model is where it shall be, in its precision: it holds the model's own parameters. Gradients are
    left in each layer's ``grads``, in arrays that the next step overwrites. ``threads``: as many as there are cores for
    this process unless given. UsageError for a model that is not on the CPU.
    """

    def __init__(
        self, model: Model, batch_size: int, *, threads: int | None = None, label_smoothing: float = 0.0
    ) -> None:
        from threadpoolctl import ThreadpoolController

        if not isinstance(model.device, CpuDevice):
            raise UsageError(f"the tuned NumPy step runs on the CPU; model {model.name} is on {model.device.name}")
        if threads is not None and threads < 1:
            raise UsageError(f"threads {threads}: expected at least 1")
        self.model, self.batch_size = model, batch_size
        self.threads = threads or host.blas_threads()
        self.groups = grouped(model.body.layers)
        self.slices = min(self.threads, batch_size) if per_image(model.body.layers) else 1
        # Backward ends at the first group with parameters, which needs no dX.
        counts = [sum(layer.parameter_count() for layer in group.layers) for group in self.groups]
        self.first = next((i for i, count in enumerate(counts) if count), len(self.groups))

        images, dtype = -(-batch_size // self.slices), model.precision
        self.units: list[list[Unit | None]] = [
            [make_unit(group, images, dtype, need_dx=i > self.first) for i, group in enumerate(self.groups)]
            for _ in range(self.slices)
        ]
        classes = model.output_shape[0]
        self.losses = [
            SoftmaxCrossEntropyBlock(classes, images=images, smoothing=label_smoothing, dtype=dtype)
            for _ in range(self.slices)
        ]
        # Of each group, for the whole batch; None where the output is a view of the input.
        self.outputs, self.gradients = self._buffers(), self._buffers()
        # The gradients of the whole batch. Those of dense weights are written by several threads: they are made here.
        self.totals: dict[tuple[Layer, str], Array] = {
            (unit.dense, "weight"): np.empty_like(unit.dense.params["weight"])
            for unit in self.units[0]
            if isinstance(unit, DenseUnit)
        }
        self.pool = ThreadPoolExecutor(self.slices - 1) if self.slices > 1 else None
        self.blas = ThreadpoolController()

    def forward_backward(self, x: Array, labels: Array, step: int) -> tuple[float, int]:
        """(mean loss, correct predictions) of prepared images (n, H, W, C), n <= ``batch_size``; sets all ``grads``."""
        self._check(x)
        x, n = np.ascontiguousarray(x), len(x)
        inputs: list[list[Array]] = [[] for _ in range(self.slices)]

        def work(number: int, part: slice) -> tuple[float, int]:
            seen = inputs[number]
            logits = self._forward(number, part, x, True, step, seen)
            dlogits = self._gradient(len(self.groups) - 1, part, logits)
            result = self.losses[number].forward_backward(logits, labels[part], n, dlogits)
            self._backward(number, part, seen, dlogits)
            return result

        parts = slices(n, self.slices)
        with self.blas.limit(limits=self._blas_threads(), user_api="blas"):
            results = self._run(work, parts)
            self._run(lambda number, part: self._dense_gradients(number, len(parts), x), parts)
        self._add_up(len(parts))
        return sum(loss for loss, _ in results), sum(hits for _, hits in results)

    def predict(self, x: Array) -> Array:
        """Logits (n, classes) of prepared images (n, H, W, C), any number of them."""
        logits = np.empty((len(x), *self.model.output_shape), self.model.precision)
        with self.blas.limit(limits=self._blas_threads(), user_api="blas"):
            for start in range(0, len(x), self.batch_size):
                batch = np.ascontiguousarray(x[start : start + self.batch_size])
                self._check(batch)

                def work(number: int, part: slice, batch: Array = batch, start: int = start) -> None:
                    found = self._forward(number, part, batch, False, 0, [])
                    logits[start + part.start : start + part.stop] = found

                self._run(work, slices(len(batch), self.slices))
        return logits

    def explain(self) -> list[Covered]:
        """What computes which layers."""
        rows = []
        for i, group in enumerate(self.groups):
            work = [leaf.flops() for layer in group.layers for leaf in layer.leaves() if leaf.params]
            backward = sum(f.dw for f in work) + sum(f.dx for f in work[1 if i == self.first else 0 :])
            rows.append(
                Covered(
                    ", ".join(layer.name for layer in group.layers),
                    group.kernel,
                    group.layers[-1].out_shape,
                    sum(f.forward for f in work),
                    backward if i >= self.first else 0,
                )
            )
        return rows

    def _buffers(self) -> list[Array | None]:
        return [
            None if unit is None else np.empty((self.batch_size, *group.layers[-1].out_shape), self.model.precision)
            for unit, group in zip(self.units[0], self.groups, strict=True)
        ]

    # One slice

    def _forward(self, number: int, part: slice, x: Array, training: bool, step: int, inputs: list[Array]) -> Array:
        """The logits of a slice; ``inputs`` becomes what each group was given."""
        current = x[part]
        for i, unit in enumerate(self.units[number]):
            inputs.append(current)
            output = self.outputs[i]
            if unit is None or output is None:
                current = current.reshape(len(current), *self.groups[i].layers[-1].out_shape)
                continue
            unit.forward(current, output[part], training, step)
            current = output[part]
        return current

    def _backward(self, number: int, part: slice, inputs: list[Array], dlogits: Array) -> None:
        gradient = dlogits
        for i in range(len(self.groups) - 1, self.first - 1, -1):
            unit = self.units[number][i]
            dx = self._gradient(i - 1, part, inputs[i]) if i > self.first else None
            if unit is not None:
                unit.backward(gradient, dx)
            if dx is not None:
                gradient = dx

    def _gradient(self, i: int, part: slice, like: Array) -> Array:
        """The buffer for the gradient of the output of group ``i`` in a slice, in the shape of that output.

        Behind a view it is the buffer of the group before it.
        """
        while self.gradients[i] is None and i > 0:
            i -= 1
        found = self.gradients[i]
        return np.empty_like(like) if found is None else found[part].reshape(like.shape)

    # All slices

    def _dense_gradients(self, part: int, parts: int, x: Array) -> None:
        """This thread's rows of the gradients of all dense weights."""
        for i, unit in enumerate(self.units[0]):
            if isinstance(unit, DenseUnit):
                source, dz = self._output(i - 1, x), self._gradient(i, slice(len(x)), self._output(i, x))
                weight_gradient(source.reshape(len(x), -1), dz, self.totals[unit.dense, "weight"], part, parts)

    def _output(self, i: int, x: Array) -> Array:
        """The whole batch's output of group ``i``; behind views, that of what they look at; before all groups, x."""
        while i >= 0 and self.outputs[i] is None:
            i -= 1
        found = self.outputs[i] if i >= 0 else None
        return x if found is None else found[: len(x)]

    def _add_up(self, parts: int) -> None:
        """The parameters' gradients of all slices, in order, to the layers' ``grads``."""
        for i in range(self.first, len(self.groups)):
            shares = [unit.grads for units in self.units[:parts] if (unit := units[i]) is not None]
            for layer, grads in shares[0].items() if shares else ():
                for name, gradient in grads.items():
                    if (layer, name) not in self.totals:
                        self.totals[layer, name] = np.empty_like(gradient)
                    total = self.totals[layer, name]
                    np.copyto(total, gradient)
                    for other in shares[1:]:
                        total += other[layer][name]
        for (layer, name), total in self.totals.items():
            layer.grads[name] = total

    def _run(self, work: Callable[[int, slice], T], parts: list[slice]) -> list[T]:
        """``work(number, slice)`` for each slice, the first by this thread; the results in order."""

        def quiet(number: int, part: slice) -> T:
            # A loss that is not finite is found by whoever reads it; a thread begins with NumPy's own settings.
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                return work(number, part)

        others = [self.pool.submit(quiet, i, part) for i, part in enumerate(parts) if i and self.pool is not None]
        first = quiet(0, parts[0])
        return [first, *(other.result() for other in others)]

    def _blas_threads(self) -> int:
        return 1 if self.slices > 1 else self.threads

    def _check(self, x: Array) -> None:
        if not 0 < len(x) <= self.batch_size or x.shape[1:] != self.model.input_shape:
            raise ShapeError(
                f"a step for up to {self.batch_size} images of {self.model.input_shape}; got an array of {x.shape}"
            )

"""DeZero 0.0.13, another framework from first principles on NumPy: its own functions and optimizer, our weights.

It was written for NumPy 1. Two things are put right before it is used, and named in the result: ``np.int``, which it
needs at import; and Python numbers, which NumPy 2 would let turn its float32 gradients into float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv.bench.workers.serving import Candidate, Job, UnsupportedError, blas_flags, in_parts, serve

Function = Callable[[Any], Any]


class DeZero(Candidate):
    """Takes no options."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        if not hasattr(np, "int"):
            setattr(np, "int", int)  # noqa: B010 (a linter would have it int alone)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its datasets compare texts by identity
            import dezero
            import dezero.functions
            import dezero.optimizers
        self.dezero = dezero

    def build(self, job: Job) -> None:
        dezero, values = self.dezero, job.settings
        self.job, self.dtype = job, np.dtype(values["precision"])
        self.mean, self.scale = values["mean"], 1.0 / values["std"]

        def as_array(x: Any, array_module: Any = np) -> Any:
            return np.asarray(x, self.dtype) if np.isscalar(x) else x

        dezero.core.as_array = as_array
        self.parameters: list[Any] = []
        self.model = self._sequence(values["layers"], job.weights)
        self.images = np.ascontiguousarray(job.images.transpose(0, 3, 1, 2))
        self.labels = job.labels.astype(np.int8)  # of one byte: a float32 less an int32 would be a float64
        self.optimizer = dezero.optimizers.MomentumSGD(values["lr"], values["momentum"]).setup(self)

    def params(self) -> Iterator[Any]:
        """What the optimizer asks its target for."""
        yield from self.parameters

    def steps(self, first: int, count: int) -> float:
        for step in range(first, first + count):
            chosen = self.job.batch(step)
            x = self._normalised(self.images[chosen])
            loss = self.dezero.functions.softmax_cross_entropy(self.model(x), self.labels[chosen])
            for parameter in self.parameters:
                parameter.cleargrad()
            loss.backward()
            self.optimizer.update()
        return float(loss.data)

    def _normalised(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        x = images.astype(self.dtype)
        if self.mean:
            x -= self.mean
        x *= self.scale
        return x

    def accuracy(self, images: NDArray[np.uint8], labels: NDArray[np.int32]) -> float:
        predicted = []
        with self.dezero.no_grad(), self.dezero.test_mode():
            for part in in_parts(images):
                predicted.append(self.model(self._normalised(part.transpose(0, 3, 1, 2))).data.argmax(axis=1))
        return float((np.concatenate(predicted) == labels).mean())

    def flags(self) -> dict[str, str]:
        return blas_flags()

    def versions(self) -> dict[str, str]:
        return {"dezero": metadata.version("dezero"), "numpy": np.__version__}

    def _sequence(self, layers: list[dict[str, Any]], weights: Mapping[str, Any]) -> Function:
        functions: list[Function] = []
        flattened: list[int] | None = None  # H, W, C of what was just flattened: the next dense layer's rows
        for layer in layers:
            functions.append(self._function(layer, weights, flattened))
            if layer["type"] == "Flatten":
                flattened = layer["in_shape"] if len(layer["in_shape"]) == 3 else None
            elif layer["type"] == "Dense":
                flattened = None

        def apply(x: Any) -> Any:
            for function in functions:
                x = function(x)
            return x

        return apply

    def _function(self, layer: dict[str, Any], weights: Mapping[str, Any], flattened: list[int] | None) -> Function:
        F, kind, name = self.dezero.functions, layer["type"], layer["name"]

        def parameter(key: str, change: Function = lambda array: array) -> Any:
            # A copy: it is trained on in place, and begins again from the job's own.
            made = self.dezero.Parameter(np.array(change(weights[f"{name}.{key}"]), self.dtype, order="C"))
            self.parameters.append(made)
            return made

        if kind == "Conv2d":
            if layer["groups"] != 1 or layer["dilation"] not in (1, [1, 1]):
                raise UnsupportedError(f"a convolution in groups or dilated (layer {name}) does not exist here")
            w = parameter("weight", lambda array: array.transpose(3, 2, 0, 1))
            b = parameter("bias") if layer["bias"] else None
            stride, padding = _size(layer["stride"]), _size(layer["padding"])
            return lambda x: F.conv2d(x, w, b, stride, padding)
        if kind == "Dense":
            rows = slice(None) if flattened is None else np.arange(np.prod(flattened)).reshape(flattened)
            if not isinstance(rows, slice):  # over H, W, C -> over C, H, W
                rows = rows.transpose(2, 0, 1).reshape(-1)
            w = parameter("weight", lambda array: array[rows])
            b = parameter("bias") if layer["bias"] else None
            return lambda x: F.linear(x, w, b)
        if kind == "ReLU":
            return lambda x: F.relu(x)
        if kind == "MaxPool2d" and layer["padding"] in (0, [0, 0]):  # padded by zeros, which may be a maximum
            kernel = _size(layer["kernel"])
            stride = kernel if layer["stride"] is None else _size(layer["stride"])
            return lambda x: F.pooling(x, kernel, stride)
        if kind == "GlobalMaxPool":
            return lambda x: F.flatten(F.pooling(x, x.shape[2:]))
        if kind == "GlobalAvgPool":
            # One axis at a time: the gradient of a sum over two fails.
            return lambda x: F.sum(F.sum(x, axis=3), axis=2) * (1.0 / (x.shape[2] * x.shape[3]))
        if kind == "Flatten":
            return lambda x: F.flatten(x)
        if kind == "BatchNorm" and len(layer["in_shape"]) == 3:
            gamma, beta = parameter("gamma"), parameter("beta")
            mean, var = (weights[f"{name}.{key}"].astype(self.dtype) for key in ("mean", "var"))
            return lambda x: F.batch_nrom(x, gamma, beta, mean, var, 1.0 - layer["momentum"], layer["eps"])
        if kind == "Sequential":
            return self._sequence(layer["layers"], weights)
        if kind == "Residual":
            inner = layer["shortcut"]
            body = self._function(layer["body"], weights, None)
            if inner is None:
                return lambda x: body(x) + x
            shortcut = self._function(inner, weights, None)
            return lambda x: body(x) + shortcut(x)
        raise UnsupportedError(f"layer type {kind} (layer {name}) has no counterpart here")


def _size(value: int | list[int]) -> int | tuple[int, ...]:
    """A number or a pair, which JSON made a list."""
    return value if isinstance(value, int) else tuple(value)


if __name__ == "__main__":
    serve(DeZero)

"""Plain NumPy: the textbook program that somebody writes after a tutorial, with our weights.

Every layer is a class with a forward and a backward that keeps what it needs. A convolution is a product with the
unfolded windows of its input (im2col), a max pool a maximum over a reshaped array where its windows tile the input. It
takes part to show where one starts from. What such a program leaves out is left out here: it keeps no memory from step
to step, fuses nothing, and computes the gradient of the images too.

NumPy's BLAS runs as many threads as the variables of the environment say that all candidates get; the rest is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from bareconv.bench.workers.serving import Candidate, Job, UnsupportedError, blas_flags, in_parts, serve

Array = NDArray[Any]


class Plain(Candidate):
    """Takes no options."""

    def build(self, job: Job) -> None:
        values = job.settings
        if values["precision"] not in ("float32", "float64"):
            raise UnsupportedError(f"NumPy has no {values['precision']}: expected float32 or float64")
        self.job, self.dtype = job, np.dtype(values["precision"])
        self.lr, self.momentum = values["lr"], values["momentum"]
        self.parameters: list[Parameter] = []
        self.model = self._sequence(values["layers"], job.weights)

    def steps(self, first: int, count: int) -> float:
        for step in range(first, first + count):
            chosen = self.job.batch(step)
            logits = self.model.forward(self._normalised(self.job.images[chosen]), True)
            loss, dy = softmax_cross_entropy(logits, self.job.labels[chosen])
            self.model.backward(dy)
            for parameter in self.parameters:
                parameter.velocity = self.momentum * parameter.velocity + parameter.gradient
                parameter.value -= self.lr * parameter.velocity
        return float(loss)

    def accuracy(self, images: NDArray[np.uint8], labels: NDArray[np.int32]) -> float:
        predicted = [self.model.forward(self._normalised(part), False).argmax(axis=1) for part in in_parts(images)]
        return float((np.concatenate(predicted) == labels).mean())

    def flags(self) -> dict[str, str]:
        return blas_flags()

    def _normalised(self, images: NDArray[np.uint8]) -> Array:
        x = images.astype(self.dtype)
        return (x - self.job.settings["mean"]) / self.job.settings["std"]

    def _sequence(self, layers: list[dict[str, Any]], weights: Mapping[str, Array]) -> Chain:
        return Chain([self._layer(layer, weights) for layer in layers])

    def _layer(self, layer: dict[str, Any], weights: Mapping[str, Array]) -> Any:
        kind, name = layer["type"], layer["name"]

        def parameter(key: str) -> Parameter:
            self.parameters.append(Parameter(weights[f"{name}.{key}"].astype(self.dtype)))
            return self.parameters[-1]

        if kind == "Conv2d":
            if layer["groups"] != 1 or _pair(layer["dilation"]) != (1, 1):
                raise UnsupportedError(f"a convolution in groups or dilated (layer {name}) is in no textbook program")
            bias = parameter("bias") if layer["bias"] else None
            return Conv(parameter("weight"), bias, _pair(layer["stride"]), _pair(layer["padding"]))
        if kind == "Dense":
            return Dense(parameter("weight"), parameter("bias") if layer["bias"] else None)
        if kind == "BatchNorm":
            mean, var = (weights[f"{name}.{key}"].astype(self.dtype) for key in ("mean", "var"))
            return Norm(parameter("gamma"), parameter("beta"), mean, var, layer["momentum"], layer["eps"])
        if kind == "MaxPool2d":
            kernel = _pair(layer["kernel"])
            stride = kernel if layer["stride"] is None else _pair(layer["stride"])
            return MaxPool(kernel, stride, _pair(layer["padding"]))
        if kind == "Sequential":
            return self._sequence(layer["layers"], weights)
        if kind == "Residual":
            shortcut = layer["shortcut"] and self._layer(layer["shortcut"], weights)
            return Residual(self._layer(layer["body"], weights), shortcut)
        simple = {"ReLU": ReLU, "GlobalMaxPool": GlobalMax, "GlobalAvgPool": GlobalAverage, "Flatten": Flatten}
        if kind in simple:
            return simple[kind]()
        raise UnsupportedError(f"layer type {kind} (layer {name}) has no counterpart here")


class Parameter:
    """A weight with its gradient and its velocity."""

    def __init__(self, value: Array) -> None:
        self.value, self.gradient, self.velocity = value, np.zeros_like(value), np.zeros_like(value)


class Chain:
    """One layer after another."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers

    def forward(self, x: Array, training: bool) -> Array:
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, dy: Array) -> Array:
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy


class Residual:
    """body(x) + shortcut(x), or + x."""

    def __init__(self, body: Any, shortcut: Any) -> None:
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Array, training: bool) -> Array:
        beside = self.shortcut.forward(x, training) if self.shortcut else x
        total: Array = self.body.forward(x, training) + beside
        return total

    def backward(self, dy: Array) -> Array:
        total: Array = self.body.backward(dy) + (self.shortcut.backward(dy) if self.shortcut else dy)
        return total


def unfold(x: Array, kernel: tuple[int, int], stride: tuple[int, int]) -> Array:
    """The windows of (N, H, W, C): a view (N, P, Q, C, R, S)."""
    return sliding_window_view(x, kernel, axis=(1, 2))[:, :: stride[0], :: stride[1]]


def fold(dcols: Array, shape: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]) -> Array:
    """Sums of (N, P, Q, C, R, S) at the places that its windows come from, an array of ``shape``, unpadded."""
    N, H, W, C = shape
    _, P, Q, _, R, S = dcols.shape
    dx = np.zeros((N, H + 2 * padding[0], W + 2 * padding[1], C), dcols.dtype)
    for r in range(R):
        for s in range(S):
            dx[:, r : r + stride[0] * P : stride[0], s : s + stride[1] * Q : stride[1]] += dcols[..., r, s]
    return dx[:, padding[0] : padding[0] + H, padding[1] : padding[1] + W]


class Conv:
    """A product with the unfolded input, (N*P*Q, C*R*S) x (C*R*S, K)."""

    def __init__(
        self, weight: Parameter, bias: Parameter | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> None:
        self.weight, self.bias, self.stride, self.padding = weight, bias, stride, padding
        R, S, C, K = weight.value.shape
        weight.value = np.ascontiguousarray(weight.value.transpose(2, 0, 1, 3)).reshape(C * R * S, K)
        weight.velocity = np.zeros_like(weight.value)
        self.kernel = (R, S)

    def forward(self, x: Array, training: bool) -> Array:
        self.shape = x.shape
        windows = unfold(_padded(x, self.padding, 0.0), self.kernel, self.stride)
        self.windows_shape = windows.shape
        self.cols = windows.reshape(-1, len(self.weight.value))  # a copy
        y = self.cols @ self.weight.value
        if self.bias:
            y += self.bias.value
        return y.reshape(*windows.shape[:3], -1)

    def backward(self, dy: Array) -> Array:
        dy = dy.reshape(-1, dy.shape[-1])
        self.weight.gradient = self.cols.T @ dy
        if self.bias:
            self.bias.gradient = dy.sum(axis=0)
        dcols = (dy @ self.weight.value.T).reshape(self.windows_shape)
        return fold(dcols, self.shape, self.stride, self.padding)


class Dense:
    """x @ weight + bias."""

    def __init__(self, weight: Parameter, bias: Parameter | None) -> None:
        self.weight, self.bias = weight, bias

    def forward(self, x: Array, training: bool) -> Array:
        self.x = x
        y: Array = x @ self.weight.value
        return y + self.bias.value if self.bias else y

    def backward(self, dy: Array) -> Array:
        self.weight.gradient = self.x.T @ dy
        if self.bias:
            self.bias.gradient = dy.sum(axis=0)
        return dy @ self.weight.value.T


class Norm:
    """Batch normalisation over all axes but the last, with running estimates for evaluation."""

    def __init__(self, gamma: Parameter, beta: Parameter, mean: Array, var: Array, momentum: float, eps: float) -> None:
        self.gamma, self.beta, self.mean, self.var = gamma, beta, mean, var
        self.momentum, self.eps = momentum, eps

    def forward(self, x: Array, training: bool) -> Array:
        axes = tuple(range(x.ndim - 1))
        mean, var = self.mean, self.var
        if training:
            mean, var = x.mean(axis=axes), x.var(axis=axes)
            count = x.size // x.shape[-1]
            self.mean = (1 - self.momentum) * self.mean + self.momentum * mean
            self.var = (1 - self.momentum) * self.var + self.momentum * var * (count / max(count - 1, 1))
        self.inv_std = 1 / np.sqrt(var + self.eps)
        self.xhat = (x - mean) * self.inv_std
        return self.gamma.value * self.xhat + self.beta.value

    def backward(self, dy: Array) -> Array:
        axes = tuple(range(dy.ndim - 1))
        self.gamma.gradient = (dy * self.xhat).sum(axis=axes)
        self.beta.gradient = dy.sum(axis=axes)
        count = dy.size // dy.shape[-1]
        inner = dy - self.beta.gradient / count - self.xhat * (self.gamma.gradient / count)
        return self.gamma.value * self.inv_std * inner


class ReLU:
    """max(x, 0)."""

    def forward(self, x: Array, training: bool) -> Array:
        self.positive = x > 0
        return x * self.positive

    def backward(self, dy: Array) -> Array:
        return dy * self.positive


class Flatten:
    """(N, H, W, C) -> (N, H*W*C)."""

    def forward(self, x: Array, training: bool) -> Array:
        self.shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, dy: Array) -> Array:
        return dy.reshape(self.shape)


class MaxPool:
    """The maximum of each window; the first one's place gets the gradient."""

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> None:
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Array, training: bool) -> Array:
        self.shape = x.shape
        (N, H, W, C), (R, S) = x.shape, self.kernel
        self.tiles = self.stride == self.kernel and self.padding == (0, 0) and H % R == 0 and W % S == 0
        if self.tiles:
            windows = x.reshape(N, H // R, R, W // S, S, C).transpose(0, 1, 3, 5, 2, 4)
        else:
            windows = unfold(_padded(x, self.padding, -np.inf), self.kernel, self.stride)
        self.windows_shape = windows.shape
        flat = windows.reshape(*windows.shape[:4], R * S)  # a copy
        self.where = flat.argmax(axis=-1)[..., None]
        return np.take_along_axis(flat, self.where, axis=-1)[..., 0]

    def backward(self, dy: Array) -> Array:
        dcols = np.zeros((*self.windows_shape[:4], self.kernel[0] * self.kernel[1]), dy.dtype)
        np.put_along_axis(dcols, self.where, dy[..., None], axis=-1)
        dcols = dcols.reshape(self.windows_shape)
        if self.tiles:
            return dcols.transpose(0, 1, 4, 2, 5, 3).reshape(self.shape)
        return fold(dcols, self.shape, self.stride, self.padding)


class GlobalMax:
    """The maximum of each channel over the whole image."""

    def forward(self, x: Array, training: bool) -> Array:
        self.shape = x.shape
        flat = x.reshape(len(x), -1, x.shape[-1])
        self.where = flat.argmax(axis=1)[:, None]
        return np.take_along_axis(flat, self.where, axis=1)[:, 0]

    def backward(self, dy: Array) -> Array:
        dx = np.zeros((len(dy), self.shape[1] * self.shape[2], self.shape[3]), dy.dtype)
        np.put_along_axis(dx, self.where, dy[:, None], axis=1)
        return dx.reshape(self.shape)


class GlobalAverage:
    """The mean of each channel over the whole image."""

    def forward(self, x: Array, training: bool) -> Array:
        self.shape = x.shape
        mean: Array = x.mean(axis=(1, 2))
        return mean

    def backward(self, dy: Array) -> Array:
        _, H, W, _ = self.shape
        return np.broadcast_to(dy[:, None, None] / (H * W), self.shape)


def softmax_cross_entropy(logits: Array, labels: NDArray[np.int32]) -> tuple[float, Array]:
    """The mean loss, and the gradient of the logits (N, classes)."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(shifted)
    p /= p.sum(axis=1, keepdims=True)
    loss = -np.log(p[rows, labels]).mean()
    p[rows, labels] -= 1
    return float(loss), p / len(labels)


def _padded(x: Array, padding: tuple[int, int], value: float) -> Array:
    top, left = padding
    return np.pad(x, ((0, 0), (top, top), (left, left), (0, 0)), constant_values=value) if top or left else x


def _pair(value: int | list[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


if __name__ == "__main__":
    serve(Plain)

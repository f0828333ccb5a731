"""Gradient checks: every derivative that backward computes against a central difference of forward, in float64.

    numerical derivative = (f(x + h) - f(x - h)) / 2h        f = sum over outputs of y * dy, for a random dy

The error of a tensor is the largest difference over the derivatives checked, relative to the largest of them. Where f
has a kink within h (a relu at 0, a maximum that changes hands), the quotient is no derivative; such a number is tried
again with a smaller h, which steps over fewer kinks. A wrong gradient stays wrong for every h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bareconv import nn, ops
from bareconv.device import Array, Device
from bareconv.nn import models
from bareconv.nn.layer import Layer

TOLERANCE = 1e-6
_STEPS = (1e-5, 1e-6, 1e-7)  # h; rounding adds about 1e-15 / h


@dataclass(frozen=True)
class Check:
    """One layer or model on one device. ``error`` is not finite where a derivative was not, which fails."""

    name: str
    device: str
    error: float
    checked: int
    tolerance: float = TOLERANCE

    @property
    def passed(self) -> bool:
        """Within tolerance; NaN is not."""
        return self.error <= self.tolerance


def layer_cases() -> dict[str, tuple[Callable[[], Layer], tuple[int, ...]]]:
    """Name -> (a new layer, its input's shape with the batch): every layer, and the shapes that trip layers up."""
    image = (2, 7, 6, 4)
    norm_relu = [nn.Conv2d(4, 3, padding=1, bias=False), nn.BatchNorm(), nn.ReLU()]
    return {
        "conv": (lambda: nn.Conv2d(3, 3), image),
        "conv, same padding": (lambda: nn.Conv2d(3, 3, padding=1), image),
        "conv, overlapping strides": (lambda: nn.Conv2d(3, 3, stride=2, padding=1), image),
        "conv, stride larger than kernel": (lambda: nn.Conv2d(3, 2, stride=3), image),
        "conv, dilated": (lambda: nn.Conv2d(3, (2, 3), dilation=2, padding=1), image),
        "conv, groups": (lambda: nn.Conv2d(6, 3, groups=2), image),
        "conv, depthwise": (lambda: nn.Conv2d(4, 3, groups=4), image),
        "dense": (lambda: nn.Dense(5), (3, 7)),
        "max pool": (lambda: nn.MaxPool2d(2), image),
        "max pool, overlapping": (lambda: nn.MaxPool2d(3, stride=2, padding=1), image),
        "max pool, stride larger than kernel": (lambda: nn.MaxPool2d(2, stride=3), image),
        "average pool": (lambda: nn.AvgPool2d(2), image),
        "average pool, overlapping": (lambda: nn.AvgPool2d(3, stride=1, padding=1), image),
        "global max pool": (nn.GlobalMaxPool, image),
        "global average pool": (nn.GlobalAvgPool, image),
        "flatten": (nn.Flatten, image),
        "relu": (nn.ReLU, image),
        "leaky relu": (nn.LeakyReLU, image),
        "gelu": (nn.GELU, image),
        "batch norm": (nn.BatchNorm, image),
        "batch norm of features": (nn.BatchNorm, (6, 5)),
        "dropout": (lambda: nn.Dropout(0.4), image),
        "residual": (lambda: nn.Residual(nn.Sequential(norm_relu)), image),
        "residual with shortcut": (
            lambda: nn.Residual(nn.Conv2d(3, 3, 2, padding=1), nn.Conv2d(3, 1, 2, bias=False)),
            image,
        ),
    }


def check_all(device: Device, model: str, seed: int = 0) -> Iterator[Check]:
    """Check every layer, the loss, and a whole model of the zoo with the loss, on ``device``."""
    for name, (make, shape) in layer_cases().items():
        yield check_layer(name, make(), shape, device, seed)
    for smoothing in (0.0, 0.1):
        yield _check_loss(device, smoothing, seed)
    yield check_model(model, device, seed)


def check_layer(name: str, layer: Layer, shape: tuple[int, ...], device: Device, seed: int = 0) -> Check:
    """A layer's dX and the gradients of its parameters, on random inputs of ``shape`` (with the batch axis)."""
    rng = np.random.default_rng(seed)
    stack = nn.Sequential([layer])
    stack.build(shape[1:], "", nn.layer.Drawing(seed))
    with device.activate():
        for leaf in stack.leaves():
            leaf.to(device, "float64")
            for value in leaf.params.values():  # biases of 0 and gammas of 1 would hide mistakes
                value += device.asarray(rng.uniform(-0.3, 0.3, value.shape))
        x = device.asarray(rng.standard_normal(shape))
        dy = device.asarray(rng.standard_normal((shape[0], *stack.out_shape)))
        stack.forward(x, training=True)
        dx = stack.backward(dy)
        assert dx is not None
        pairs = [(x, dx)]
        for leaf in stack.leaves():
            pairs += [(leaf.params[key], leaf.grads[key]) for key in leaf.params]
        return _compare(name, device, lambda: (stack.forward(x, training=True) * dy).sum(), pairs, 12, rng)


def check_model(name: str, device: Device, seed: int = 0) -> Check:
    """A model of the zoo, on small images, from the loss down to every parameter."""
    rng = np.random.default_rng(seed)
    shape = (8, 8, 3) if name.startswith("resnet") else (14, 14, 1)
    model = models.by_name(name, shape, seed=seed).to(device, "float64")
    with device.activate():
        x = device.asarray(rng.standard_normal((4, *shape)))
        labels = device.asarray(np.arange(4) % 10)

        def loss() -> Array:
            return ops.softmax_cross_entropy_forward(model.forward(x, training=True), labels, 0.1)[0]

        _, p, t = ops.softmax_cross_entropy_forward(model.forward(x, training=True), labels, 0.1)
        model.backward(ops.softmax_cross_entropy_backward(p, t))
        gradients = model.gradients()
        pairs = [(value, gradients[key]) for key, value in model.parameters().items()]
        return _compare(f"model {name}", device, loss, pairs, 4, rng)


def _check_loss(device: Device, smoothing: float, seed: int) -> Check:
    rng = np.random.default_rng(seed)
    with device.activate():
        z = device.asarray(rng.standard_normal((4, 6)) * 3.0)
        labels = device.asarray(np.array([0, 5, 2, 2]))

        def loss() -> Array:
            return ops.softmax_cross_entropy_forward(z, labels, smoothing)[0]

        _, p, t = ops.softmax_cross_entropy_forward(z, labels, smoothing)
        pairs = [(z, ops.softmax_cross_entropy_backward(p, t))]
        name = f"softmax cross-entropy{', smoothed' if smoothing else ''}"
        return _compare(name, device, loss, pairs, 24, rng)


def _compare(
    name: str,
    device: Device,
    f: Callable[[], Array],
    pairs: list[tuple[Array, Array]],
    per_tensor: int,
    rng: np.random.Generator,
) -> Check:
    """Check ``per_tensor`` derivatives of each (variable, gradient); ``f`` reads the variables in place."""
    worst, checked = 0.0, 0
    for variable, gradient in pairs:
        flat, analytic = variable.reshape(-1), device.to_host(gradient).reshape(-1)
        scale = max(float(np.abs(analytic).max()), 1e-8)
        for index in _choose(analytic, per_tensor, rng):
            errors = []
            for h in _STEPS:
                errors.append(abs(_slope(f, flat, index, h) - float(analytic[index])) / scale)
                if errors[-1] <= TOLERANCE / 10:
                    break
            checked += 1
            worst = max(worst, min(errors)) if np.isfinite(errors).all() else float("inf")
    return Check(name, device.name, worst if checked else float("nan"), checked)


def _choose(gradient: Array, count: int, rng: np.random.Generator) -> list[int]:
    """All indices of a small gradient; of others half from the largest, half from all: many are exactly zero."""
    if gradient.size <= count:
        return list(range(gradient.size))
    largest = np.argsort(-np.abs(gradient), kind="stable")[: 4 * count]
    chosen = rng.choice(largest, size=-(-count // 2), replace=False).tolist()
    return chosen + rng.choice(gradient.size, size=count - len(chosen), replace=False).tolist()


def _slope(f: Callable[[], Array], flat: Array, index: int, h: float) -> float:
    """The central difference of f in one number, which is put back after."""
    kept = float(flat[index])
    flat[index] = kept + h
    above = float(f())
    flat[index] = kept - h
    below = float(f())
    flat[index] = kept
    return (above - below) / (2.0 * h)

"""The zoo: six models, each for any image size and number of classes that its layers fit.

mlp       784-10-10, two dense layers: the network that "CNN from scratch" write-ups tend to deliver
lenet5    LeCun et al., 1998, with relus and max pools in place of tanh and subsampling
small     two same-padded convs with pools, one hidden dense layer
basic     two convs, one pool, one hidden dense layer: the network of PyTorch's own MNIST example, without dropout
resnet9   the wide, shallow residual network of fast CIFAR-10 training
resnet18  He et al., 2015, in the form for 32 x 32 images: 3 x 3 stem, no first pool

``width`` is a factor on the filters and hidden units of any of them, as in Zagoruyko and Komodakis, "Wide residual
networks", 2016; the numbers below are those of width 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from bareconv.errors import UsageError
from bareconv.nn.blocks import Residual, Sequential
from bareconv.nn.layer import Layer, Shape
from bareconv.nn.layers import (
    BatchNorm,
    Conv2d,
    Dense,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    MaxPool2d,
    ReLU,
)
from bareconv.nn.model import Model


def mlp(input_shape: Shape = (28, 28, 1), classes: int = 10, seed: int = 0, width: float = 1.0) -> Model:
    """Dense 10, relu, dense; weights and biases uniform in +-0.5, as in the original write-up."""
    init = "uniform(0.5)"
    layers = [Flatten(), Dense(_scaled(10, width), init=init), ReLU(), Dense(classes, init=init)]
    return Model(layers, input_shape, seed=seed, name="mlp")


def lenet5(input_shape: Shape = (28, 28, 1), classes: int = 10, seed: int = 0, width: float = 1.0) -> Model:
    """Conv 6 5x5 (padded by 2), pool, conv 16 5x5, pool, dense 120, 84, classes; relus."""
    layers = [
        *(Conv2d(_scaled(6, width), 5, padding=2), ReLU(), MaxPool2d(2)),
        *(Conv2d(_scaled(16, width), 5), ReLU(), MaxPool2d(2)),
        *(Flatten(), Dense(_scaled(120, width)), ReLU(), Dense(_scaled(84, width)), ReLU(), Dense(classes)),
    ]
    return Model(layers, input_shape, seed=seed, name="lenet5")


def small(input_shape: Shape = (28, 28, 1), classes: int = 10, seed: int = 0, width: float = 1.0) -> Model:
    """Conv 16 3x3 same, relu, pool; conv 32 3x3 same, relu, pool; dense 128, relu, dense."""
    layers = [
        *(Conv2d(_scaled(16, width), 3, padding=1), ReLU(), MaxPool2d(2)),
        *(Conv2d(_scaled(32, width), 3, padding=1), ReLU(), MaxPool2d(2)),
        *(Flatten(), Dense(_scaled(128, width)), ReLU(), Dense(classes)),
    ]
    return Model(layers, input_shape, seed=seed, name="small")


def basic(input_shape: Shape = (28, 28, 1), classes: int = 10, seed: int = 0, width: float = 1.0) -> Model:
    """Conv 32 3x3, relu, conv 64 3x3, relu, pool; dense 128, relu, dense."""
    layers = [
        *(Conv2d(_scaled(32, width), 3), ReLU(), Conv2d(_scaled(64, width), 3), ReLU(), MaxPool2d(2)),
        *(Flatten(), Dense(_scaled(128, width)), ReLU(), Dense(classes)),
    ]
    return Model(layers, input_shape, seed=seed, name="basic")


def resnet9(input_shape: Shape = (32, 32, 3), classes: int = 10, seed: int = 0, width: float = 1.0) -> Model:
    """Conv 64; conv 128, pool, residual of two; conv 256, pool; conv 512, pool, residual of two; global max; dense."""

    def conv(filters: int) -> list[Layer]:
        return _conv_norm_relu(_scaled(filters, width))

    def residual(filters: int) -> Layer:
        return Residual(Sequential([*conv(filters), *conv(filters)]))

    layers = [
        *conv(64),
        *(*conv(128), MaxPool2d(2), residual(128)),
        *(*conv(256), MaxPool2d(2)),
        *(*conv(512), MaxPool2d(2), residual(512)),
        *(GlobalMaxPool(), Dense(classes)),
    ]
    return Model(layers, input_shape, seed=seed, name="resnet9")


def resnet18(input_shape: Shape = (32, 32, 3), classes: int = 10, seed: int = 0, width: float = 1.0) -> Model:
    """A 3x3 stem of 64, then eight residual blocks of two convs, 64 to 512 filters, global average, dense."""

    def block(filters: int, stride: int, project: bool) -> list[Layer]:
        body: list[Layer] = [*_conv_norm_relu(filters, stride)]
        body += [Conv2d(filters, 3, padding=1, bias=False), BatchNorm()]
        shortcut = Sequential([Conv2d(filters, 1, stride, bias=False), BatchNorm()]) if project else None
        return [Residual(Sequential(body), shortcut), ReLU()]

    layers: list[Layer] = [*_conv_norm_relu(_scaled(64, width))]
    for number, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        filters = _scaled(number, width)
        layers += block(filters, stride, project=stride > 1) + block(filters, 1, project=False)
    layers += [GlobalAvgPool(), Dense(classes)]
    return Model(layers, input_shape, seed=seed, name="resnet18")


def _conv_norm_relu(filters: int, stride: int = 1) -> list[Layer]:
    return [Conv2d(filters, 3, stride, padding=1, bias=False), BatchNorm(), ReLU()]


def _scaled(number: int, width: float) -> int:
    """So many filters or units at that width, at least one. Raises UsageError."""
    if not (math.isfinite(width) and width > 0):
        raise UsageError(f"width {width}: expected a factor of more than 0")
    return max(1, round(number * width))


ZOO: dict[str, Callable[..., Model]] = {f.__name__: f for f in (mlp, lenet5, small, basic, resnet9, resnet18)}


def by_name(name: str, input_shape: Shape, classes: int = 10, seed: int = 0, width: float = 1.0) -> Model:
    """The model of the zoo with that name; UsageError where there is none, or no model is that wide."""
    if name not in ZOO:
        raise UsageError(f"model {name!r}: expected one of {', '.join(ZOO)}")
    return ZOO[name](input_shape, classes, seed, width)

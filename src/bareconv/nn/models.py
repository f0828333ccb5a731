"""The zoo: six models, each for any image size and number of classes that its layers fit.

mlp       784-10-10, two dense layers: the network that "CNN from scratch" write-ups tend to deliver
lenet5    LeCun et al., 1998, with relus and max pools in place of tanh and subsampling
small     two same-padded convs with pools, one hidden dense layer
basic     two convs, one pool, one hidden dense layer: the network of PyTorch's own MNIST example, without dropout
resnet9   the wide, shallow residual network of fast CIFAR-10 training
resnet18  He et al., 2015, in the form for 32 x 32 images: 3 x 3 stem, no first pool
"""

from __future__ import annotations

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


def mlp(input_shape: Shape = (28, 28, 1), classes: int = 10, seed: int = 0) -> Model:
    """Dense 10, relu, dense; weights and biases uniform in +-0.5, as in the original write-up."""
    init = "uniform(0.5)"
    layers = [Flatten(), Dense(10, init=init), ReLU(), Dense(classes, init=init)]
    return Model(layers, input_shape, seed=seed, name="mlp")


def lenet5(input_shape: Shape = (28, 28, 1), classes: int = 10, seed: int = 0) -> Model:
    """Conv 6 5x5 (padded by 2), pool, conv 16 5x5, pool, dense 120, 84, classes; relus."""
    layers = [
        *(Conv2d(6, 5, padding=2), ReLU(), MaxPool2d(2)),
        *(Conv2d(16, 5), ReLU(), MaxPool2d(2)),
        *(Flatten(), Dense(120), ReLU(), Dense(84), ReLU(), Dense(classes)),
    ]
    return Model(layers, input_shape, seed=seed, name="lenet5")


def small(input_shape: Shape = (28, 28, 1), classes: int = 10, seed: int = 0) -> Model:
    """Conv 16 3x3 same, relu, pool; conv 32 3x3 same, relu, pool; dense 128, relu, dense."""
    layers = [
        *(Conv2d(16, 3, padding=1), ReLU(), MaxPool2d(2)),
        *(Conv2d(32, 3, padding=1), ReLU(), MaxPool2d(2)),
        *(Flatten(), Dense(128), ReLU(), Dense(classes)),
    ]
    return Model(layers, input_shape, seed=seed, name="small")


def basic(input_shape: Shape = (28, 28, 1), classes: int = 10, seed: int = 0) -> Model:
    """Conv 32 3x3, relu, conv 64 3x3, relu, pool; dense 128, relu, dense."""
    layers = [
        *(Conv2d(32, 3), ReLU(), Conv2d(64, 3), ReLU(), MaxPool2d(2)),
        *(Flatten(), Dense(128), ReLU(), Dense(classes)),
    ]
    return Model(layers, input_shape, seed=seed, name="basic")


def resnet9(input_shape: Shape = (32, 32, 3), classes: int = 10, seed: int = 0) -> Model:
    """Conv 64; conv 128, pool, residual of two; conv 256, pool; conv 512, pool, residual of two; global max; dense."""

    def residual(filters: int) -> Layer:
        return Residual(Sequential([*_conv_norm_relu(filters), *_conv_norm_relu(filters)]))

    layers = [
        *_conv_norm_relu(64),
        *(*_conv_norm_relu(128), MaxPool2d(2), residual(128)),
        *(*_conv_norm_relu(256), MaxPool2d(2)),
        *(*_conv_norm_relu(512), MaxPool2d(2), residual(512)),
        *(GlobalMaxPool(), Dense(classes)),
    ]
    return Model(layers, input_shape, seed=seed, name="resnet9")


def resnet18(input_shape: Shape = (32, 32, 3), classes: int = 10, seed: int = 0) -> Model:
    """A 3x3 stem of 64, then eight residual blocks of two convs, 64 to 512 filters, global average, dense."""

    def block(filters: int, stride: int, project: bool) -> list[Layer]:
        body: list[Layer] = [*_conv_norm_relu(filters, stride)]
        body += [Conv2d(filters, 3, padding=1, bias=False), BatchNorm()]
        shortcut = Sequential([Conv2d(filters, 1, stride, bias=False), BatchNorm()]) if project else None
        return [Residual(Sequential(body), shortcut), ReLU()]

    layers: list[Layer] = [*_conv_norm_relu(64)]
    for filters, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += block(filters, stride, project=stride > 1) + block(filters, 1, project=False)
    layers += [GlobalAvgPool(), Dense(classes)]
    return Model(layers, input_shape, seed=seed, name="resnet18")


def _conv_norm_relu(filters: int, stride: int = 1) -> list[Layer]:
    return [Conv2d(filters, 3, stride, padding=1, bias=False), BatchNorm(), ReLU()]


ZOO: dict[str, Callable[..., Model]] = {f.__name__: f for f in (mlp, lenet5, small, basic, resnet9, resnet18)}


def by_name(name: str, input_shape: Shape, classes: int = 10, seed: int = 0) -> Model:
    """The model of the zoo with that name; UsageError where there is none."""
    if name not in ZOO:
        raise UsageError(f"model {name!r}: expected one of {', '.join(ZOO)}")
    return ZOO[name](input_shape, classes, seed)

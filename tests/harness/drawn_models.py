"""Models at random: any layers that fit, in any order, in blocks around shortcuts."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from bareconv.errors import BareconvError
from bareconv.nn.blocks import Residual, Sequential
from bareconv.nn.layer import Drawing, Layer, Shape, layer_from_config
from bareconv.nn.layers import (
    GELU,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    LeakyReLU,
    MaxPool2d,
    ReLU,
)
from bareconv.ops.windows import Pair

CLASSES = 5
FILTERS = st.sampled_from((1, 2, 4, 6, 8, 17))
PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))
SMALL: tuple[int | Pair, ...] = (1, 3, (2, 3))
POOLS: tuple[int | Pair, ...] = (2, 3, (1, 2))
ACTIVATIONS = st.sampled_from((ReLU, ReLU, ReLU, LeakyReLU, GELU))


class Drawn:
    """A model's layers, for images of ``shape``; printed as they would be written."""

    def __init__(self, shape: Shape, layers: Sequence[Layer]) -> None:
        self.shape, self.layers = shape, layers

    def __repr__(self) -> str:
        return f"{self.shape} {list(self.layers)!r}"

    def make(self) -> list[Layer]:
        """New ones."""
        return copies(self.layers)


def copies(layers: Sequence[Layer]) -> list[Layer]:
    return [layer_from_config(layer.config()) for layer in layers]


def fits(layers: Sequence[Layer], shape: Shape) -> Shape | None:
    """The output's shape; None where they do not fit."""
    try:
        return Sequential(copies(layers)).build(shape, "", Drawing(0))
    except BareconvError:
        return None


@st.composite
def convs(draw: st.DrawFn, channels: int) -> Conv2d:
    """Of all kinds, also those that have no kernel."""
    groups = draw(st.sampled_from([g for g in (1, 1, 1, 2, 3) if channels % g == 0]))
    stride, dilation = draw(PAIRS), draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 2)]))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    return Conv2d(draw(FILTERS) * groups, kernel, stride, padding, dilation, groups, draw(st.booleans()))


@st.composite
def pools(draw: st.DrawFn) -> Layer:
    kind, size = draw(st.sampled_from((MaxPool2d, AvgPool2d))), draw(PAIRS)
    stride = draw(st.one_of(st.none(), PAIRS))
    padding = draw(st.sampled_from([0, 0, 1])) if min(size) > 1 else 0
    return kind(size, stride, padding)


@st.composite
def residuals(draw: st.DrawFn, shape: Shape, depth: int) -> Layer:
    """Around a body that keeps the shape; or two ways, by windows of one and of three, that change it alike."""
    if len(shape) == 1:
        return Residual(Sequential([Dense(shape[0], draw(st.booleans())), *draw(trail())]))
    if draw(st.booleans()):
        body: list[Layer] = []
        for _ in range(draw(st.integers(1, 2))):
            if depth and draw(st.booleans()):
                body.append(draw(residuals(shape, depth - 1)))
            else:
                size = draw(st.sampled_from([1, 3]))
                body.append(Conv2d(shape[2], size, padding=size // 2, bias=draw(st.booleans())))
            body += draw(trail())
        return Residual(Sequential(body))
    filters, stride = draw(FILTERS), draw(st.integers(1, 3))
    near = [Conv2d(filters, 1, stride, bias=draw(st.booleans())), *draw(trail())]
    far = [Conv2d(filters, 3, stride, 1, bias=draw(st.booleans())), *draw(trail())]
    if draw(st.booleans()):
        near, far = far, near
    return Residual(Sequential(near), Sequential(far))


@st.composite
def trail(draw: st.DrawFn) -> list[Layer]:
    """What often follows, and keeps the shape."""
    layers: list[Layer] = []
    if draw(st.booleans()):
        layers.append(BatchNorm())
    if draw(st.booleans()):
        layers.append(draw(ACTIVATIONS)())
    if draw(st.integers(0, 5)) == 0:
        layers.append(Dropout(0.3))
    return layers


@st.composite
def models(draw: st.DrawFn) -> Drawn:
    """From a small image to ``CLASSES`` logits."""
    start: Shape = (draw(st.integers(4, 11)), draw(st.integers(4, 11)), draw(st.integers(1, 3)))
    shape, layers = start, list[Layer]()

    def add(*more: Layer) -> None:
        nonlocal shape
        if (out := fits(more, shape)) is not None:
            layers.extend(more)
            shape = out

    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("conv", "conv", "conv and pool", "pool", "residual", "trail")))
        if kind == "conv":
            add(draw(convs(shape[2])), *draw(trail()))
        elif kind == "conv and pool":
            conv = Conv2d(draw(FILTERS), draw(st.sampled_from(SMALL)), padding=draw(st.integers(0, 1)))
            add(conv, *draw(trail()), MaxPool2d(draw(st.sampled_from(POOLS))))
        elif kind == "pool":
            add(draw(pools()))
        elif kind == "residual":
            add(draw(residuals(shape, 2)))
        else:
            add(*draw(trail()))
    add(draw(st.sampled_from((Flatten, Flatten, GlobalAvgPool, GlobalMaxPool)))())
    for _ in range(draw(st.integers(0, 2))):
        kind = draw(st.sampled_from(("dense", "residual")))
        add(
            *(
                [Dense(draw(FILTERS), draw(st.booleans())), *draw(trail())]
                if kind == "dense"
                else [draw(residuals(shape, 0))]
            )
        )
    add(Dense(CLASSES))
    return Drawn(start, layers)

"""Layers made of layers: one after another, and around a shortcut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from bareconv.device import Array
from bareconv.errors import ShapeError
from bareconv.nn.layer import Drawing, Layer, Shape, Watch


@dataclass(eq=False)
class Sequential(Layer):
    """One layer after another; each is named by its kind and its number among them: conv1, relu1, conv2, ..."""

    kind: ClassVar[str] = "block"

    layers: Sequence[Layer]

    def _build(self, drawing: Drawing) -> Shape:
        shape, seen = self.in_shape, Counter[str]()
        for layer in self.layers:
            seen[layer.kind] += 1
            prefix = f"{self.name}." if self.name else ""
            shape = layer.build(shape, f"{prefix}{layer.kind}{seen[layer.kind]}", drawing)
        return shape

    def forward(self, x: Array, training: bool = False, step: int = 0, watch: Watch | None = None) -> Array:
        for layer in self.layers:
            x = layer.forward(x, training, step, watch)
        return x

    def backward(self, dy: Array, need_dx: bool = True, watch: Watch | None = None) -> Array | None:
        """Stops at the first layer that has parameters, unless dX itself is needed."""
        first = 0 if need_dx else next((i for i, layer in enumerate(self.layers) if layer.parameter_count()), 0)
        gradient: Array | None = dy
        for i in range(len(self.layers) - 1, first - 1, -1):
            assert gradient is not None
            gradient = self.layers[i].backward(gradient, need_dx or i > first, watch)
        for layer in self.layers[:first]:
            for leaf in layer.leaves():
                leaf.forget()
        return gradient

    def leaves(self) -> Iterator[Layer]:
        for layer in self.layers:
            yield from layer.leaves()


@dataclass(eq=False)
class Residual(Layer):
    """y = body(x) + shortcut(x); without a shortcut y = body(x) + x.   dx = dbody + dshortcut (or + dy).

    He, Zhang, Ren, Sun, "Deep residual learning for image recognition", 2015.
    """

    kind: ClassVar[str] = "residual"

    body: Layer
    shortcut: Layer | None = None
    add: Layer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.add = Add()

    def _build(self, drawing: Drawing) -> Shape:
        out = self.body.build(self.in_shape, f"{self.name}.body", drawing)
        beside = self.in_shape
        if self.shortcut is not None:
            beside = self.shortcut.build(self.in_shape, f"{self.name}.shortcut", drawing)
        if out != beside:
            raise ShapeError(f"the body gives {out}, the shortcut {beside}; expected the same shape of both")
        self.add.build(out, f"{self.name}.add", drawing)
        return out

    def forward(self, x: Array, training: bool = False, step: int = 0, watch: Watch | None = None) -> Array:
        beside = x if self.shortcut is None else self.shortcut.forward(x, training, step, watch)
        # A new array: the body's last layer may have kept its output.
        y: Array = self.body.forward(x, training, step, watch) + beside
        if watch:
            watch("forward", self.add, y)
        return y

    def backward(self, dy: Array, need_dx: bool = True, watch: Watch | None = None) -> Array | None:
        beside: Array | None = dy
        if self.shortcut is not None:
            beside = self.shortcut.backward(dy, need_dx, watch)
        dx = self.body.backward(dy, need_dx, watch)
        if dx is not None and beside is not None:
            dx = dx + beside
        if watch:
            watch("backward", self.add, dx)
        return dx if need_dx else None

    def leaves(self) -> Iterator[Layer]:
        if self.shortcut is not None:
            yield from self.shortcut.leaves()
        yield from self.body.leaves()
        yield self.add


class Add(Layer):
    """The sum in a residual block: the block computes it; this stands for it in profiles and summaries."""

    kind: ClassVar[str] = "add"

"""What no kernel covers: the layers themselves, in float32, between two launches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bareconv.device import Array, namespace
from bareconv.nn.layer import Layer, Shape
from bareconv.plan.cuda.fused.base import Fused
from bareconv.plan.cuda.parameters import Layout
from bareconv.plan.cuda.record import Buffer

WHY = "no kernel, the layer itself"


@dataclass(frozen=True)
class Lying:
    """A tensor in memory: its buffer, its layout, the shape of an image."""

    buffer: Buffer
    layout: Layout
    shape: Shape

    def read(self, views: Any, images: int) -> Array:
        """A float32 copy (images, *shape)."""
        pixels = self._pixels(views, images)
        return from_kept(pixels).reshape(images, *self.shape)

    def write(self, views: Any, images: int, values: Array) -> None:
        """Round and store; padding channels keep what they hold, which is zero."""
        pixels = self._pixels(views, images)
        pixels[...] = to_kept(values.reshape(pixels.shape), pixels.dtype.itemsize)

    def _pixels(self, views: Any, images: int) -> Array:
        flat = views(self.buffer)[: images * self.layout.pitch]
        return flat.reshape(images, self.layout.taps, -1)[..., : self.layout.channels]


def from_kept(kept: Array) -> Array:
    """bf16 bits, or float32 -> a float32 copy."""
    xp = namespace(kept)
    if kept.dtype == xp.float32:
        return kept.copy()
    return xp.left_shift(kept.astype(xp.uint32), 16).view(xp.float32)


def to_kept(values: Array, itemsize: int) -> Array:
    """float32 -> bf16 bits, to nearest, where an element has two bytes; itself otherwise."""
    xp = namespace(values)
    values = xp.ascontiguousarray(values, dtype=xp.float32)
    if itemsize == 4:
        return values
    bits = values.view(xp.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return xp.where(xp.isnan(values), xp.uint32(0x7FFF), rounded).astype(xp.uint16)


@dataclass
class _Forward:
    layers: list[Layer]
    x: Lying
    y: Lying
    training: bool

    def __call__(self, views: Any, images: int, step: int) -> None:
        y = self.x.read(views, images)
        for layer in self.layers:
            y = layer.forward(y, self.training, step)
        self.y.write(views, images, y)


@dataclass
class _Backward:
    layers: list[Layer]
    dy: Lying
    dx: Lying | None
    add: bool
    partials: dict[str, Buffer]

    def __call__(self, views: Any, images: int, step: int) -> None:
        dx: Any = self.dy.read(views, images)
        for i, layer in reversed(list(enumerate(self.layers))):
            dx = layer.backward(dx, i > 0 or self.dx is not None)
            for name, gradient in layer.grads.items():
                views(self.partials[f"{layer.name}.{name}"])[...] = gradient.ravel()
        if self.dx is not None:
            self.dx.write(views, images, self.dx.read(views, images) + dx if self.add else dx)


class ByLayer(Fused):
    """Forward and backward by the node's layers."""

    def forward(self) -> None:
        step, node = self.step, self.node
        x, y = self._lying(node.inputs[0]), self._lying(node.output)
        y.buffer.zeros = True
        work = _Forward(node.layers, x, y, step.training)
        step.record.host(work, f"{node.kind}: {WHY}", [x.buffer, y.buffer])

    def backward(self) -> None:
        step, node = self.step, self.node
        dy = self._lying(node.output, gradient=True)
        partials = {
            name: step.partial(name, 1)
            for name in (f"{layer.name}.{key}" for layer in node.layers for key in layer.params)
        }
        into, dx = step.into(node.inputs[0]), None
        if into is not None:
            dx = self._lying(node.inputs[0], gradient=True)
            dx.buffer.zeros = True
        uses = [dy.buffer, *partials.values(), *([dx.buffer] if dx is not None else [])]
        work = _Backward(node.layers, dy, dx, into is not None and into[1], partials)
        step.record.host(work, f"{node.kind}: {WHY}", uses)

    def _lying(self, tensor: Any, gradient: bool = False) -> Lying:
        buffer = self.step.gradient(tensor) if gradient else self.step.tensor(tensor)
        return Lying(buffer, self.step.layouts[tensor], tensor.shape)

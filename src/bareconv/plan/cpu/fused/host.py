"""What no kernel covers: the layers themselves, on views of the same arrays, between two programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bareconv.nn.layer import Layer
from bareconv.plan.cpu.step import Array, Fused


@dataclass
class _Forward:
    layers: list[Layer]
    x: Array
    y: Array
    training: bool

    def __call__(self, views: Any, add_gradient: Any, images: int, step: int) -> None:
        y = views(*self.x, images).copy()  # a layer may keep it
        for layer in self.layers:
            y = layer.forward(y.reshape(images, *layer.in_shape), self.training, step)
        into = views(*self.y, images)
        into[...] = y.reshape(into.shape)


@dataclass
class _Backward:
    layers: list[Layer]
    dy: Array
    dx: Array | None
    add: bool

    def __call__(self, views: Any, add_gradient: Any, images: int, step: int) -> None:
        dx = views(*self.dy, images).copy()
        for i, layer in reversed(list(enumerate(self.layers))):
            dx = layer.backward(dx.reshape(images, *layer.out_shape), i > 0 or self.dx is not None)
            for name, gradient in layer.grads.items():
                add_gradient(f"{layer.name}.{name}", gradient)
        if self.dx is not None:
            into = views(*self.dx, images)
            into[...] = into + dx.reshape(into.shape) if self.add else dx.reshape(into.shape)


class ByLayer(Fused):
    """Forward and backward by the node's layers."""

    def _host(self, work: Any, *arrays: Array | None) -> None:
        uses = [array[0] for array in arrays if array is not None]
        self.record.host(work, f"{self.node.kind}: no kernel, the layer itself", uses)

    def forward(self) -> None:
        x, y = self.step.tensor(self.node.inputs[0]), self.step.tensor(self.node.output)
        self._host(_Forward(self.node.layers, x, y, self.step.training), x, y)

    def backward(self) -> None:
        dy, into = self.step.gradient(self.node.output), self.step.into(self.node.inputs[0])
        dx, add = ((into[0], into[1]), into[2]) if into else (None, False)
        self._host(_Backward(self.node.layers, dy, dx, add), dy, dx)

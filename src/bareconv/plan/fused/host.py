"""What no kernel covers: the layer itself, on views of the same arrays, between two programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bareconv.nn.layer import Layer
from bareconv.plan.step import Array, Fused


@dataclass
class _Forward:
    layer: Layer
    x: Array
    y: Array
    training: bool

    def __call__(self, views: Any, add_gradient: Any, images: int, step: int) -> None:
        x = views(*self.x, images).reshape(images, *self.layer.in_shape)
        y = views(*self.y, images)
        y[...] = self.layer.forward(x.copy(), self.training, step).reshape(y.shape)


@dataclass
class _Backward:
    layer: Layer
    dy: Array
    dx: Array | None
    add: bool

    def __call__(self, views: Any, add_gradient: Any, images: int, step: int) -> None:
        dy = views(*self.dy, images).reshape(images, *self.layer.out_shape)
        dx = self.layer.backward(dy.copy(), self.dx is not None)
        for name, gradient in self.layer.grads.items():
            add_gradient(f"{self.layer.name}.{name}", gradient)
        if self.dx is not None:
            assert dx is not None
            into = views(*self.dx, images)
            into[...] = into + dx.reshape(into.shape) if self.add else dx.reshape(into.shape)


class ByLayer(Fused):
    """Forward and backward by the layer."""

    def _host(self, work: Any, *arrays: Array | None) -> None:
        uses = [array[0] for array in arrays if array is not None]
        self.record.host(work, f"{self.node.kind}: no kernel, the layer itself", uses)

    def forward(self) -> None:
        x, y = self.step.tensor(self.node.inputs[0]), self.step.tensor(self.node.output)
        self._host(_Forward(self.node.layers[0], x, y, self.step.training), x, y)

    def backward(self) -> None:
        dy, into = self.step.gradient(self.node.output), self.step.into(self.node.inputs[0])
        dx, add = ((into[0], into[1]), into[2]) if into else (None, False)
        self._host(_Backward(self.node.layers[0], dy, dx, add), dy, dx)

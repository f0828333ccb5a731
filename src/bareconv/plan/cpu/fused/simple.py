"""The operations that need no more than a kernel or two: pools, relu, sums, dropout, flattening."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bareconv import ops
from bareconv.kernels.cpu.elementwise import Elementwise
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.pool import PoolBackward, PoolForward
from bareconv.nn import layers
from bareconv.plan.cpu.covers import has_kernel
from bareconv.plan.cpu.memory import Buffer
from bareconv.plan.cpu.step import Fused, plane_of


class Pool(Fused):
    """Maximum or mean of windows, or of whole images."""

    def _how(self) -> dict[str, Any]:
        layer: Any = self.node.layers[0]
        return {"window": layer.window.kernel, "stride": layer.window.stride, "mean": "Avg" in self.node.kind}

    def forward(self) -> None:
        (x, x_plane), (y, y_plane) = self.step.tensor(self.node.inputs[0]), self.step.tensor(self.node.output)
        how = self._how()
        self.where = None if how["mean"] else self.step.where(self.node)
        kernel = PoolForward(self.target, x_plane, y_plane, **how, keep_where=self.where is not None)
        self.images(kernel, x=x, y=y, where=self.where)

    def backward(self) -> None:
        dy, plane = self.step.gradient(self.node.output)
        into = self.step.sum_into(self.node.inputs[0])
        if into is not None:
            dx, dx_plane, finish = into
            self.images(PoolBackward(self.target, dx_plane, plane, **self._how()), dy=dy, where=self.where, dx=dx)
            finish()


class Relu(Fused):
    """A relu that no other kernel could take along."""

    def forward(self) -> None:
        (x, x_plane), (y, y_plane) = self.step.tensor(self.node.inputs[0]), self.step.tensor(self.node.output)
        self.images(Elementwise(self.target, "relu", x_plane, x_plane, y_plane), a=x, y=y)

    def backward(self) -> None:
        (dy, plane), (y, y_plane) = self.step.gradient(self.node.output), self.step.tensor(self.node.output)
        into = self.step.sum_into(self.node.inputs[0])
        if into is not None:
            dx, dx_plane, finish = into
            self.images(Elementwise(self.target, "gate", plane, y_plane, dx_plane), a=dy, b=y, y=dx)
            finish()


class AddRelu(Fused):
    """The sum of a residual block, and the relu that may follow it."""

    def forward(self) -> None:
        (a, a_plane), (b, b_plane) = (self.step.tensor(tensor) for tensor in self.node.inputs)
        y, y_plane = self.step.tensor(self.node.output)
        operation = "add relu" if self.node.relu else "add"
        self.images(Elementwise(self.target, operation, a_plane, b_plane, y_plane), a=a, b=b, y=y)

    def backward(self) -> None:
        dy, plane = self.step.gradient(self.node.output)
        if self.node.relu:
            y, y_plane = self.step.tensor(self.node.output)
            self.images(Elementwise(self.target, "gate", plane, y_plane, plane), a=dy, b=y, y=dy)
        body, beside = self.node.inputs
        # Both can be dY itself where the body's last operation only reads it, before anything adds to the other's
        # gradient. What has only the body's gradient to wait for may do with dY what it likes.
        last = body.producer
        reads = last is not None and len(body.readers) == 1 and last.inputs[0] is not beside and has_kernel(last)
        only_reads = reads and last is not None and last.kind in ("Conv2d", "BatchNorm")
        for tensor, shares in ((body, only_reads), (beside, body is not beside)):
            if not (shares and self.step.same_gradient(tensor, (dy, plane))):
                self.step.pass_on(tensor, dy, plane)


class FlattenView(Fused):
    """The same numbers under another shape."""

    def forward(self) -> None:
        x, x_plane = self.step.tensor(self.node.inputs[0])
        if x_plane.border == (0, 0):
            self.step.same_array(self.node.output, (x, plane_of(self.node.output.shape)))
            return
        y, _ = self.step.tensor(self.node.output)
        image = plane_of(self.node.inputs[0].shape)
        self.images(Elementwise(self.target, "copy", x_plane, image, image), a=x, y=y)

    def backward(self) -> None:
        tensor = self.node.inputs[0]
        dy, _ = self.step.gradient(self.node.output)
        plane = plane_of(tensor.shape)
        if not (len(tensor.readers) == 1 and self.step.same_gradient(tensor, (dy, plane))):
            self.step.pass_on(tensor, dy, plane)


@dataclass
class _DrawMask:
    """Draws a dropout's mask, the same as the reference's."""

    layer: layers.Dropout
    mask: Buffer
    plane: Plane

    def __call__(self, views: Any, add_gradient: Any, images: int, step: int) -> None:
        into, layer = views(self.mask, self.plane, images), self.layer
        like = np.empty((images, *layer.in_shape), into.dtype)
        into[...] = ops.dropout_mask(like, layer.p, layer._seed, step, layer._layer).reshape(into.shape)


class DropoutMask(Fused):
    """Multiplication with a mask, which Python draws between two programs."""

    def forward(self) -> None:
        layer = self.node.layers[0]
        assert isinstance(layer, layers.Dropout)
        (x, x_plane), (y, y_plane) = self.step.tensor(self.node.inputs[0]), self.step.tensor(self.node.output)
        self.mask = self.step.buffer(f"{layer.name} mask", x_plane.height * x_plane.width * x_plane.channels)
        self.plane = Plane(x_plane.height, x_plane.width, x_plane.channels)
        self.record.host(_DrawMask(layer, self.mask, self.plane), "draws the mask", [self.mask])
        self.images(Elementwise(self.target, "multiply", x_plane, self.plane, y_plane), a=x, b=self.mask, y=y)

    def backward(self) -> None:
        dy, plane = self.step.gradient(self.node.output)
        into = self.step.sum_into(self.node.inputs[0])
        if into is not None:
            dx, dx_plane, finish = into
            self.images(Elementwise(self.target, "multiply", plane, self.plane, dx_plane), a=dy, b=self.mask, y=dx)
            finish()

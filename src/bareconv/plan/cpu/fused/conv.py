"""Convolution, with the relu and the max pool that follow it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv.kernels.cpu.correlate import Correlate
from bareconv.kernels.cpu.elementwise import Elementwise
from bareconv.kernels.cpu.gradient import Spread, WeightGradient
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.sparse import SparseBackward
from bareconv.kernels.cpu.winograd import Winograd, WinogradWeights, pays
from bareconv.nn import layers
from bareconv.ops.windows import Pair
from bareconv.plan.cpu import packing
from bareconv.plan.cpu.covers import is_sparse
from bareconv.plan.cpu.memory import Buffer
from bareconv.plan.cpu.record import Recorder
from bareconv.plan.cpu.step import Fused, Step, plane_of
from bareconv.plan.graph import Node


class ConvRelu(Fused):
    """Forward directly or by Winograd; backward through the live gradients only, or dense."""

    def __init__(self, step: Step, node: Node) -> None:
        super().__init__(step, node)
        layer = node.layers[0]
        assert isinstance(layer, layers.Conv2d)
        self.layer, self.window, self.pool = layer, layer.window, node.pool
        self.cells: Pair = self.pool.window.kernel if self.pool else (1, 1)
        self.name = f"{layer.name}.weight"
        self.places = step.parameters.places(self.name)
        self.origin = (-self.window.padding[0], -self.window.padding[1])
        self.where: Buffer | None = None

    def forward(self) -> None:
        step, layer, window = self.step, self.layer, self.window
        (x, x_plane), (y, y_plane) = step.tensor(self.node.inputs[0]), step.tensor(self.node.output)
        self.where = step.where(self.node) if self.pool else None
        size = layer.out_shape[0], layer.out_shape[1]
        operands: dict[str, Any] = {"x": x, "bias": step.bias(layer), "y": y, "where": self.where}
        after: dict[str, Any] = {
            "pool": self.cells,
            "bias": layer.bias,
            "relu": self.node.relu,
            "keep_where": self.where is not None,
        }
        shape = (window.kernel, size, window.stride, window.dilation)
        if pays(x_plane, layer.filters, *shape, self.cells, self.target.lanes):
            fast = Winograd(self.target, x_plane, y_plane, layer.filters, size, self.origin, **after)
            self._winograd(fast, self.places, operands)
            return
        kernel = Correlate(self.target, x_plane, y_plane, layer.filters, *shape, self.origin, **after)
        packed = step.packed(self.name, packing.correlate_places(kernel, self.places))
        self.images(kernel, **operands, weight=packed)

    def _winograd(self, kernel: Winograd, weight: NDArray[np.int32], operands: dict[str, Any]) -> None:
        """A convolution by transforms: of the weights (3, 3, C, K) at the start of the step, then of the images."""
        step, C = self.step, kernel.x.channels
        rows = packing.in_registers(weight.reshape(9 * C, -1), self.target.lanes)
        in_rows = step.packed(self.name, rows.reshape(-1))
        packed = step.buffer(f"{self.name} transformed", kernel.packed_elements, per="plan", zeros=True)
        transform = WinogradWeights(self.target, C, rows.shape[1], kernel.panel)

        def prepare(record: Recorder, wait: bool) -> None:
            record.node = self.layer.name
            record.shared(transform, C, 1, wait=wait, weight=in_rows, packed=packed)

        step.transforms.append(prepare)
        scratch = step.buffer(f"{self.name} tiles", kernel.scratch_elements, per="worker")
        self.images(kernel, kernel.images, **operands, weight=packed, scratch=scratch)

    def backward(self) -> None:
        if is_sparse(self.node, self.target):
            self._sparse()
            return
        step, layer = self.step, self.layer
        (dy, dy_plane), (y, y_plane) = step.gradient(self.node.output), step.tensor(self.node.output)
        border = gradient_border(layer) if step.trains(self.node.inputs[0]) else (0, 0)
        out_plane = plane_of(layer.out_shape, border)
        # A sparse backward leaves anything in the border, which is to be zeros here.
        spoilt = border != (0, 0) and any(is_sparse(reader, self.target) for reader in self.node.output.readers)
        if self.node.relu or self.pool or layer.bias or border != dy_plane.border or spoilt:
            covered = out_plane.height % self.cells[0] == 0 and out_plane.width % self.cells[1] == 0
            out = step.buffer(f"d {layer.name}", out_plane.size, zeros=border != (0, 0) or not covered)
            self.images(
                Spread(self.target, dy_plane, y_plane, out_plane, self.cells, self.node.relu, layer.bias),
                dy=dy,
                y=y if self.node.relu else None,
                where=self.where,
                out=out,
                sums=step.partial(f"{layer.name}.bias") if layer.bias else None,
            )
            dy = out
        self._input_gradient(dy, out_plane)
        self._weight_gradient(dy, out_plane)

    def _input_gradient(self, dy: Buffer, dy_plane: Plane) -> None:
        into = self.step.into(self.node.inputs[0])
        if into is None:
            return
        dx, dx_plane, add = into
        if not add and any(u > size for u, size in zip(self.window.stride, self.window.kernel, strict=True)):
            # Pixels that no window covers: zeros each time anew, for others may add to them afterwards.
            nothing = self.step.buffer(f"{dx.name} zeros", dx_plane.size, zeros=True)
            self.images(Elementwise(self.target, "copy", dx_plane, dx_plane, dx_plane), a=nothing, y=dx)
        for kernel, rows, columns in input_gradients(self.layer, self.target, dy_plane, dx_plane, add):
            places = packing.turned_round(self.places, rows, columns)
            shape = (kernel.taps, kernel.size, kernel.step, kernel.dilation)
            if pays(dy_plane, kernel.filters, *shape, (1, 1), self.target.lanes):
                fast = Winograd(self.target, dy_plane, dx_plane, kernel.filters, kernel.size, kernel.origin, add=add)
                self._winograd(fast, places, {"x": dy, "y": dx})
            else:
                packed = self.step.packed(self.name, packing.correlate_places(kernel, places))
                self.images(kernel, x=dy, weight=packed, y=dx)

    def _weight_gradient(self, dy: Buffer, dy_plane: Plane) -> None:
        x, x_plane = self.step.tensor(self.node.inputs[0])
        shape = (self.window.kernel, self.window.stride, self.window.dilation)
        kernel = WeightGradient(self.target, x_plane, dy_plane, *shape, self.origin)
        self.images(kernel, x=x, dy=dy, gradient=self.step.partial(self.name))

    def _sparse(self) -> None:
        step, layer, pool = self.step, self.layer, self.pool
        assert pool is not None
        (x, x_plane), (y, y_plane) = step.tensor(self.node.inputs[0]), step.tensor(self.node.output)
        dy, dy_plane = step.gradient(self.node.output)
        into = step.sum_into(self.node.inputs[0])
        assert into is None or into[1] == x_plane
        planes = (x_plane, dy_plane, y_plane)
        kernel = SparseBackward(
            *(self.target, *planes, self.window.kernel, self.cells, self.origin, layer.bias, into is not None)
        )
        positions = packing.run_positions(kernel, self.places.shape)
        self.images(
            kernel,
            x=x,
            dy=dy,
            y=y,
            where=self.where,
            weight=step.packed(self.name, packing.run_places(kernel, self.places)) if into else None,
            gradient=step.own_gradient(self.name, positions, layer.filters * self.window.kernel[0] * kernel.run),
            sums=step.partial(f"{layer.name}.bias") if layer.bias else None,
            dx=into[0] if into else None,
            places=step.buffer(f"{layer.name} places", kernel.list_elements, "int32", "worker"),
            values=step.buffer(f"{layer.name} values", kernel.list_elements, per="worker"),
        )
        if into:
            into[2]()


def input_gradients(
    layer: layers.Conv2d, target: Any, dy: Plane, dx: Plane, add: bool
) -> list[tuple[Correlate, slice, slice]]:
    """The correlations that make dX, each with the taps that it takes: one for each class of pixels (``_classes``)."""
    found: list[tuple[Correlate, slice, slice]] = []
    down, across = (_classes(layer, axis) for axis in (0, 1))
    (sh, sw), dilation = layer.window.stride, layer.window.dilation
    for y, rows, R, top in down:
        for x, columns, S, left in across:
            size = -(-(dx.height - y) // sh), -(-(dx.width - x) // sw)
            if min(size) < 1 or R == 0 or S == 0:  # no such pixels, or no tap reaches them: dX is zero there
                continue
            geometry = ((R, S), size, (1, 1), dilation, (top, left), (sh, sw), (y, x))
            found.append((Correlate(target, dy, dx, layer.in_shape[2], *geometry, add=add), rows, columns))
    return found


def gradient_border(layer: layers.Conv2d) -> Pair:
    """The zeros around dY that the correlations for dX read."""
    border = [0, 0]
    for axis in (0, 1):
        length, out = layer.in_shape[axis], layer.out_shape[axis]
        stride, dilation = layer.window.stride[axis], layer.window.dilation[axis]
        for first, _, taps, origin in _classes(layer, axis):
            pixels = -(-(length - first) // stride)
            if pixels >= 1 and taps:
                end = origin + pixels - 1 + (taps - 1) * dilation
                border[axis] = max(border[axis], -origin, end - (out - 1))
    return border[0], border[1]


def _classes(layer: layers.Conv2d, axis: int) -> list[tuple[int, slice, int, int]]:
    """The classes of pixels of dX that a stride makes along one axis.

    Each is (first pixel, taps, how many, where dY is read). Pixel h takes part in tap r of output p where
    h + pad = p * stride + r * dilation. With a stride, dilation is 1: the pixels with (h + pad) % stride = a meet the
    taps a, a + stride, ...; tap a + j stride comes from output (h + pad - a) / stride - j.
    """
    kernel, stride = layer.window.kernel[axis], layer.window.stride[axis]
    pad, dilation = layer.window.padding[axis], layer.window.dilation[axis]
    if stride == 1:
        return [(0, slice(None), kernel, pad - (kernel - 1) * dilation)]
    found = []
    for a in range(stride):
        first, taps = (a - pad) % stride, len(range(a, kernel, stride))
        found.append((first, slice(a, None, stride), taps, (first + pad - a) // stride - (taps - 1)))
    return found

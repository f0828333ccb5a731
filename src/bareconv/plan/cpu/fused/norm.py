"""Batch norm, with the relu and the max pool that follow it."""

from __future__ import annotations

from typing import Any

from bareconv.kernels.cpu.norm import (
    NormApply,
    NormBackward,
    NormBackwardFinish,
    NormBackwardSums,
    NormFinish,
    NormScale,
    NormSums,
)
from bareconv.nn import layers
from bareconv.plan.cpu.covers import has_kernel
from bareconv.plan.cpu.fused.conv import gradient_border
from bareconv.plan.cpu.memory import Buffer
from bareconv.plan.cpu.record import Place, Recorder
from bareconv.plan.cpu.step import Fused, Step, pitch
from bareconv.plan.graph import Node


class NormRelu(Fused):
    """Sums, then all channels at once, then every pixel: forward and backward alike."""

    def __init__(self, step: Step, node: Node) -> None:
        super().__init__(step, node)
        layer = node.layers[0]
        assert isinstance(layer, layers.BatchNorm)
        self.layer = layer
        self.cells = node.pool.window.kernel if node.pool else (1, 1)
        self.where: Buffer | None = None

    def forward(self) -> None:
        step, layer, outside = self.step, self.layer, self.step.outside
        (x, x_plane), (y, y_plane) = step.tensor(self.node.inputs[0]), step.tensor(self.node.output)
        C = x_plane.channels
        self.coefficients = step.buffer(f"{layer.name} coefficients", 4 * C, per="plan", zeros=True)
        for key in layer.buffers:
            outside.running[f"{layer.name}.{key}"] = Buffer(f"{layer.name}.{key}", C, per="outside")
        statistics = {key: outside.running[f"{layer.name}.{key}"] for key in ("mean", "var")}
        affine: dict[str, Any] = {key: step.weight(f"{layer.name}.{key}") for key in ("gamma", "beta")}
        channels = {**affine, **statistics, "coefficients": self.coefficients}
        if step.training:
            sums = self._sums()
            self.images(NormSums(self.target, x_plane), x=x, pivot=statistics["mean"], sums=sums)
            finish = NormFinish(
                *(self.target, C, x_plane.height * x_plane.width, pitch(sums), layer.momentum, layer.eps)
            )
            self.record.shared(finish, C, C, **self._totals(sums), **channels)
        else:

            def scale(record: Recorder) -> None:
                record.node = self.node.name
                record.shared(NormScale(self.target, C, layer.eps), C, C, wait=False, **channels)

            step.scales.append(scale)
        self.where = step.where(self.node) if self.node.pool else None
        apply = NormApply(self.target, x_plane, y_plane, self.cells, self.node.relu, self.where is not None)
        self.images(apply, x=x, coefficients=self.coefficients, y=y, where=self.where)

    def _sums(self) -> Buffer:
        """Two numbers a channel, in double precision, for each worker."""
        C = self.step.tensor(self.node.inputs[0])[1].channels
        return self.step.buffer(f"{self.layer.name} sums", 2 * C, "float64", "worker", zeros=True)

    def _totals(self, sums: Buffer) -> dict[str, Any]:
        outside = self.step.outside
        return {"sums": Place(sums, shared=True), "workers": outside.workers, "images": outside.images}

    def backward(self) -> None:
        step, layer = self.step, self.layer
        (x, x_plane), (y, y_plane) = step.tensor(self.node.inputs[0]), step.tensor(self.node.output)
        dy, dy_plane = step.gradient(self.node.output)
        C, sums = x_plane.channels, self._sums()
        terms = step.buffer(f"{layer.name} terms", 3 * C, per="plan", zeros=True)
        given: dict[str, Any] = {"x": x, "dy": dy, "y": y if self.node.relu else None, "where": self.where}
        given["coefficients"] = self.coefficients
        after = (self.cells, self.node.relu)
        self.images(NormBackwardSums(self.target, x_plane, dy_plane, y_plane, *after), **given, sums=sums)
        self.record.shared(
            NormBackwardFinish(self.target, C, x_plane.height * x_plane.width, pitch(sums)),
            *(C, C),
            **self._totals(sums),
            gamma=step.weight(f"{layer.name}.gamma"),
            coefficients=self.coefficients,
            dgamma=step.partial(f"{layer.name}.gamma", first=True),
            dbeta=step.partial(f"{layer.name}.beta", first=True),
            terms=terms,
        )
        if not step.trains(self.node.inputs[0]):
            return
        self._aim_at_convolution()
        into = step.sum_into(self.node.inputs[0])
        assert into is not None
        dx, dx_plane, finish = into
        kernel = NormBackward(self.target, x_plane, dy_plane, y_plane, dx_plane, *after)
        self.images(kernel, **given, terms=terms, dx=dx)
        finish()

    def _aim_at_convolution(self) -> None:
        """Where a bare convolution comes before, dX goes straight into the borders that its own backward reads."""
        tensor = self.node.inputs[0]
        before = tensor.producer
        if before is None or len(tensor.readers) > 1 or len(before.layers) > 1 or not has_kernel(before):
            return
        layer = before.layers[0]
        if isinstance(layer, layers.Conv2d) and not layer.bias:
            needed = self.step.trains(before.inputs[0])
            self.step.gradient_with_border(tensor, gradient_border(layer) if needed else (0, 0))

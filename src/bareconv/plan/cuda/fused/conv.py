"""Convolution, with the relu and the max pool that follow it."""

from __future__ import annotations

from bareconv.kernels.cuda import correlate, pool
from bareconv.kernels.cuda.geometry import Convolution
from bareconv.kernels.cuda.kernel import padded
from bareconv.kernels.cuda.norm import Parts
from bareconv.kernels.cuda.weight_gradient import gradient_of_weight
from bareconv.nn import layers
from bareconv.plan.cuda.fused.base import Fused
from bareconv.plan.cuda.record import Buffer
from bareconv.plan.cuda.step import Step
from bareconv.plan.graph import Node


def convolution_of(layer: layers.Conv2d) -> Convolution:
    """The shape of that layer."""
    height, width, channels = layer.in_shape
    window = layer.window
    return Convolution(
        height, width, channels, layer.filters, window.kernel, window.stride, window.padding, window.dilation
    )


class ConvRelu(Fused):
    """y = pool(relu(conv(x) + bias)); the pool in a kernel of its own."""

    def __init__(self, step: Step, node: Node) -> None:
        super().__init__(step, node)
        layer = node.layers[0]
        assert isinstance(layer, layers.Conv2d)
        self.layer, self.convolution = layer, convolution_of(layer)
        self.counts_statistics = False  # for a batch norm that follows
        self.statistics: tuple[Buffer, Parts] | None = None
        self.before_pool: Buffer | None = None

    @classmethod
    def covers(cls, step: Step, node: Node) -> bool:
        layer = node.layers[0]
        pooled = node.pool
        return isinstance(layer, layers.Conv2d) and layer.groups == 1 and (pooled is None or pool.covers(pooled.window))

    def forward(self) -> None:
        step, node, layer = self.step, self.node, self.layer
        y = step.tensor(node.output)
        if node.pool is not None:
            P, Q = self.convolution.output
            elements = step.batch * P * Q * padded(layer.filters)
            y = self.before_pool = step.buffer(f"{layer.name} before its pool", elements)
        kernel = correlate.forward(
            *(self.convolution, step.precision, step.batch, step.limits),
            bias=layer.bias,
            relu=node.relu and node.pool is None,
            statistics=self.counts_statistics,
        )
        statistics = None
        if self.counts_statistics:
            counted = correlate.statistics_of(kernel)
            statistics = step.buffer(f"{layer.name} statistics", counted.size, "float32")
            self.statistics = statistics, Parts(counted.rows)
        step.launch(
            kernel,
            x=step.tensor(node.inputs[0]),
            weight=step.copy(f"{layer.name}.weight"),
            bias=step.master(f"{layer.name}.bias") if layer.bias else None,
            y=y,
            statistics=statistics,
        )
        if node.pool is not None:
            self.where = step.where(node.output, node.pool.window)
            shape = (*self.convolution.output, layer.filters)
            kernel = pool.max_pool(
                *(step.precision, step.batch, shape, node.pool.window), where=self.where is not None, relu=node.relu
            )
            step.launch(kernel, x=y, y=step.tensor(node.output), where=self.where)

    def backward(self) -> None:
        step, node, layer = self.step, self.node, self.layer
        if node.pool is None:
            dy = self.masked_gradient()
        else:
            shape = (*self.convolution.output, layer.filters)
            assert self.before_pool is not None
            dy = step.buffer(f"d {layer.name} before its pool", self.before_pool.elements)
            kernel = pool.max_pool_backward(step.precision, step.batch, shape, node.pool.window)
            step.launch(kernel, dy=step.gradient(node.output), where=self.where, dx=dy)
        tensor = node.inputs[0]
        made = gradient_of_weight(self.convolution, step.precision, step.batch, step.limits, bias=layer.bias)
        bias = step.partial(f"{layer.name}.bias", made.parts) if layer.bias else None
        partial = step.partial(f"{layer.name}.weight", made.parts)
        step.launch(made.kernel, x=step.tensor(tensor), dy=dy, partial=partial, partial_bias=bias)
        mask = step.masks(tensor)
        into = step.into(tensor)
        if into is None:
            return
        dx, add = into
        for kernel in correlate.gradient_of_input(
            *(self.convolution, step.precision, step.batch, step.limits), mask=mask, add=add
        ):
            x = step.tensor(tensor) if mask else None
            step.launch(kernel, dy=dy, weight=step.copy(f"{layer.name}.weight"), dx=dx, x=x)

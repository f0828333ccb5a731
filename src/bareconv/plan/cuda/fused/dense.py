"""Dense, with the relu that follows it."""

from __future__ import annotations

from bareconv.kernels.cuda import dense
from bareconv.nn import layers
from bareconv.plan.cuda.fused.base import Fused
from bareconv.plan.cuda.record import BRANCH, TRUNK, Buffer
from bareconv.plan.cuda.step import Step
from bareconv.plan.graph import Node


class DenseRelu(Fused):
    """y = relu(x w + bias)."""

    def __init__(self, step: Step, node: Node) -> None:
        super().__init__(step, node)
        layer = node.layers[0]
        assert isinstance(layer, layers.Dense)
        layout = step.layouts[node.inputs[0]]
        self.layer = layer
        self.shape = dense.DenseShape(layout.taps, layout.channels, layer.units)

    def forward(self) -> None:
        raise NotImplementedError

"""The fused operations, by the class of their first layer: each writes down its calls, forward and backward."""

from bareconv.plan.cpu.covers import has_kernel
from bareconv.plan.cpu.fused.conv import ConvRelu
from bareconv.plan.cpu.fused.dense import DenseRelu
from bareconv.plan.cpu.fused.host import ByLayer
from bareconv.plan.cpu.fused.norm import NormRelu
from bareconv.plan.cpu.fused.simple import AddRelu, DropoutMask, FlattenView, Pool, Relu
from bareconv.plan.cpu.step import Fused, Step
from bareconv.plan.graph import Node

FUSED: dict[str, type[Fused]] = {
    "Conv2d": ConvRelu,
    "BatchNorm": NormRelu,
    "Dense": DenseRelu,
    "MaxPool2d": Pool,
    "AvgPool2d": Pool,
    "GlobalMaxPool": Pool,
    "GlobalAvgPool": Pool,
    "ReLU": Relu,
    "Flatten": FlattenView,
    "Dropout": DropoutMask,
    "Add": AddRelu,
}


def fused(step: Step, node: Node) -> Fused:
    """What does that node."""
    return FUSED[node.kind](step, node) if has_kernel(node) else ByLayer(step, node)

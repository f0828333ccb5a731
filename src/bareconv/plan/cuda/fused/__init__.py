"""The fused operations, by the class of their first layer: each writes down its launches, forward and backward."""

from bareconv.plan.cuda.fused.base import Fused
from bareconv.plan.cuda.fused.conv import ConvRelu
from bareconv.plan.cuda.fused.dense import DenseRelu
from bareconv.plan.cuda.fused.host import ByLayer
from bareconv.plan.cuda.fused.norm import NormRelu
from bareconv.plan.cuda.fused.simple import AddRelu, DropoutMask, FlattenView, Pool, Relu
from bareconv.plan.cuda.step import Step
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
    """What does that node: kernels, or where there are none the layers themselves."""
    kind = FUSED.get(node.kind)
    return kind(step, node) if kind is not None and kind.covers(step, node) else ByLayer(step, node)

"""What there are kernels for, and which: asked of a node or a layer and the processor, before anything is planned."""

from __future__ import annotations

from bareconv.kernels.cpu.narrow import is_narrow
from bareconv.kernels.cpu.target import Target
from bareconv.nn import layers
from bareconv.nn.layer import Layer, features
from bareconv.plan.graph import Node

WHERE_CELLS = 256  # pixels of the largest window whose maximum's position fits into a byte
SUMMED_WEIGHTS = 1 << 14  # of a dense layer: up to here each worker sums up a gradient of its own


def has_kernel(node: Node) -> bool:
    """Whether kernels cover that node; the layer itself does it otherwise."""
    layer = node.layers[0]
    if type(layer) is layers.Conv2d:
        return layer.groups == 1 and (layer.window.stride == (1, 1) or layer.window.dilation == (1, 1))
    if type(layer) is layers.MaxPool2d or type(layer) is layers.AvgPool2d:
        window = layer.window
        return window.padding == (0, 0) and features(window.kernel) <= WHERE_CELLS
    if type(layer) is layers.GlobalMaxPool:
        return features(layer.in_shape[:2]) <= WHERE_CELLS
    return node.kind in ("BatchNorm", "Dense", "GlobalAvgPool", "ReLU", "Flatten", "Dropout", "Add")


def is_updated_at_once(layer: Layer) -> bool:
    """Whether that layer's weights are updated where their gradient is made: a dense layer's, unless they are few."""
    return type(layer) is layers.Dense and features(layer.params["weight"].shape) > SUMMED_WEIGHTS


def lays_out_its_gradient(layer: Layer, target: Target) -> bool:
    """Whether the kernel of that dense layer's gradient has an order of its own for it."""
    if type(layer) is not layers.Dense or is_updated_at_once(layer):
        return False
    return is_narrow(target, *layer.params["weight"].shape)


def is_sparse(node: Node, target: Target) -> bool:
    """Whether the backward of that node goes through the live gradients only: after a relu and a pool few are left.

    A run of a window, S*C numbers, should fill most of a register.
    """
    layer, pool = node.layers[0], node.pool
    if not isinstance(layer, layers.Conv2d) or pool is None or not node.relu or not has_kernel(node):
        return False
    window = layer.window
    plain = window.stride == window.dilation == (1, 1)
    return plain and features(pool.window.kernel) >= 4 and window.kernel[1] * layer.in_shape[2] * 2 > target.lanes

"""A model as a graph of fused operations: what a plan is made from, whatever the device.

Layers that run as one are one node: convolution, relu and max pool; batch norm, relu and max pool; dense and relu;
residual sum and relu. A max pool joins where its windows do not overlap, and nothing else reads what is between.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bareconv.nn import blocks
from bareconv.nn.layer import Layer, Shape
from bareconv.nn.layers import MaxPool2d, ReLU
from bareconv.nn.model import Model

POOL_CELLS = 9  # pixels of the largest window that joins its convolution: they are in registers together


@dataclass(eq=False)
class Tensor:
    """What a node gives: ``shape`` without the batch axis, and who reads it."""

    name: str
    shape: Shape
    readers: list[Node] = field(default_factory=list)
    producer: Node | None = None


@dataclass(eq=False)
class Node:
    """A fused operation: its ``layers`` in order, the first of which gives it its ``kind``."""

    layers: list[Layer]
    inputs: list[Tensor]
    output: Tensor

    @property
    def kind(self) -> str:
        """The class name of the first layer."""
        return type(self.layers[0]).__name__

    @property
    def name(self) -> str:
        """ "conv1 + relu1 + pool1"."""
        return " + ".join(layer.name for layer in self.layers)

    @property
    def relu(self) -> bool:
        return any(type(layer) is ReLU for layer in self.layers)

    @property
    def pool(self) -> MaxPool2d | None:
        return next((layer for layer in self.layers[1:] if type(layer) is MaxPool2d), None)


@dataclass
class Graph:
    """Nodes in order of execution, from ``input`` to ``output``."""

    input: Tensor
    output: Tensor
    nodes: list[Node]


def trained_tensors(graph: Graph) -> set[Tensor]:
    """Those that depend on a parameter: what goes backward needs their gradients."""
    found: set[Tensor] = set()
    for node in graph.nodes:
        if any(layer.params for layer in node.layers) or not found.isdisjoint(node.inputs):
            found.add(node.output)
    return found


def graph_of(model: Model, drop: tuple[type[Layer], ...] = ()) -> Graph:
    """The fused graph of that model, without the layers of the types ``drop`` (dropout, for evaluation)."""
    made = _Maker(drop)
    start = Tensor("images", model.input_shape)
    end = made.layer(model.body, start)
    nodes = _fuse(made.nodes)
    return Graph(start, end if end.producer else start, nodes)


class _Maker:
    def __init__(self, drop: tuple[type[Layer], ...]) -> None:
        self.nodes: list[Node] = []
        self.drop = drop

    def layer(self, layer: Layer, x: Tensor) -> Tensor:
        if isinstance(layer, blocks.Sequential):
            for inner in layer.layers:
                x = self.layer(inner, x)
            return x
        if isinstance(layer, blocks.Residual):
            beside = x if layer.shortcut is None else self.layer(layer.shortcut, x)
            return self.node(layer.add, [self.layer(layer.body, x), beside])
        return x if isinstance(layer, self.drop) else self.node(layer, [x])

    def node(self, layer: Layer, inputs: list[Tensor]) -> Tensor:
        node = Node([layer], inputs, Tensor(layer.name, layer.out_shape))
        node.output.producer = node
        for tensor in inputs:
            tensor.readers.append(node)
        self.nodes.append(node)
        return node.output


def _fuse(nodes: list[Node]) -> list[Node]:
    """Join each node with what follows it, as far as one kernel does both."""
    kept: list[Node] = []
    for node in nodes:
        before = node.inputs[0].producer
        if before is not None and len(node.inputs) == 1 and len(node.inputs[0].readers) == 1 and _joins(before, node):
            before.layers += node.layers
            before.output = node.output
            node.output.producer = before
        else:
            kept.append(node)
    return kept


def _joins(before: Node, node: Node) -> bool:
    layer = node.layers[0]
    if type(layer) is ReLU:
        return before.kind in ("Conv2d", "BatchNorm", "Dense", "Add") and not before.relu
    if type(layer) is MaxPool2d and before.kind in ("Conv2d", "BatchNorm") and before.pool is None:
        window = layer.window
        apart = window.stride == window.kernel and window.padding == (0, 0)
        fits = window.kernel[0] * window.kernel[1] <= POOL_CELLS
        return apart and fits and len(before.output.shape) == 3
    return False

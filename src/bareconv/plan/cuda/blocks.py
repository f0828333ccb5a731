"""What a step consists of: nodes of the graph, and runs of nodes that are one kernel where the device has room for it.

The first two convolutions of a network on small images are a stem, from the pixels to the second pool. The dense layers
at its end, the loss, and the way back through them are a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bareconv.plan.cuda.fused import fused
from bareconv.plan.cuda.fused.conv import ConvRelu
from bareconv.plan.cuda.fused.head import HeadBlock
from bareconv.plan.cuda.fused.norm import NormRelu
from bareconv.plan.cuda.fused.stem import StemBlock
from bareconv.plan.cuda.step import Step
from bareconv.plan.graph import Graph, Node, Tensor


class Block(Protocol):
    """Launches forward, and backward in their turn. ``output``: what a later block reads."""

    @property
    def name(self) -> str: ...

    @property
    def output(self) -> Tensor: ...

    def forward(self) -> None: ...

    def backward(self) -> None: ...


@dataclass
class Blocks:
    """All of a step, in order. ``reads_pixels``: the first takes the images as they come. ``has_loss``: the last."""

    all: list[Block]
    reads_pixels: bool
    has_loss: bool


def blocks_of(step: Step) -> Blocks:
    """How the nodes of the step's graph are done."""
    nodes = list(step.graph.nodes)
    found: list[Block] = []
    stem = StemBlock.of(step, nodes)
    if stem is not None:
        found.append(stem)
        nodes = nodes[2:]
    head = HeadBlock.of(step, nodes)
    if head is not None:
        nodes = nodes[: -len(head.nodes)]
    singles = [fused(step, node) for node in nodes]
    for one in singles:
        if isinstance(one, NormRelu):
            before = next((other for other in singles if other.node.output is one.node.inputs[0]), None)
            if isinstance(before, ConvRelu) and len(before.node.output.readers) == 1:
                one.take_statistics_of(before)
    found += singles
    if head is not None:
        found.append(head)
    pixels = stem is not None or (head is not None and head.reads_pixels)
    return Blocks(found, pixels, head is not None)


def with_sums(graph: Graph) -> Graph:
    """The graph with every residual sum joined to the batch norm right before it, where nothing else reads that.

    The graph that is given is used up: its tensors are the new one's.
    """
    nodes: list[Node] = []
    for node in graph.nodes:
        last = nodes[-1] if nodes else None
        if last is not None and _takes_sum(last, node):
            joined = Node([*last.layers, *node.layers], [last.inputs[0], node.inputs[1]], node.output)
            for tensor, old in ((last.inputs[0], last), (node.inputs[1], node)):
                tensor.readers = [joined if reader is old else reader for reader in tensor.readers]
            node.output.producer = joined
            nodes[-1] = joined
        else:
            nodes.append(node)
    return Graph(graph.input, graph.output, nodes)


def _takes_sum(norm: Node, node: Node) -> bool:
    if node.kind != "Add" or norm.kind != "BatchNorm" or norm.pool is not None or len(norm.inputs) > 1:
        return False
    follows = norm.output is node.inputs[0] and norm.output is not node.inputs[1] and len(norm.output.readers) == 1
    only = len(norm.inputs[0].readers) == 1  # whose gradient the kernels write, and do not add to
    return follows and only and not (norm.relu and node.relu)

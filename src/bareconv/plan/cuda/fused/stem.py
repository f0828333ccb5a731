"""The first two convolutions of a network on small images, from the pixels on, as one kernel each way."""

from __future__ import annotations

from collections.abc import Sequence

from bareconv.kernels.cuda.kernel import Kernel
from bareconv.kernels.cuda.stem import StemBackward, stem_backward, stem_forward
from bareconv.kernels.cuda.stem_block import Stem
from bareconv.nn import layers
from bareconv.plan.cuda.fused.conv import convolution_of
from bareconv.plan.cuda.record import Operand
from bareconv.plan.cuda.step import Step
from bareconv.plan.graph import Node, Tensor

PIXEL_CHANNELS = 4  # of images, at most


class StemBlock:
    """Two nodes: convolution, relu and perhaps a 2 x 2 max pool, twice."""

    def __init__(self, step: Step, nodes: Sequence[Node], forward: Kernel, backward: StemBackward | None) -> None:
        self.step, self.nodes, self._forward, self._backward = step, list(nodes), forward, backward

    @classmethod
    def of(cls, step: Step, nodes: Sequence[Node]) -> StemBlock | None:
        """Of the first two nodes, where they are of that kind and the device has room for it; else None."""
        if len(nodes) < 2 or not all(map(_fits, nodes[:2])):
            return None
        first, second = nodes[:2]
        channels = step.graph.input.shape[-1]
        follows = first.inputs == [step.graph.input] and second.inputs == [first.output]
        alone = len(step.graph.input.readers) == len(first.output.readers) == 1
        if not (follows and alone) or channels > PIXEL_CHANNELS:
            return None
        a, b = (_layer(node) for node in (first, second))
        stem = Stem(
            *(convolution_of(a), first.pool is not None, convolution_of(b), second.pool is not None),
            mean=step.model.mean,
            std=step.model.std,
        )
        shape = stem, step.precision, step.batch, step.limits
        forward = stem_forward(*shape, training=step.training)
        backward = stem_backward(*shape) if step.training else None
        if forward is None or (step.training and backward is None):
            return None
        return cls(step, (first, second), forward, backward)

    @property
    def name(self) -> str:
        return " + ".join(node.name for node in self.nodes)

    @property
    def output(self) -> Tensor:
        return self.nodes[1].output

    def forward(self) -> None:
        step = self.step
        self.where = step.like(self.output, f"{self.output.name} where", "uint8")
        step.launch(self._forward, y=step.tensor(self.output), where=self.where, **self._read())

    def backward(self) -> None:
        step, made = self.step, self._backward
        assert made is not None
        a, b = (_layer(node).name for node in self.nodes)
        partials = {
            "partial_weight_a": step.partial(f"{a}.weight", made.parts),
            "partial_bias_a": step.partial(f"{a}.bias", made.parts),
            "partial_weight_b": step.partial(f"{b}.weight", made.parts),
            "partial_bias_b": step.partial(f"{b}.bias", made.parts),
        }
        operands: dict[str, Operand] = {**self._read(), **partials}
        operands |= {"dy": step.gradient(self.output), "where": self.where}
        for kernel in made.kernels:
            step.launch(kernel, **{name: operands[name] for name in kernel.operands if name in operands})

    def _read(self) -> dict[str, Operand]:
        """What both directions read."""
        step, outside = self.step, self.step.outside
        a, b = (_layer(node).name for node in self.nodes)
        return {
            "pixels": outside.pixels,
            "order": outside.order,
            "weight_a": step.copy(f"{a}.weight"),
            "bias_a": step.master(f"{a}.bias"),
            "weight_b": step.copy(f"{b}.weight"),
            "bias_b": step.master(f"{b}.bias"),
        }


def _layer(node: Node) -> layers.Conv2d:
    layer = node.layers[0]
    assert isinstance(layer, layers.Conv2d)
    return layer


def _fits(node: Node) -> bool:
    layer = node.layers[0]
    if not (isinstance(layer, layers.Conv2d) and layer.groups == 1 and layer.bias and node.relu):
        return False
    window = layer.window
    pooled = node.pool is None or node.pool.window.kernel == (2, 2)
    return pooled and window.stride == window.dilation == (1, 1)

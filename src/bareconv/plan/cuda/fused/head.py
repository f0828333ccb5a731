"""The end of a classifier: its last dense layers, the loss, and the way back through them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bareconv.kernels.cuda import dense
from bareconv.kernels.cuda.dense import PixelGradient
from bareconv.kernels.cuda.head import head
from bareconv.kernels.cuda.kernel import Kernel
from bareconv.plan.cuda.fused.dense import Taught, bias_of, dense_of, gradients, shape_of
from bareconv.plan.cuda.record import BRANCH, TRUNK, Buffer
from bareconv.plan.cuda.step import Step
from bareconv.plan.graph import Node, Tensor

MOST_LAYERS = 3  # that the kernel takes


class HeadBlock:
    """Dense layers, one after another, to the logits: a product by the first, and all the rest as one kernel."""

    def __init__(self, step: Step, dense_nodes: Sequence[Node], flatten: Node | None, kernel: Kernel) -> None:
        self.step, self._dense, self._kernel = step, list(dense_nodes), kernel
        self._shapes = [shape_of(step, node) for node in dense_nodes]
        self._layers = [dense_of(node) for node in dense_nodes]
        self._hidden: list[Buffer] = []
        self._gradients: list[Buffer] = []
        self._pixels = _on_pixels(step, self._shapes[0]) if flatten is not None else None
        self.nodes = [*([flatten] if flatten is not None and self._pixels else []), *dense_nodes]

    @classmethod
    def of(cls, step: Step, nodes: Sequence[Node]) -> HeadBlock | None:
        """Of as many of the last nodes as fit; None where the last one alone does not."""
        chain: list[Node] = []
        for node in reversed(nodes):
            follows = not chain or (node.output is chain[0].inputs[0] and len(node.output.readers) == 1)
            if node.kind != "Dense" or not follows or len(chain) == MOST_LAYERS:
                break
            chain.insert(0, node)
        for first in range(len(chain)):
            part = chain[first:]
            if part[-1].relu:
                return None
            shape = shape_of(step, part[0])
            kernel = head(
                step.precision,
                [dense_of(node).units for node in part],
                [node.relu for node in part],
                _splits(step, part, shape),
                step.batch,
                step.limits,
                smoothing=step.smoothing,
                backward=step.training,
            )
            if kernel is not None:
                return cls(step, part, _flatten_of_images(step, part), kernel)
        return None

    @property
    def name(self) -> str:
        return " + ".join([*(node.name for node in self._dense), *(["loss"] if self.step.training else [])])

    @property
    def output(self) -> Tensor:
        return self._dense[-1].output

    @property
    def reads_pixels(self) -> bool:
        """Whether the first layer takes the images as they come."""
        return self._pixels is not None

    def forward(self) -> None:
        step, outside = self.step, self.step.outside
        first, shape = self._layers[0], self._shapes[0]
        splits = _splits(step, self._dense, shape)
        sums = step.sums(shape.units, splits, f"{first.name} sums")
        w = step.copy(f"{first.name}.weight")
        if self._pixels is not None:
            step.launch(self._pixels[0], pixels=outside.pixels, order=outside.order, w=w, sums=sums)
        else:
            kernel = dense.product(step.precision, shape, step.batch, step.limits)
            step.launch(kernel, x=step.tensor(self._dense[0].inputs[0]), w=w, sums=sums)
        operands: dict[str, Any] = {"sums": sums, "labels": outside.labels, "order": outside.order}
        for i, (layer, node) in enumerate(zip(self._layers, self._dense, strict=True)):
            operands[f"bias_{i}"] = bias_of(step, layer)
            if i:
                operands[f"w_{i}"] = step.copy(f"{layer.name}.weight")
            if i + 1 < len(self._layers):
                operands[f"h_{i}"] = step.tensor(node.output)
                self._hidden.append(step.tensor(node.output))
            if step.training:
                self._gradients.append(step.like(node.output, f"d {node.output.name}"))
                operands[f"dz_{i}"] = self._gradients[i]
        operands |= {"image_loss": step.image_loss, "image_hit": step.image_hit}
        if step.training:
            operands["position"] = step.position
        else:
            operands["logits"] = step.tensor(self.output)
        step.launch(self._kernel, **{name: operands[name] for name in self._kernel.operands if name in operands})

    def backward(self) -> None:
        step = self.step
        tensor, dz = self._dense[0].inputs[0], self._gradients[0]
        above = [
            Taught(self._layers[i], self._shapes[i], hidden, self._gradients[i])
            for i, hidden in enumerate(self._hidden, start=1)
        ]
        if self._pixels is not None:
            self._pixel_gradient(dz)
            gradients(step, above, None)
        else:
            first = Taught(self._layers[0], self._shapes[0], step.tensor(tensor), dz)
            gradients(step, [first, *above], tensor)

    def _pixel_gradient(self, dz: Buffer) -> None:
        step, layer = self.step, self._layers[0]
        assert self._pixels is not None
        made = self._pixels[1]
        step.record.branch = BRANCH
        step.launch(
            made.kernel,
            pixels=step.outside.pixels,
            order=step.outside.order,
            dy=dz,
            weight_partial=step.partial(f"{layer.name}.weight", made.parts),
            bias_partial=step.partial(f"{layer.name}.bias", made.parts) if layer.bias else None,
        )
        step.record.branch = TRUNK


def _splits(step: Step, part: Sequence[Node], shape: dense.DenseShape) -> int:
    if _flatten_of_images(step, part) is not None and _on_pixels(step, shape) is not None:
        return 1
    return dense.splits_of(step.precision, shape, step.batch, step.limits)


def _flatten_of_images(step: Step, part: Sequence[Node]) -> Node | None:
    """The node between the images and the first layer, where there is but that."""
    flatten = part[0].inputs[0].producer
    if flatten is None or flatten.kind != "Flatten" or flatten.inputs[0] is not step.graph.input:
        return None
    alone = len(step.graph.input.readers) == len(flatten.output.readers) == 1
    return flatten if alone else None


def _on_pixels(step: Step, shape: dense.DenseShape) -> tuple[Kernel, PixelGradient] | None:
    """The first layer's product and gradient straight from the images, where that fits."""
    arguments = step.precision, shape, step.batch, step.model.mean, step.model.std, step.limits
    product, gradient = dense.pixel_product(*arguments), dense.pixel_gradient(*arguments)
    return (product, gradient) if product is not None and gradient is not None else None

"""Dense layers, with the relu that follows them."""

from __future__ import annotations

from bareconv.kernels.cpu.dense import ColumnSums, DenseForward, DenseInputGradient, DenseWeightUpdate
from bareconv.kernels.cpu.elementwise import Elementwise
from bareconv.kernels.cpu.gradient import WeightGradient
from bareconv.kernels.cpu.narrow import NarrowForward, NarrowWeightGradient, Pixels, is_narrow
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.program import WHOLE
from bareconv.nn import layers
from bareconv.nn.layer import features
from bareconv.plan.cpu import packing
from bareconv.plan.cpu.covers import is_updated_at_once
from bareconv.plan.cpu.memory import Buffer
from bareconv.plan.cpu.step import Fused, Step, pitch
from bareconv.plan.graph import Graph, Node

TURNS = 64  # features dealt out together, where there are enough


def reads_pixels(graph: Graph, step: Step) -> Node | None:
    """The narrow dense layer that reads nothing but the flattened images, where there is one.

    It takes pixels as they are.
    """
    flatten = graph.nodes[0]
    if flatten.kind != "Flatten" or len(graph.input.readers) != 1 or len(flatten.output.readers) != 1:
        return None
    first = flatten.output.readers[0]
    layer = first.layers[0]
    narrow = type(layer) is layers.Dense and is_narrow(step.target, *layer.params["weight"].shape)
    return first if narrow and not is_updated_at_once(layer) else None


class DenseRelu(Fused):
    """Lanes of units, or of features where units are few; the update with the gradient where weights are many."""

    def __init__(self, step: Step, node: Node) -> None:
        super().__init__(step, node)
        layer = node.layers[0]
        assert isinstance(layer, layers.Dense)
        self.layer, self.name = layer, f"{layer.name}.weight"
        self.features, self.units = layer.params["weight"].shape

    def forward(self) -> None:
        step = self.step
        x, _ = step.tensor(self.node.inputs[0])
        y, _ = step.tensor(self.node.output)
        given = {"bias": step.bias(self.layer), "y": y}
        after = (self.layer.bias, self.node.relu)
        if is_narrow(self.target, self.features, self.units):
            spacing, pixels, source = self._narrow_source()
            narrow = NarrowForward(self.target, self.features, self.units, spacing, *after, pixels)
            packed = step.packed(self.name, packing.by_unit(narrow.width, step.parameters.places(self.name)))
            self.images(narrow, WHOLE, **given, **source, weight=packed)
            return
        kernel = DenseForward(self.target, self.features, self.units, pitch(x), *after)
        self.images(kernel, WHOLE, **given, x=x, weight=step.weight(self.name))

    def _narrow_source(self) -> tuple[int, Pixels | None, dict[str, Buffer]]:
        """What a narrow layer reads: (elements from image to image, how pixels become numbers, operands)."""
        step = self.step
        if reads_pixels(step.graph, step) is self.node:
            pixels = Pixels(step.model.mean, step.model.std)
            return features(step.graph.input.shape), pixels, {"x": step.outside.pixels, "order": step.outside.order}
        x, _ = step.tensor(self.node.inputs[0])
        return pitch(x), None, {"x": x}

    def backward(self) -> None:
        step = self.step
        dy, plane = step.gradient(self.node.output)
        if self.node.relu:
            y, _ = step.tensor(self.node.output)
            self.images(Elementwise(self.target, "gate", plane, plane, plane), WHOLE, a=dy, b=y, y=dy)
        if self.layer.bias:
            sums = step.partial(f"{self.layer.name}.bias")
            self.images(ColumnSums(self.target, self.units), WHOLE, y=dy, sums=sums)
        into = step.sum_into(self.node.inputs[0])
        if into is not None:
            dx, _, finish = into
            kernel = DenseInputGradient(self.target, self.features, self.units, pitch(dx))
            scratch = step.buffer(f"{self.layer.name} turned", kernel.scratch_elements, per="worker")
            self.images(kernel, WHOLE, dy=dy, weight=step.weight(self.name), dx=dx, scratch=scratch)
            finish()
        self._weight_gradient(dy, plane)

    def _weight_gradient(self, dy: Buffer, plane: Plane) -> None:
        step, parameters = self.step, self.step.parameters
        if self.name in parameters.mapped:
            spacing, pixels, source = self._narrow_source()
            narrow = NarrowWeightGradient(self.target, self.features, self.units, spacing, pixels)
            positions = packing.by_unit_positions(narrow.width, (self.features, self.units))
            gradient = step.own_gradient(self.name, positions, self.units * narrow.width)
            self.images(narrow, WHOLE, **source, dy=dy, gradient=gradient)
            return
        x, x_plane = step.tensor(self.node.inputs[0])
        if self.name in parameters.summed:
            kernel = WeightGradient(self.target, x_plane, plane, (1, 1))
            self.images(kernel, WHOLE, x=x, dy=dy, gradient=step.partial(self.name))
            return
        blocked = step.batch_size > DenseWeightUpdate.ROWS
        update = DenseWeightUpdate(self.target, self.features, self.units, pitch(x), step.rule, blocked)
        grain = max(1, min(TURNS, self.features // 2))

        def write(wait: bool) -> None:
            self.record.node = self.node.name
            size = update.scratch_elements
            scratch = step.buffer(f"{self.layer.name} sums", size, per="worker") if blocked else None
            given = {"x": x, "dy": dy, "scratch": scratch, **step.update_operands(parameters.start[self.name])}
            self.record.shared(update, self.features, grain, wait=wait, images=step.outside.images, **given)

        step.updates.append(write)

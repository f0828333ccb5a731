"""Dense, with the relu that follows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bareconv.kernels.cuda import dense
from bareconv.kernels.cuda.dense import DenseShape
from bareconv.nn import layers
from bareconv.plan.cuda.fused.base import Fused
from bareconv.plan.cuda.record import BRANCH, TRUNK, Buffer, Operand
from bareconv.plan.cuda.step import Step
from bareconv.plan.graph import Node, Tensor

UPDATED_AT_ONCE = 1 << 15  # weights of a layer from which on partial gradients cost more than they bring


def dense_of(node: Node) -> layers.Dense:
    """The layer of that node."""
    layer = node.layers[0]
    assert isinstance(layer, layers.Dense)
    return layer


def shape_of(step: Step, node: Node) -> DenseShape:
    """Its shape, as kernels are told it."""
    layout = step.layouts[node.inputs[0]]
    return DenseShape(layout.taps, layout.channels, dense_of(node).units)


def bias_of(step: Step, layer: layers.Dense) -> Operand:
    """Its bias, or a null pointer."""
    return step.master(f"{layer.name}.bias") if layer.bias else None


@dataclass(frozen=True)
class Taught:
    """A layer with what its gradients are made of."""

    layer: layers.Dense
    shape: DenseShape
    x: Buffer
    dy: Buffer


def gradients(step: Step, taught: Sequence[Taught], tensor: Tensor | None) -> None:
    """Of weights and biases, with their update where that pays, and of ``tensor``, which the first layer reads.

    One launch, where that takes less time than one for each.
    """
    mask = tensor is not None and step.masks(tensor)
    into = step.into(tensor) if tensor is not None else None
    dx, add = into or (None, False)
    sizes = step.precision, [one.shape for one in taught], step.batch, step.limits, step.rule
    kernel = dense.backward(*sizes, dx=dx is not None, mask=mask, add=add) if taught else None
    if kernel is not None:
        operands: dict[str, Operand] = {"scalars": step.outside.scalars, "dx": dx}
        for i, one in enumerate(taught):
            operands |= {f"x_{i}": one.x, f"dy_{i}": one.dy}
            operands |= _changed(step, one.layer, f"_{i}")
        step.launch(kernel, **operands)
        return
    if dx is not None:
        first = taught[0]
        single = dense.gradient_of_input(step.precision, first.shape, step.batch, step.limits, mask=mask, add=add)
        w = step.copy(f"{first.layer.name}.weight")
        step.launch(single, dy=first.dy, w=w, dx=dx, x=first.x if mask else None)
    for one in taught:
        _weight_gradient(step, one)


def _weight_gradient(step: Step, taught: Taught) -> None:
    """By a launch of its own, beside the trunk, which does not need it."""
    layer, shape = taught.layer, taught.shape
    weight, bias = f"{layer.name}.weight", f"{layer.name}.bias"
    sizes = step.precision, shape, step.batch, step.limits
    step.record.branch = BRANCH
    parts = dense.parts_of(*sizes)
    if step.rule.name != "gradient" and (shape.weight_size >= UPDATED_AT_ONCE or parts == 1):
        kernel = dense.gradient_and_update(*sizes, step.rule)
        step.launch(kernel, x=taught.x, dy=taught.dy, scalars=step.outside.scalars, **_changed(step, layer))
    else:
        partial = step.partial(weight, parts)
        of_bias = step.partial(bias, parts) if layer.bias else None
        kernel = dense.gradient_of_weight(*sizes)
        step.launch(kernel, x=taught.x, dy=taught.dy, weight_partial=partial, bias_partial=of_bias)
    step.record.branch = TRUNK


def _changed(step: Step, layer: layers.Dense, end: str = "") -> dict[str, Operand]:
    """What an update of the layer changes, by operand, whose names have that ``end``."""
    outside, weight, bias = step.outside, f"{layer.name}.weight", f"{layer.name}.bias"
    operands: dict[str, Operand] = {f"copy{end}": step.copy(weight)}
    for name, parameter in (("weight", weight), ("bias", bias)):
        if name == "weight" or layer.bias:
            operands[f"{name}{end}"] = step.master(parameter)
            operands[f"{name}{end}_state1"] = step.state(outside.state1, parameter)
            operands[f"{name}{end}_state2"] = step.state(outside.state2, parameter)
    return operands


class DenseRelu(Fused):
    """y = relu(x w + bias)."""

    def __init__(self, step: Step, node: Node) -> None:
        super().__init__(step, node)
        self.layer, self.shape = dense_of(node), shape_of(step, node)

    def forward(self) -> None:
        step, node = self.step, self.node
        x, y = step.tensor(node.inputs[0]), step.tensor(node.output)
        read: dict[str, Operand] = {"x": x, "w": step.copy(f"{self.layer.name}.weight")}
        sizes = step.precision, self.shape, step.batch
        splits = dense.splits_of(*sizes, step.limits)
        bias = bias_of(step, self.layer)
        if splits == 1:
            step.launch(dense.forward(*sizes, node.relu, step.limits), **read, bias=bias, y=y)
            return
        sums = step.sums(self.shape.units, splits, f"{self.layer.name} sums")
        step.launch(dense.product(*sizes, step.limits), **read, sums=sums)
        step.launch(dense.finish(*sizes, splits, node.relu), sums=sums, bias=bias, y=y)

    def backward(self) -> None:
        dy, tensor = self.masked_gradient(), self.node.inputs[0]
        gradients(self.step, [Taught(self.layer, self.shape, self.step.tensor(tensor), dy)], tensor)

"""Dense, with the relu that follows it."""

from __future__ import annotations

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


def weight_gradient(step: Step, layer: layers.Dense, shape: DenseShape, x: Buffer, dy: Buffer) -> None:
    """Gradients of weight and bias, with the update where that pays; beside the trunk, which needs neither."""
    weight, bias = f"{layer.name}.weight", f"{layer.name}.bias"
    sizes = step.precision, shape, step.batch, step.limits
    step.record.branch = BRANCH
    parts = dense.parts_of(*sizes)
    if step.rule.name != "gradient" and (shape.weight_size >= UPDATED_AT_ONCE or parts == 1):
        outside = step.outside
        operands: dict[str, Operand] = {
            "scalars": outside.scalars,
            "weight": step.master(weight),
            "weight_state1": step.state(outside.state1, weight),
            "weight_state2": step.state(outside.state2, weight),
            "copy": step.copy(weight),
        }
        if layer.bias:
            operands["bias"] = step.master(bias)
            operands["bias_state1"] = step.state(outside.state1, bias)
            operands["bias_state2"] = step.state(outside.state2, bias)
        step.launch(dense.gradient_and_update(*sizes, step.rule), x=x, dy=dy, **operands)
    else:
        partial = step.partial(weight, parts)
        of_bias = step.partial(bias, parts) if layer.bias else None
        step.launch(dense.gradient_of_weight(*sizes), x=x, dy=dy, weight_partial=partial, bias_partial=of_bias)
    step.record.branch = TRUNK


def input_gradient(step: Step, layer: layers.Dense, shape: DenseShape, tensor: Tensor, dy: Buffer) -> None:
    """The gradient of what the layer reads, where someone needs it."""
    mask = step.masks(tensor)
    into = step.into(tensor)
    if into is None:
        return
    dx, add = into
    kernel = dense.gradient_of_input(step.precision, shape, step.batch, step.limits, mask=mask, add=add)
    x = step.tensor(tensor) if mask else None
    step.launch(kernel, dy=dy, w=step.copy(f"{layer.name}.weight"), dx=dx, x=x)


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
        input_gradient(self.step, self.layer, self.shape, tensor, dy)
        weight_gradient(self.step, self.layer, self.shape, self.step.tensor(tensor), dy)

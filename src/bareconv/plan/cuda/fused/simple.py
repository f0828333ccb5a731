"""Pools, relus, sums, masks, and what changes nothing."""

from __future__ import annotations

from bareconv.kernels.cuda import elementwise, pool
from bareconv.nn import layers
from bareconv.plan.cuda.fused.base import Fused
from bareconv.plan.cuda.step import Step, image_of
from bareconv.plan.graph import Node

_KINDS = {"MaxPool2d": "max", "GlobalMaxPool": "max", "AvgPool2d": "mean", "GlobalAvgPool": "mean"}


class FlattenView(Fused):
    """The same numbers in the same memory."""

    def forward(self) -> None:
        self.step.same_array(self.node.output, self.step.tensor(self.node.inputs[0]))

    def backward(self) -> None:
        self.pass_on(self.node.inputs[0], self.step.gradient(self.node.output))


class Relu(Fused):
    """y = max(x, 0), where no kernel before could do it."""

    def forward(self) -> None:
        step, node = self.step, self.node
        kernel = elementwise.relu(step.precision, step.batch, step.pitch(node.output))
        step.launch(kernel, x=step.tensor(node.inputs[0]), y=step.tensor(node.output))

    def backward(self) -> None:
        self.pass_on(self.node.inputs[0], self.masked_gradient())


class AddRelu(Fused):
    """y = relu(a + b)."""

    @classmethod
    def covers(cls, step: Step, node: Node) -> bool:
        a, b = (step.layouts[tensor] for tensor in node.inputs)
        return a == b

    def forward(self) -> None:
        step, node = self.step, self.node
        kernel = elementwise.add(step.precision, step.batch, step.pitch(node.output), relu=node.relu)
        a, b = (step.tensor(tensor) for tensor in node.inputs)
        step.launch(kernel, a=a, b=b, y=step.tensor(node.output))

    def backward(self) -> None:
        dy = self.masked_gradient()
        for tensor in self.node.inputs:
            self.pass_on(tensor, dy)


class DropoutMask(Fused):
    """y = x mask, the mask drawn anew wherever it is needed."""

    def forward(self) -> None:
        step, node = self.step, self.node
        step.launch(self._kernel(), x=step.tensor(node.inputs[0]), y=step.tensor(node.output))

    def backward(self) -> None:
        step, node = self.step, self.node
        dy, into = step.gradient(node.output), step.into(node.inputs[0])
        if into is None:
            return
        dx, add = into
        if not add:
            step.launch(self._kernel(), x=dy, y=dx)
            return
        beside = step.like(node.inputs[0], f"{dx.name} beside")
        step.launch(self._kernel(), x=dy, y=beside)
        kernel = elementwise.add(step.precision, step.batch, step.pitch(node.inputs[0]))
        step.launch(kernel, a=dx, b=beside, y=dx)


class Pool(Fused):
    """Maximum or mean of windows, or of the whole image."""

"""Pools, relus, sums, masks, and what changes nothing."""

from __future__ import annotations

from bareconv.kernels.cuda import elementwise, pool
from bareconv.kernels.cuda.kernel import Kernel, Precision
from bareconv.nn import layers
from bareconv.ops.windows import Window
from bareconv.plan.cuda.fused.base import Fused
from bareconv.plan.cuda.step import Step, image_of
from bareconv.plan.graph import Node


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

    def _kernel(self) -> Kernel:
        step, layer, tensor = self.step, self.node.layers[0], self.node.inputs[0]
        assert isinstance(layer, layers.Dropout)
        layout = step.layouts[tensor]
        return elementwise.dropout(
            *(step.precision, step.batch, (1, layout.taps), layout.channels, layer.p, layer._seed, layer._layer)
        )


class Pool(Fused):
    """Maximum or mean of windows, or of the whole image."""

    def __init__(self, step: Step, node: Node) -> None:
        super().__init__(step, node)
        layer = node.layers[0]
        assert isinstance(layer, layers.MaxPool2d | layers.GlobalMaxPool)
        self.window, self.shape = layer.window, image_of(node.inputs[0])
        self.takes_maximum = type(layer) in (layers.MaxPool2d, layers.GlobalMaxPool)

    @classmethod
    def covers(cls, step: Step, node: Node) -> bool:
        layer = node.layers[0]
        assert isinstance(layer, layers.MaxPool2d | layers.GlobalMaxPool)
        return pool.covers(layer.window)

    def forward(self) -> None:
        step, node, sizes = self.step, self.node, self._sizes()
        x, y = step.tensor(node.inputs[0]), step.tensor(node.output)
        if self.takes_maximum:
            self.where = step.where(node.output, self.window)
            step.launch(pool.max_pool(*sizes, where=self.where is not None), x=x, y=y, where=self.where)
        else:
            step.launch(pool.avg_pool(*sizes), x=x, y=y)

    def backward(self) -> None:
        step, node, sizes = self.step, self.node, self._sizes()
        dy, into = step.gradient(node.output), step.into(node.inputs[0])
        if into is None:
            return
        dx, add = into
        made = step.like(node.inputs[0], f"{dx.name} beside") if add else dx
        if self.takes_maximum:
            step.launch(pool.max_pool_backward(*sizes), dy=dy, where=self.where, dx=made)
        else:
            step.launch(pool.avg_pool_backward(*sizes), dy=dy, dx=made)
        if add:
            kernel = elementwise.add(step.precision, step.batch, step.pitch(node.inputs[0]))
            step.launch(kernel, a=dx, b=made, y=dx)

    def _sizes(self) -> tuple[Precision, int, tuple[int, int, int], Window]:
        return self.step.precision, self.step.batch, self.shape, self.window

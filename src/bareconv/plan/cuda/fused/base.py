"""What fused operations share."""

from __future__ import annotations

from bareconv.kernels.cuda import elementwise
from bareconv.plan.cuda.record import Buffer
from bareconv.plan.cuda.step import Step
from bareconv.plan.graph import Node, Tensor


class Fused:
    """One node of the graph, as kernels do it: writes down its forward, and later its backward."""

    def __init__(self, step: Step, node: Node) -> None:
        self.step, self.node = step, node

    @property
    def name(self) -> str:
        """Its layers."""
        return self.node.name

    @property
    def output(self) -> Tensor:
        """What a later block reads."""
        return self.node.output

    @classmethod
    def covers(cls, step: Step, node: Node) -> bool:
        """Whether there are kernels for that node."""
        return True

    def forward(self) -> None:
        """The launches that make the node's output from its inputs."""
        raise NotImplementedError

    def backward(self) -> None:
        """The launches that make the gradients of its inputs and parameters from that of its output."""
        raise NotImplementedError

    def masked_gradient(self) -> Buffer:
        """The gradient of the output, zeroed where its relu was: by whoever wrote it, or now."""
        step, output = self.step, self.node.output
        dy = step.gradient(output)
        if not self.node.relu or step.is_masked(output):
            return dy
        # A sum's gradient is the same memory for both of its operands.
        masked = dy if step.may_overwrite(dy, output) else step.like(output, f"{dy.name} through its relu")
        kernel = elementwise.relu_backward(step.precision, step.batch, step.pitch(output))
        step.launch(kernel, dy=dy, y=step.tensor(output), dx=masked)
        return masked

    def pass_on(self, tensor: Tensor, dy: Buffer) -> None:
        """dX = dY, after all else that reads dY: the same memory, where that may be."""
        step = self.step
        if step.same_gradient(tensor, dy, self.node.output):
            return
        into = step.into(tensor)
        if into is None:
            return
        dx, add = into
        pitch = step.pitch(tensor)
        if add:
            step.launch(elementwise.add(step.precision, step.batch, pitch), a=dx, b=dy, y=dx)
        else:
            step.launch(elementwise.copy(step.precision, step.batch, pitch), x=dy, y=dx)

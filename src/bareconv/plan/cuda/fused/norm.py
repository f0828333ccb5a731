"""Batch normalisation, with the relu, the residual sum and the max pool that follow it."""

from __future__ import annotations

from typing import Literal

from bareconv.kernels.cuda import norm as kernels
from bareconv.kernels.cuda.kernel import padded
from bareconv.kernels.cuda.norm import COEFFICIENTS, Norm, Parts
from bareconv.nn import layers
from bareconv.nn.blocks import Add
from bareconv.plan.cuda.fused.base import Fused
from bareconv.plan.cuda.fused.conv import ConvRelu
from bareconv.plan.cuda.record import Buffer
from bareconv.plan.cuda.step import Step
from bareconv.plan.graph import Node


class NormRelu(Fused):
    """y = pool(relu(norm(x))), relu(norm(x) + other) or relu(norm(x)) + other."""

    def __init__(self, step: Step, node: Node) -> None:
        super().__init__(step, node)
        layer = node.layers[0]
        assert isinstance(layer, layers.BatchNorm)
        self.layer = layer
        pooled = node.pool
        self.norm = Norm(
            tuple(layer.in_shape),
            relu=node.relu,
            added=_where_added(node),
            pool=pooled.window.kernel if pooled is not None else (1, 1),
            eps=layer.eps,
            momentum=layer.momentum,
        )
        count = COEFFICIENTS * padded(self.norm.channels)
        self.coefficients = step.buffer(f"{layer.name} coefficients", count, "float32")
        self._convolution: ConvRelu | None = None
        self._passed: Buffer | None = None

    @classmethod
    def covers(cls, step: Step, node: Node) -> bool:
        # Features that were pixels of a ragged number of channels lie with gaps.
        same = all(step.layouts[tensor] == step.layouts[node.output] for tensor in node.inputs) or node.pool is not None
        return same and step.layouts[node.inputs[0]].channels == node.layers[0].in_shape[-1]

    def take_statistics_of(self, convolution: ConvRelu) -> None:
        """The convolution that makes x counts them, which saves reading x once more."""
        if self.step.training:
            self._convolution = convolution
            convolution.counts_statistics = True

    def forward(self) -> None:
        step, node, norm = self.step, self.node, self.norm
        x = step.tensor(node.inputs[0])
        gamma, beta = step.master(f"{self.layer.name}.gamma"), step.master(f"{self.layer.name}.beta")
        running = {f"running_{key}": step.running(f"{self.layer.name}.{key}") for key in ("mean", "var")}
        if step.training:
            parts, counted = self._statistics(x)
            step.launch(
                kernels.finish_statistics(norm, counted),
                parts=parts,
                gamma=gamma,
                beta=beta,
                coefficients=self.coefficients,
                **running,
            )
        else:
            kernel = kernels.use_running(norm)
            step.launch(kernel, gamma=gamma, beta=beta, coefficients=self.coefficients, **running)
        other = step.tensor(node.inputs[1]) if norm.added else None
        if step.training and norm.remembers:
            elements = kernels.passed_size(step.precision, step.batch, norm)
            self._passed = step.buffer(f"{self.layer.name} passed", elements, "uint8")
        kernel = kernels.apply(step.precision, step.batch, norm, step.limits, step.training)
        y = step.tensor(node.output)
        step.launch(kernel, x=x, other=other, coefficients=self.coefficients, y=y, passed=self._passed)

    def _statistics(self, x: Buffer) -> tuple[Buffer, Parts]:
        if self._convolution is not None and self._convolution.statistics is not None:
            return self._convolution.statistics
        step = self.step
        kernel, counted = kernels.statistics(step.precision, step.batch, self.norm, step.limits)
        parts = step.buffer(f"{self.layer.name} statistics", counted.size(self.norm.channels), "float32")
        step.launch(kernel, x=x, parts=parts)
        return parts, counted

    def backward(self) -> None:
        step, node, norm = self.step, self.node, self.norm
        x, dy = step.tensor(node.inputs[0]), step.gradient(node.output)
        kernel, counted = kernels.sum_gradients(step.precision, step.batch, norm, step.limits)
        parts = step.buffer(f"{self.layer.name} sums", counted.size(norm.channels), "float32")
        masked = None
        if norm.remembers:
            # Where a sum was passed on, dy may be another's gradient, too.
            free = step.may_overwrite(dy, node.output)
            masked = dy if free else step.like(node.output, f"{dy.name} through its relu")
        through = {"passed": self._passed, "masked": masked}
        step.launch(kernel, x=x, dy=dy, coefficients=self.coefficients, parts=parts, **through)
        step.launch(
            kernels.finish_gradients(norm, counted),
            parts=parts,
            coefficients=self.coefficients,
            dgamma=step.partial(f"{self.layer.name}.gamma", 1),
            dbeta=step.partial(f"{self.layer.name}.beta", 1),
        )
        dy = dy if masked is None else masked
        into = step.into(node.inputs[0])
        if into is not None:
            dx, add = into
            assert not add, "what is normalised has no other reader"
            kernel = kernels.input_gradient(step.precision, step.batch, norm, step.limits)
            step.launch(kernel, x=x, dy=dy, coefficients=self.coefficients, dx=dx)
        if norm.added:
            self.pass_on(node.inputs[1], dy)


def _where_added(node: Node) -> Literal["before relu", "after relu"] | None:
    kinds = [type(layer) for layer in node.layers]
    if Add not in kinds:
        return None
    return "after relu" if layers.ReLU in kinds[: kinds.index(Add)] else "before relu"

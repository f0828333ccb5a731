"""Both ends of a network: pixels become numbers, logits become a loss and its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bareconv.kernels.cpu.dense import columns
from bareconv.kernels.cpu.emit import I8, I64
from bareconv.kernels.cpu.kernel import Frame, Kernel
from bareconv.kernels.cpu.plane import Plane


@dataclass(frozen=True)
class Normalise(Kernel):
    """Y = (pixel - mean) / std of the image that ``order`` names for each place in the batch."""

    operands: ClassVar[tuple[str, ...]] = ("pixels", "order", "y")

    y: Plane
    mean: float
    std: float

    @property
    def label(self) -> str:
        return "gathers the batch, 8-bit pixels to numbers"

    def write(self, k: Frame) -> None:
        b, run = k.b, self.y.width * self.y.channels
        pixels, order = k.operand("pixels", I8).base, k.operand("order", I64).base
        factor = b.constant(1.0 / self.std)
        for image in k.images():
            source, y = pixels + order.load(image) * (self.y.height * run), k.operand("y").image(image)
            for row in b.range(0, self.y.height):
                for column, mask in columns(b, run):
                    value = b.convert(source.vector(row * run + column, mask, b.lanes), b.number)
                    if self.mean:
                        value = value - self.mean
                    y.store(value * factor, row * self.y.row + self.y.at(0, 0) + column, mask)


@dataclass(frozen=True)
class SoftmaxCrossEntropy(Kernel):
    """Each image's loss and whether its largest logit is at its label; dlogits, divided by the batch's size.

    In double precision throughout: ten numbers an image cost nothing. See ``bareconv.ops.loss`` for the formulas.
    """

    operands: ClassVar[tuple[str, ...]] = ("logits", "labels", "order", "images", "dlogits", "losses", "hits")

    classes: int
    smoothing: float

    @property
    def label(self) -> str:
        return "softmax, cross-entropy and its gradient"

    def write(self, k: Frame) -> None:
        from llvmlite import ir

        b, double, K = k.b, ir.DoubleType(), self.classes
        labels, order = k.operand("labels", I64).base, k.operand("order", I64).base
        count = b.convert(k.operand("images", I64).base.load(), double)
        on, off = 1.0 - self.smoothing + self.smoothing / K, self.smoothing / K
        powers = b.scratch(double, K)
        for image in k.images():
            z, dz = k.operand("logits").image(image), k.operand("dlogits").image(image)
            label = labels.load(order.load(image))
            top, best = b.variable(z.load()), b.variable(b.index(0))
            for u in b.range(0, K):
                value = z.load(u)
                larger = value > top.value
                top.value, best.value = b.select(larger, value, top.value), b.select(larger, u, best.value)
            highest = b.convert(top.value, double)
            total, dot = b.variable(b.as_type(0.0, double)), b.variable(b.as_type(0.0, double))
            for u in b.range(0, K):
                value = b.convert(z.load(u), double) - highest
                power = b.intrinsic("exp", double, [value.ir], [double])
                powers.store(power, u)
                total.value = total.value + power
                target = b.select(u.equals(label), b.as_type(on, double), b.as_type(off, double))
                dot.value = dot.value + target * value
            log = b.intrinsic("log", double, [total.value.ir], [double])
            k.operand("losses", double).image(image).store(log - dot.value)
            k.operand("hits", I64).image(image).store(b.widen(best.value.equals(label), I64))
            for u in b.range(0, K):
                target = b.select(u.equals(label), b.as_type(on, double), b.as_type(off, double))
                dz.store(b.convert((powers.load(u) / total.value - target) / count, b.number), u)

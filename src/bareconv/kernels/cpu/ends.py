"""Both ends of a network: pixels become numbers, logits become a loss and its gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from bareconv.kernels.cpu.emit import I8, I32, I64, Builder, Value
from bareconv.kernels.cpu.kernel import Frame, Kernel
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.sweep import columns


@dataclass(frozen=True)
class Normalise(Kernel):
    """Y = (pixel - mean) / std of the image that ``order`` names for each place in the batch."""

    operands: ClassVar[tuple[str, ...]] = ("pixels", "order", "y")

    y: Plane
    mean: float
    std: float

    def bytes(self, count: int, images: int) -> int:
        return count * self.y.numbers * (1 + self.target.element_bytes)

    @property
    def label(self) -> str:
        return "gathers the batch, 8-bit pixels to numbers"

    def write(self, k: Frame) -> None:
        b, whole = k.b, self.y.border == (0, 0)  # then the image is one run
        rows, run = (1, self.y.size) if whole else (self.y.height, self.y.width * self.y.channels)
        pixels, order = k.operand("pixels", I8).base, k.operand("order", I64).base
        factor = b.constant(1.0 / self.std)
        for image in k.images():
            source, y = pixels + order.load(image) * (rows * run), k.operand("y").image(image)
            for row in b.range(0, rows):
                for column, mask in columns(b, run):
                    value = b.convert(source.vector(row * run + column, mask, b.lanes), b.number)
                    if self.mean:
                        value = value - self.mean
                    y.store(value * factor, row * self.y.row + self.y.at(0, 0) + column, mask)


@dataclass(frozen=True)
class SoftmaxCrossEntropy(Kernel):
    """Each image's loss and whether its largest logit is at its label; dlogits, divided by the batch's size.

    Lanes are classes. See ``bareconv.ops.loss`` for the formulas.
    """

    operands: ClassVar[tuple[str, ...]] = ("logits", "labels", "order", "images", "dlogits", "losses", "hits")

    classes: int
    smoothing: float

    def bytes(self, count: int, images: int) -> int:
        return count * (2 * self.classes * self.target.element_bytes + 3 * 8)  # label, loss and hit have 8 each

    @property
    def label(self) -> str:
        return "softmax, cross-entropy and its gradient"

    def write(self, k: Frame) -> None:
        b, double, K = k.b, ir.DoubleType(), self.classes
        labels, order = k.operand("labels", I64).base, k.operand("order", I64).base
        share = b.splat(b.convert(1.0 / b.convert(k.operand("images", I64).base.load(), double), b.number))
        on, off = b.constant(1.0 - self.smoothing + self.smoothing / K), b.constant(self.smoothing / K)
        numbers = b.as_lanes([float(i) for i in range(b.lanes)])
        lowest = b.constant(float("-inf"))
        for image in k.images():
            z, dz = k.operand("logits").image(image), k.operand("dlogits").image(image)
            label = labels.load(order.load(image))
            mine = b.splat(b.convert(label, b.number))
            top, where = b.variable(lowest), b.variable(b.zero)
            for column, mask in columns(b, K):
                value = z.vector(column, mask)
                value = value if mask is None else b.select(mask, value, lowest)
                larger = value > top.value
                top.value = b.select(larger, value, top.value)
                where.value = b.select(larger, numbers + b.splat(b.convert(b.index(column), b.number)), where.value)
            highest = b.reduce(top.value, b.maximum)
            # The first of equals: the smallest number of a lane that holds the maximum.
            first = b.reduce(b.select(top.value.equals(highest), where.value, b.constant(float(K))), b.minimum)
            total, dot = b.variable(b.zero), b.variable(b.zero)
            for column, mask in columns(b, K):
                value = z.vector(column, mask) - highest
                power = exponential(b, value)
                power, value = (power, value) if mask is None else (b.select(mask, p, b.zero) for p in (power, value))
                total.value = total.value + power
                dz.store(power, column, mask)
                target = b.select((numbers + b.splat(b.convert(b.index(column), b.number))).equals(mine), on, off)
                dot.value = b.fma(target, value, dot.value)
            whole = b.convert(b.sum(total.value), double)
            log = b.intrinsic("log", double, [whole.ir], [double])
            k.operand("losses", double).image(image).store(log - b.convert(b.sum(dot.value), double))
            k.operand("hits", I64).image(image).store(b.widen(first.equals(b.convert(label, b.number)), I64))
            inverse = b.splat(b.convert(1.0 / whole, b.number))
            for column, mask in columns(b, K):
                target = b.select((numbers + b.splat(b.convert(b.index(column), b.number))).equals(mine), on, off)
                dz.store((dz.vector(column, mask) * inverse - target) * share, column, mask)


def exponential(b: Builder, x: Value) -> Value:
    """e^x for x of at most 0, lane by lane, to rounding: 2^n e^r with |r| <= ln(2)/2, and e^r by its series.

    Below the smallest exponent it is that of the smallest; NaN stays NaN.
    """
    single = isinstance(b.number, ir.FloatType)
    terms, smallest, bits, bias = (8, -87.0, 23, 127) if single else (14, -708.0, 52, 1023)
    integer = I32 if single else I64
    # The upper part of ln 2 has few bits, so that n times it is exact.
    high, low = (0.693145751953125, 1.42860682030941723e-6) if single else (0.69314718036912382, 1.9082149292705877e-10)
    x = b.select(x < smallest, b.constant(smallest), x)
    scaled = x * (1.0 / math.log(2.0))
    n = b.intrinsic("rint", x.type, [scaled.ir], [x.type])
    r = b.fma(n, b.constant(-low), b.fma(n, b.constant(-high), x))
    series = b.constant(1.0 / math.factorial(terms - 1))
    for power in range(terms - 2, -1, -1):
        series = b.fma(series, r, b.constant(1.0 / math.factorial(power)))
    exponent = (b.convert(n, integer) + bias) << bits
    return series * b.bits(exponent, x.type)

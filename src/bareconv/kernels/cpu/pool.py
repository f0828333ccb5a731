"""Pools on their own: maximum or mean over windows, and back. ``bareconv.ops.pool`` has the formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bareconv.kernels.cpu.emit import I8, I32
from bareconv.kernels.cpu.kernel import Frame, Kernel
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.sweep import clear, columns
from bareconv.ops.windows import Pair


@dataclass(frozen=True)
class PoolForward(Kernel):
    """Y[p, q] = maximum, or with ``mean`` the mean, of the window of X at (p, q) * stride + origin.

    The first maximum's position in its window goes to ``where``; windows of up to 256 pixels.
    """

    operands: ClassVar[tuple[str, ...]] = ("x", "y", "where")

    x: Plane
    y: Plane
    window: Pair
    stride: Pair
    origin: Pair = (0, 0)
    mean: bool = False
    keep_where: bool = True

    def bytes(self, count: int, images: int) -> int:
        where = self.y.numbers if self.keep_where and not self.mean else 0
        return count * ((self.x.numbers + self.y.numbers) * self.target.element_bytes + where)

    @property
    def label(self) -> str:
        return "mean of windows" if self.mean else "maximum of windows"

    def write(self, k: Frame) -> None:
        b, C = k.b, self.x.channels
        for image in k.images():
            x, y = k.operand("x").image(image) + self.x.at(*self.origin), k.operand("y").image(image) + self.y.at(0, 0)
            where = k.operand("where", I8).image(image)
            for column, mask in columns(b, C):
                for p in b.range(0, self.y.height):
                    for q in b.range(0, self.y.width):
                        corner = p * (self.stride[0] * self.x.row) + q * (self.stride[1] * C) + column
                        first = b.zero if self.mean else x.vector(corner, mask)
                        value, position = b.variable(first), b.variable(b.zero)
                        for i in b.range(0, self.window[0]):
                            for j in b.range(0, self.window[1]):
                                one = x.vector(corner + i * self.x.row + j * C, mask)
                                if self.mean:
                                    value.value = value.value + one
                                    continue
                                larger = one > value.value
                                value.value = b.select(larger, one, value.value)
                                number = b.splat(b.convert(i * self.window[1] + j, b.number))
                                position.value = b.select(larger, number, position.value)
                        result = value.value * (1.0 / (self.window[0] * self.window[1])) if self.mean else value.value
                        y.store(result, p * self.y.row + q * C + column, mask)
                        if not self.mean and self.keep_where:
                            spot = (p * self.y.width + q) * C + column
                            where.store(b.convert(b.convert(position.value, I32), I8), spot, mask)


@dataclass(frozen=True)
class PoolBackward(Kernel):
    """dX of ``PoolForward``: the gradient to the maximum's pixel, or an equal share to each; windows may overlap."""

    operands: ClassVar[tuple[str, ...]] = ("dy", "where", "dx")

    dx: Plane
    dy: Plane
    window: Pair
    stride: Pair
    origin: Pair = (0, 0)
    mean: bool = False

    def bytes(self, count: int, images: int) -> int:
        where = 0 if self.mean else self.dy.numbers
        return count * ((self.dx.numbers + self.dy.numbers) * self.target.element_bytes + where)

    @property
    def label(self) -> str:
        return "shares of the mean" if self.mean else "to the maximum's pixel"

    def write(self, k: Frame) -> None:
        b, C = k.b, self.dx.channels
        for image in k.images():
            start, dy = k.operand("dx").image(image), k.operand("dy").image(image) + self.dy.at(0, 0)
            where = k.operand("where", I8).image(image)
            clear(b, start, self.dx.size)
            dx = start + self.dx.at(*self.origin)
            for column, mask in columns(b, C):
                for p in b.range(0, self.dy.height):
                    for q in b.range(0, self.dy.width):
                        corner = p * (self.stride[0] * self.dx.row) + q * (self.stride[1] * C) + column
                        g = dy.vector(p * self.dy.row + q * C + column, mask)
                        if self.mean:
                            g = g * (1.0 / (self.window[0] * self.window[1]))
                            spot = None
                        else:
                            spot = where.vector((p * self.dy.width + q) * C + column, mask, b.lanes)
                        for i in b.range(0, self.window[0]):
                            for j in b.range(0, self.window[1]):
                                at = corner + i * self.dx.row + j * C
                                share = g
                                if spot is not None:
                                    number = b.splat(b.convert(i * self.window[1] + j, I8))
                                    share = b.select(spot.equals(number), g, b.zero)
                                dx.store(dx.vector(at, mask) + share, at, mask)

"""Operations on single numbers, between planes that may have different borders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bareconv.kernels.cpu.kernel import Frame, Kernel
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.sweep import columns


@dataclass(frozen=True)
class Elementwise(Kernel):
    """``operation`` on every number of an image:

    copy      y = a                 relu      y = max(a, 0)
    add       y = a + b             add relu  y = max(a + b, 0)
    multiply  y = a b               gate      y = a where b > 0, else 0
    """

    operands: ClassVar[tuple[str, ...]] = ("a", "b", "y")

    operation: str
    a: Plane
    b: Plane
    y: Plane

    def bytes(self, count: int, images: int) -> int:
        arrays = 2 if self.operation in ("copy", "relu") else 3
        return count * arrays * self.a.numbers * self.target.element_bytes

    @property
    def label(self) -> str:
        return self.operation

    def write(self, k: Frame) -> None:
        b, run = k.b, self.a.width * self.a.channels
        for image in k.images():
            left, right, y = (k.operand(name).image(image) for name in self.operands)
            for row in b.range(0, self.a.height):
                for column, mask in columns(b, run):
                    value = left.vector(row * self.a.row + self.a.at(0, 0) + column, mask)
                    if self.operation not in ("copy", "relu"):
                        other = right.vector(row * self.b.row + self.b.at(0, 0) + column, mask)
                        if self.operation.startswith("add"):
                            value = value + other
                        elif self.operation == "multiply":
                            value = value * other
                        else:
                            value = b.select(other > b.zero, value, b.zero)
                    if self.operation.endswith("relu"):
                        value = b.maximum(value, b.zero)
                    y.store(value, row * self.y.row + self.y.at(0, 0) + column, mask)

"""Dense layers with few units: lanes are features, for as lanes of units most of a register would be empty.

    y[n, u] = sum over lanes of (sum over registers of x[n, f] W[u, f])        dW[u, f] = sum over n of dy[n, u] x[n, f]

W and its gradient lie as (units, features), features padded with zeros to a multiple of the lanes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bareconv.kernels.cpu.dense import columns, row_tiles
from bareconv.kernels.cpu.emit import Index, Pointer, Value
from bareconv.kernels.cpu.kernel import Frame, Kernel
from bareconv.kernels.cpu.target import Target


def is_narrow(target: Target, features: int, units: int) -> bool:
    """Whether so few units are better off here: a third of a register's lanes would be empty, and features abound."""
    sums = min(units, target.registers * 5 // 8)
    return units * 3 <= target.lanes * 2 and features >= 4 * target.lanes and sums == units


@dataclass(frozen=True)
class NarrowForward(Kernel):
    """Y = X W + bias, then ``relu``. ``pitch``: elements from a row of X to the next (of Y: ``units``)."""

    operands: ClassVar[tuple[str, ...]] = ("x", "weight", "bias", "y")

    features: int
    units: int
    pitch: int
    bias: bool = True
    relu: bool = False

    @property
    def flops(self) -> int:
        return 2 * self.width * self.units

    @property
    def width(self) -> int:
        """Elements from a unit's weights to the next's."""
        return -(-self.features // self.target.lanes) * self.target.lanes

    @property
    def rows(self) -> int:
        """Images whose sums are in registers together."""
        return max(1, self.target.registers * 5 // 8 // self.units)

    @property
    def label(self) -> str:
        return f"lanes of features: {self.rows} rows x {self.units} units"

    def write(self, k: Frame) -> None:
        b = k.b
        x, y = k.operand("x").image(k.begin), k.operand("y").image(k.begin)
        weight, bias = k.operand("weight").base, k.operand("bias").base
        for row, rows in row_tiles(b, k.end - k.begin, self.rows):
            sums = [[b.variable(b.zero) for _ in range(self.units)] for _ in range(rows)]
            for column, mask in columns(b, self.features):
                left = [x.vector((row + i) * self.pitch + column, mask) for i in range(rows)]
                for u in range(self.units):
                    right = weight.vector(column + u * self.width)
                    for i in range(rows):
                        sums[i][u].value = b.fma(left[i], right, sums[i][u].value)
            for i in range(rows):
                for u in range(self.units):
                    total = b.sum(sums[i][u].value)
                    if self.bias:
                        total = total + bias.load(u)
                    if self.relu:
                        total = b.maximum(total, b.as_type(0.0, b.number))
                    y.store(total, (row + i) * self.units + u)


@dataclass(frozen=True)
class NarrowWeightGradient(Kernel):
    """``gradient`` (units, width) += dY' X, over all images of the call."""

    operands: ClassVar[tuple[str, ...]] = ("x", "dy", "gradient")

    features: int
    units: int
    pitch: int

    @property
    def flops(self) -> int:
        return 2 * self.width * self.units

    @property
    def width(self) -> int:
        return -(-self.features // self.target.lanes) * self.target.lanes

    @property
    def label(self) -> str:
        return f"lanes of features: {self.units} units x {self._vectors} vectors"

    @property
    def _vectors(self) -> int:
        return max(1, self.target.registers * 5 // 8 // self.units)

    def write(self, k: Frame) -> None:
        b = k.b
        x, dy, gradient = k.operand("x").image(k.begin), k.operand("dy").image(k.begin), k.operand("gradient").base
        count, lanes = k.end - k.begin, b.lanes
        wide = self._vectors * lanes
        whole = self.features // wide * wide

        def tile(first: Index, masks: list[Value | None]) -> None:
            def place(u: int, v: int) -> Pointer:
                return gradient + (first + (u * self.width + v * lanes))

            sums = [
                [b.variable(place(u, v).vector()) for v in range(len(masks))] for u in range(self.units)
            ]
            for n in b.range(0, count):
                right = [x.vector(n * self.pitch + first + v * lanes, mask) for v, mask in enumerate(masks)]
                for u, line in enumerate(sums):
                    left = dy.splat(n * self.units + u)
                    for v, into in enumerate(line):
                        into.value = b.fma(left, right[v], into.value)
            for u, line in enumerate(sums):
                for v, into in enumerate(line):
                    place(u, v).store(into.value)

        if whole:
            for first in b.range(0, whole, wide):
                tile(first, [None] * self._vectors)
        rest = self.features - whole
        if rest:
            tile(whole, [b.tail(rest - v * lanes) for v in range(-(-rest // lanes))])

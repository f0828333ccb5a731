"""Dense layers with few units: lanes are features, for as lanes of units most of a register would be empty.

    y[n, u] = sum over lanes of (sum over registers of x[n, f] W[u, f])
    dW[u, f] = sum over n of dy[n, u] x[n, f]

W and its gradient lie as (units, features), features padded with zeros to a multiple of the lanes. Where the layer is
the network's first, x can be the images' pixels themselves, 8 bits each: they become numbers in the register, and
(pixel - mean) / std is never written to memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bareconv.kernels.cpu.dense import DenseKernel
from bareconv.kernels.cpu.emit import I8, I64, Index, Pointer, Value
from bareconv.kernels.cpu.kernel import Frame
from bareconv.kernels.cpu.sweep import columns, row_tiles
from bareconv.kernels.cpu.target import Target


def is_narrow(target: Target, features: int, units: int) -> bool:
    """Whether so few units are better off here: a third of a register's lanes would be empty, and features abound."""
    sums = min(units, target.registers * 5 // 8)
    return units * 3 <= target.lanes * 2 and features >= 4 * target.lanes and sums == units


@dataclass(frozen=True)
class Pixels:
    """How pixels become numbers: (pixel - mean) / std."""

    mean: float
    std: float


class _Rows:
    """Rows of X in registers, from numbers or from pixels, which ``order`` chooses; pixels still lack their 1 / std."""

    def __init__(self, k: Frame, pitch: int, pixels: Pixels | None) -> None:
        self._k, self._pitch, self._pixels = k, pitch, pixels
        if pixels is None:
            self._start = k.operand("x").image(k.begin)
        else:
            self._start = k.operand("x", I8).base
            self._order = k.operand("order", I64).base + k.begin

    def at(self, n: Index) -> Pointer:
        """Row ``n`` of the call."""
        if self._pixels is None:
            return self._start + n * self._pitch
        return self._start + self._order.load(n) * self._pitch

    def vector(self, row: Pointer, column: Index, mask: Value | None) -> Value:
        """A register of a row."""
        b = self._k.b
        if self._pixels is None:
            return row.vector(column, mask)
        value = b.convert(row.vector(column, mask, b.lanes), b.number)
        if not self._pixels.mean:
            return value
        value = value - self._pixels.mean
        return value if mask is None else b.select(mask, value, b.zero)

    @property
    def factor(self) -> float:
        """What all sums over X are still to be multiplied by."""
        return 1.0 if self._pixels is None else 1.0 / self._pixels.std


@dataclass(frozen=True)
class NarrowKernel(DenseKernel):
    """What the kernels of a narrow layer have in common: features padded to ``width``."""

    @property
    def flops(self) -> int:
        return 2 * self.width * self.units

    def _bytes(self, count: int, pixels: Pixels | None) -> int:
        size = self.target.element_bytes
        row = self.features * (size if pixels is None else 1) + self.units * size
        return count * row + self.features * self.units * size

    @property
    def width(self) -> int:
        """Elements from a unit's weights to the next's."""
        return -(-self.features // self.target.lanes) * self.target.lanes

    @property
    def together(self) -> int:
        """How many sums of each unit are in registers at a time."""
        return max(1, self.target.registers * 5 // 8 // self.units)


@dataclass(frozen=True)
class NarrowForward(NarrowKernel):
    """Y = X W + bias, then ``relu``; rows of Y are ``units`` apart."""

    operands: ClassVar[tuple[str, ...]] = ("x", "order", "weight", "bias", "y")

    bias: bool = True
    relu: bool = False
    pixels: Pixels | None = None

    def bytes(self, count: int, images: int) -> int:
        return self._bytes(count, self.pixels)

    @property
    def label(self) -> str:
        return f"lanes of features: {self.together} rows x {self.units} units"

    def write(self, k: Frame) -> None:
        b = k.b
        x, y = _Rows(k, self.pitch, self.pixels), k.operand("y").image(k.begin)
        weight, bias = k.operand("weight").base, k.operand("bias").base
        for row, rows in row_tiles(b, k.end - k.begin, self.together):
            sums = [[b.variable(b.zero) for _ in range(self.units)] for _ in range(rows)]
            starts = [x.at(row + i) for i in range(rows)]
            for column, mask in columns(b, self.features):
                left = [x.vector(start, column, mask) for start in starts]
                for u in range(self.units):
                    right = weight.vector(column + u * self.width)
                    for i in range(rows):
                        sums[i][u].value = b.fma(left[i], right, sums[i][u].value)
            for i in range(rows):
                for u in range(self.units):
                    total = b.sum(sums[i][u].value) * x.factor
                    if self.bias:
                        total = total + bias.load(u)
                    if self.relu:
                        total = b.maximum(total, b.as_type(0.0, b.number))
                    y.store(total, (row + i) * self.units + u)


@dataclass(frozen=True)
class NarrowWeightGradient(NarrowKernel):
    """``gradient`` (units, width) += dY' X, over all images of the call."""

    operands: ClassVar[tuple[str, ...]] = ("x", "order", "dy", "gradient")

    pixels: Pixels | None = None

    def bytes(self, count: int, images: int) -> int:
        return self._bytes(count, self.pixels)

    @property
    def label(self) -> str:
        return f"lanes of features: {self.units} units x {self.together} vectors"

    def write(self, k: Frame) -> None:
        b = k.b
        x, dy, gradient = _Rows(k, self.pitch, self.pixels), k.operand("dy").image(k.begin), k.operand("gradient").base
        factor = b.constant(x.factor)
        count, lanes = k.end - k.begin, b.lanes
        wide = self.together * lanes
        whole = self.features // wide * wide

        def tile(first: Index, masks: list[Value | None]) -> None:
            def place(u: int, v: int) -> Pointer:
                return gradient + (first + (u * self.width + v * lanes))

            sums = [[b.variable(b.zero) for _ in masks] for _ in range(self.units)]
            for n in b.range(0, count):
                row = x.at(n)
                right = [x.vector(row, first + v * lanes, mask) for v, mask in enumerate(masks)]
                for u, line in enumerate(sums):
                    left = dy.splat(n * self.units + u)
                    for v, into in enumerate(line):
                        into.value = b.fma(left, right[v], into.value)
            for u, line in enumerate(sums):
                for v, into in enumerate(line):
                    place(u, v).store(b.fma(into.value, factor, place(u, v).vector()))

        if whole:
            for first in b.range(0, whole, wide):
                tile(first, [None] * self.together)
        rest = self.features - whole
        if rest:
            tile(whole, [b.tail(rest - v * lanes) for v in range(-(-rest // lanes))])

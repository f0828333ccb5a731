"""The gradient of a convolution's weights, and what comes before it: dY at the convolution's own pixels.

dW[r, s, c, k] = sum over images and p, q of X[p*u + r, q*u + s, c] dY[p, q, k]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from bareconv.kernels.cpu.emit import I8, Builder, Index, Value, Variable
from bareconv.kernels.cpu.kernel import Frame, Kernel
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.sweep import column_tiles, columns, runs
from bareconv.kernels.cpu.tile import accumulate, spare_rows
from bareconv.ops.windows import Pair


@dataclass(frozen=True)
class Spread(Kernel):
    """dY from the gradient of what follows the convolution: back through the max pool to where the maximum was, and
    through the relu where Y is positive. The sums of dY, the bias's gradient, are added to ``sums``.

    Pixels that no window covers are left alone: ``out`` must hold zeros there.
    """

    operands: ClassVar[tuple[str, ...]] = ("dy", "y", "where", "out", "sums")

    dy: Plane
    y: Plane
    out: Plane
    pool: Pair = (1, 1)
    relu: bool = True
    bias: bool = True

    def bytes(self, count: int, images: int) -> int:
        numbers = self.dy.numbers * (1 + self.relu) + self.out.numbers
        each = self.target.element_bytes * numbers + (self.dy.numbers if self.pool != (1, 1) else 0)
        return count * each + self.bias * self.out.channels * self.target.element_bytes

    @property
    def label(self) -> str:
        return "relu" * self.relu + " and pool" * (self.pool != (1, 1)) + " backward, dense"

    def write(self, k: Frame) -> None:
        b, filters = k.b, self.out.channels
        sums, positions = k.operand("sums").base, self.pool[0] * self.pool[1]
        for image in k.images():
            dy, out = k.operand("dy").image(image), k.operand("out").image(image)
            y = k.operand("y").image(image) if self.relu else None
            where = k.operand("where", I8).image(image) if positions > 1 else None
            for column, mask in columns(b, filters):
                total = b.variable(sums.vector(column, mask)) if self.bias else None
                for p in b.range(0, self.dy.height):
                    for q in b.range(0, self.dy.width):
                        g = dy.vector(p * self.dy.row + q * filters + self.dy.at(0, 0) + column, mask)
                        if y is not None:
                            alive = y.vector(p * self.y.row + q * filters + self.y.at(0, 0) + column, mask)
                            g = b.select(alive > b.zero, g, b.zero)
                        if total is not None:
                            total.value = total.value + g
                        at = p * (self.pool[0] * self.out.row) + q * (self.pool[1] * filters) + column
                        if where is None:
                            out.store(g, at + self.out.at(0, 0), mask)
                            continue
                        spot = where.vector((p * self.dy.width + q) * filters + column, mask, b.lanes)
                        for i in range(positions):
                            here = spot.equals(i)
                            value = b.select(here, g, b.zero)
                            out.store(value, at + self.out.at(i // self.pool[1], i % self.pool[1]), mask)
                if total is not None:
                    sums.store(total.value, column, mask)


@dataclass(frozen=True)
class WeightGradient(Kernel):
    """dW (R, S, C, K) += X meets dY, over all images of the call: tiles of weights, summed over pixels.

    Pixel (p, q) of dY meets X from pixel (p, q) * stride + origin on.
    """

    operands: ClassVar[tuple[str, ...]] = ("x", "dy", "gradient")

    x: Plane
    dy: Plane
    taps: Pair
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    origin: Pair = (0, 0)

    @property
    def flops(self) -> int:
        work = self.dy.height * self.dy.width * self.dy.channels
        return 2 * work * self.taps[0] * self.taps[1] * self.x.channels

    def bytes(self, count: int, images: int) -> int:
        weights = self.taps[0] * self.taps[1] * self.x.channels * self.dy.channels
        return (count * (self.x.numbers + self.dy.numbers) + weights) * self.target.element_bytes

    @property
    def label(self) -> str:
        return f"{self.tile[0]} weights x {self.tile[1]} vectors, summed over pixels"

    @property
    def tile(self) -> Pair:
        """(rows, vectors): rows are inputs of the window, (r, s, c) in order; as square as registers allow."""
        vectors = min(2, -(-self.dy.channels // self.target.lanes))
        most = spare_rows(self.target.registers, vectors)
        inputs = self.taps[0] * self.taps[1] * self.x.channels
        if inputs <= most:
            return inputs, vectors
        run = self._runs()[1]
        # The size with the fewest turns over a run, and of those the one that leaves the smallest rest.
        return min(range(max(1, most // 2), most + 1), key=lambda rows: (-(-run // rows), rows)), vectors

    def _runs(self) -> Pair:
        """(how many, how long): inputs of the window that lie side by side in memory."""
        (R, S), C = self.taps, self.x.channels
        return (R, S * C) if self.dilation[1] == 1 else (R * S, C)

    def write(self, k: Frame) -> None:
        b, x, dy, gradient = k.b, k.operand("x"), k.operand("dy"), k.operand("gradient").base
        filters = self.dy.channels
        rows, vectors = self.tile
        pixels = [(self.dy.height, self.stride[0] * self.x.row, self.dy.row)]
        pixels += [(self.dy.width, self.stride[1] * self.x.channels, filters)]
        for first, offsets, index in self._input_tiles(b, rows):
            for column, wide, mask in column_tiles(b, filters, vectors):
                at = index * filters + column
                start = [
                    [
                        gradient.vector(at + i * filters + v * b.lanes, mask if v + 1 == wide else None)
                        for v in range(wide)
                    ]
                    for i in range(len(offsets))
                ]
                sums = [[b.variable(value) for value in row] for row in start]
                for image in k.images():
                    done = accumulate(
                        b,
                        offsets,
                        wide,
                        x.image(image) + self.x.at(*self.origin) + first,
                        dy.image(image) + self.dy.at(0, 0) + column,
                        pixels,
                        start=_so_far(sums),
                    )
                    for i, row in enumerate(done):
                        for v, value in enumerate(row):
                            sums[i][v].value = value
                for i, into in enumerate(sums):
                    for v, variable in enumerate(into):
                        gradient.store(variable.value, at + i * filters + v * b.lanes, mask if v + 1 == wide else None)

    def _input_tiles(self, b: Builder, rows: int) -> Iterator[tuple[Index, list[int], Value]]:
        """(offset of the tile in X, offsets of its rows, number of its first input)."""
        (R, S), C = self.taps, self.x.channels
        if rows >= R * S * C:  # all of the window at once
            offsets = [
                r * self.dilation[0] * self.x.row + s * self.dilation[1] * C + c
                for r in range(R)
                for s in range(S)
                for c in range(C)
            ]
            yield 0, offsets, b.index(0)
            return
        length = self._runs()[1]
        for r in b.range(0, R):
            for s in b.range(0, S * C // length):
                start = r * (self.dilation[0] * self.x.row) + s * (self.dilation[1] * C)
                for first, size in runs(b, length, rows):
                    yield start + first, list(range(size)), r * (S * C) + s * length + first


def _so_far(sums: list[list[Variable]]) -> Callable[[int, int], Value]:
    """What a tile's sums start from: their values now."""
    return lambda i, v: sums[i][v].value

"""Convolution, forward and back to its input: one kernel, because both slide a window of weights over an image.

    forward   Y[p, q, k] = sum over r, s, c of X[p*u + r, q*u + s, c] W[r, s, c, k]
    dX        dX[h, w, c] = sum over r, s, k of dY[h - r, w - s, k] W[r, s, c, k]        (stride 1)

The second is the first over dY in a border of zeros, with the window turned round and c and k exchanged: only the
packing of the weights differs. For a larger stride the pixels of dX fall into u*u classes, each of which meets its own
taps only: u*u correlations with smaller windows, each writing every u-th pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from bareconv.kernels.cpu.emit import I8, Builder, Value
from bareconv.kernels.cpu.finish import finish
from bareconv.kernels.cpu.kernel import Frame, Kernel
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.tile import accumulate, spare_rows
from bareconv.ops.windows import Pair


@dataclass(frozen=True)
class Blocking:
    """How outputs are cut into tiles: ``vectors`` registers of channels, ``cells`` (vertical, horizontal) of pixels."""

    vectors: int
    cells: Pair


@dataclass(frozen=True)
class Correlate(Kernel):
    """Y = X correlated with ``taps`` (R, S) of weights for ``filters`` channels, then what the flags say.

    In this order: add ``bias``; maximum over windows of ``pool`` pixels, its position into ``where``; ``relu``; ``add``
    to what is there.

    Output pixel (p, q) reads X from pixel (p, q) * stride + origin on, and goes to pixel (p, q) * step + first of Y.
    Weights are packed by ``packed_weights``: [block of filters][r][s][c][filter].
    """

    operands: ClassVar[tuple[str, ...]] = ("x", "weight", "bias", "y", "where")

    x: Plane
    y: Plane
    filters: int
    taps: Pair
    size: Pair  # output pixels, before pooling
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    origin: Pair = (0, 0)
    step: Pair = (1, 1)
    first: Pair = (0, 0)
    pool: Pair = (1, 1)
    bias: bool = False
    relu: bool = False
    add: bool = False
    keep_where: bool = False

    @property
    def flops(self) -> int:
        (ph, pw), (P, Q) = self.pool, self.size
        return 2 * (P // ph * ph) * (Q // pw * pw) * self.filters * self.taps[0] * self.taps[1] * self.x.channels

    def bytes(self, count: int, images: int) -> int:
        written = self.cells[0] * self.cells[1] * self.filters
        weights = self.taps[0] * self.taps[1] * self.x.channels * self.filters + self.bias * self.filters
        each = self.target.element_bytes * (self.x.numbers + written * (1 + self.add)) + self.keep_where * written
        return count * each + self.target.element_bytes * weights

    @property
    def label(self) -> str:
        return f"direct {self.blocking.cells[0]}x{self.blocking.cells[1]} cells x {self.blocking.vectors} vectors"

    @property
    def cells(self) -> Pair:
        """Pooled pixels: what is written."""
        return self.size[0] // self.pool[0], self.size[1] // self.pool[1]

    @property
    def blocking(self) -> Blocking:
        """The tiling with the fewest cycles by a simple count: multiply-adds, or loads, or the wait for a sum."""
        in_cell = self.pool[0] * self.pool[1]
        registers = -(-self.filters // self.target.lanes)
        best: tuple[float, Blocking] | None = None
        for vectors in range(1, min(4, registers) + 1):
            most = spare_rows(self.target.registers, vectors) // in_cell
            if most < 1 and vectors > 1:  # not even one cell stays in registers
                break
            most = max(1, most)
            for tall in range(1, min(most, self.cells[0]) + 1):
                for wide in range(1, min(most // tall, self.cells[1]) + 1):
                    blocking = Blocking(vectors, (tall, wide))
                    cost = sum(
                        h * w * groups * _cycles(tile_h * tile_w * in_cell, v)
                        for groups, v in _parts(registers, vectors)
                        for h, tile_h in _parts(self.cells[0], tall)
                        for w, tile_w in _parts(self.cells[1], wide)
                    )
                    if best is None or cost < best[0] * 0.999:
                        best = cost, blocking
        assert best is not None
        return best[1]

    def write(self, k: Frame) -> None:
        b, lanes = k.b, self.target.lanes
        x, weight, y = k.operand("x"), k.operand("weight"), k.operand("y")
        bias, where = k.operand("bias"), k.operand("where", I8)
        blocking, registers = self.blocking, -(-self.filters // lanes)
        panel = self.taps[0] * self.taps[1] * self.x.channels  # rows of weights that a block of filters has
        for image in k.images():
            from_x, to_y = x.image(image), y.image(image)
            to_where = where.image(image) if self.keep_where else to_y
            for first, vectors, tail in self._filter_blocks(b, registers, blocking.vectors):
                columns = first * lanes
                for (cy, tall), (cx, wide) in self._tiles(b, blocking.cells):
                    # The cell's first pixel in X, in Y
                    py, px = cy * self.pool[0], cx * self.pool[1]
                    a = (
                        from_x
                        + self.x.at(*self.origin)
                        + py * (self.stride[0] * self.x.row)
                        + px * (self.stride[1] * self.x.channels)
                    )
                    out = cy * (self.step[0] * self.y.row) + cx * (self.step[1] * self.y.channels) + columns
                    cell = (cy * self.cells[1] + cx) * self.filters + columns
                    sums = accumulate(
                        b,
                        [
                            (dy * self.pool[0] + iy) * self.stride[0] * self.x.row
                            + (dx * self.pool[1] + ix) * self.stride[1] * self.x.channels
                            for dy in range(tall)
                            for dx in range(wide)
                            for iy in range(self.pool[0])
                            for ix in range(self.pool[1])
                        ],
                        vectors,
                        a,
                        weight.base + columns * panel,
                        self._loops(vectors * lanes),
                    )
                    in_cell = self.pool[0] * self.pool[1]
                    for dy in range(tall):
                        for dx in range(wide):
                            at = dy * wide + dx
                            mine = sums[at * in_cell : (at + 1) * in_cell]
                            offset = (
                                out
                                + self.y.at(*self.first)
                                + (dy * self.step[0] * self.y.row + dx * self.step[1] * self.y.channels)
                            )
                            spot = cell + (dy * self.cells[1] + dx) * self.filters
                            for v in range(vectors):
                                mask = tail if v + 1 == vectors else None
                                finish(
                                    b,
                                    [row[v] for row in mine],
                                    bias.base + (columns + v * lanes) if self.bias else None,
                                    to_y + (offset + v * lanes),
                                    to_where + (spot + v * lanes) if self.keep_where else None,
                                    mask,
                                    relu=self.relu,
                                    add=self.add,
                                )

    def _loops(self, width: int) -> list[tuple[int, int, int]]:
        """What is summed over: the taps and the channels; columns that lie side by side are one run."""
        (R, S), C = self.taps, self.x.channels
        down = (R, self.dilation[0] * self.x.row, S * C * width)
        if self.dilation[1] == 1:
            return [down, (S * C, 1, width)]
        return [down, (S, self.dilation[1] * C, C * width), (C, 1, width)]

    def _filter_blocks(self, b: Builder, registers: int, vectors: int) -> Iterator[tuple[Value, int, Value | None]]:
        """(first register, registers, mask of the last): full blocks in a loop, then what is left."""
        tail = b.tail(self.filters - (registers - 1) * b.lanes)
        full = registers // vectors - (tail is not None and registers % vectors == 0)
        if full:
            for block in b.range(0, full):
                yield block * vectors, vectors, None
        if full * vectors < registers:
            yield b.index(full * vectors), registers - full * vectors, tail

    def _tiles(self, b: Builder, cells: Pair) -> Iterator[tuple[tuple[Value, int], tuple[Value, int]]]:
        for down in _cover(b, self.cells[0], cells[0]):
            for across in _cover(b, self.cells[1], cells[1]):
                yield down, across


def _cover(b: Builder, cells: int, tile: int) -> Iterator[tuple[Value, int]]:
    """(first cell, cells) of tiles along one axis: whole ones in a loop, then what is left."""
    if cells >= tile:
        for i in b.range(0, cells // tile):
            yield i * tile, tile
    if cells % tile:
        yield b.index(cells - cells % tile), cells % tile


def _parts(total: int, size: int) -> list[Pair]:
    """(how many, of which size): whole parts, and what is left."""
    return [(n, s) for n, s in ((total // size, size), (1, total % size)) if n and s]


def _cycles(rows: int, vectors: int) -> float:
    """Of one step of a tile: two multiply-adds a cycle, two loads, four cycles until a sum can be added to again."""
    return max(rows * vectors / 2, (rows + vectors) / 2, 4.0) + 0.5

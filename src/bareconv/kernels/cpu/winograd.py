"""Convolution with 3 x 3 windows at stride 1 by Winograd's F(2x2, 3x3): 16 products for four outputs instead of 36.

A tile of 4 x 4 inputs d gives a tile of 2 x 2 outputs (``bareconv.ops.conv_winograd`` derives it):

    Y = A' [sum over c of (G g G') * (B' d B)] A

The sum is over channels, so that for each of the 16 positions it is a matrix product: (tiles x C) by (C x K). The
kernel takes a block of tiles, transforms their inputs, and then for a panel of filters and a dozen tiles does the 16
products, each in registers, and transforms back; bias, pool and relu follow as the outputs come. Sizes are chosen so
that the block of inputs and the panel of weights stay in the second-level cache, and the dozen's products in the first.

Source: Lavin, Gray, "Fast algorithms for convolutional neural networks", 2015.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from bareconv.kernels.cpu.emit import I8, Builder, Pointer, Value
from bareconv.kernels.cpu.finish import finish
from bareconv.kernels.cpu.kernel import Frame, Kernel
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.sweep import columns, row_tiles
from bareconv.kernels.cpu.tile import accumulate, spare_rows
from bareconv.ops.windows import Pair

POSITIONS = 16
BLOCK_BYTES = 5 << 18  # of transformed inputs: more than half of a second-level cache of 2 MiB


@dataclass(frozen=True)
class WinogradWeights(Kernel):
    """``packed`` = G g G' of ``weight`` (3, 3, C, width), for the channels from ``begin`` to ``end``.

    Order: [panel of filters][position][channel][filter of the panel]; ``width`` is a multiple of the lanes.
    """

    operands: ClassVar[tuple[str, ...]] = ("weight", "packed")

    channels: int
    width: int
    panel: int  # registers

    def bytes(self, count: int, images: int) -> int:
        return count * self.width * (9 + POSITIONS) * self.target.element_bytes

    @property
    def label(self) -> str:
        return "weights transformed"

    def write(self, k: Frame) -> None:
        b, C = k.b, self.channels
        weight, packed = k.operand("weight").base, k.operand("packed").base
        for c in b.range(k.begin, k.end):
            for first, count in _panels(self.width // b.lanes, self.panel):
                for v in range(count):
                    column = (first + v) * b.lanes
                    g = [
                        [weight.vector((r * 3 + s) * C * self.width + c * self.width + column) for s in range(3)]
                        for r in range(3)
                    ]
                    half = _by_filter(b, [list(row) for row in zip(*g, strict=True)])  # G g, transposed
                    whole = _by_filter(b, [list(row) for row in zip(*half, strict=True)])
                    for position in range(POSITIONS):
                        at = (
                            (first * POSITIONS * C + position * C * count) * b.lanes
                            + c * (count * b.lanes)
                            + v * b.lanes
                        )
                        packed.store(whole[position // 4][position % 4], at)


@dataclass(frozen=True)
class Winograd(Kernel):
    """Y = X correlated with 3 x 3 ``weight``s in ``WinogradWeights``' order; then as ``Correlate``: ``bias``, the
    maximum over windows of 2 x 2 where ``pool`` says so, ``relu``, ``add``.

    Output (p, q) reads X from (p, q) + origin on; ``size``, before pooling, is even. ``scratch``: ``scratch_elements``
    a worker; images of a call: as many as one likes, ``images`` of them go into a block where one has few tiles.
    """

    operands: ClassVar[tuple[str, ...]] = ("x", "weight", "bias", "y", "where", "scratch")

    x: Plane
    y: Plane
    filters: int
    size: Pair
    origin: Pair = (0, 0)
    pool: Pair = (1, 1)
    bias: bool = False
    relu: bool = False
    add: bool = False
    keep_where: bool = False

    @property
    def tiles(self) -> Pair:
        return self.size[0] // 2, self.size[1] // 2

    @property
    def flops(self) -> int:
        T = self.tiles[0] * self.tiles[1]
        transforms = 32 * self.x.channels + 24 * self.filters
        return T * (2 * POSITIONS * self.x.channels * self.filters + transforms)

    def bytes(self, count: int, images: int) -> int:
        written = self.size[0] * self.size[1] // (self.pool[0] * self.pool[1]) * self.filters
        weights = 9 * self.x.channels * self.filters + self.bias * self.filters
        each = self.target.element_bytes * (self.x.numbers + written * (1 + self.add)) + self.keep_where * written
        return count * each + self.target.element_bytes * weights

    @property
    def label(self) -> str:
        images = f"{self.images} images" if self.images > 1 else f"{self.tile_rows} of {self.tiles[0]} rows of tiles"
        return f"Winograd F(2x2, 3x3), {self.rows} tiles x {self.panel} vectors, blocks of {images}"

    @property
    def panel(self) -> int:
        """Registers of filters that are done together."""
        return min(2, -(-self.filters // self.target.lanes))

    @property
    def rows(self) -> int:
        """Tiles whose sums are in registers together."""
        return min(12 if self.panel == 2 else 14, spare_rows(self.target.registers, self.panel))

    @property
    def channels(self) -> int:
        """Elements from one tile's transformed channels to the next's: rows that are a page apart share cache lines."""
        lanes = self.target.lanes
        padded = -(-self.x.channels // lanes) * lanes
        return padded + lanes if padded * self.target.element_bytes % 2048 == 0 else padded

    @property
    def _most(self) -> int:
        """Tiles of a block."""
        return max(self.rows, BLOCK_BYTES // (POSITIONS * self.channels * self.target.element_bytes))

    @property
    def tile_rows(self) -> int:
        """Rows of tiles of a block, where an image has more than a block's tiles."""
        return max(1, min(self.tiles[0], self._most // self.tiles[1]))

    @property
    def images(self) -> int:
        """Images of a block: more than one where they are small."""
        T = self.tiles[0] * self.tiles[1]
        if 4 * self.rows <= T:
            return 1
        most = max(1, min(64, self._most // T))
        return next((n for n in range(most, 0, -1) if n * T % self.rows == 0), most)

    @property
    def block(self) -> int:
        """Tiles of a full block."""
        return self.images * self.tiles[0] * self.tiles[1] if self.images > 1 else self.tile_rows * self.tiles[1]

    @property
    def _group(self) -> int:
        """Elements of the transformed inputs of ``rows`` tiles: [position][tile][channel]."""
        return POSITIONS * self.rows * self.channels

    @property
    def scratch_elements(self) -> int:
        """Of transformed inputs, and of the products of a dozen tiles."""
        groups = -(-self.block // self.rows)
        return POSITIONS * self.rows * (groups * self.channels + self.panel * self.target.lanes)

    @property
    def packed_elements(self) -> int:
        width = -(-self.filters // self.target.lanes) * self.target.lanes
        return POSITIONS * self.x.channels * width

    def write(self, k: Frame) -> None:
        b = k.b
        inputs = k.operand("scratch").base
        products = inputs + -(-self.block // self.rows) * self._group
        TY, TX = self.tiles
        if self.images > 1:
            for first in b.range(k.begin, k.end, self.images):
                count = b.minimum(k.end - first, b.index(self.images))
                for i in b.range(0, count):
                    self._transform(k, k.operand("x").image(first + i), b.index(0), TY, inputs, i * (TY * TX))
                self._multiply(k, first, b.index(0), count * (TY * TX), inputs, products)
            return
        for image in k.images():
            for start in range(0, TY, self.tile_rows) if TY % self.tile_rows or self.tile_rows == TY else (None,):
                if start is not None:  # written out: the last block may be smaller
                    rows = min(self.tile_rows, TY - start)
                    self._transform(k, k.operand("x").image(image), b.index(start), rows, inputs, b.index(0))
                    self._multiply(k, image, b.index(start), b.index(rows * TX), inputs, products)
                    continue
                for block in b.range(0, TY, self.tile_rows):
                    self._transform(k, k.operand("x").image(image), block, self.tile_rows, inputs, b.index(0))
                    self._multiply(k, image, block, b.index(self.tile_rows * TX), inputs, products)

    def _transform(self, k: Frame, x: Pointer, first: Value, rows: int, into: Pointer, number: Value) -> None:
        """B' d B of ``rows`` rows of tiles, the first of which is tile ``number`` of the block."""
        b, TX = k.b, self.tiles[1]
        start = x + self.x.at(*self.origin) + first * (2 * self.x.row)
        for ty in b.range(0, rows):
            for tx in b.range(0, TX):
                corner = start + (ty * (2 * self.x.row) + tx * (2 * self.x.channels))
                n = number + ty * TX + tx
                out = into + (n // self.rows * self._group + n % self.rows * self.channels)
                for column, mask in columns(b, self.x.channels):
                    d = [
                        [corner.vector(i * self.x.row + j * self.x.channels + column, mask) for j in range(4)]
                        for i in range(4)
                    ]
                    half = [_by_input(row) for row in zip(*d, strict=True)]  # B' d, a column at a time
                    whole = [_by_input(row) for row in zip(*half, strict=True)]
                    for i in range(4):
                        for j in range(4):
                            out.store(whole[i][j], (i * 4 + j) * (self.rows * self.channels) + column)

    def _multiply(self, k: Frame, image: Value, row: Value, tiles: Value, inputs: Pointer, products: Pointer) -> None:
        """The products of all tiles of a block, a panel of filters after the other, and their way back to pixels."""
        b, lanes, C = k.b, self.target.lanes, self.x.channels
        weight = k.operand("weight").base
        registers = -(-self.filters // lanes)
        full = registers // self.panel - (self.filters % lanes != 0 and registers % self.panel == 0)
        tail = b.tail(self.filters - (registers - 1) * lanes)

        def panel(first: Value, count: int, mask: Value | None) -> None:
            width = count * lanes
            mine = weight + first * (POSITIONS * C * lanes)
            for tile, size in row_tiles(b, tiles, self.rows):
                group = inputs + (tile // self.rows * self._group + tile % self.rows * self.channels)
                for position in b.range(0, POSITIONS):
                    sums = accumulate(
                        b,
                        [i * self.channels for i in range(size)],
                        count,
                        group + position * (self.rows * self.channels),
                        mine + position * (C * width),
                        [(C, 1, width)],
                    )
                    for t, line in enumerate(sums):
                        for v, value in enumerate(line):
                            products.store(value, position * (self.rows * width) + (t * width + v * lanes))
                for i in b.range(0, size):
                    self._back(k, image, row, tile + i, products + i * width, self.rows * width, first, count, mask)

        if full:
            for number in b.range(0, full):
                panel(number * self.panel, self.panel, None)
        if full * self.panel < registers:
            panel(b.index(full * self.panel), registers - full * self.panel, tail)

    def _back(
        self,
        k: Frame,
        image: Value,
        row: Value,
        tile: Value,
        products: Pointer,
        pitch: int,
        first: Value,
        count: int,
        mask: Value | None,
    ) -> None:
        """A' m A of one tile, for a panel of filters, and what follows the convolution."""
        b, lanes, (TY, TX) = k.b, self.target.lanes, self.tiles
        if self.images > 1:
            image = image + tile // (TY * TX)
            tile = tile % (TY * TX)
        ty, tx = row + tile // TX, tile % TX
        y, column = k.operand("y").image(image), first * lanes
        bias = k.operand("bias").base + column if self.bias else None
        for v in range(count):
            m = [[products.vector((i * 4 + j) * pitch + v * lanes) for j in range(4)] for i in range(4)]
            half = [_by_output(line) for line in zip(*m, strict=True)]
            pixels = [value for line in zip(*half, strict=True) for value in _by_output(line)]
            last = mask if v + 1 == count else None
            at_bias = bias + v * lanes if bias is not None else None
            if self.pool == (2, 2):
                at = ty * self.y.row + tx * self.y.channels + self.y.at(0, 0) + column + v * lanes
                where = None
                if self.keep_where:
                    where = k.operand("where", I8).image(image) + ((ty * TX + tx) * self.filters + column + v * lanes)
                finish(b, pixels, at_bias, y + at, where, last, relu=self.relu, add=self.add)
                continue
            for i, value in enumerate(pixels):
                at = (ty * 2 + i // 2) * self.y.row + (tx * 2 + i % 2) * self.y.channels + self.y.at(0, 0)
                finish(b, [value], at_bias, y + (at + column + v * lanes), None, last, relu=self.relu, add=self.add)


def pays(x: Plane, filters: int, taps: Pair, size: Pair, stride: Pair, dilation: Pair, pool: Pair, lanes: int) -> bool:
    """Whether Winograd can do this convolution, and is faster: with channels enough the transforms cost little."""
    fits = (
        taps == (3, 3) and stride == dilation == (1, 1) and size[0] % 2 == size[1] % 2 == 0 and pool in ((1, 1), (2, 2))
    )
    return fits and min(x.channels, filters) >= max(lanes, 8)


def _by_input(d: tuple[Value, ...]) -> list[Value]:
    """B' d."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _by_output(m: tuple[Value, ...]) -> list[Value]:
    """A' m."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _by_filter(b: Builder, lines: list[list[Value]]) -> list[list[Value]]:
    """G g for each g of ``lines``."""
    made = []
    for g in lines:
        ends, middle = (g[0] + g[2]) * 0.5, g[1] * 0.5
        made.append([g[0], ends + middle, ends - middle, g[2]])
    return made


def _panels(registers: int, size: int) -> Iterator[Pair]:
    """(first register, registers) of the panels."""
    for first in range(0, registers, size):
        yield first, min(size, registers - first)

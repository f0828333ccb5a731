"""Dense layers: Y = X W + b, dX = dY W', dW = X' dY, with what belongs to them done in the same pass.

X (N, F), W (F, U), Y (N, U). A row of W lies in lanes of U. The forward takes W in panels of rows that fit into the
first-level cache and adds to Y panel by panel. dX needs lanes of F: a panel of W is turned round into scratch memory
first. dW needs no copy of anything: its update follows at once, while the gradient is in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from bareconv.kernels.cpu.emit import Builder, Pointer, Value
from bareconv.kernels.cpu.kernel import Frame, Kernel
from bareconv.kernels.cpu.rules import prepare_rule
from bareconv.kernels.cpu.sweep import column_tiles, columns, row_tiles, runs, transposed
from bareconv.kernels.cpu.tile import Tile, accumulate, spare_rows
from bareconv.optim.rule import Rule

PANEL_BYTES = 1 << 15  # of a panel of weights: most of a first-level cache


@dataclass(frozen=True)
class DenseKernel(Kernel):
    """What the kernels of a dense layer have in common. ``pitch``: elements from a row of X (or dX) to the next."""

    features: int
    units: int
    pitch: int

    @property
    def flops(self) -> int:
        return 2 * self.features * self.units

    def bytes(self, count: int, images: int) -> int:
        numbers = count * (self.features + self.units) + self.features * self.units
        return numbers * self.target.element_bytes


@dataclass(frozen=True)
class DenseForward(DenseKernel):
    """Y = X W + bias, then ``relu``; rows of Y are ``units`` apart."""

    operands: ClassVar[tuple[str, ...]] = ("x", "weight", "bias", "y")

    bias: bool = True
    relu: bool = False

    @property
    def label(self) -> str:
        rows, vectors = tile_shape(self)
        return f"{rows} rows x {vectors} vectors, panels of {self.panel} features"

    @property
    def panel(self) -> int:
        return panel_rows(self.features, self.units * self.target.element_bytes)

    def write(self, k: Frame) -> None:
        b = k.b
        x, y = k.operand("x").image(k.begin), k.operand("y").image(k.begin)
        weight, bias = k.operand("weight").base, k.operand("bias").base
        count = k.end - k.begin

        def there(out: Pointer, vectors: int, last: Value | None) -> Callable[[int, int], Value]:
            return lambda i, v: out.vector(i * self.units + v * b.lanes, last if v + 1 == vectors else None)

        for row in b.range(0, count):
            for column, mask in columns(b, self.units):
                start = bias.vector(column, mask) if self.bias else b.zero
                y.store(start, row * self.units + column, mask)
        for panel, size in runs(b, self.features, self.panel):
            for column, vectors, mask in column_tiles(b, self.units, tile_shape(self)[1]):
                for row, rows in row_tiles(b, count, tile_shape(self)[0]):
                    out = y + (row * self.units + column)
                    sums = accumulate(
                        b,
                        [i * self.pitch for i in range(rows)],
                        vectors,
                        x + (row * self.pitch + panel),
                        weight + (panel * self.units + column),
                        [(size, 1, self.units)],
                        start=there(out, vectors, mask),
                    )
                    for i in range(rows):
                        for v in range(vectors):
                            at = i * self.units + v * b.lanes
                            out.store(sums[i][v], at, mask if v + 1 == vectors else None)
        if self.relu:
            for row in b.range(0, count):
                for column, mask in columns(b, self.units):
                    place = row * self.units + column
                    y.store(b.maximum(y.vector(place, mask), b.zero), place, mask)


@dataclass(frozen=True)
class DenseInputGradient(DenseKernel):
    """dX = dY W'; ``scratch`` holds a panel of W turned round: ``scratch_elements`` a worker."""

    operands: ClassVar[tuple[str, ...]] = ("dy", "weight", "dx", "scratch")

    @property
    def label(self) -> str:
        return f"8 rows x {self.vectors} vectors, weights turned round in cache"

    @property
    def vectors(self) -> int:
        return min(2, -(-self.features // self.target.lanes))

    @property
    def scratch_elements(self) -> int:
        return self.vectors * self.target.lanes * self.units

    def write(self, k: Frame) -> None:
        b, width = k.b, self.vectors * self.target.lanes
        dy, dx = k.operand("dy").image(k.begin), k.operand("dx").image(k.begin)
        weight, scratch = k.operand("weight").base, k.operand("scratch").base
        count = k.end - k.begin
        for first, vectors, mask in column_tiles(b, self.features, self.vectors):
            there = None if mask is None else self.features % self.target.lanes
            for v in range(vectors):
                short = there if v + 1 == vectors else None
                at = scratch + v * b.lanes
                turn_round(b, weight + (first + v * b.lanes) * self.units, self.units, at, width, self.units, short)
            for row, rows in row_tiles(b, count, 8):
                sums = accumulate(
                    b,
                    [i * self.units for i in range(rows)],
                    vectors,
                    dy + row * self.units,
                    scratch,
                    [(self.units, 1, width)],
                )
                for i in range(rows):
                    for v in range(vectors):
                        at_row = (row + i) * self.pitch + first + v * b.lanes
                        dx.store(sums[i][v], at_row, mask if v + 1 == vectors else None)


@dataclass(frozen=True)
class DenseWeightUpdate(DenseKernel):
    """dW = X' dY, and the optimizer's step with it: for the features from ``begin`` to ``end``, over ``images`` rows.

    ``images`` is a word of memory. A panel of features at a time, over ``ROWS`` rows at a time: the panel's part of
    these rows stays in the cache, and where there are more (``blocked``) so do its sums, in ``scratch``. With the rule
    "gradient" the gradient is written and nothing is updated.
    """

    operands: ClassVar[tuple[str, ...]] = (
        *("x", "dy", "images", "scalars", "scratch"),
        *("weight", "gradient", "state1", "state2"),
    )
    ROWS: ClassVar[int] = 128

    rule: Rule
    blocked: bool = False

    def bytes(self, count: int, images: int) -> int:
        numbers = images * (count + self.units) + count * self.units * self.rule.moved
        return numbers * self.target.element_bytes

    @property
    def label(self) -> str:
        rows, vectors = tile_shape(self)
        return f"{rows} features x {vectors} vectors, then {self.rule.name} in registers"

    @property
    def panel(self) -> int:
        """Features of a panel, whose sums are held."""
        return panel_rows(self.features, self._width * self.target.element_bytes)

    @property
    def _width(self) -> int:
        return -(-self.units // self.target.lanes) * self.target.lanes

    @property
    def scratch_elements(self) -> int:
        return self.panel * self._width

    def write(self, k: Frame) -> None:
        from bareconv.kernels.cpu.emit import I64

        b = k.b
        x, dy = k.operand("x").base, k.operand("dy").base
        images = k.operand("images", I64).base.load()
        arrays = {name: k.operand(name).base for name in ("weight", "gradient", "state1", "state2")}
        update = prepare_rule(self.rule, b, k.operand("scalars").base)
        rows, wide = tile_shape(self)
        if not self.blocked:
            for feature, size in row_tiles(b, k.end - k.begin, rows):
                start = k.begin + feature
                for column, vectors, mask in column_tiles(b, self.units, wide):
                    sums = self._sums(b, size, vectors, x + start, dy + column, images)
                    for i, v, value in _each(sums):
                        at = (start + i) * self.units + column + v * b.lanes
                        update(arrays, at, value, mask if v + 1 == vectors else None)
            return
        scratch = k.operand("scratch").base
        for first in b.range(k.begin, k.end, self.panel):
            count = b.minimum(k.end - first, b.index(self.panel))
            for place in b.range(0, count * self._width, b.lanes):
                scratch.store(b.zero, place)
            for row in b.range(0, images, self.ROWS):
                some = b.minimum(images - row, b.index(self.ROWS))
                for feature, size in row_tiles(b, count, rows):
                    for column, vectors, mask in column_tiles(b, self.units, wide):
                        del mask  # what is past the last unit goes to waste in the scratch memory
                        into = scratch + (feature * self._width + column)
                        sums = self._sums(
                            *(b, size, vectors, x + (row * self.pitch + first + feature)),
                            *(dy + (row * self.units + column), some),
                        )
                        for i, v, value in _each(sums):
                            spot = i * self._width + v * b.lanes
                            into.store(into.vector(spot) + value, spot)
            for feature in b.range(0, count):
                for unit, mask in columns(b, self.units):
                    g = scratch.vector(feature * self._width + unit)
                    update(arrays, (first + feature) * self.units + unit, g, mask)

    def _sums(self, b: Builder, rows: int, vectors: int, x: Pointer, dy: Pointer, images: Value) -> Tile:
        return accumulate(b, list(range(rows)), vectors, x, dy, [(images, self.pitch, self.units)])


def _each(sums: Tile) -> Iterator[tuple[int, int, Value]]:
    """(row, register, sum) of all of a tile."""
    for i, row in enumerate(sums):
        for v, value in enumerate(row):
            yield i, v, value


@dataclass(frozen=True)
class ColumnSums(Kernel):
    """sums[u] += the sum of Y over its rows: the gradient of a bias."""

    operands: ClassVar[tuple[str, ...]] = ("y", "sums")

    units: int

    def bytes(self, count: int, images: int) -> int:
        return (count + 1) * self.units * self.target.element_bytes

    def write(self, k: Frame) -> None:
        b, y, sums = k.b, k.operand("y"), k.operand("sums").base
        for column, mask in columns(b, self.units):
            total = b.variable(sums.vector(column, mask))
            for row in k.images():
                total.value = total.value + y.image(row).vector(column, mask)
            sums.store(total.value, column, mask)


def tile_shape(kernel: DenseForward | DenseWeightUpdate) -> tuple[int, int]:
    """(rows, vectors): as wide as the layer up to two registers of columns, as tall as registers allow, 8 at most."""
    vectors = min(2, -(-kernel.units // kernel.target.lanes))
    return min(8 if vectors == 2 else 12, spare_rows(kernel.target.registers, vectors)), vectors


def panel_rows(rows: int, row_bytes: int) -> int:
    """Rows of a panel of weights: such that it stays in the first-level cache."""
    return max(1, min(rows, PANEL_BYTES // row_bytes))


def turn_round(
    b: Builder, source: Pointer, pitch: int, into: Pointer, into_pitch: int, length: int, rows: int | None = None
) -> None:
    """into[j, i] = source[i, j] for ``lanes`` rows i and ``length`` columns j; rows from ``rows`` on count as zeros.

    Blocks of lanes x lanes go through registers: in each of log2(lanes) rounds rows i and i + half exchange halves.
    """
    lanes, present = b.lanes, b.lanes if rows is None else rows
    for column, mask in columns(b, length):
        block = [source.vector(column + i * pitch, mask) if i < present else b.zero for i in range(lanes)]
        for i, row in enumerate(transposed(b, block)):
            if isinstance(column, int) and i >= length % lanes:  # past the last column
                break
            into.store(row, (column + i) * into_pitch)

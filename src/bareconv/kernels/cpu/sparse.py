"""The backward of convolution, relu and max pool together, where little of the gradient is left.

A pool of 2 x 2 passes each gradient to one pixel of four, and the relu kills about half of the rest: seven eighths of
dY are zeros. So the live ones are listed, filter by filter, as (where in the image, value), and only they are
multiplied:

    dW[k] += g X[the window at the place]          dX[the window at the place] += g W[k]

A window is R runs of S*C numbers: a run per row of the kernel. One filter's gradient, R * S * C numbers, is held in
registers while its list is gone through; so are its weights for dX.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from bareconv.kernels.cpu.emit import I8, I32, I64, Builder, Index, Pointer, Value
from bareconv.kernels.cpu.kernel import Frame, Kernel
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.sweep import clear, columns, runs, transposed
from bareconv.ops.windows import Pair

STRIP_BYTES = 1 << 15  # of X that a strip of windows covers: what the first-level cache holds


@dataclass(frozen=True)
class SparseBackward(Kernel):
    """``gradient`` (K, R, run) and ``sums`` (K) are added to; ``dx``, of X's plane, is set, its border to anything.

    ``weight`` is packed alike, (K, R, run): a run is S*C numbers and zeros up to a multiple of the lanes. ``lists`` is
    scratch memory of ``list_elements`` pairs a worker. Stride and dilation 1.
    """

    operands: ClassVar[tuple[str, ...]] = (
        "x",
        "dy",
        "y",
        "where",
        "weight",
        "gradient",
        "sums",
        "dx",
        "places",
        "values",
    )

    x: Plane
    dy: Plane
    y: Plane
    taps: Pair
    pool: Pair
    origin: Pair
    bias: bool = True
    need_dx: bool = True

    @property
    def label(self) -> str:
        return f"only the live gradients, strips of {self.strip} windows"

    @property
    def flops(self) -> int:
        """An estimate: half of the pooled pixels are alive."""
        each = 2 * self.taps[0] * self.taps[1] * self.x.channels * (2 if self.need_dx else 1)
        return self.dy.height * self.dy.width * self.dy.channels // 2 * each

    def bytes(self, count: int, images: int) -> int:
        filters = self.dy.channels
        weights = self.taps[0] * self.taps[1] * self.x.channels * filters * (1 + self.need_dx) + self.bias * filters
        numbers = self.x.numbers * (1 + self.need_dx) + 2 * self.dy.numbers
        return count * (self.target.element_bytes * numbers + self.dy.numbers) + self.target.element_bytes * weights

    @property
    def run(self) -> int:
        """Elements of a packed run."""
        return -(-self.taps[1] * self.x.channels // self.target.lanes) * self.target.lanes

    @property
    def strip(self) -> int:
        """Windows that are done together: a multiple of the lanes."""
        lanes = self.target.lanes
        window_bytes = self.pool[0] * self.pool[1] * self.x.channels * self.target.element_bytes
        wanted = max(1, STRIP_BYTES // (window_bytes * lanes)) * lanes
        whole = -(-self.dy.height * self.dy.width // lanes) * lanes
        return min(wanted, whole)

    @property
    def list_elements(self) -> int:
        """Of ``places`` (32-bit integers) and ``values``, a worker; a compressed store may write past a list's end."""
        return self.target.lanes * (self.strip + self.target.lanes)

    def write(self, k: Frame) -> None:
        b, filters, lanes = k.b, self.dy.channels, self.target.lanes
        windows = self.dy.height * self.dy.width
        places, values = k.operand("places", I32).base, k.operand("values").base
        pitch = self.strip + lanes
        tally = b.scratch(I64, lanes)
        for image in k.images():
            x = k.operand("x").image(image)
            dx = k.operand("dx").image(image) if self.need_dx else None
            if dx is not None:
                clear(b, dx, self.x.size)
            for first, size in runs(b, windows, self.strip):
                for group, mask in columns(b, filters):
                    for lane in range(lanes):
                        tally.store(b.index(0), lane)
                    self._list(k, image, first, size, group, mask, places, values, tally, pitch)
                    present = filters % lanes if mask is not None else lanes
                    for i in b.range(0, present):
                        place, value, count = places + i * pitch, values + i * pitch, tally.load(i)
                        filter_at = (i + group) * (self.taps[0] * self.run)
                        self._gather(k, x, place, value, count, filter_at)
                        if dx is not None:
                            self._scatter(k, dx, place, value, count, filter_at)

    def _list(
        self,
        k: Frame,
        image: Value,
        first: Value,
        size: int,
        group: Index,
        mask: Value | None,
        places: Pointer,
        values: Pointer,
        tally: Pointer,
        pitch: int,
    ) -> None:
        """The live gradients of ``size`` windows from ``first`` on, for as many filters as there are lanes."""
        b, lanes, filters = k.b, self.target.lanes, self.dy.channels
        dy, y = k.operand("dy").image(image), k.operand("y").image(image)
        where, sums = k.operand("where", I8).image(image), k.operand("sums").base
        total = b.variable(sums.vector(group, mask)) if self.bias else None
        for start, count in runs(b, size, lanes):
            number = first + start
            gradient, position = [], []
            for i in range(lanes):
                if i >= count:
                    gradient.append(b.zero)
                    position.append(b.as_type(0, ir.VectorType(I32, lanes)))
                    continue
                window = number + i
                p, q = window // self.dy.width, window % self.dy.width
                g = dy.vector(p * self.dy.row + q * filters + self.dy.at(0, 0) + group, mask)
                alive = y.vector(p * self.y.row + q * filters + self.y.at(0, 0) + group, mask)
                gradient.append(b.select(alive > b.zero, g, b.zero))
                spot = where.vector(window * filters + group, mask, lanes)
                position.append(b.convert(spot, I32))
            if total is not None:
                for g in gradient:
                    total.value = total.value + g
            # From a register a window to a register a filter
            window = b.splat(b.convert(number, I32)) + b.lane_numbers(I32)
            p, q = window // self.dy.width, window % self.dy.width
            corner = p * (self.pool[0] * self.x.row) + q * (self.pool[1] * self.x.channels) + self.x.at(*self.origin)
            for i, (g, spot) in enumerate(zip(transposed(b, gradient), transposed(b, position), strict=True)):
                place = corner + (spot // self.pool[1]) * self.x.row + (spot % self.pool[1]) * self.x.channels
                alive = Value(b, b.ir.fcmp_unordered("!=", g.ir, b.zero.ir))
                at = tally.load(i)
                compress(b, places + (at + i * pitch), place, alive)
                compress(b, values + (at + i * pitch), g, alive)
                tally.store(at + population(b, alive), i)
        if total is not None:
            sums.store(total.value, group, mask)

    def _pieces(self) -> list[list[tuple[int, int]]]:
        """The registers of a window, (row of the kernel, register of its run), as many at a time as can be held."""
        every = [(r, v) for r in range(self.taps[0]) for v in range(self.run // self.target.lanes)]
        most = max(1, self.target.registers - 4)
        pieces = -(-len(every) // most)
        size = -(-len(every) // pieces)
        return [every[i : i + size] for i in range(0, len(every), size)]

    def _gather(self, k: Frame, x: Pointer, place: Pointer, value: Pointer, count: Value, filter_at: Value) -> None:
        """dW of one filter: sum of g times the window at its place."""
        b, into = k.b, k.operand("gradient").base + filter_at
        for piece in self._pieces():
            sums = [b.variable(into.vector(r * self.run + v * b.lanes)) for r, v in piece]
            for e in b.range(0, count):
                window, g = x + b.convert(place.load(e), I64), value.splat(e)
                for (r, v), s in zip(piece, sums, strict=True):
                    s.value = b.fma(g, window.vector(r * self.x.row + v * b.lanes), s.value)
            for (r, v), s in zip(piece, sums, strict=True):
                into.store(s.value, r * self.run + v * b.lanes)

    def _scatter(self, k: Frame, dx: Pointer, place: Pointer, value: Pointer, count: Value, filter_at: Value) -> None:
        """dX: g times the filter's weights, added to the window at its place."""
        b, source = k.b, k.operand("weight").base + filter_at
        for piece in self._pieces():
            weights = [source.vector(r * self.run + v * b.lanes) for r, v in piece]
            for e in b.range(0, count):
                window, g = dx + b.convert(place.load(e), I64), value.splat(e)
                for (r, v), w in zip(piece, weights, strict=True):
                    at = r * self.x.row + v * b.lanes
                    window.store(b.fma(g, w, window.vector(at)), at)


def compress(b: Builder, at: Pointer, value: Value, mask: Value) -> None:
    """Write the lanes where ``mask`` is true one after another."""
    b.intrinsic("masked.compressstore", ir.VoidType(), [value.ir, at.ir, mask.ir], [value.type])


def population(b: Builder, mask: Value) -> Value:
    """How many lanes are true."""
    kind = ir.IntType(mask.type.count)
    bits = b.intrinsic("ctpop", kind, [b.bits(mask, kind).ir], [kind])
    return b.widen(bits, I64)

"""Batch normalisation, with the relu and the max pool that follow it. ``bareconv.ops.norm`` has the formulas.

Training needs sums over the whole batch before the first pixel can be written, and again on the way back: the workers
sum up their images, one of them finishes, and all go on. Sums of an image are in the target's precision, sums over
images in double.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from bareconv.kernels.cpu.emit import I8, I64, Builder, Index, Pointer, Value
from bareconv.kernels.cpu.kernel import Frame, Kernel
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.sweep import columns
from bareconv.ops.windows import Pair

DOUBLE, DOUBLE_BYTES = ir.DoubleType(), 8


def _add_to(b: Builder, sums: Pointer, at: Index, value: Value, mask: Value | None) -> None:
    """sums[at ...] += value, in double precision."""
    sums.store(sums.vector(at, mask, b.lanes) + b.convert(value, DOUBLE), at, mask)


def _totals(b: Builder, sums: Pointer, workers: Value, pitch: int, places: tuple[Value, Value]) -> tuple[Value, Value]:
    """What the workers have summed up at two places, which are cleared for the next step."""
    zero = b.as_type(0.0, DOUBLE)
    totals = b.variable(zero), b.variable(zero)
    for worker in b.range(0, workers):
        for into, at in zip(totals, places, strict=True):
            place = worker * pitch + at
            into.value = into.value + sums.load(place)
            sums.store(zero, place)
    return totals[0].value, totals[1].value


def _write_coefficients(
    b: Builder, into: Pointer, c: Value, channels: int, mean: Value, inverse: Value, gamma: Value, beta: Value
) -> None:
    """Channel ``c``'s mean, inverse standard deviation, scale and shift, into (4, channels)."""
    scale = gamma * inverse
    for i, value in enumerate((mean, inverse, scale, beta - mean * scale)):
        into.store(b.convert(value, b.number), c + i * channels)


@dataclass(frozen=True)
class NormSums(Kernel):
    """``sums`` (2, C) += the sums of x - pivot and of its square. The pivot, the running mean, keeps the sums small."""

    operands: ClassVar[tuple[str, ...]] = ("x", "pivot", "sums")

    x: Plane

    def bytes(self, count: int, images: int) -> int:
        return count * self.x.numbers * self.target.element_bytes + 2 * self.x.channels * DOUBLE_BYTES

    @property
    def label(self) -> str:
        return "sums for mean and variance"

    def write(self, k: Frame) -> None:
        b, C = k.b, self.x.channels
        pivots, sums = k.operand("pivot").base, k.operand("sums", DOUBLE).base
        for image in k.images():
            x = k.operand("x").image(image) + self.x.at(0, 0)
            for column, mask in columns(b, C):
                pivot = pivots.vector(column, mask)
                total, squares = b.variable(b.zero), b.variable(b.zero)
                for p in b.range(0, self.x.height):
                    for q in b.range(0, self.x.width):
                        d = x.vector(p * self.x.row + q * C + column, mask) - pivot
                        total.value = total.value + d
                        squares.value = b.fma(d, d, squares.value)
                _add_to(b, sums, column, total.value, mask)
                _add_to(b, sums, column + C, squares.value, mask)


@dataclass(frozen=True)
class NormFinish(Kernel):
    """From the workers' sums, which are cleared: mean, inverse standard deviation, scale and shift (``coefficients``
    (4, C)), and the running mean and variance moved by ``momentum``. ``begin`` to ``end`` are channels."""

    operands: ClassVar[tuple[str, ...]] = (
        *("sums", "workers", "images", "gamma", "beta", "mean", "var"),
        "coefficients",
    )

    channels: int
    pixels: int
    pitch: int  # elements from a worker's sums to the next's
    momentum: float
    eps: float

    def bytes(self, count: int, images: int) -> int:
        # gamma, beta, the running statistics, which are written too, and four coefficients
        return count * (2 * DOUBLE_BYTES + 10 * self.target.element_bytes)

    @property
    def label(self) -> str:
        return "mean, variance, running statistics"

    def write(self, k: Frame) -> None:
        b, C = k.b, self.channels
        sums, workers = k.operand("sums", DOUBLE).base, k.operand("workers", I64).base.load()
        count = b.convert(k.operand("images", I64).base.load() * self.pixels, DOUBLE)
        arrays = {name: k.operand(name).base for name in ("gamma", "beta", "mean", "var", "coefficients")}
        for c in b.range(k.begin, k.end):
            total, squares = _totals(b, sums, workers, self.pitch, (c, c + C))
            offset = total / count
            variance = squares / count - offset * offset
            variance = b.select(variance > 0.0, variance, b.as_type(0.0, DOUBLE))
            running = b.convert(arrays["mean"].load(c), DOUBLE)
            mean = running + offset
            inverse = 1.0 / b.sqrt(variance + self.eps)
            gamma, beta = (b.convert(arrays[name].load(c), DOUBLE) for name in ("gamma", "beta"))
            _write_coefficients(b, arrays["coefficients"], c, C, mean, inverse, gamma, beta)
            others = count - 1.0
            unbiased = variance * (count / b.select(others > 1.0, others, b.as_type(1.0, DOUBLE)))
            arrays["mean"].store(b.convert(running + offset * self.momentum, b.number), c)
            old = b.convert(arrays["var"].load(c), DOUBLE)
            arrays["var"].store(b.convert(old + (unbiased - old) * self.momentum, b.number), c)


@dataclass(frozen=True)
class NormScale(Kernel):
    """Scale and shift from the running statistics, for evaluation: ``coefficients`` (4, C). A range of channels."""

    operands: ClassVar[tuple[str, ...]] = ("gamma", "beta", "mean", "var", "coefficients")

    channels: int
    eps: float

    def bytes(self, count: int, images: int) -> int:
        return count * 8 * self.target.element_bytes

    @property
    def label(self) -> str:
        return "scale and shift from the running statistics"

    def write(self, k: Frame) -> None:
        b, C = k.b, self.channels
        arrays = {name: k.operand(name).base for name in self.operands}
        for c in b.range(k.begin, k.end):
            gamma, beta, mean, var = (b.convert(arrays[n].load(c), DOUBLE) for n in ("gamma", "beta", "mean", "var"))
            inverse = 1.0 / b.sqrt(var + self.eps)
            _write_coefficients(b, arrays["coefficients"], c, C, mean, inverse, gamma, beta)


@dataclass(frozen=True)
class NormApply(Kernel):
    """Y = scale X + shift, then relu, then the maximum over windows of ``pool`` and its position."""

    operands: ClassVar[tuple[str, ...]] = ("x", "coefficients", "y", "where")

    x: Plane
    y: Plane
    pool: Pair = (1, 1)
    relu: bool = True
    keep_where: bool = False

    def bytes(self, count: int, images: int) -> int:
        each = (self.x.numbers + self.y.numbers) * self.target.element_bytes + self.keep_where * self.y.numbers
        return count * each + 2 * self.x.channels * self.target.element_bytes

    @property
    def label(self) -> str:
        return "scale, shift" + ", relu" * self.relu + ", pool" * (self.pool != (1, 1))

    def write(self, k: Frame) -> None:
        b, C = k.b, self.x.channels
        coefficients = k.operand("coefficients").base
        for image in k.images():
            x, y = k.operand("x").image(image) + self.x.at(0, 0), k.operand("y").image(image) + self.y.at(0, 0)
            where = k.operand("where", I8).image(image) if self.keep_where else None
            for column, mask in columns(b, C):
                scale, shift = (coefficients.vector(column + i * C, mask) for i in (2, 3))
                for p in b.range(0, self.y.height):
                    for q in b.range(0, self.y.width):
                        corner = p * (self.pool[0] * self.x.row) + q * (self.pool[1] * C) + column
                        value = position = None
                        for i, at in enumerate(_cell(self.x, self.pool)):
                            one = b.fma(x.vector(corner + at, mask), scale, shift)
                            if value is None or position is None:
                                value, position = one, b.zero
                                continue
                            larger = one > value
                            value = b.select(larger, one, value)
                            position = b.select(larger, b.constant(float(i)), position)
                        assert value is not None
                        assert position is not None
                        if self.relu:
                            value = b.maximum(value, b.zero)
                        y.store(value, p * self.y.row + q * C + column, mask)
                        if where is not None:
                            where.store(b.convert(position, I8), (p * self.y.width + q) * C + column, mask)


@dataclass(frozen=True)
class NormBackwardSums(Kernel):
    """``sums`` (2, C) += the sums of g and of g xhat, where g is dY back through pool and relu."""

    operands: ClassVar[tuple[str, ...]] = ("x", "dy", "y", "where", "coefficients", "sums")

    x: Plane
    dy: Plane
    y: Plane
    pool: Pair = (1, 1)
    relu: bool = True

    def bytes(self, count: int, images: int) -> int:
        channels = 2 * self.x.channels * (self.target.element_bytes + DOUBLE_BYTES)
        return count * _read_bytes(self) + channels

    @property
    def label(self) -> str:
        return "sums of dY and dY xhat"

    def write(self, k: Frame) -> None:
        b, C = k.b, self.x.channels
        coefficients, sums = k.operand("coefficients").base, k.operand("sums", DOUBLE).base
        for image in k.images():
            x = k.operand("x").image(image) + self.x.at(0, 0)
            for column, mask in columns(b, C):
                mean, inverse = (coefficients.vector(column + i * C, mask) for i in (0, 1))
                total, products = b.variable(b.zero), b.variable(b.zero)
                for p, q, g, spot in _gradients(k, image, column, mask, self):
                    corner = p * (self.pool[0] * self.x.row) + q * (self.pool[1] * C) + column
                    value = None
                    for i, at in enumerate(_cell(self.x, self.pool)):
                        one = x.vector(corner + at, mask)
                        value = one if value is None or spot is None else b.select(spot.equals(i), one, value)
                    assert value is not None
                    total.value = total.value + g
                    products.value = b.fma(g, (value - mean) * inverse, products.value)
                _add_to(b, sums, column, total.value, mask)
                _add_to(b, sums, column + C, products.value, mask)


@dataclass(frozen=True)
class NormBackwardFinish(Kernel):
    """dbeta and dgamma from the workers' sums, which are cleared.

    ``terms`` (3, C): gamma / std, dbeta / M, dgamma / M.
    """

    operands: ClassVar[tuple[str, ...]] = (
        *("sums", "workers", "images", "gamma", "coefficients"),
        *("dgamma", "dbeta", "terms"),
    )

    channels: int
    pixels: int
    pitch: int

    def bytes(self, count: int, images: int) -> int:
        # gamma, 1 / deviation; two gradients and three terms
        return count * (2 * DOUBLE_BYTES + 7 * self.target.element_bytes)

    @property
    def label(self) -> str:
        return "gradients of gamma and beta"

    def write(self, k: Frame) -> None:
        b, C = k.b, self.channels
        sums, workers = k.operand("sums", DOUBLE).base, k.operand("workers", I64).base.load()
        count = b.convert(k.operand("images", I64).base.load() * self.pixels, DOUBLE)
        arrays = {name: k.operand(name).base for name in ("gamma", "coefficients", "dgamma", "dbeta", "terms")}
        for c in b.range(k.begin, k.end):
            dbeta, dgamma = _totals(b, sums, workers, self.pitch, (c, c + C))
            arrays["dgamma"].store(b.convert(dgamma, b.number), c)
            arrays["dbeta"].store(b.convert(dbeta, b.number), c)
            factor = arrays["gamma"].load(c) * arrays["coefficients"].load(c + C)
            arrays["terms"].store(factor, c)
            arrays["terms"].store(b.convert(dbeta / count, b.number), c + C)
            arrays["terms"].store(b.convert(dgamma / count, b.number), c + 2 * C)


@dataclass(frozen=True)
class NormBackward(Kernel):
    """dX = gamma / std (g - dbeta / M - xhat dgamma / M) at every pixel; g is zero where the pool did not choose it."""

    operands: ClassVar[tuple[str, ...]] = ("x", "dy", "y", "where", "coefficients", "terms", "dx")

    x: Plane
    dy: Plane
    y: Plane
    dx: Plane
    pool: Pair = (1, 1)
    relu: bool = True

    def bytes(self, count: int, images: int) -> int:
        size = self.target.element_bytes
        return count * (_read_bytes(self) + self.dx.numbers * size) + 5 * self.x.channels * size

    @property
    def label(self) -> str:
        return "dX" + " through relu" * self.relu + " and pool" * (self.pool != (1, 1))

    def write(self, k: Frame) -> None:
        b, C = k.b, self.x.channels
        coefficients, terms = k.operand("coefficients").base, k.operand("terms").base
        for image in k.images():
            x, dx = k.operand("x").image(image) + self.x.at(0, 0), k.operand("dx").image(image) + self.dx.at(0, 0)
            for column, mask in columns(b, C):
                mean, inverse = (coefficients.vector(column + i * C, mask) for i in (0, 1))
                factor, offset, slope = (terms.vector(column + i * C, mask) for i in range(3))
                slope = slope * inverse

                def put(at_x: Value, at_dx: Value, g: Value | None) -> None:
                    centred = x.vector(at_x, mask) - mean  # noqa: B023 - written at once
                    base = offset + centred * slope  # noqa: B023
                    value = b.zero - base if g is None else g - base
                    dx.store(value * factor, at_dx, mask)  # noqa: B023

                for p, q, g, spot in _gradients(k, image, column, mask, self):
                    for i in range(self.pool[0] * self.pool[1]):
                        dy, dxx = i // self.pool[1], i % self.pool[1]
                        at_x = p * (self.pool[0] * self.x.row) + q * (self.pool[1] * C) + column
                        at_dx = p * (self.pool[0] * self.dx.row) + q * (self.pool[1] * C) + column
                        mine = g if spot is None else b.select(spot.equals(i), g, b.zero)
                        put(at_x + (dy * self.x.row + dxx * C), at_dx + (dy * self.dx.row + dxx * C), mine)
                covered = self.dy.height * self.pool[0], self.dy.width * self.pool[1]
                for rows, wide in (
                    ((covered[0], self.x.height), (0, self.x.width)),
                    ((0, covered[0]), (covered[1], self.x.width)),
                ):
                    if rows[0] < rows[1] and wide[0] < wide[1]:  # pixels that no window covers
                        for y in b.range(*rows):
                            for xx in b.range(*wide):
                                put(y * self.x.row + xx * C + column, y * self.dx.row + xx * C + column, None)


def _read_bytes(of: NormBackwardSums | NormBackward) -> int:
    """X, dY, and what says where dY goes, of one image."""
    numbers = of.x.numbers + of.dy.numbers * (1 + of.relu)
    return numbers * of.target.element_bytes + (of.dy.numbers if of.pool != (1, 1) else 0)


def _cell(x: Plane, pool: Pair) -> list[int]:
    """The offsets of a window's pixels from its first."""
    return [i * x.row + j * x.channels for i in range(pool[0]) for j in range(pool[1])]


def _gradients(
    k: Frame, image: Value, column: Index, mask: Value | None, of: NormBackwardSums | NormBackward
) -> Iterator[tuple[Value, Value, Value, Value | None]]:
    """(p, q, gradient, position of the maximum) of every pooled pixel, one register of channels."""
    b, C = k.b, of.x.channels
    dy = k.operand("dy").image(image) + of.dy.at(0, 0)
    y = k.operand("y").image(image) + of.y.at(0, 0) if of.relu else None
    where = k.operand("where", I8).image(image) if of.pool != (1, 1) else None
    for p in b.range(0, of.dy.height):
        for q in b.range(0, of.dy.width):
            g = dy.vector(p * of.dy.row + q * C + column, mask)
            if y is not None:
                alive = y.vector(p * of.y.row + q * C + column, mask)
                g = b.select(alive > b.zero, g, b.zero)
            spot = where.vector((p * of.dy.width + q) * C + column, mask, b.lanes) if where is not None else None
            yield p, q, g, spot

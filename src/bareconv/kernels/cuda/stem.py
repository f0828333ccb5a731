"""The first block of a network on small images as one kernel each way: two convolutions, each with relu, perhaps a pool.

What lies between them never leaves a multiprocessor. Backward, the first convolution is computed again from the pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bareconv.kernels.cuda.geometry import Convolution
from bareconv.kernels.cuda.kernel import KEPT_BYTES, NUMBER, Kernel, Precision, padded
from bareconv.kernels.cuda.limits import Limits
from bareconv.ops.windows import Pair

MAX_CHANNELS = 4
WEIGHT_REGISTERS = 144  # of a thread, for weights or for the gradient of weights
PATCH_REGISTERS = 72  # for the pixels that eight squares of outputs read
WARP = 32


@dataclass(frozen=True)
class Stem:
    """uint8 images, (pixel - mean) / std, through ``a``, relu and, where ``a_pool``, a 2 x 2 max pool; then through ``b``.

    ``b`` reads what ``a`` and its pool make. A pool drops an odd last row or column.
    """

    a: Convolution
    a_pool: bool
    b: Convolution
    b_pool: bool
    mean: float
    std: float

    @property
    def middle(self) -> Pair:
        """Height and width of what ``b`` reads."""
        return _pooled(self.a.output, self.a_pool)

    @property
    def output(self) -> Pair:
        """(P, Q) of what ``b`` and its pool make."""
        return _pooled(self.b.output, self.b_pool)

    @property
    def is_possible(self) -> bool:
        """Whether the kernels know such a block at all."""
        plain = all(one.window.stride == one.window.dilation == (1, 1) for one in (self.a, self.b))
        fits = (self.b.height, self.b.width) == self.middle and self.b.channels == self.a.filters
        return plain and fits and self.a.channels <= MAX_CHANNELS and min(*self.middle, *self.output) >= 1


@dataclass(frozen=True)
class StemBackward:
    """Kernels in any order. Gradients come in ``parts`` parts, each of a parameter's natural size."""

    kernels: tuple[Kernel, ...]
    parts: int


def stem_forward(stem: Stem, precision: Precision, batch: int, limits: Limits, training: bool = True) -> Kernel | None:
    """uint8 pixels -> ``y``, Kept (batch, P, Q, padded filters of B), and ``where``, uint8 of the same shape.

    ``where``: the place of the maximum in its 2 x 2, row by row, the first of several, plus 4 where it is not above 0.
    Without B's pool 0 or 4. Operands: pixels, order, control, working copies of the weights, float32 biases, y, where.
    None where the block does not fit the GPU.
    """
    if not _suits(stem, precision, limits):
        return None
    sizes = _Sizes(stem, precision)
    kept = KEPT_BYTES[precision]
    tiles = next((n for n in (2, 1) if sizes.b_tiles % n == 0 and sizes.b_steps * n * 4 <= WEIGHT_REGISTERS), None)
    if tiles is None or not sizes.patch_fits:
        return None
    slices = sizes.b_tiles // tiles
    best: tuple[float, Kernel] | None = None
    for warps, bands, rows in _splits(sizes.b_square_rows, slices):
        shared = 2 * sizes.pixels + sizes.a_weights + sizes.lines_for_b(rows)
        shared += max(sizes.activation(rows), stem.b.taps * padded(stem.a.filters) * sizes.pixel(sizes.b_tiles * 16))
        blocks = min(8 // warps, _per_multiprocessor(limits) // (shared + 1024))
        if shared > limits.shared_bytes or blocks < 1:
            continue
        grid = min(batch * bands, blocks * limits.multiprocessors)
        groups = -(-rows * sizes.b_squares // 8)
        work = -(-groups * slices // warps) * sizes.b_steps * tiles * 4 + sizes.first_work(rows) / warps
        time = -(-batch * bands // grid) * (work * max(1.0, warps * blocks / 8) + ITEM_WORK)
        defines = {**sizes.defines, "WARPS": warps, "TEAMS": 1, "BLOCKS": blocks, "BANDS": bands, "BAND_ROWS": rows}
        kernel = Kernel(
            "stem_forward.cu",
            "stem_forward",
            tuple({**defines, "B_TILES": tiles, "SHARED_BYTES": shared}.items()),
            grid=(grid, 1, 1),
            threads=warps * WARP,
            shared_bytes=shared,
            operands=("pixels", "order", "control", "weight_a", "bias_a", "weight_b", "bias_b", "y", "where"),
            flops=stem.a.flops(batch) + stem.b.flops(batch),
            bytes=batch * (sizes.image + sizes.output * (kept + 1)),
        )
        if best is None or time < best[0]:
            best = time, kernel
    return None if best is None else best[1]


ITEM_WORK = 300.0  # what a band costs beyond its products, in matrix instructions of a warp


def stem_backward(stem: Stem, precision: Precision, batch: int, limits: Limits) -> StemBackward | None:
    """Gradients of both convolutions' parameters, from ``dy``, the gradient of y (Kept), and ``where``.

    Operands: as the forward has them, of which a kernel wants some; dy, where; partial_weight_a, partial_bias_a,
    partial_weight_b, partial_bias_b: float32, [parts][...] in the parameters' own order, every part written in full.
    None where the block does not fit the GPU.
    """
    if not _suits(stem, precision, limits) or precision != "bfloat16":
        return None
    of_b, of_a = _backward_b(stem, precision, batch, limits), _backward_a(stem, precision, batch, limits)
    if of_b is None or of_a is None:
        return None
    parts = min(limits.multiprocessors, max(of_b.grid[0], of_a.grid[0]))
    return StemBackward(tuple(_with_grid(kernel, parts) for kernel in (of_b, of_a)), parts)


def _backward_b(stem: Stem, precision: Precision, batch: int, limits: Limits) -> Kernel | None:
    sizes = _Sizes(stem, precision)
    pieces = sizes.pieces(padded(stem.a.filters))
    shares = [
        (at_once, tiles)
        for at_once in (2, 1)
        for tiles in (2, 1)
        if pieces % at_once == 0
        and sizes.b_tiles % tiles == 0
        and stem.b.taps * at_once * tiles * 4 <= WEIGHT_REGISTERS
    ]
    best: tuple[float, Kernel] | None = None
    for at_once, tiles in shares[:1]:
        count = stem.b.taps * at_once * tiles * 4
        share = pieces // at_once * (sizes.b_tiles // tiles)
        for warps, bands, rows in _splits(sizes.b_square_rows, share):
            groups = -(-rows * sizes.b_squares // 8)
            team = 2 * sizes.pixels + sizes.a_weights + sizes.lines_for_b(rows) + sizes.activation(rows)
            team += 4 * groups * 8 * sizes.pixel(sizes.b_tiles * 16)
            for teams in range(8 // warps, 0, -1):
                turns = warps // share
                end = max(share * count * 128 if teams * turns > 1 else 0, teams * warps * WARP * sizes.piece * 4)
                shared = max(teams * team, end)
                if shared > limits.shared_bytes:
                    continue
                grid = min(-(-batch * bands // teams), limits.multiprocessors)
                work = -(-groups // turns) * count // 2 + (sizes.first_work(rows) + sizes.spread_work(rows)) / warps
                time = -(-batch * bands // (grid * teams)) * (work * max(1.0, warps * teams / 8) + ITEM_WORK)
                defines = {**sizes.defines, "WARPS": warps, "TEAMS": teams, "BANDS": bands, "BAND_ROWS": rows}
                kernel = Kernel(
                    "stem_backward_b.cu",
                    "stem_backward_b",
                    tuple({**defines, "WARP_PIECES": at_once, "B_TILES": tiles, "SHARED_BYTES": shared}.items()),
                    grid=(grid, 1, 1),
                    threads=teams * warps * WARP,
                    shared_bytes=shared,
                    operands=(
                        *("pixels", "order", "control", "weight_a", "bias_a", "dy", "where"),
                        *("partial_weight_b", "partial_bias_b"),
                    ),
                    flops=stem.a.flops(batch) + stem.b.flops(batch),
                    bytes=batch * (sizes.image + sizes.output * (sizes.kept + 1)),
                )
                if best is None or time < best[0]:
                    best = time, kernel
    return None if best is None else best[1]


def _backward_a(stem: Stem, precision: Precision, batch: int, limits: Limits) -> Kernel | None:
    sizes = _Sizes(stem, precision)
    height, width = stem.middle
    takes = 2 if stem.a_pool else 1
    squares, square_rows = -(-width // 2), -(-height // 2)
    slices = -(-padded(stem.a.filters) // 16)
    steps = sizes.steps(stem.b.kernel, sizes.pieces(padded(stem.b.filters)))
    count = stem.a.kernel[0] * sizes.line_pieces * 4 + 2
    if steps * 4 > WEIGHT_REGISTERS or count > 48 or not sizes.patch_fits:
        return None
    weights = stem.b.taps * padded(stem.a.filters) * sizes.pixel(padded(stem.b.filters))
    best: tuple[float, Kernel] | None = None
    for warps, bands, rows in _splits(square_rows, slices):
        (R, S), R_a = stem.b.kernel, stem.a.kernel[0]
        gradient = sizes.picture(2 * rows + R - 1, 2 * squares + S - 1, padded(stem.b.filters))
        lines = sizes.picture(takes * 2 * rows + R_a - 1, takes * 2 * squares, sizes.line_numbers)
        team = 2 * sizes.pixels + sizes.a_weights + lines + gradient
        for teams in range(8 // warps, 0, -1):
            turns = warps // slices
            shared = max(teams * team, weights, slices * count * 128 if teams * turns > 1 else 0)
            if shared > limits.shared_bytes:
                continue
            grid = min(-(-batch * bands // teams), limits.multiprocessors)
            groups = -(-rows * squares // 8)
            again = (4 if stem.a_pool else 1) * (count * 2 + 4 * sizes.a_steps)
            work = -(-groups // turns) * (steps * 4 + again) + sizes.spread_work(rows) / warps
            time = -(-batch * bands // (grid * teams)) * (work * max(1.0, warps * teams / 8) + ITEM_WORK)
            defines = {**sizes.defines, "WARPS": warps, "TEAMS": teams, "BANDS": bands, "BAND_ROWS": rows}
            kernel = Kernel(
                "stem_backward_a.cu",
                "stem_backward_a",
                tuple({**defines, "SHARED_BYTES": shared}.items()),
                grid=(grid, 1, 1),
                threads=teams * warps * WARP,
                shared_bytes=shared,
                operands=(
                    *("pixels", "order", "control", "weight_a", "bias_a", "weight_b", "dy", "where"),
                    *("partial_weight_a", "partial_bias_a"),
                ),
                flops=2 * stem.a.flops(batch) + stem.b.flops(batch),
                bytes=batch * (sizes.image + sizes.output * (sizes.kept + 1)),
            )
            if best is None or time < best[0]:
                best = time, kernel
    return None if best is None else best[1]


def _suits(stem: Stem, precision: Precision, limits: Limits) -> bool:
    return stem.is_possible and precision == "bfloat16" and limits.capability >= 80


def _splits(square_rows: int, shares: int) -> Iterator[tuple[int, int, int]]:
    """Warps of a team, bands of an image, rows of squares in a band."""
    for warps in range(1, 9):
        if warps % shares == 0:
            for rows in range(square_rows, 0, -1):
                bands = -(-square_rows // rows)
                if rows == -(-square_rows // bands):
                    yield warps, bands, rows


def _with_grid(kernel: Kernel, blocks: int) -> Kernel:
    return Kernel(**{**kernel.__dict__, "grid": (blocks, 1, 1)})


def _per_multiprocessor(limits: Limits) -> int:
    """Shared memory of a multiprocessor: a block can have all but 1 KB of it."""
    return limits.shared_bytes + 1024


def _pooled(size: Pair, pool: bool) -> Pair:
    return (size[0] // 2, size[1] // 2) if pool else size


class _Sizes:
    """What lies in shared memory, as the sources compute it."""

    def __init__(self, stem: Stem, precision: Precision) -> None:
        self.stem, self.kept = stem, KEPT_BYTES[precision]
        self.piece = 16 // self.kept
        a, b = stem.a, stem.b
        self.image = a.height * a.width * a.channels
        self.pixels = -(-self.image // 16) * 16
        self.line_numbers = a.kernel[1] * a.channels
        self.line_pieces = self.pieces(self.line_numbers)
        self.a_weights = a.kernel[0] * self.line_pieces * self.piece * self.pixel(-(-a.filters // 16) * 16)
        self.a_steps = self.steps((a.kernel[0], 1), self.line_pieces)
        self.b_steps = self.steps(b.kernel, self.pieces(padded(a.filters)))
        self.b_tiles = -(-b.filters // 16)  # of 16 filters
        self.b_square_rows, self.b_squares = stem.output if stem.b_pool else (-(-stem.output[0] // 2), -(-stem.output[1] // 2))
        self.a_squares = stem.middle[1] if stem.a_pool else -(-stem.middle[1] // 2)
        self.output = stem.output[0] * stem.output[1] * padded(b.filters)
        self.defines: dict[str, str | int | float] = {
            "PRECISION": NUMBER[precision],
            "HEIGHT": a.height,
            "WIDTH": a.width,
            "CHANNELS": a.channels,
            "MEAN": stem.mean,
            "STD": stem.std,
        }
        for name, one, pool in (("A", a, stem.a_pool), ("B", b, stem.b_pool)):
            self.defines |= {
                f"{name}_FILTERS": one.filters,
                f"{name}_KERNEL_H": one.kernel[0],
                f"{name}_KERNEL_W": one.kernel[1],
                f"{name}_PADDING_H": one.padding[0],
                f"{name}_PADDING_W": one.padding[1],
                f"{name}_POOL": int(pool),
            }

    def pieces(self, numbers: int) -> int:
        return -(-numbers // self.piece)

    def pixel(self, numbers: int) -> int:
        return (self.pieces(numbers) | 1) * 16

    def picture(self, rows: int, columns: int, numbers: int) -> int:
        return 4 * -(-rows // 2) * -(-columns // 2) * self.pixel(numbers)

    def steps(self, kernel: Pair, pieces: int) -> int:
        """Of a product over all taps and pieces."""
        chunk = 1 if pieces % 2 else 2
        return -(-kernel[0] * kernel[1] * chunk // 2) * (pieces // chunk)

    @property
    def patch_fits(self) -> bool:
        """Whether what eight squares read is held in so few registers that weights fit beside it."""
        return all((kernel[0] + 2) * (kernel[1] + 2) <= PATCH_REGISTERS for kernel in (self.stem.a.kernel, self.stem.b.kernel))

    def a_rows(self, rows: int) -> int:
        """Rows of what A makes that ``rows`` rows of B's squares read."""
        return 2 * rows + self.stem.b.kernel[0] - 1

    def activation(self, rows: int) -> int:
        return self.picture(self.a_rows(rows), 2 * self.b_squares + self.stem.b.kernel[1] - 1, padded(self.stem.a.filters))

    def a_square_rows(self, rows: int) -> int:
        return self.a_rows(rows) if self.stem.a_pool else -(-self.a_rows(rows) // 2)

    def lines_for_b(self, rows: int) -> int:
        height = 2 * self.a_square_rows(rows) + self.stem.a.kernel[0] - 1
        return self.picture(height, 2 * self.a_squares, self.line_numbers)

    def first_work(self, rows: int) -> float:
        """Of A in a band, in matrix instructions of a warp."""
        groups = -(-self.a_square_rows(rows) * self.a_squares // 8)
        return groups * (2.0 * self.a_steps * padded(self.stem.a.filters) / 8 + 30)

    def spread_work(self, rows: int) -> float:
        """Of B's gradient in a band."""
        return rows * self.b_squares * self.pieces(padded(self.stem.b.filters)) * 60 / 32

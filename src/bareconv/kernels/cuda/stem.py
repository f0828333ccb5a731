"""The first block of a network on small images in shared memory: two convolutions, each with relu, perhaps a pool.

One kernel forward, two backward, one for each convolution's parameters. What lies between the pixels and the end of the
second convolution never leaves a multiprocessor; backward, the first one is computed again from the pixels.

A *team* of warps works on a *band* of an image at a time: some rows of squares of 2 x 2 outputs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bareconv.kernels.cuda import stem_float32
from bareconv.kernels.cuda.kernel import KEPT_BYTES, Kernel, Precision, padded
from bareconv.kernels.cuda.limits import Limits
from bareconv.kernels.cuda.stem_block import WARP, Choice, Stem, bands_of, stem_kernel
from bareconv.ops.windows import Pair

# Of a thread's 255 registers: for weights, or for the gradient of weights; for the gradient of A's weights beside B's
# weights; for pixels that eight squares of outputs read.
WEIGHT_REGISTERS, FIRST_REGISTERS, PATCH_REGISTERS = 144, 48, 56
WARPS = 8  # on a multiprocessor, of as many registers as a thread can have

# What an estimate of time counts, in cycles: a matrix instruction of one warp where others wait for the unit too, and
# where none does; a warp's other instructions; a band's waits for memory and for each other.
SHARED_UNIT, OWN_UNIT, INSTRUCTION, BAND = 3.3, 4.5, 1.0, 3000.0
STAGED_BAND = 1000.0  # waits, where what a band reads of the gradient is in shared memory already
BESIDE = 0.18  # how much longer it takes for each further team on a multiprocessor, beyond their work


@dataclass(frozen=True)
class StemBackward:
    """Kernels to launch in this order, one right after the other.

    Gradients come in ``parts`` parts, each of a parameter's natural size.
    """

    kernels: tuple[Kernel, ...]
    parts: int


def stem_forward(stem: Stem, precision: Precision, batch: int, limits: Limits, training: bool = True) -> Kernel | None:
    """uint8 pixels -> ``y``, Kept (batch, P, Q, padded filters of B), and ``where``, uint8 of the same shape.

    ``where``: the place of the maximum in its 2 x 2, row by row, the first of several, plus 4 where it is not above 0.
    Without B's pool 0 or 4. Operands: pixels, order, control, working copies of the weights, float32 biases, y, where.
    None where the block does not fit the GPU.
    """
    return _best(forward_choices(stem, precision, batch, limits))


def stem_backward(stem: Stem, precision: Precision, batch: int, limits: Limits) -> StemBackward | None:
    """Gradients of both convolutions' parameters, from ``dy``, the gradient of y (Kept), and ``where``.

    Operands: as the forward has them, of which a kernel wants some; dy, where; partial_weight_a, partial_bias_a,
    partial_weight_b, partial_bias_b: float32, [parts][...] in the parameters' own order, every part written in full.
    None where the block does not fit the GPU.
    """
    kernels = [_best(choices(stem, precision, batch, limits)) for choices in (backward_b_choices, backward_a_choices)]
    found = [kernel for kernel in kernels if kernel is not None]
    if len(found) < len(kernels):
        return None
    parts = max(kernel.grid[0] for kernel in found)
    return StemBackward(tuple(dataclasses.replace(kernel, grid=(parts, 1, 1)) for kernel in found), parts)


def forward_choices(stem: Stem, precision: Precision, batch: int, limits: Limits) -> Iterator[Choice]:
    """Every way that the forward fits the GPU."""
    if precision == "float32":
        yield from stem_float32.forward_choices(stem, batch, limits)
    if not _suits(stem, precision, limits):
        return
    sizes = _Sizes(stem, precision)
    tiles = next((n for n in (2, 1) if sizes.b_tiles % n == 0 and sizes.b_steps * n * 4 <= WEIGHT_REGISTERS), None)
    if tiles is None:
        return
    slices = sizes.b_tiles // tiles
    weights = stem.b.taps * padded(stem.a.filters) * sizes.pixel(sizes.b_tiles * 16)
    for warps, bands, rows in _splits(sizes.b_square_rows, slices):
        shared = (
            sizes.pixels + sizes.a_weights + sizes.lines_for_b(rows) + max(sizes.activation(rows, sizes.pixel), weights)
        )
        groups = -(-rows * sizes.b_squares // 8)
        products = -(-groups * slices // warps) * sizes.b_steps * tiles * 4 + sizes.a_products(rows) / warps
        others = -(-groups * slices // warps) * (60 + 90 * tiles) + sizes.a_others(rows) / warps
        for blocks in range(1, min(WARPS // warps, (limits.shared_bytes + 1024) // (shared + 1024)) + 1):
            grid = min(batch * bands, blocks * limits.multiprocessors)
            defines = {
                "WARPS": warps,
                "TEAMS": 1,
                "BLOCKS": blocks,
                "BANDS": bands,
                "BAND_ROWS": rows,
                "B_TILES": tiles,
            }
            kernel = stem_kernel("stem_forward", stem, precision, batch, defines, (grid, 1, 1), shared)
            yield Choice(_cycles(batch * bands, grid, warps, blocks, products, others), kernel)


def backward_b_choices(stem: Stem, precision: Precision, batch: int, limits: Limits) -> Iterator[Choice]:
    """Every way that the gradient of B's parameters fits the GPU."""
    if precision == "float32":
        yield from stem_float32.backward_b_choices(stem, batch, limits)
    if not _suits(stem, precision, limits):
        return
    sizes = _Sizes(stem, precision)
    eights = padded(stem.a.filters) // 8
    share = next(
        (
            (at_once, tiles)
            for at_once, tiles in ((2, 2), (2, 1), (1, 2), (1, 1))
            if eights % at_once == sizes.b_tiles % tiles == 0 and stem.b.taps * at_once * tiles * 4 <= WEIGHT_REGISTERS
        ),
        None,
    )
    if share is None:
        return
    at_once, tiles = share
    count = stem.b.taps * at_once * tiles * 4
    places = 1 if sizes.placed else 4
    pixels_at_once = 8 * sizes.piece // 4
    shares = eights // at_once * (sizes.b_tiles // tiles)
    for warps, bands, rows in _splits(sizes.b_square_rows, shares):
        groups, turns = -(-rows * sizes.b_squares // 8), warps // shares
        team = sizes.pixels + sizes.a_weights + sizes.lines_for_b(rows)
        team += sizes.activation(rows, sizes.vector_pixel) + places * groups * 8 * sizes.vector_pixel(
            sizes.b_tiles * 16
        )
        products = -(-groups // turns) * count * 8 // pixels_at_once + sizes.a_products(rows) / warps
        others = -(-groups // turns) * 80 + (sizes.a_others(rows) + sizes.spread(rows * sizes.b_squares)) / warps
        read = sizes.read_rows(rows if stem.b_pool else 2 * rows)
        for teams, staged in _teams(warps):
            end = max(shares * count * 128 if teams * turns > 1 else 0, teams * warps * WARP * sizes.piece * 4)
            shared = max(teams * (team + staged * read), end)
            if shared > limits.shared_bytes:
                continue
            grid = min(-(-batch * bands // teams), limits.multiprocessors)
            defines = {
                "WARPS": warps,
                "TEAMS": teams,
                "STAGED": int(staged),
                "BANDS": bands,
                "BAND_ROWS": rows,
                "WARP_EIGHTS": at_once,
                "B_TILES": tiles,
            }
            kernel = stem_kernel("stem_backward_b", stem, precision, batch, defines, (grid, 1, 1), shared)
            yield Choice(_cycles(batch * bands, grid * teams, warps, teams, products, others, staged), kernel)


def backward_a_choices(stem: Stem, precision: Precision, batch: int, limits: Limits) -> Iterator[Choice]:
    """Every way that the gradient of A's parameters fits the GPU."""
    if precision == "float32":
        yield from stem_float32.backward_a_choices(stem, batch, limits)
    if not _suits(stem, precision, limits):
        return
    sizes = _Sizes(stem, precision)
    (height, width), takes = stem.middle, 2 if stem.a_pool else 1
    squares, square_rows = -(-width // 2), -(-height // 2)
    # In bf16 a warp has B's weights for 16 channels of A in registers; in tf32 all of them are in shared memory.
    in_registers = precision == "bfloat16"
    slices = -(-stem.a.filters // 16)
    tiles, at_once = (2 if not in_registers and slices % 2 == 0 else 1), 1 if in_registers else 2
    slices //= tiles
    steps = sizes.steps(stem.b.kernel, sizes.pieces(padded(stem.b.filters)))
    count = -(-stem.a.kernel[0] * sizes.line_pieces * sizes.piece // 8) * 4 + 2
    if (in_registers and steps * 4 > WEIGHT_REGISTERS) or count > FIRST_REGISTERS:
        return
    weights = stem.b.taps * padded(stem.a.filters) * sizes.pixel(padded(stem.b.filters))
    for warps, bands, rows in _splits(square_rows, slices):
        lines = sizes.picture(
            takes * 2 * rows + stem.a.kernel[0] - 1, takes * 2 * squares, sizes.pixel(sizes.line_numbers)
        )
        copied, team = sizes.pixels + sizes.a_weights, lines + sizes.gradient(rows, squares)
        read = sizes.read_rows(sizes.gradient_rows(rows))
        groups, turns = -(-rows * squares // (8 * at_once)), warps // slices
        again = takes**2 * (count + 4 * sizes.a_steps)
        products = -(-groups // turns) * (steps * 4 + again) * at_once * tiles
        spread = sizes.spread((rows + 1) * (squares + 1)) + sizes.spread_lines(takes * 2 * rows, takes * 2 * squares)
        others = -(-groups // turns) * (100 + takes**2 * 80) * at_once * tiles + spread / warps
        for teams, staged in _teams(warps):
            end = slices * tiles * count * 128 if teams * turns > 1 else 0
            own = max(teams * team, weights) if in_registers else teams * team + weights
            shared = max(teams * (copied + staged * read) + own, end)
            if shared > limits.shared_bytes:
                continue
            grid = min(-(-batch * bands // teams), limits.multiprocessors)
            defines = {"WARPS": warps, "TEAMS": teams, "STAGED": int(staged), "BANDS": bands, "BAND_ROWS": rows}
            kernel = stem_kernel("stem_backward_a", stem, precision, batch, defines, (grid, 1, 1), shared)
            yield Choice(_cycles(batch * bands, grid * teams, warps, teams, products, others, staged), kernel)


def _best(choices: Iterator[Choice]) -> Kernel | None:
    best = min(choices, key=lambda choice: choice.cycles, default=None)
    return None if best is None else best.kernel


def _suits(stem: Stem, precision: Precision, limits: Limits) -> bool:
    if not stem.is_possible or precision == "float32" or limits.capability < 80:
        return False
    return all((one.kernel[0] + 2) * (one.kernel[1] + 2) <= PATCH_REGISTERS for one in (stem.a, stem.b))


def _splits(square_rows: int, shares: int) -> Iterator[tuple[int, int, int]]:
    """Warps of a team, bands of an image, rows of squares in a band. Teams have a multiple of ``shares`` warps."""
    possible = range(shares, WARPS + 1, shares)
    # The multiprocessor's four schedulers each have as many of them, where that can be.
    for warps in [warps for warps in possible if WARPS % warps == 0] or possible:
        for bands, rows in bands_of(square_rows):
            yield warps, bands, rows


def _teams(warps: int) -> Iterator[tuple[int, bool]]:
    """Teams of a block, and whether what their bands read of B's gradient is copied into shared memory beforehand."""
    return itertools.product(range(1, WARPS // warps + 1), (True, False))


def _cycles(
    bands: int, teams: int, warps: int, beside: int, products: float, others: float, staged: bool = False
) -> float:
    """Of a launch: ``bands`` by ``teams``, ``beside`` of them on a multiprocessor, of ``warps`` warps each.

    ``products`` and ``others``: a warp's matrix and other instructions for one band.
    """
    for_one = products * max(SHARED_UNIT * warps / 4, OWN_UNIT) + others * max(INSTRUCTION * warps / 4, 2.0)
    for_one += STAGED_BAND if staged else BAND
    for_all = beside * (products * SHARED_UNIT + others * INSTRUCTION) * warps / 4
    return -(-bands // teams) * max(for_one, for_all) * (1 + BESIDE * (beside - 1))


class _Sizes:
    """What lies in shared memory, in bytes, as the sources compute it, and the work on it."""

    def __init__(self, stem: Stem, precision: Precision) -> None:
        self.stem, self.precision, self.kept = stem, precision, KEPT_BYTES[precision]
        self.piece = 16 // self.kept
        a, b = stem.a, stem.b
        self.pixels = -(-a.height * a.width * a.channels // 16) * 16
        self.line_numbers = a.kernel[1] * a.channels
        self.line_pieces = self.pieces(self.line_numbers)
        self.a_weights = a.kernel[0] * self.line_pieces * self.piece * self.pixel(-(-a.filters // 16) * 16)
        self.a_steps = self.steps((a.kernel[0], 1), self.line_pieces)
        self.b_steps = self.steps(b.kernel, self.pieces(padded(a.filters)))
        self.b_tiles = -(-b.filters // 16)  # of 16 filters
        P, Q = stem.output
        self.b_square_rows, self.b_squares = (P, Q) if stem.b_pool else (-(-P // 2), -(-Q // 2))
        self.a_squares = stem.middle[1] if stem.a_pool else -(-stem.middle[1] // 2)

    def pieces(self, numbers: int) -> int:
        """Pieces of 16 bytes."""
        return -(-numbers // self.piece)

    @property
    def placed(self) -> bool:
        """Whether B's gradient has one number for each of the pool's squares, with the place of the maximum in it."""
        return self.precision == "tf32" and self.stem.b_pool

    def pixel(self, numbers: int) -> int:
        return (self.pieces(numbers) | 1) * 16

    def vector_pixel(self, numbers: int) -> int:
        """A pixel whose numbers are read one by one, not as matrices, where they have 32 bits."""
        return self.pixel(numbers) if self.kept == 2 else ((self.pieces(numbers) + 1) // 4 * 4 + 2) * 16

    def picture(self, rows: int, columns: int, pixel: int) -> int:
        return 4 * -(-rows // 2) * -(-columns // 2) * pixel

    def steps(self, kernel: Pair, pieces: int) -> int:
        """Of a product over all taps and pieces, two pieces each."""
        chunk = 1 if pieces % 2 else 2
        return -(-kernel[0] * kernel[1] * chunk // 2) * (pieces // chunk)

    def a_rows(self, rows: int) -> int:
        """Rows of what A makes that ``rows`` rows of B's squares read."""
        return 2 * rows + self.stem.b.kernel[0] - 1

    def activation(self, rows: int, pixel: Callable[[int], int]) -> int:
        columns = 2 * self.b_squares + self.stem.b.kernel[1] - 1
        return self.picture(self.a_rows(rows), columns, pixel(padded(self.stem.a.filters)))

    def gradient(self, rows: int, squares: int) -> int:
        """B's gradient, as ``rows`` rows of squares of what A makes want it."""
        pixel = self.pixel(padded(self.stem.b.filters))
        height, read_rows = self._gradient_size(rows, 0)
        width, read_columns = self._gradient_size(squares, 1)
        return read_rows * read_columns * pixel if self.placed else self.picture(height, width, pixel)

    def gradient_rows(self, rows: int) -> int:
        """Of the gradient after B's pool: rows that ``rows`` rows of squares of what A makes read."""
        return self._gradient_size(rows, 0)[1]

    def _gradient_size(self, squares: int, axis: int) -> Pair:
        """B's outputs that a row or column of squares of what A makes reads, and what the pool makes of them."""
        b = self.stem.b
        outputs = 2 * squares + b.kernel[axis] - 1
        odd = (b.kernel[axis] - 1 - b.padding[axis]) % 2
        return outputs, -(-outputs // 2) + odd if self.stem.b_pool else -(-outputs // 2) * 2

    def read_rows(self, rows: int) -> int:
        """At most ``rows`` rows of the gradient after B's pool, and of the places of its maxima."""
        P, Q = self.stem.output
        numbers = min(rows, P) * Q * padded(self.stem.b.filters)
        return numbers * self.kept + -(-numbers // 16) * 16

    def a_square_rows(self, rows: int) -> int:
        return self.a_rows(rows) if self.stem.a_pool else -(-self.a_rows(rows) // 2)

    def lines_for_b(self, rows: int) -> int:
        height = 2 * self.a_square_rows(rows) + self.stem.a.kernel[0] - 1
        return self.picture(height, 2 * self.a_squares, self.pixel(self.line_numbers))

    def a_products(self, rows: int) -> float:
        """Matrix instructions of A for a band, of all warps."""
        groups = -(-self.a_square_rows(rows) * self.a_squares // 8)
        return groups * 2.0 * self.a_steps * padded(self.stem.a.filters) / 8

    def a_others(self, rows: int) -> float:
        """Other instructions of A for a band, of all warps."""
        groups = -(-self.a_square_rows(rows) * self.a_squares // 8)
        lines = self.spread_lines(2 * self.a_square_rows(rows), 2 * self.a_squares)
        return groups * (40 + 40 * padded(self.stem.a.filters) / 8) + lines

    def spread_lines(self, rows: int, columns: int) -> float:
        """Instructions that spread pixels, of all warps."""
        return rows * columns * (20 + 7 * self.line_numbers) / 32

    def spread(self, squares: int) -> float:
        """Instructions that spread B's gradient, of all warps."""
        return squares * self.pieces(padded(self.stem.b.filters)) * 90 / 32

"""The gradient of a convolution's weights and bias: a matrix product that contracts over output pixels.

How the work is shared out, between blocks and between a block's warps, is chosen by a model of the time that it takes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from bareconv.errors import BareconvError
from bareconv.kernels.cuda.geometry import Convolution
from bareconv.kernels.cuda.kernel import KEPT_BYTES, NUMBER, Kernel, Precision, padded
from bareconv.kernels.cuda.limits import Limits
from bareconv.ops.windows import Pair

MOST_WARPS = 8  # of a block, of which a multiprocessor holds one
MOST_SUMS = 144  # of a thread; with operands and addresses they must fit in 255 registers
MOST_STAGES = 4
NARROW_CHANNELS = 4  # up to these, float32 sums have no padding channels

# Multiplications and additions a clock of a multiprocessor that its warps reach; bytes a clock that it gets from the
# second-level cache; clocks that a tile costs beside its work (a barrier, a pipeline that fills), and a block.
_RATE = {"float32": 110.0, "tf32": 560.0, "bfloat16": 1100.0}
_CACHE_RATE = 20.0
_TILE_CLOCKS = 200.0
_BLOCK_CLOCKS = 3000.0


@dataclass(frozen=True)
class WeightGradient:
    """``kernel`` writes all ``parts`` of ``partial`` (parts, R, S, C, K) and ``partial_bias`` (parts, K), float32.

    Operands: x and dy, NHWC with padded channels; partial; partial_bias where there is a bias; control.
    """

    kernel: Kernel
    parts: int


@dataclass(frozen=True)
class _Warps:
    """How a block's warps share its work; what each number is, ``weight_gradient.cu`` says."""

    filter_tiles: int
    filter_warps: int
    channel_groups: int
    channel_warps: int
    tap_rows: int
    tap_columns: int
    warp_tap_rows: int
    pixel_warps: int
    narrow: bool

    @property
    def tap_warps(self) -> int:
        return self.tap_rows // self.warp_tap_rows

    @property
    def count(self) -> int:
        return self.filter_warps * self.channel_warps * self.tap_warps * self.pixel_warps

    @property
    def filters(self) -> int:
        """Of a block."""
        return 16 * self.filter_tiles * self.filter_warps

    @property
    def channels(self) -> int:
        """Of a block."""
        return 8 * self.channel_groups * self.channel_warps

    def columns(self, channels: int) -> int:
        """Of a warp's sums, each of 4 * ``filter_tiles`` numbers a thread."""
        taps = self.warp_tap_rows * self.tap_columns
        return -(-taps * channels // 2) if self.narrow else taps * self.channel_groups


@dataclass(frozen=True)
class _Layout:
    """A tile of output pixels, and how it lies in shared memory. Pitches are in bytes."""

    images: int
    rows: int
    columns: int
    staged_step: Pair  # rows and columns of x between those that are staged
    staged_columns: int
    loaded_row: int
    loaded_rows: int
    loaded_column: int
    loaded_columns: int
    check_rows: bool
    check_columns: bool
    x_pixel_pitch: int
    x_row_pitch: int
    x_image_pitch: int
    dy_pitch: int
    x_bytes: int
    stage_bytes: int
    table_bytes: int
    steps: int
    length: int  # pixels that are contracted over, with those that fill up the last step

    @property
    def pixels(self) -> int:
        return self.images * self.rows * self.columns

    @property
    def loaded(self) -> int:
        """Pixels of x that are copied with every tile."""
        return self.images * self.loaded_rows * self.loaded_columns


@dataclass(frozen=True)
class _Choice:
    warps: _Warps
    layout: _Layout
    stages: int
    blocks: int  # that cover the weight
    parts: int
    summed_columns: int
    shared_bytes: int


def gradient_of_weight(
    convolution: Convolution, precision: Precision, batch: int, limits: Limits, *, bias: bool
) -> WeightGradient:
    """The kernel that makes dW and, with ``bias``, db of at most ``batch`` images, and into how many parts.

    BareconvError where not even the smallest tile fits in the GPU's shared memory.
    """
    choice = _chosen(convolution, precision, batch, limits)
    warps, layout = choice.warps, choice.layout
    P, Q = convolution.output
    (R, S), (sh, sw) = convolution.kernel, convolution.stride
    (ph, pw), (dh, dw) = convolution.padding, convolution.dilation
    defines: dict[str, str | int | float] = {
        "PRECISION": NUMBER[precision],
        "HEIGHT": convolution.height,
        "WIDTH": convolution.width,
        "CHANNELS": convolution.channels,
        "FILTERS": convolution.filters,
        "OUT_HEIGHT": P,
        "OUT_WIDTH": Q,
        "KERNEL_H": R,
        "KERNEL_W": S,
        "STRIDE_H": sh,
        "STRIDE_W": sw,
        "PADDING_H": ph,
        "PADDING_W": pw,
        "DILATION_H": dh,
        "DILATION_W": dw,
        "BIAS": int(bias),
        "PARTS": choice.parts,
        "TILE_IMAGES": layout.images,
        "TILE_ROWS": layout.rows,
        "TILE_COLUMNS": layout.columns,
        "TAP_ROWS": warps.tap_rows,
        "TAP_COLUMNS": warps.tap_columns,
        "WARP_TAP_ROWS": warps.warp_tap_rows,
        "FILTER_TILES": warps.filter_tiles,
        "CHANNEL_GROUPS": warps.channel_groups,
        "FILTER_WARPS": warps.filter_warps,
        "CHANNEL_WARPS": warps.channel_warps,
        "PIXEL_WARPS": warps.pixel_warps,
        "NARROW": int(warps.narrow),
        "STAGES": choice.stages,
        "STAGED_STEP_H": layout.staged_step[0],
        "STAGED_STEP_W": layout.staged_step[1],
        "STAGED_COLUMNS": layout.staged_columns,
        "LOADED_ROW": layout.loaded_row,
        "LOADED_ROWS": layout.loaded_rows,
        "LOADED_COLUMN": layout.loaded_column,
        "LOADED_COLUMNS": layout.loaded_columns,
        "CHECK_ROWS": int(layout.check_rows),
        "CHECK_COLUMNS": int(layout.check_columns),
        "X_PIXEL_PITCH": layout.x_pixel_pitch,
        "X_ROW_PITCH": layout.x_row_pitch,
        "X_IMAGE_PITCH": layout.x_image_pitch,
        "DY_PITCH": layout.dy_pitch,
        "X_BYTES": layout.x_bytes,
        "STAGE_BYTES": layout.stage_bytes,
        "SUMMED_COLUMNS": choice.summed_columns,
    }
    operands = ("x", "dy", "partial", *(["partial_bias"] if bias else []), "control")
    read = convolution.height * convolution.width * padded(convolution.channels) + P * Q * padded(convolution.filters)
    written = convolution.taps * convolution.channels * convolution.filters + bias * convolution.filters
    kernel = Kernel(
        "weight_gradient.cu",
        "weight_gradient",
        tuple(defines.items()),
        grid=(choice.blocks, choice.parts, 1),
        threads=32 * warps.count,
        shared_bytes=choice.shared_bytes,
        operands=operands,
        flops=convolution.flops(batch),
        bytes=float(batch * read * KEPT_BYTES[precision] + choice.parts * written * 4),
    )
    return WeightGradient(kernel, choice.parts)


@functools.cache
def _chosen(convolution: Convolution, precision: Precision, batch: int, limits: Limits) -> _Choice:
    """The quickest, by the model; of equals the first."""
    best: tuple[float, _Choice] | None = None
    for warps in _ways_to_share(convolution, precision, limits):
        for tile in _tiles(convolution, batch):
            layout = _layout(convolution, precision, warps, tile)
            stages = min(MOST_STAGES, (limits.shared_bytes - layout.table_bytes) // layout.stage_bytes)
            if stages < 2:
                continue
            clocks, choice = _timed(convolution, precision, batch, limits, warps, layout, stages)
            if best is None or clocks < best[0]:
                best = clocks, choice
    if best is None:
        raise BareconvError(
            f"no tile of {convolution} fits in {limits.shared_bytes} bytes of shared memory: "
            "expected a kernel, stride or dilation that reaches less far"
        )
    return best[1]


def _ways_to_share(convolution: Convolution, precision: Precision, limits: Limits) -> Iterator[_Warps]:
    """Warps of as many sums as registers hold, and blocks of as many warps as the weight or its pixels occupy."""
    R, S = convolution.kernel
    # Before sm_80 there is no such instruction, and what stands in for it is long.
    most_sums = 32 if limits.capability < 80 and precision != "float32" else MOST_SUMS
    narrow = precision == "float32" and convolution.channels <= NARROW_CHANNELS
    groups = padded(convolution.channels) // 8
    filter_tiles = -(-convolution.filters // 16)
    for tap_columns, warp_tap_rows in itertools.product(_divisors(S), _divisors(R)):
        for tap_warps in _divisors(R // warp_tap_rows):
            for tiles, filter_warps, own_groups, channel_warps in itertools.product(
                (1, 2, 4), (1, 2, 4), (1, 2, 3, 4, 6, 8), (1, 2, 3, 4, 8)
            ):
                count = tap_warps * filter_warps * channel_warps
                if count > MOST_WARPS:
                    continue
                # No warp, and no half of one's tiles, may be without work.
                if filter_warps > 1 and tiles * filter_warps >= 2 * filter_tiles:
                    continue
                if tiles >= 2 * filter_tiles:
                    continue
                if own_groups * channel_warps > groups and (own_groups, channel_warps) != (1, 1):
                    continue
                warps = _Warps(
                    tiles,
                    filter_warps,
                    own_groups,
                    channel_warps,
                    tap_warps * warp_tap_rows,
                    tap_columns,
                    warp_tap_rows,
                    MOST_WARPS // count,
                    narrow,
                )
                if 4 * tiles * warps.columns(convolution.channels) <= most_sums and warps.filters <= 64 * warps.count:
                    yield warps


def _tiles(convolution: Convolution, batch: int) -> Iterator[tuple[int, int, int]]:
    """Images, rows and columns of output pixels: even shares of an image, or several whole ones."""
    P, Q = convolution.output
    if convolution.width + 2 * convolution.padding[1] >= 1 << 16:  # a table keeps image and column in 16 bits each
        batch = 1
    for columns in _shares(Q):
        if columns > 256 or 1 < columns < min(16, Q):
            continue
        for rows in _shares(P):
            if rows * columns > 1024 and rows > 1:
                continue
            yield 1, rows, columns
            images = 2
            while (rows, columns) == (P, Q) and images <= batch and images * rows * columns <= 512:
                yield images, rows, columns
                images += images if images >= 4 else 1


def _layout(convolution: Convolution, precision: Precision, warps: _Warps, tile: tuple[int, int, int]) -> _Layout:
    images, rows, columns = tile
    bytes_each = KEPT_BYTES[precision]
    strides, dilations, taps = convolution.stride, convolution.dilation, (warps.tap_rows, warps.tap_columns)
    sizes, outs, reach = (convolution.height, convolution.width), convolution.output, (rows, columns)
    step, staged, first, loaded, checks = [0, 0], [0, 0], [0, 0], [0, 0], [False, False]
    for axis in (0, 1):
        # What lies between the rows that the taps read is not staged.
        step[axis] = strides[axis] if taps[axis] == 1 else math.gcd(strides[axis], dilations[axis])
        extent = (reach[axis] - 1) * strides[axis] + (taps[axis] - 1) * dilations[axis] + 1
        staged[axis] = (extent - 1) // step[axis] + 1
        loaded[axis] = staged[axis]
        # A tile that always starts at the same place of the image never fills the part that lies outside of it.
        checks[axis] = reach[axis] < outs[axis] or taps[axis] < convolution.kernel[axis]
        if not checks[axis]:
            padding = convolution.padding[axis]
            first[axis] = min(-(-padding // step[axis]), staged[axis] - 1)
            last = min((padding + sizes[axis] - 1) // step[axis], staged[axis] - 1)
            if last < first[axis]:  # not one: then one that is looked at and found outside
                first[axis], last, checks[axis] = 0, 0, True
            loaded[axis] = last - first[axis] + 1
    steps_down, phases = strides[0] // step[0], strides[1] // step[1]

    # 8 rows of 16 bytes (bf16), 4 of 32, that follow each other in the contraction lie in different banks.
    unit = 16 if precision == "bfloat16" else 32
    x_pixel = _odd(warps.channels * bytes_each, unit)
    dy_pitch = _odd(warps.filters * bytes_each, unit)
    x_row = _congruent(-(-staged[1] // phases) * phases * x_pixel, columns * x_pixel, steps_down)
    x_image = _congruent(staged[0] * x_row, rows * columns * x_pixel, 1)
    contraction = (16 if precision == "float32" else 32) * warps.pixel_warps
    steps = -(-images * rows * columns // contraction)
    x_bytes, length = images * x_image, steps * contraction
    # A pass of the block's threads over the pixels of x that are copied; the table has whole ones.
    one_pass = 32 * warps.count // (warps.channels * bytes_each // 16)
    passes = -(-images * loaded[0] * loaded[1] // one_pass)
    return _Layout(
        images,
        rows,
        columns,
        (step[0], step[1]),
        staged[1],
        first[0],
        loaded[0],
        first[1],
        loaded[1],
        checks[0],
        checks[1],
        x_pixel,
        x_row,
        x_image,
        dy_pitch,
        x_bytes,
        x_bytes + length * dy_pitch,
        4 * length + 16 * passes * one_pass,
        steps,
        length,
    )


def _timed(
    convolution: Convolution,
    precision: Precision,
    batch: int,
    limits: Limits,
    warps: _Warps,
    layout: _Layout,
    stages: int,
) -> tuple[float, _Choice]:
    """Clocks, roughly, and the choice, with the number of parts that is best for it."""
    bytes_each, (P, Q) = KEPT_BYTES[precision], convolution.output
    columns = warps.columns(convolution.channels)
    blocks = -(-convolution.filters // warps.filters) * -(-convolution.channels // warps.channels)
    blocks *= convolution.taps // (warps.tap_rows * warps.tap_columns)
    tiles = -(-batch // layout.images) * -(-P // layout.rows) * -(-Q // layout.columns)

    # A tile: the busiest of a multiprocessor's units.
    sums = 4 * warps.filter_tiles * columns * 32
    lanes = 4 if warps.narrow else 1  # of a warp, with different pixels
    share = layout.length / warps.pixel_warps  # pixels of a warp
    busy_warps = -(-warps.count // 4) * 4
    arithmetic = share / lanes * sums * busy_warps / _RATE[precision]
    rows_read = 16 * warps.filter_tiles + (columns * 2 if warps.narrow else columns * 8)
    read = share * rows_read * bytes_each * warps.count
    copied = (layout.loaded * warps.channels + layout.pixels * warps.filters) * bytes_each
    shared = (read + copied) / 128
    issued = copied / 16 * 20 / 32 / 4
    units = (arithmetic + 0.3 * issued, 1.2 * shared, copied / _CACHE_RATE, issued)
    tile = sum(unit**3 for unit in units) ** (1 / 3) + _TILE_CLOCKS  # they hinder each other
    tile += 1000.0 * (stages == 2)

    block = _BLOCK_CLOCKS + sums * warps.count / warps.pixel_warps * 4 / 16
    free = stages * layout.stage_bytes
    summed_columns = columns
    if warps.pixel_warps > 1:
        column = warps.count * 4 * warps.filter_tiles * 32 * 4
        # Registers of a thread are left to all others, a few columns at a time.
        summed_columns = min(columns, max(1, free // column))
        free = max(free, summed_columns * column)
        block += columns * column * 2 / 128 + 200 * -(-columns // summed_columns)
    free = max(free, warps.count * 32 * 8)

    weight_clocks = convolution.taps * convolution.channels * convolution.filters * 4 / (limits.multiprocessors * 16)
    best: tuple[float, int] | None = None
    for waves in range(1, 5):
        parts = max(1, min(tiles, 65535, waves * limits.multiprocessors // blocks))
        rounds = -(-blocks * parts // limits.multiprocessors)
        clocks = rounds * (-(-tiles // parts) * tile + block) + parts * weight_clocks
        if best is None or clocks < best[0]:
            best = clocks, parts
    assert best is not None
    shared_bytes = layout.table_bytes + free
    return best[0], _Choice(warps, layout, stages, blocks, best[1], summed_columns, shared_bytes)


def _odd(size: int, unit: int) -> int:
    """The least odd multiple of ``unit`` that is not below ``size``."""
    return (-(-size // unit) | 1) * unit


def _congruent(size: int, wanted: int, times: int) -> int:
    """The least multiple of 16 from ``size`` on that, ``times`` over, is ``wanted`` in the banks' 128 bytes.

    Where there is none, ``size``.
    """
    found = (size + 16 * i for i in range(8) if (times * (size + 16 * i) - wanted) % 128 == 0)
    return next(found, size)


def _divisors(number: int) -> list[int]:
    return [i for i in range(1, number + 1) if number % i == 0]


def _shares(length: int) -> list[int]:
    """What ``length`` is cut into, when it is cut evenly: from all of it down to 1."""
    return sorted({-(-length // i) for i in range(1, length + 1)}, reverse=True)

"""Convolution, forward and to its input, for any kernel size, stride, padding, dilation and number of channels.

Both directions are correlations (``source/correlate.cu``): over the image with the weights, and over dY with the
mirrored weights, of which a stride leaves each class of input pixels some. Here a convolution becomes one or more of
them, and each gets the tile sizes that a model of the GPU thinks fastest.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bareconv.errors import BareconvError
from bareconv.kernels.cuda import correlate_hopper
from bareconv.kernels.cuda.correlate_hopper import HopperTiling
from bareconv.kernels.cuda.geometry import Convolution
from bareconv.kernels.cuda.kernel import KEPT_BYTES, NUMBER, Kernel, Precision, padded
from bareconv.kernels.cuda.limits import Limits
from bareconv.ops.windows import Pair


@dataclass(frozen=True)
class Axis:
    """One axis of a correlation: output i < ``count`` sees, through tap t < ``taps``, input i * stride + offset(t).

    offset(t) = ``offset`` + t * ``offset_step``; tap t is tap ``weight`` + t * ``weight_step`` of the kernel; output i
    lies at i * ``grid_step`` + ``grid_from`` of ``out_size``.
    """

    size: int
    out_size: int
    count: int
    stride: int
    taps: int
    offset: int
    offset_step: int
    weight: int = 0
    weight_step: int = 1
    grid_step: int = 1
    grid_from: int = 0

    def reach(self, at_once: int) -> int:
        """How many places further the last of so many taps sees than the first."""
        return (abs(self.offset_step) * (at_once - 1) + self.stride - 1) // self.stride if at_once else 0

    def slots(self, at_once: int) -> int:
        """How many remainders by the stride so many taps see."""
        return min(at_once, self.stride // math.gcd(self.stride, self.offset_step)) if at_once else 1

    def held(self, count: int, at_once: int) -> int:
        """Places that ``count`` outputs see through so many taps, of each remainder by the stride."""
        return min(-(-self.size // self.stride), count + self.reach(at_once))

    def shift(self, tap: int) -> int:
        """Tap ``tap`` moves a pixel by so many places."""
        return (self.offset + tap * self.offset_step) // self.stride


@dataclass(frozen=True)
class Correlation:
    """What one launch computes."""

    precision: Precision
    batch: int
    vertical: Axis
    horizontal: Axis
    channels: int
    filters: int
    kernel: Pair
    is_backward: bool

    @property
    def inner(self) -> int:
        """Channels that are summed over."""
        return self.filters if self.is_backward else self.channels

    @property
    def outer(self) -> int:
        """Channels that come out."""
        return self.channels if self.is_backward else self.filters

    @property
    def taps(self) -> int:
        return self.vertical.taps * self.horizontal.taps

    @property
    def groups(self) -> int:
        """16 bytes of channels each."""
        return -(-self.inner * KEPT_BYTES[self.precision] // 16)


@dataclass(frozen=True)
class Tiling:
    """How a correlation is cut up; the words are those of ``correlate.cu``."""

    block: Pair
    warp: Pair
    chunk: int
    step: int
    stages: int
    taps_at_once: Pair
    strip: int
    rows: int
    shared_bytes: int
    blocks: int
    ahead: bool

    @property
    def threads(self) -> int:
        return 32 * (self.block[0] // self.warp[0]) * (self.block[1] // self.warp[1])


@dataclass(frozen=True)
class Statistics:
    """What a forward kernel with ``statistics`` writes: float32, ``size`` of them.

    ``rows`` times [2][``pitch``]: a channel's mean over the outputs that the row's block made, and the sum of squares
    of what differs from it. Then, for each row, how many outputs (of images that exist) those were; 0 is possible.
    """

    rows: int
    pitch: int

    @property
    def size(self) -> int:
        return self.rows * (2 * self.pitch + 1)


def forward(
    convolution: Convolution,
    precision: Precision,
    batch: int,
    limits: Limits,
    *,
    bias: bool,
    relu: bool,
    add: bool = False,
    statistics: bool = False,
    tiling: Tiling | HopperTiling | None = None,
) -> Kernel:
    """y = relu?(convolution of x + bias? + other?), (batch, H, W, C) -> (batch, P, Q, K).

    Operands x, weight (the working copy), bias (K, float32), other (as y), y, statistics (``statistics_of``: of y
    before it is rounded), control. ``bias``, ``other`` and ``statistics`` may be null where they are not asked for.
    """
    correlation = forward_correlation(convolution, precision, batch)
    tiling = tiling or fastest(correlation, limits)
    return kernel_of(correlation, tiling, bias=bias, add=add, relu=relu, statistics=statistics)


def gradient_of_input(
    convolution: Convolution,
    precision: Precision,
    batch: int,
    limits: Limits,
    *,
    mask: bool = False,
    add: bool = False,
) -> tuple[Kernel, ...]:
    """dX from dY, (batch, P, Q, K) -> (batch, H, W, C): a launch for each class of pixels, in any order.

    Operands dy, weight (the working copy), x (null without ``mask``), dx, control. ``add``: to what dx holds.
    ``mask``: then zero where x <= 0, x being the output of a relu.
    """
    kernels = []
    for correlation in gradient_correlations(convolution, precision, batch):
        if add and not mask and not correlation.taps:
            continue  # nothing is added
        kernels.append(kernel_of(correlation, fastest(correlation, limits), mask=mask, add=add))
    return tuple(kernels)


def statistics_of(kernel: Kernel) -> Statistics:
    """Of the forward kernel: what its operand ``statistics`` is."""
    defines = dict(kernel.defines)
    pitch = padded(int(defines["OUTPUT_CHANNELS"]))
    rows = defines.get("TILES_M", kernel.grid[0] // -(-pitch // int(defines["BLOCK_N"])))
    return Statistics(int(rows), pitch)


def forward_correlation(convolution: Convolution, precision: Precision, batch: int) -> Correlation:
    """The forward, as ``correlate.cu`` sees it."""
    window, out = convolution.window, convolution.output
    size = (convolution.height, convolution.width)
    vertical, horizontal = (
        Axis(
            size[a],
            out[a],
            out[a],
            window.stride[a],
            window.kernel[a],
            -window.padding[a],
            window.dilation[a],
        )
        for a in (0, 1)
    )
    return Correlation(
        precision, batch, vertical, horizontal, convolution.channels, convolution.filters, convolution.kernel, False
    )


def gradient_correlations(convolution: Convolution, precision: Precision, batch: int) -> list[Correlation]:
    """dX, as ``correlate.cu`` sees it: one for each pair of remainders by the stride that there are."""
    axes = [list(_classes(convolution, axis)) for axis in (0, 1)]
    shape = (convolution.channels, convolution.filters, convolution.kernel)
    return [
        Correlation(precision, batch, vertical, horizontal, *shape, True)
        for vertical, horizontal in itertools.product(*axes)
    ]


def _classes(convolution: Convolution, axis: int) -> Iterator[Axis]:
    """Input pixels along an axis, by their remainders by the stride.

    Pixel i s + a is seen by output o through tap r where i s + a = o s + r d - p: r d must have the remainder of a + p,
    and o = i + (a + p - r d) / s. Such r lie s / gcd(s, d) apart.
    """
    size, out = (convolution.height, convolution.width)[axis], convolution.output[axis]
    window = convolution.window
    stride, dilation = window.stride[axis], window.dilation[axis]
    apart = stride // math.gcd(stride, dilation)
    for remainder in range(min(stride, size)):
        at = remainder + window.padding[axis]
        taps = [r for r in range(window.kernel[axis]) if (at - r * dilation) % stride == 0]
        yield Axis(
            out,
            size,
            -(-(size - remainder) // stride),
            1,
            len(taps),
            (at - taps[0] * dilation) // stride if taps else 0,
            -apart * dilation // stride,
            taps[0] if taps else 0,
            apart,
            stride,
            remainder,
        )


def kernel_of(
    correlation: Correlation,
    tiling: Tiling | HopperTiling,
    *,
    bias: bool = False,
    add: bool = False,
    relu: bool = False,
    mask: bool = False,
    statistics: bool = False,
) -> Kernel:
    """The launch that computes ``correlation``, cut up as ``tiling`` says; the operands are those of its direction."""
    flags = {"BIAS": bias, "ADD": add, "RELU": relu, "MASK": mask, "STATISTICS": statistics}
    entry = "convolution_forward"
    operands: tuple[str, ...] = ("x", "weight", "bias", "other", "y", "statistics", "control")
    if correlation.is_backward:
        entry, operands = "convolution_input_gradient", ("dy", "weight", "x", "dx", "control")
    vertical, horizontal = correlation.vertical, correlation.horizontal
    taps = correlation.taps
    defines: dict[str, str | int | float] = {
        "PRECISION": NUMBER[correlation.precision],
        "BATCH": correlation.batch,
        "BACKWARD": int(correlation.is_backward),
        "INPUT_CHANNELS": correlation.inner,
        "OUTPUT_CHANNELS": correlation.outer,
        "INPUT_H": vertical.size,
        "INPUT_W": horizontal.size,
        "OUTPUT_H": vertical.out_size,
        "OUTPUT_W": horizontal.out_size,
        "WEIGHT_TAP": vertical.weight * correlation.kernel[1] + horizontal.weight,
        "WEIGHT_TAP_Y": vertical.weight_step * correlation.kernel[1],
        "WEIGHT_TAP_X": horizontal.weight_step,
    }
    for name, axis in (("Y", vertical), ("X", horizontal)):
        defines |= {
            f"GRID_{'H' if name == 'Y' else 'W'}": axis.count,
            f"GRID_STEP_{name}": axis.grid_step,
            f"GRID_FROM_{name}": axis.grid_from,
            f"STRIDE_{name}": axis.stride,
            f"TAPS_{name}": axis.taps if taps else 0,
            f"OFFSET_{name}": axis.offset,
            f"OFFSET_STEP_{name}": axis.offset_step,
        }
    if isinstance(tiling, HopperTiling):
        defines |= correlate_hopper.defines(correlation, tiling)
        blocks = tiling.blocks
    else:
        defines |= _defines(tiling)
        blocks = blocks_in_grid(correlation, tiling)
    defines |= {name: int(flag) for name, flag in flags.items()}
    outputs = correlation.batch * vertical.count * horizontal.count
    size = KEPT_BYTES[correlation.precision]
    classes = vertical.grid_step * horizontal.grid_step  # which share the reading of dY and of the weights
    read = correlation.batch * vertical.size * horizontal.size * padded(correlation.inner)
    read += correlation.kernel[0] * correlation.kernel[1] * padded(correlation.inner) * padded(correlation.outer)
    written = outputs * padded(correlation.outer) * (1 + add + mask)
    return Kernel(
        "correlate_hopper.cu" if isinstance(tiling, HopperTiling) else "correlate.cu",
        entry,
        tuple(defines.items()),
        grid=(blocks, 1, 1),
        threads=tiling.threads,
        shared_bytes=tiling.shared_bytes,
        operands=operands,
        flops=2.0 * outputs * correlation.outer * taps * correlation.inner,
        bytes=size * (read / classes + written),
        specific=isinstance(tiling, HopperTiling),
    )


def _defines(tiling: Tiling) -> dict[str, int]:
    """The constants that say how it is cut up."""
    return {
        "BLOCK_M": tiling.block[0],
        "BLOCK_N": tiling.block[1],
        "WARP_M": tiling.warp[0],
        "WARP_N": tiling.warp[1],
        "CHUNK": tiling.chunk,
        "STEP": tiling.step,
        "STAGES": tiling.stages,
        "TAPS_AT_ONCE_Y": tiling.taps_at_once[0],
        "TAPS_AT_ONCE_X": tiling.taps_at_once[1],
        "STRIP": tiling.strip,
        "INPUT_ROWS": tiling.rows,
        "BLOCKS": tiling.blocks,
        "AHEAD": int(tiling.ahead),
        "SHARED_BYTES": tiling.shared_bytes,
    }


def fastest(correlation: Correlation, limits: Limits) -> Tiling | HopperTiling:
    """The tiling for this GPU: the cheapest of both kinds."""
    portable = best_tiling(correlation, limits)
    hopper = correlate_hopper.tilings(correlation, limits)
    if hopper and correlate_hopper.cost(correlation, limits, hopper[0]) < cost(correlation, limits, portable):
        return hopper[0]
    return portable


# Tile sizes

# Of a multiprocessor in a clock, about as on an H100: multiply-adds, and bytes from the second-level cache.
_MULTIPLY_ADDS = {"float32": 128.0, "tf32": 640.0, "bfloat16": 1280.0}
_CACHE_BYTES = 24.0
_SHARED_BYTES = 128.0
_BARRIER, _LATENCY, _START = 40.0, 1200.0, 2500.0  # clocks: at a barrier; until a copy is there; of a block
_RESERVED_SHARED = 1024  # of a block, by CUDA

_WARPS = {
    "float32": ((32, 64), (64, 32), (32, 32), (64, 16), (128, 8)),
    "tf32": ((64, 64), (64, 32), (32, 64), (32, 32), (32, 16), (64, 16), (32, 8), (64, 8)),
    "bfloat16": ((64, 64), (64, 32), (32, 64), (32, 32), (32, 16), (64, 16), (32, 8), (64, 8)),
}
_LAYOUTS = ((2, 2), (4, 1), (4, 2), (2, 4), (8, 1), (2, 1), (1, 4), (1, 2))  # warps along pixels and channels


@functools.lru_cache(maxsize=4096)
def best_tiling(correlation: Correlation, limits: Limits) -> Tiling:
    """The tiling that ``cost`` finds cheapest. BareconvError where none fits the GPU."""
    found = tilings(correlation, limits)
    for axis in (correlation.vertical, correlation.horizontal):
        if max(axis.size, axis.out_size, axis.count * axis.stride + 64 * axis.stride) >= 1 << 16:
            raise BareconvError(f"an image of {axis.size} pixels along an axis: CUDA kernels have up to 65,000")
    if not found:
        raise BareconvError(
            f"a convolution {correlation} needs more shared memory than the {limits.shared_bytes} bytes that a block "
            f"has on {limits.architecture}: use the reference (engine 'reference')"
        )
    return found[0]


def tilings(
    correlation: Correlation, limits: Limits, *, taps_at_once: Pair | None = None, strip: int | None = None
) -> list[Tiling]:
    """All that fit, the cheapest first; of ``taps_at_once`` and ``strip`` if they are given."""
    vertical, horizontal = correlation.vertical, correlation.horizontal
    if not correlation.taps:
        warp = _WARPS[correlation.precision][3]
        return [Tiling((4 * warp[0], warp[1]), warp, 1, 1, 2, (0, 0), horizontal.count, 1, 4096, 1, True)]
    taps = [(vertical.taps, horizontal.taps), (1, horizontal.taps), (1, 1)]
    strips = [horizontal.count] + [width for width in (64, 32, 16, 8) if width < horizontal.count]
    if taps_at_once is not None:
        taps = [taps_at_once]
    if strip is not None:
        strips = [strip]
    for at_once, width in itertools.product(dict.fromkeys(taps), strips):
        # The plain way first; narrow strips and fewer taps are for what does not fit otherwise, and wide images.
        found = list(_tilings(correlation, limits, at_once, width))
        if found and width > 64 and len(strips) > 1:
            for narrow in strips[1:3]:
                found += _tilings(correlation, limits, at_once, narrow)
        if found:
            return sorted(found, key=lambda tiling: cost(correlation, limits, tiling))
    return []


def _tilings(correlation: Correlation, limits: Limits, at_once: Pair, strip: int) -> Iterator[Tiling]:
    precision, outer = correlation.precision, padded(correlation.outer)
    entry = 1 if precision == "float32" else 2
    smallest = min(warp[1] for warp in _WARPS[precision] if warp[1] >= min(outer, 64))
    for warp, layout in itertools.product(_WARPS[precision], _LAYOUTS):
        if precision != "float32" and limits.capability < 80 and warp[0] * warp[1] > 1024:
            continue  # without the instructions a multiplication takes registers of its own
        block = (warp[0] * layout[0], warp[1] * layout[1])
        if warp[1] > smallest or (layout[1] > 1 and block[1] - outer >= warp[1]) or block[0] > 512:
            continue
        rows = _rows(correlation, block[0], at_once, strip)
        for chunk, stages in itertools.product(_chunks(correlation.groups, entry), (3, 4, 2)):
            entries = -(-at_once[0] * at_once[1] * chunk // entry)
            for step in _steps(entries, chunk // entry):
                shared = _shared_bytes(correlation, block, layout, chunk, step, stages, at_once, strip, rows)
                if shared > limits.shared_bytes:
                    continue
                threads = 32 * layout[0] * layout[1]
                registers = _registers(precision, warp, limits.capability)
                blocks = min(_all_shared(limits) // (shared + _RESERVED_SHARED), 65536 // (threads * registers), 8)
                if blocks >= 1:
                    yield Tiling(
                        block, warp, chunk, step, stages, at_once, strip, rows, shared, blocks, precision != "float32"
                    )


def _all_shared(limits: Limits) -> int:
    """Of a multiprocessor: a block's most and what CUDA keeps."""
    return limits.shared_bytes + _RESERVED_SHARED


def _chunks(groups: int, entry: int) -> list[int]:
    """How many groups of channels at a time: all if they are few, else 8, 4 or 2, or what wastes less."""
    sizes = [groups] if groups <= 9 else []
    if groups > 1 and (groups % entry or groups > 4):
        sizes += [size for size in (8, 4, 2) if size < groups + groups % entry]
    return sizes


def _steps(entries: int, of_tap: int) -> list[int]:
    """Multiplications a step of the pipeline: parts of a tap's, or so that few are of nothing."""
    if of_tap >= 4:
        return [step for step in (2, 3, 4, 5, 6, 8) if of_tap % step == 0] or [1]
    return [step for step in range(1, 9) if -(-entries // step) * step <= entries * 1.13]


def _registers(precision: str, warp: Pair, capability: int) -> int:
    """About as many as a thread takes."""
    sums = warp[0] * warp[1] // 32
    if precision == "float32":
        return 208 if sums >= 64 else 160
    operands = 2 * (warp[0] // 4 + warp[1] // 4)
    emulated = 80 if capability < 80 else 0
    return min(255, -(-(sums + operands + warp[0] // 4 + 44 + emulated) // 8) * 8)


@functools.lru_cache(maxsize=65536)
def _rows(correlation: Correlation, block: int, at_once: Pair, strip: int) -> int:
    """Rows of the input, of one remainder by the stride, that any tile of ``block`` pixels needs at most."""
    axis, taps = correlation.vertical, at_once[0]
    held = axis.held(axis.count, taps)
    is_all = held == -(-axis.size // axis.stride)
    strip_pixels = axis.count * strip
    strips = correlation.batch * -(-correlation.horizontal.count // strip)
    tiles = min(strip_pixels // math.gcd(block, strip_pixels), -(-strips * strip_pixels // block))
    first = np.arange(tiles, dtype=np.int64) * block
    last = first + block - 1
    most = 1
    for tap in range(0, axis.taps, taps):
        ends = sorted((axis.shift(tap), axis.shift(tap + taps - 1)))
        start = 0 if is_all else ends[0]
        begin = np.clip(first % strip_pixels // strip + ends[0] - start, 0, held - 1)
        end = np.clip(last % strip_pixels // strip + ends[1] - start, 0, held - 1)
        end += (last // strip_pixels - first // strip_pixels) * held
        most = max(most, int((end - begin).max()) + 1)
    return most


def _shared_bytes(
    correlation: Correlation,
    block: Pair,
    layout: Pair,
    chunk: int,
    step: int,
    stages: int,
    at_once: Pair,
    strip: int,
    rows: int,
) -> int:
    """As correlate.cu lays it out."""
    precision, size = correlation.precision, KEPT_BYTES[correlation.precision]
    entry, group = (1 if precision == "float32" else 2), 16 // size
    vertical, horizontal = correlation.vertical, correlation.horizontal
    slots = vertical.slots(at_once[0]) * horizontal.slots(at_once[1])
    pixels = slots * rows * horizontal.held(strip, at_once[1])
    listed = at_once[0] * at_once[1] * chunk
    steps = -(-listed // (step * entry))
    parts = (correlation.taps // (at_once[0] * at_once[1])) * -(-correlation.groups // chunk)
    buffers = min(parts, 1 + -(-(stages - 1) // steps))
    input_tile = _up(pixels * (chunk | 1) * 16)
    if correlation.is_backward:
        weight_tile = _up(block[1] * ((step * entry) | 1) * 16)
    elif precision == "tf32":
        weight_tile = _up(step * entry * group * ((block[1] + 7) // 16 * 16 + 8) * 4)
    else:
        weight_tile = _up(step * entry * group * ((block[1] * size // 16) | 1) * 16)
    spans = math.gcd(step, chunk // entry) if chunk % entry == 0 else 1
    zeros = _up(128 + spans * entry * 16)
    return max(zeros + buffers * input_tile + stages * weight_tile, (1 + layout[0]) * block[1] * 4)


def _up(size: int) -> int:
    return -(-size // 128) * 128


def blocks_in_grid(correlation: Correlation, tiling: Tiling) -> int:
    """Blocks of a launch."""
    strips = -(-correlation.horizontal.count // tiling.strip)
    pixels = correlation.batch * strips * correlation.vertical.count * tiling.strip
    return -(-pixels // tiling.block[0]) * -(-padded(correlation.outer) // tiling.block[1])


def cost(correlation: Correlation, limits: Limits, tiling: Tiling) -> float:
    """Clocks that a launch takes, roughly: what is scarcest in a multiprocessor, in whole rounds of blocks."""
    precision, size = correlation.precision, KEPT_BYTES[correlation.precision]
    (block_m, block_n), (warp_m, warp_n) = tiling.block, tiling.warp
    entry, depth = (1, 4) if precision == "float32" else (2, 32 // size)
    at_once = tiling.taps_at_once[0] * tiling.taps_at_once[1]
    parts = correlation.taps // at_once * -(-correlation.groups // tiling.chunk)
    entries = -(-at_once * tiling.chunk // entry)
    steps = -(-entries // tiling.step)
    multiplications = parts * steps * tiling.step
    warps = tiling.threads // 32
    multiply = multiplications * block_m * block_n * depth / _MULTIPLY_ADDS[precision]
    # A fragment is read once by each warp; 128 bytes a clock.
    fetch = multiplications * warps * (warp_m + warp_n) * depth * size / _SHARED_BYTES
    if precision == "float32":
        fetch *= 1.5
    held = tiling.rows * correlation.horizontal.held(tiling.strip, tiling.taps_at_once[1])
    held *= correlation.vertical.slots(tiling.taps_at_once[0]) * correlation.horizontal.slots(tiling.taps_at_once[1])
    brought = parts * held * tiling.chunk * 16 + multiplications * depth * block_n * size
    written = block_m * min(block_n, padded(correlation.outer)) * size
    cache = (brought + 2 * written) / _CACHE_BYTES
    blocks = blocks_in_grid(correlation, tiling)
    # Of a block alone: to start and to end, and what copies take beyond the steps that are under way meanwhile.
    busy = max(multiply, fetch, cache) + parts * steps * _BARRIER
    if tiling.chunk // entry % tiling.step:
        busy *= 1.1  # a step of several taps has more to work out
    late = max(0.0, _LATENCY - (tiling.stages - 1) * tiling.blocks * busy / (parts * steps))
    waiting = _START + written / 16.0
    full, left = divmod(blocks, limits.multiprocessors * tiling.blocks)
    together = max(tiling.blocks * busy, busy + waiting) + parts * steps * late
    if tiling.blocks * warps < 8:
        together *= 8 / (tiling.blocks * warps)
    rest = -(-left // limits.multiprocessors)
    return full * together + (max(rest * busy, busy + waiting) + parts * steps * late if left else 0.0)

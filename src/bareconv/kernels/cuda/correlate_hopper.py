"""Correlations on the matrix unit of compute capability 9.0 (``source/correlate_hopper.cu``): their tile sizes.

In bfloat16, with a stride of 1 over what is read, and many channels. ``correlate`` asks here first.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bareconv.kernels.cuda.kernel import padded
from bareconv.kernels.cuda.limits import Limits
from bareconv.ops.windows import Pair

if TYPE_CHECKING:
    from bareconv.kernels.cuda.correlate import Correlation


@dataclass(frozen=True)
class HopperTiling:
    """How a correlation is cut up; the words are those of ``correlate_hopper.cu``. ``blocks`` share out the tiles."""

    block: Pair
    chunk: int
    step: int
    stages: int
    buffers: int
    rows: int
    shared_bytes: int
    blocks: int

    @property
    def threads(self) -> int:
        return 384


def is_for(correlation: Correlation, limits: Limits) -> bool:
    """Whether it can be done this way at all, and has enough channels for that to be of use."""
    return (
        limits.capability == 90
        and correlation.precision == "bfloat16"
        and correlation.vertical.stride == correlation.horizontal.stride == 1
        and correlation.taps > 0
        and correlation.inner >= 32
        and correlation.outer >= 64
    )


def tiles(correlation: Correlation, block: Pair) -> Pair:
    """Along the outputs, and along their channels."""
    pixels = correlation.batch * correlation.vertical.count * correlation.horizontal.count
    return -(-pixels // block[0]), -(-padded(correlation.outer) // block[1])


@functools.lru_cache(maxsize=4096)
def tilings(correlation: Correlation, limits: Limits) -> tuple[HopperTiling, ...]:
    """All that fit, the cheapest first; none where it is not for this (``is_for``)."""
    if not is_for(correlation, limits):
        return ()
    return tuple(sorted(_tilings(correlation, limits), key=lambda tiling: cost(correlation, limits, tiling)))


def _tilings(correlation: Correlation, limits: Limits) -> Iterator[HopperTiling]:
    outer = padded(correlation.outer)
    for block in itertools.product((256, 128, 512), (128, 64)):
        if (block[1] == 128 and outer <= 64) or block[0] * block[1] > 256 * 128:
            continue
        rows = _rows(correlation, block[0])
        blocks = min(math.prod(tiles(correlation, block)), limits.multiprocessors)
        for chunk in (8, 4, 2):
            if chunk > correlation.groups + 1:
                continue
            span = chunk // 2
            listed = correlation.taps * span
            for step in (4, 6, 2, 8):
                # Parts of a tap's multiplications or several taps'; little of nothing.
                if (span % step and step % span) or -(-listed // step) * step > listed * 1.13:
                    continue
                # As many stages as there is room for: they are what bridges a pause.
                for stages in (8, 7, 6, 5, 4, 3):
                    buffers = 1 + -(-(stages - 1) // -(-listed // step))
                    shared = _shared_bytes(correlation, block, chunk, step, stages, buffers, rows)
                    if shared <= limits.shared_bytes:
                        yield HopperTiling(block, chunk, step, stages, buffers, rows, shared, blocks)
                        break


def _shared_bytes(
    correlation: Correlation, block: Pair, chunk: int, step: int, stages: int, buffers: int, rows: int
) -> int:
    """As correlate_hopper.cu lays it out, with room for statistics."""
    weight_tile = -(-step // 4) * block[1] * 128 if correlation.is_backward else step * 16 * block[1] * 2
    input_tile = _up(rows * correlation.horizontal.size * (chunk + 1) * 16)
    zeros = _up(112 + math.gcd(step, chunk // 2) * 32)
    sums = 0 if correlation.is_backward else 9 * block[1] * 4
    return stages * weight_tile + buffers * input_tile + zeros + sums + 16 * stages


def _up(size: int) -> int:
    return -(-size // 128) * 128


@functools.lru_cache(maxsize=65536)
def _rows(correlation: Correlation, block: int) -> int:
    """Rows of the input that any tile of ``block`` outputs needs: correlate_hopper.cu's INPUT_ROWS."""
    axis = correlation.vertical
    image = axis.count * correlation.horizontal.count
    tiles = min(image // math.gcd(block, image), -(-correlation.batch * image // block))
    first = np.arange(tiles, dtype=np.int64) * block
    last = first + block - 1
    least, most = sorted((axis.offset, axis.offset + (axis.taps - 1) * axis.offset_step))
    width = correlation.horizontal.count
    begin = first // image * axis.size + np.clip(first % image // width + least, 0, axis.size - 1)
    end = last // image * axis.size + np.clip(last % image // width + most, 0, axis.size - 1)
    return int((end - begin).max()) + 1


# Of a multiprocessor in a clock, about: multiply-adds, bytes from the second-level cache.
_MULTIPLY_ADDS = 1700.0
_CACHE_BYTES = 24.0


def cost(correlation: Correlation, limits: Limits, tiling: HopperTiling) -> float:
    """Clocks that a launch takes, roughly."""
    block_m, block_n = tiling.block
    chunks = -(-correlation.groups // tiling.chunk)
    steps = -(-correlation.taps * tiling.chunk // 2 // tiling.step)
    multiplications = chunks * steps * tiling.step
    multiply = multiplications * block_m * block_n * 16 / _MULTIPLY_ADDS
    # From shared memory, 128 bytes a clock: the weights for every 64 outputs, the outputs once; and to it.
    weights = 32.0 * block_n
    fetch = multiplications * (weights * block_m / 64 + 32.0 * block_m + weights) / 128
    brought = chunks * tiling.rows * correlation.horizontal.size * tiling.chunk * 16.0 + multiplications * weights
    busy = max(multiply, fetch, brought / _CACHE_BYTES)
    if tiling.chunk // 2 % tiling.step:
        busy *= 1.03  # a step of several taps has more to work out
    ending = 600.0 + block_m * block_n / 20  # clocks after a tile's last multiplication, until the next tile's first
    along, across = tiles(correlation, tiling.block)
    rounds = -(-along * across // limits.multiprocessors)
    return rounds * (busy + ending) + 2000.0 + chunks * steps * 20.0


def defines(correlation: Correlation, tiling: HopperTiling) -> dict[str, int]:
    """The constants that say how it is cut up."""
    return {
        "BLOCK_M": tiling.block[0],
        "BLOCK_N": tiling.block[1],
        "TILES_M": tiles(correlation, tiling.block)[0],
        "CHUNK": tiling.chunk,
        "STEP": tiling.step,
        "STAGES": tiling.stages,
        "BUFFERS": tiling.buffers,
        "INPUT_ROWS": tiling.rows,
        "SHARED_BYTES": tiling.shared_bytes,
    }

"""What a GPU does at best, by the instructions that our kernels use: kernels to measure the ceilings of a roofline."""

from __future__ import annotations

from collections.abc import Mapping

from bareconv.kernels.cuda.kernel import KEPT_BYTES, NUMBER, PRECISIONS, Kernel, Precision
from bareconv.kernels.cuda.limits import Limits
from bareconv.kernels.cuda.matrix import has_matrix_unit

THREADS = 256
WARPS_M, WARPS_N = 2, 4  # of a block
PIECE_BYTES = 16 * 4 * THREADS  # that a block copies at once

UNITS: Mapping[Precision, str] = {"float32": "FFMA", "tf32": "mma.sync tf32", "bfloat16": "mma.sync bf16"}

GROUP_UNIT = "wgmma bf16"  # of compute capability 9.0, beside mma.sync

# A warp's tile (rows, columns) and the terms of its sums: what fits the registers, as in the other kernels.
_TILES: Mapping[Precision, tuple[int, int, int]] = {
    "float32": (32, 64, 8),
    "tf32": (64, 32, 8),
    "bfloat16": (64, 32, 16),
}
SCALAR_TERMS = 4

# Kernels with products that use no matrix unit, and those that use one whatever their precision.
_NUMBER_BY_NUMBER = ("head.cu", "head_few.cu", "dense_finish.cu")
_ALWAYS_TF32 = ("dense_pixels.cu",)


def unit_of(kernel: Kernel, limits: Limits) -> Precision:
    """Which of ``UNITS`` a kernel multiplies with on a GPU."""
    if kernel.source in _NUMBER_BY_NUMBER or not has_matrix_unit(limits):
        return "float32"
    if kernel.source in _ALWAYS_TF32:
        return "tf32"
    number = dict(kernel.defines).get("PRECISION", NUMBER["float32"])
    return next(precision for precision in PRECISIONS if NUMBER[precision] == number)


def unit_name(kernel: Kernel, limits: Limits) -> str:
    """The name of the ceiling that bounds a kernel's products."""
    return GROUP_UNIT if kernel.specific else UNITS[unit_of(kernel, limits)]


def units(limits: Limits) -> tuple[Precision, ...]:
    """Those of ``UNITS`` that a GPU has."""
    return PRECISIONS if has_matrix_unit(limits) else ("float32",)


def multiply(unit: Precision, limits: Limits, iterations: int) -> Kernel:
    """``iterations`` products of tiles in registers, by two blocks for each multiprocessor.

    Operands: left (rows, terms) and right (terms, columns), as ``unit`` keeps numbers; sums float32 (blocks, rows,
    columns + 8), of each block ``iterations`` times the same product; what is beyond the columns is not written. FFMA
    takes the first ``SCALAR_TERMS`` terms alone.
    """
    (rows, columns, _), (m, n, terms) = _TILES[unit], multiply_shape(unit)
    blocks, size = 2 * limits.multiprocessors, KEPT_BYTES[unit]
    used = SCALAR_TERMS if unit == "float32" else terms
    return Kernel(
        "peak.cu",
        "multiply",
        tuple(
            {
                "PRECISION": NUMBER[unit],
                "LEFT_ROWS": rows,
                "RIGHT_COLUMNS": columns,
                "TERMS": terms,
                "ITERATIONS": iterations,
                "BLOCKS": 1 if unit == "float32" else 2,
            }.items()
        ),
        grid=(blocks, 1, 1),
        threads=THREADS,
        # Rows of an odd number of 16 bytes; those of tf32 that lie across the sum have 8 numbers more.
        shared_bytes=m * (terms * size + 16) + terms * (n * size + (32 if unit == "tf32" else 16)),
        operands=("left", "right", "sums"),
        flops=2.0 * blocks * m * n * used * iterations,
        bytes=size * blocks * terms * (m + n) + 4 * blocks * m * n,
    )


def has_group_unit(limits: Limits) -> bool:
    """Whether a GPU has ``GROUP_UNIT``."""
    return limits.capability == 90


def multiply_groups(limits: Limits, iterations: int) -> Kernel:
    """``iterations`` products of 128 x 64 x 128 by wgmma, bf16, on each multiprocessor.

    Operands: left uint32 (16, 128), right uint32 (4096), pairs of bf16 in any order; sums float32 (blocks, threads).
    """
    blocks = limits.multiprocessors
    return Kernel(
        "peak_hopper.cu",
        "multiply_groups",
        (("ITERATIONS", iterations),),
        grid=(blocks, 1, 1),
        threads=THREADS,
        shared_bytes=16384,
        operands=("left", "right", "sums"),
        flops=2.0 * blocks * 128 * 64 * 128 * iterations,
        specific=True,
    )


def multiply_shape(unit: Precision) -> tuple[int, int, int]:
    """(rows, columns, terms) of what a block of ``multiply`` multiplies."""
    rows, columns, terms = _TILES[unit]
    return WARPS_M * rows, WARPS_N * columns, terms


def copy(size: int, passes: int, *, write: bool = True) -> Kernel:
    """``source`` to ``target``, uint8, of ``size`` bytes, a multiple of ``PIECE_BYTES``, ``passes`` times over.

    Without ``write`` it is read only; ``target`` must still have 16 bytes.
    """
    assert size % PIECE_BYTES == 0
    return Kernel(
        "peak.cu",
        "copy_memory",
        (("PASSES", passes), ("TARGET", int(write))),
        grid=(size // PIECE_BYTES, 1, 1),
        threads=THREADS,
        shared_bytes=0,
        operands=("source", "target"),
        bytes=float(size) * passes * (2 if write else 1),
    )


def nothing() -> Kernel:
    """What a launch costs."""
    return Kernel("peak.cu", "do_nothing", (), grid=(1, 1, 1), threads=32, shared_bytes=0, operands=())

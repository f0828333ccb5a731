"""A kernel for given shapes: a source file, the constants that it is compiled with, and how it is launched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Precision: TypeAlias = Literal["float32", "tf32", "bfloat16"]

PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
NUMBER = {"float32": 0, "tf32": 1, "bfloat16": 2}  # PRECISION in the sources
KEPT_BYTES = {"float32": 4, "tf32": 4, "bfloat16": 2}  # of an activation, a weight's copy, their gradients


@dataclass(frozen=True)
class Kernel:
    """Compiled for its ``defines``, launched with ``operands`` in that order: pointers into the device's memory.

    ``shared_bytes`` a block. ``flops`` and ``bytes`` are the work of one launch on a full batch, for the roofline:
    what the formula needs, and what must at least be read and written. ``specific``: it uses instructions that only
    this generation of GPUs has, and is compiled for "sm_90a" where others are for "sm_90".
    """

    source: str
    entry: str
    defines: tuple[tuple[str, str | int | float], ...]
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    operands: tuple[str, ...]
    flops: float = 0.0
    bytes: float = 0.0
    specific: bool = False

    @property
    def name(self) -> str:
        """The entry, as tables show it."""
        return self.entry


def padded(channels: int) -> int:
    """Channels as they lie in memory: up to the next multiple of 8, the rest zeros."""
    return -(-channels // 8) * 8

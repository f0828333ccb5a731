"""Where a plan's arrays lie: one block of memory, laid out before the first step.

Arrays are recorded with the stages that use them. What only one stage uses is held a chunk at a time for each worker,
so that it stays in the cache; what lives for a few stages shares its place with others that live at other times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bareconv.plan.placing import Placed, place

LINE = 64  # bytes of a cache line: where every array starts
SLACK = 256  # bytes after each: kernels may touch a register beyond the end
PAGE = 4096


@dataclass(eq=False)
class Buffer(Placed):
    """An array of ``elements`` for each image, each worker, or once: ``per`` "image", "worker" or "plan".

    Its ``span`` counts stretches between two waits, not stages: one worker may be a stage ahead of another.
    """

    name: str
    elements: int
    dtype: str = "float32"
    per: str = "image"
    rows: bool = False  # images are rows of a matrix, one right after the other
    local: int = 0  # to a stage's call or a segment's round, which alone use it: each worker has ``chunk`` images of it
    chunk: int = 1

    @property
    def pitch(self) -> int:
        """Bytes from one image (or worker) to the next."""
        size = self.elements * np.dtype(self.dtype).itemsize
        if self.per == "image":
            # Rows a multiple of a page apart fall on the same lines of the cache, one after another.
            return size + LINE if size % PAGE == 0 and not self.rows else size
        return -(-(size + SLACK) // LINE) * LINE

    def bytes(self, images: int, workers: int) -> int:
        """How much it takes."""
        if self.per == "plan":
            return self.pitch
        if self.per == "worker":
            return self.pitch * workers
        return self.worker_pitch * workers if self.local else self.pitch * images + SLACK

    @property
    def worker_pitch(self) -> int:
        """Bytes from one worker's chunk to the next's."""
        return -(-(self.pitch * self.chunk + SLACK) // LINE) * LINE


def lay_out(buffers: Sequence[Buffer], images: int, workers: int) -> int:
    """Give every buffer its offset; returns the bytes of all."""
    return place([(buffer, buffer.bytes(images, workers)) for buffer in buffers], LINE)


def allocate(size: int) -> NDArray[np.uint8]:
    """That many bytes of zeros, from a page's start on."""
    block = np.zeros(size + PAGE, np.uint8)
    start = -block.ctypes.data % PAGE
    return block[start : start + size]

"""Max pooling of a chunk whose partners lie in blocks (see ``geometry``), by masks made of sign bits.

Of several equal maxima the first in row order wins, as in ``ops.max_pool_forward``: a later one must be strictly
greater to win, first among the columns of a row, then among the rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bareconv.device import Array
from bareconv.kernels.tuned.geometry import ConvGeometry
from bareconv.kernels.tuned.memory import bits, cut, mask_less


class BlockMaxPool:
    """The pool of one fused convolution; keeps, chunk by chunk, who won."""

    def __init__(self, geometry: ConvGeometry, images: int, chunks: int, dtype: np.dtype[Any]) -> None:
        self.geometry = geometry
        (a, b), per_chunk = geometry.partners, images * geometry.pixels * geometry.filters
        self.columns = [np.empty((b - 1) * per_chunk, dtype) for _ in range(chunks)]
        self.rows = [np.empty((a - 1) * per_chunk // a, dtype) for _ in range(chunks)]

    def forward(self, chunk: int, y: Array, images: int) -> Array:
        """The maxima (P/a, n*Q/b*K) of y, which lie in y itself: what it held is overwritten."""
        columns, rows, blocks = self._views(chunk, y, images)
        best = blocks[0]
        for block, won in zip(blocks[1:], columns, strict=True):
            mask_less(best, block, out=won)
            np.maximum(best, block, out=best)
        top = best[:, 0]
        for i, won in enumerate(rows, start=1):
            mask_less(top, best[:, i], out=won)
            np.maximum(top, best[:, i], out=top)
        return top

    def backward(self, chunk: int, gradient: Array, dy: Array, images: int) -> None:
        """``gradient`` (P/a, n*Q/b*K) to the winners, 0 to the others: overwrites all of ``dy``, and ``gradient``.

        From the last partner to the first: a partner that won takes the gradient, and with "exclusive or" it is gone
        from what is left for those before it.
        """
        columns, rows, blocks = self._views(chunk, dy, images)
        left, first = bits(gradient), bits(blocks[0])
        for i in range(len(rows), 0, -1):
            np.bitwise_and(left, bits(rows[i - 1]), out=first[:, i])
            np.bitwise_xor(left, first[:, i], out=left)
        first[:, 0] = left
        for j in range(len(columns), 0, -1):
            block = bits(blocks[j])
            np.bitwise_and(first, bits(columns[j - 1]), out=block)
            np.bitwise_xor(first, block, out=first)

    def _views(self, chunk: int, y: Array, images: int) -> tuple[Array, Array, Array]:
        (a, b), (P, Q) = self.geometry.partners, self.geometry.out_size
        span = images * Q * self.geometry.filters
        columns = cut(self.columns[chunk], b - 1, P, a, span)
        return columns, cut(self.rows[chunk], a - 1, P, span), y.reshape(b, P, a, span)

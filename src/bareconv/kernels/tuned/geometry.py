"""The geometry of a fused conv2d and max pool, and the order in which its pixels are kept.

A chunk of n images is laid out so that what belongs together in a later step lies in whole blocks:

    y  (b, P, n, Q/b, K)     column q of the output is block q % b, column q // b in it

for a max pool of a x b. The partners of a pooling window are then far apart in memory, in blocks of equal form, and one
operation over two blocks compares them all. Image rows come before images: the rows that tap row r of a kernel sees are
one contiguous piece, the operand of one matrix product. Without a pool, a = b = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from bareconv.errors import ShapeError
from bareconv.ops.windows import Pair, Window


@dataclass(frozen=True)
class ConvGeometry:
    """What a fused convolution's buffers are laid out by. ``pool`` is None, or a window of stride = kernel."""

    in_shape: tuple[int, int, int]
    window: Window
    filters: int
    pool: Window | None = None

    def __post_init__(self) -> None:
        pool = self.pool
        if pool is not None and (pool.stride != pool.kernel or pool.padding != (0, 0) or pool.dilation != (1, 1)):
            raise NotImplementedError(f"a fused max pool has stride = kernel and no padding; got {pool}")
        if min(self.conv_size[0] // self.partners[0], self.conv_size[1] // self.partners[1]) < 1:
            raise ShapeError(f"a pool of {self.partners} does not fit an output of {self.conv_size}")

    @property
    def partners(self) -> Pair:
        """(a, b): rows and columns of a pooling window."""
        return self.pool.kernel if self.pool is not None else (1, 1)

    @property
    def conv_size(self) -> Pair:
        """(P, Q) of the convolution itself."""
        return self.window.output_size(self.in_shape[:2])

    @property
    def out_size(self) -> Pair:
        """Height and width of what comes out, after the pool."""
        (P, Q), (a, b) = self.conv_size, self.partners
        return P // a, Q // b

    @property
    def rows(self) -> int:
        """Output rows that are computed: all that a pooling window covers."""
        return self.out_size[0] * self.partners[0]

    @property
    def padded(self) -> Pair:
        """Height and width of the image with its padding."""
        (H, W, _), (ph, pw) = self.in_shape, self.window.padding
        return H + 2 * ph, W + 2 * pw

    @property
    def blocked_columns(self) -> Pair:
        """(b, Q/b): blocks of columns, and columns in each."""
        return self.partners[1], self.out_size[1]

    @property
    def pixels(self) -> int:
        """Pixels of one image in one block."""
        return self.rows * self.out_size[1]

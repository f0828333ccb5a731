"""The shape of a convolution, as its kernels are told it."""

from __future__ import annotations

from dataclasses import dataclass

from bareconv.kernels.cuda.kernel import padded
from bareconv.ops.windows import Pair, Window


@dataclass(frozen=True)
class Convolution:
    """(H, W, C) images to (P, Q, ``filters``), by a window."""

    height: int
    width: int
    channels: int
    filters: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @property
    def window(self) -> Window:
        return Window(self.kernel, self.stride, self.padding, self.dilation)

    @property
    def output(self) -> Pair:
        """(P, Q)."""
        return self.window.output_size((self.height, self.width))

    @property
    def taps(self) -> int:
        """R * S."""
        return self.kernel[0] * self.kernel[1]

    @property
    def weight_size(self) -> int:
        """Elements of the working copy: taps, padded channels, padded filters."""
        return self.taps * padded(self.channels) * padded(self.filters)

    def flops(self, images: int) -> float:
        """Of the forward, of dX or of dW each: a multiplication and an addition count as two."""
        P, Q = self.output
        return 2.0 * images * P * Q * self.filters * self.taps * self.channels

"""Sliding windows over the two image axes of an NHWC array: what convolution and pooling have in common.

A window of R x S taps starts at ``padding`` before the image and moves by ``stride``; tap (r, s) of window (p, q)
reads the padded image at (p * stride + r * dilation, q * stride + s * dilation). Everything here is geometry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from bareconv.device import Array, namespace
from bareconv.errors import ShapeError

Pair: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Kernel size, stride, padding and dilation, each a pair (height, width)."""

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def __post_init__(self) -> None:
        for name in ("kernel", "stride", "dilation"):
            if min(getattr(self, name)) < 1:
                raise ShapeError(f"{name} {getattr(self, name)}: expected both at least 1")
        if min(self.padding) < 0:
            raise ShapeError(f"padding {self.padding}: expected both at least 0")

    @property
    def taps(self) -> list[Pair]:
        """Every (r, s), row by row."""
        return [(r, s) for r in range(self.kernel[0]) for s in range(self.kernel[1])]

    @property
    def extent(self) -> Pair:
        """Height and width that one window spans, dilation included."""
        (R, S), (dh, dw) = self.kernel, self.dilation
        return (R - 1) * dh + 1, (S - 1) * dw + 1

    def output_size(self, size: Pair) -> Pair:
        """(P, Q) for an image of (H, W); raises ShapeError where not one window fits."""
        P, Q = (
            (length + 2 * pad - extent) // stride + 1
            for length, pad, extent, stride in zip(size, self.padding, self.extent, self.stride, strict=True)
        )
        if P < 1 or Q < 1:
            raise ShapeError(
                f"a window of {self.extent[0]} x {self.extent[1]} does not fit an image of {size[0]} x {size[1]} "
                f"with padding {self.padding[0]} x {self.padding[1]}"
            )
        return P, Q

    def tap(self, r: int, s: int, out: Pair) -> tuple[slice, slice, slice]:
        """Where tap (r, s) of all ``out`` windows reads the padded image: an index for its N, H and W axes."""
        (sh, sw), (dh, dw) = self.stride, self.dilation
        return (
            slice(None),
            slice(r * dh, r * dh + (out[0] - 1) * sh + 1, sh),
            slice(s * dw, s * dw + (out[1] - 1) * sw + 1, sw),
        )

    def pad(self, x: Array, value: float = 0.0) -> Array:
        """(N, H, W, C) -> (N, H + 2 ph, W + 2 pw, C); ``x`` itself where there is no padding."""
        ph, pw = self.padding
        if ph == pw == 0:
            return x
        N, H, W, C = x.shape
        padded = namespace(x).full((N, H + 2 * ph, W + 2 * pw, C), value, dtype=x.dtype)
        padded[:, ph : ph + H, pw : pw + W] = x
        return padded

    def crop(self, padded: Array) -> Array:
        """The inverse of ``pad``: a view without the border."""
        (ph, pw), (H, W) = self.padding, padded.shape[1:3]
        return padded[:, ph : H - ph, pw : W - pw]

    def view(self, padded: Array) -> Array:
        """All windows of a padded image at once, (N, P, Q, R, S, C), a view that copies nothing."""
        N, H, W, C = padded.shape
        P, Q = Window(self.kernel, self.stride, (0, 0), self.dilation).output_size((H, W))
        n, h, w, c = padded.strides
        (R, S), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        return namespace(padded).lib.stride_tricks.as_strided(
            padded, shape=(N, P, Q, R, S, C), strides=(n, sh * h, sw * w, dh * h, dw * w, c)
        )

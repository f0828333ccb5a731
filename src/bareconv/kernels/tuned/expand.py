"""Convolution as matrix products over a chunk of images that stays in the cache.

Two ways to lay out what the output pixels see, both with the pixels in the order of ``geometry``:

``Rows``  repeats each image row S times, once for every tap of a kernel row (not R * S times, as im2col does), and adds
          up R products: tap row r of all output rows is a piece of the same matrix that begins r rows further down.
``Taps``  is im2col, tap by tap: one product. It serves where R*S*C is small (a first layer): products as thin as S*C
          would cost more than the copies do.

An image arrives with its padding, (n, H + 2 ph, W + 2 pw, C), of any strides.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import as_strided

from bareconv.device import Array
from bareconv.kernels.tuned.geometry import ConvGeometry
from bareconv.kernels.tuned.memory import cut

FEW = 64  # R*S*C up to which the taps of all kernel rows go into one matrix


class Expansion(Protocol):
    """The matrix of one chunk, and its three products. y and dy are (b, P*n*Q/b, K)."""

    def load(self, x: Array) -> None:
        """Lay out a chunk of padded images."""

    def product(self, weight: Array, y: Array) -> None:
        """The convolution: overwrites ``y``."""

    def weight_gradient(self, dy: Array, dweight: Array) -> None:
        """Adds the chunk's share to ``dweight`` (R, S, C, K)."""

    def input_gradient(self, dy: Array, weight: Array, dx: Array) -> None:
        """Adds to ``dx``, padded as the images are."""


def expansion_for(
    geometry: ConvGeometry, images: int, dtype: np.dtype[Any], *, gradient: bool, need_dx: bool
) -> Expansion:
    """The expansion that suits the shape, for chunks of up to ``images``; without ``gradient``, for forward alone."""
    (R, S), C = geometry.window.kernel, geometry.in_shape[2]
    kind = Taps if R * S * C <= FEW else Rows
    return kind(geometry, images, dtype, gradient, need_dx)


def bytes_per_image(geometry: ConvGeometry, itemsize: int) -> int:
    """What one image takes of the cache: its matrix, and two outputs."""
    (R, S), C, (b, Q) = geometry.window.kernel, geometry.in_shape[2], geometry.blocked_columns
    few = R * S * C <= FEW
    row = b * Q * (S * C * (R if few else 1) + geometry.filters * (1 if few else 2))
    return geometry.rows * row * itemsize


class Rows:
    """The rows of the images, each tap of a kernel row beside the other: (b, row, n, Q/b, S*C).

    With a vertical stride sh the rows are kept apart by their number modulo sh (the "phase"), so that the rows that one
    tap row sees follow each other: of phase (r*dh) % sh, from (r*dh) // sh on.
    """

    def __init__(
        self, geometry: ConvGeometry, images: int, dtype: np.dtype[Any], gradient: bool, need_dx: bool
    ) -> None:
        self.geometry = geometry
        (R, S), (sh, _), (dh, _) = geometry.window.kernel, geometry.window.stride, geometry.window.dilation
        (b, Q), C, K = geometry.blocked_columns, geometry.in_shape[2], geometry.filters
        self.taps = [(r * dh % sh, r * dh // sh) for r in range(R)]  # phase, first row of it
        self.rows: dict[int, int] = {}  # of each phase that any tap sees
        for phase, first in self.taps:
            self.rows[phase] = max(self.rows.get(phase, 0), first + geometry.rows)
        row, pixels = b * images * Q * S * C, b * images * geometry.pixels
        self.matrix = {phase: np.empty(count * row, dtype) for phase, count in self.rows.items()}
        self.partial = np.empty(pixels * max(K, S * C if need_dx else 0), dtype)
        self.dweight = np.empty((S * C, K), dtype) if gradient else None
        self.dmatrix = {phase: np.empty_like(m) for phase, m in self.matrix.items()} if need_dx else {}
        self.images = 0  # in the matrix

    def load(self, x: Array) -> None:
        self.images = n = len(x)
        (b, Q), (_, S), C = self.geometry.blocked_columns, self.geometry.window.kernel, x.shape[3]
        (sh, sw), (_, dw) = self.geometry.window.stride, self.geometry.window.dilation
        image, row, column, channel = x.strides
        for phase, count in self.rows.items():
            seen = as_strided(
                x[:, phase:],
                (b, count, n, Q, S, C),
                (sw * column, sh * row, image, b * sw * column, dw * column, channel),
            )
            np.copyto(self._of(self.matrix, phase).reshape(seen.shape), seen)

    def product(self, weight: Array, y: Array) -> None:
        R, S, C, K = weight.shape
        partial = cut(self.partial, *y.shape)
        for r, place in enumerate(self.taps):
            np.matmul(self._piece(self.matrix, *place), weight[r].reshape(S * C, K), out=partial if r else y)
            if r:
                np.add(y, partial, out=y)

    def weight_gradient(self, dy: Array, dweight: Array) -> None:
        assert self.dweight is not None
        for r, place in enumerate(self.taps):
            for block, gradient in zip(self._piece(self.matrix, *place), dy, strict=True):
                np.matmul(block.T, gradient, out=self.dweight)
                dweight[r] += self.dweight.reshape(dweight[r].shape)

    def input_gradient(self, dy: Array, weight: Array, dx: Array) -> None:
        R, S, C, K = weight.shape
        partial = cut(self.partial, dy.shape[0], dy.shape[1], S * C)
        begun = set()
        for r, (phase, first) in enumerate(self.taps):
            turned, piece = weight[r].reshape(S * C, K).T, self._piece(self.dmatrix, phase, first)
            if phase in begun:
                np.matmul(dy, turned, out=partial)
                np.add(piece, partial, out=piece)
            else:  # the first of its phase begins at row 0 or further down; the rows that it leaves out become 0
                begun.add(phase)
                np.matmul(dy, turned, out=piece)
                rows = self._of(self.dmatrix, phase)
                rows[:, :first] = 0
                rows[:, first + self.geometry.rows :] = 0
        self._fold(dx)

    def _fold(self, dx: Array) -> None:
        """Add every tap of the rows' gradient to the image's column that it was a copy of."""
        (b, Q), (_, S), C = self.geometry.blocked_columns, self.geometry.window.kernel, dx.shape[3]
        (sh, sw), (_, dw) = self.geometry.window.stride, self.geometry.window.dilation
        for phase, count in self.rows.items():
            rows = dx[:, phase::sh][:, :count].transpose(1, 0, 2, 3)
            taps = self._of(self.dmatrix, phase).reshape(b, count, self.images, Q, S, C)
            for s in range(S):
                for j in range(b):
                    target = rows[:, :, j * sw + s * dw :: b * sw][:, :, :Q]
                    np.add(target, taps[j, :, :, :, s], out=target)

    def _of(self, memory: dict[int, Array], phase: int) -> Array:
        (b, Q), (_, S), C = self.geometry.blocked_columns, self.geometry.window.kernel, self.geometry.in_shape[2]
        return cut(memory[phase], b, self.rows[phase], self.images, Q, S * C)

    def _piece(self, memory: dict[int, Array], phase: int, first: int) -> Array:
        """(b, P*n*Q/b, S*C): what one tap row sees."""
        piece = self._of(memory, phase)[:, first : first + self.geometry.rows]
        return piece.reshape(len(piece), -1, piece.shape[-1])


class Taps:
    """im2col with the taps first: (R*S*C, b*P*n*Q/b), so that the pixels of one tap lie together."""

    def __init__(
        self, geometry: ConvGeometry, images: int, dtype: np.dtype[Any], gradient: bool, need_dx: bool
    ) -> None:
        self.geometry = geometry
        (R, S), C, (b, _) = geometry.window.kernel, geometry.in_shape[2], geometry.blocked_columns
        self.matrix = np.empty(R * S * C * b * images * geometry.pixels, dtype)
        self.dmatrix = np.empty_like(self.matrix) if need_dx else None
        self.dweight = np.empty((R * S * C, geometry.filters), dtype) if gradient else None
        self.images = 0  # in the matrix

    def load(self, x: Array) -> None:
        self.images = len(x)
        (sh, sw), (dh, dw) = self.geometry.window.stride, self.geometry.window.dilation
        image, row, column, channel = x.strides
        b = self.geometry.blocked_columns[0]
        seen = as_strided(
            x,
            self._shape(),
            (dh * row, dw * column, channel, sw * column, sh * row, image, b * sw * column),
        )
        np.copyto(cut(self.matrix, *seen.shape), seen)

    def product(self, weight: Array, y: Array) -> None:
        K = weight.shape[3]
        np.matmul(self._flat(self.matrix).T, weight.reshape(-1, K), out=y.reshape(-1, K))

    def weight_gradient(self, dy: Array, dweight: Array) -> None:
        assert self.dweight is not None
        np.matmul(self._flat(self.matrix), dy.reshape(-1, dy.shape[2]), out=self.dweight)
        dweight += self.dweight.reshape(dweight.shape)

    def input_gradient(self, dy: Array, weight: Array, dx: Array) -> None:
        assert self.dmatrix is not None
        K = weight.shape[3]
        np.matmul(weight.reshape(-1, K), dy.reshape(-1, K).T, out=self._flat(self.dmatrix))
        gradient, window = cut(self.dmatrix, *self._shape()), self.geometry.window
        (b, Q), (dh, dw), (sh, sw) = self.geometry.blocked_columns, window.dilation, window.stride
        for r, s in window.taps:
            rows = dx[:, r * dh :: sh][:, : self.geometry.rows]
            for j in range(b):
                target = rows[:, :, j * sw + s * dw :: b * sw][:, :, :Q]
                np.add(target, gradient[r, s, :, j].transpose(2, 1, 3, 0), out=target)

    def _shape(self) -> tuple[int, ...]:
        (R, S), C, (b, Q) = self.geometry.window.kernel, self.geometry.in_shape[2], self.geometry.blocked_columns
        return R, S, C, b, self.geometry.rows, self.images, Q

    def _flat(self, memory: Array) -> Array:
        R, S, C, *pixels = self._shape()
        return cut(memory, R * S * C, int(np.prod(pixels)))

"""conv2d + bias + relu + max pool as one operation over one slice of a batch, in chunks that stay in the cache."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from bareconv.device import Array
from bareconv.errors import BareconvError, ShapeError
from bareconv.kernels.tuned.expand import bytes_per_image, expansion_for
from bareconv.kernels.tuned.geometry import ConvGeometry
from bareconv.kernels.tuned.memory import bits, cut, expect, expect_bias, float_type, mask_less
from bareconv.kernels.tuned.pool import BlockMaxPool
from bareconv.ops.windows import Window

CACHE = 3 << 19  # bytes that a chunk may take: about a second-level cache, with what a core has of the third


class ConvBlock:
    """conv2d, then bias, relu and max pool where they are asked for; relu before or after the pool is the same.

    Shapes: x and dx (n, H, W, C), weight and dweight (R, S, C, K), bias and dbias (K), out and dy (n, P, Q, K), pooled
    if there is a pool; n <= ``images``; all of ``dtype`` and C-contiguous. Between forward and backward x and out must
    stay as they are: only references to them are kept. The pool compares before the bias is added, so that two sums
    that become equal only by the bias's rounding are no tie here.

    Raises NotImplementedError for what is not covered (groups; a pool whose stride is not its kernel, or with padding).
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        window: Window,
        filters: int,
        *,
        bias: bool,
        relu: bool,
        pool: Window | None,
        images: int,
        need_dx: bool,
        groups: int = 1,
        dtype: DTypeLike = np.float32,
        training: bool = True,
    ) -> None:
        if groups != 1:
            raise NotImplementedError("a convolution in groups")
        self.geometry = geometry = ConvGeometry(in_shape, window, filters, pool)
        self.dtype, self.images, self.relu = float_type(dtype), images, relu
        self.has_bias, self.need_dx, self.training = bias, need_dx and training, training
        per_image = bytes_per_image(geometry, self.dtype.itemsize)
        self.chunk = max(1, min(images, CACHE // per_image))
        chunks = -(-images // self.chunk)
        (H, W), (b, _), (P, Q) = geometry.padded, geometry.blocked_columns, geometry.out_size
        self.expansion = expansion_for(geometry, self.chunk, self.dtype, gradient=training, need_dx=self.need_dx)
        self.pool = None if pool is None else BlockMaxPool(geometry, self.chunk, chunks, self.dtype)
        self.y = np.empty(b * self.chunk * geometry.pixels * filters, self.dtype)
        self.gradient = np.empty(self.chunk * P * Q * filters if training else 0, self.dtype)
        self.ones = np.ones(self.chunk * P * Q if training and bias else 0, self.dtype)
        self.partial_bias = np.empty(filters, self.dtype)
        # A whole row of the output: with these as the other operand a ufunc's inner loop is as long.
        self.bias_row, self.zero_row = np.zeros((2, Q * filters), self.dtype)
        is_padded = window.padding != (0, 0)
        self.padded = np.zeros((self.chunk, H, W, in_shape[2]), self.dtype) if is_padded else None
        self.dpadded = np.empty_like(self.padded) if self.padded is not None and self.need_dx else None
        self._saved: tuple[Array, Array] | None = None
        self._loaded = -1  # the chunk in the expansion

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """(P, Q, K)."""
        return (*self.geometry.out_size, self.geometry.filters)

    def forward(self, x: Array, weight: Array, bias: Array | None, out: Array) -> None:
        """Overwrites ``out``."""
        self._check(x, weight, "x")
        expect_bias(bias, self.has_bias)
        expect("out", out, (len(x), *self.out_shape), self.dtype)
        self._loaded = -1  # x, or what is in it, is new
        if bias is not None:
            self.bias_row.reshape(-1, self.geometry.filters)[...] = bias
        for number, start in enumerate(range(0, len(x), self.chunk)):
            part = slice(start, start + self.chunk)
            self._load(number, x[part])
            n = len(x[part])
            y = self._pixels(n)
            self.expansion.product(weight, y)
            rows = self._rows(y if self.pool is None else self.pool.forward(number, y, n), n)
            self._finish(rows, bias is not None, self._by_row(out[part]))
        self._saved = x, out

    def backward(self, dy: Array, weight: Array, dweight: Array, dbias: Array | None, dx: Array | None) -> None:
        """Overwrites ``dweight``, ``dbias`` and ``dx`` with the gradients of the last forward's loss."""
        if self._saved is None or not self.training:
            raise BareconvError("backward needs one forward before it, of a block built for training")
        x, out = self._saved
        expect("dy", dy, out.shape, self.dtype)
        expect("dweight", dweight, weight.shape, self.dtype)
        if dx is not None:
            if not self.need_dx:
                raise BareconvError("this block was built without a gradient of its input")
            self._check(dx, weight, "dx")
        dweight.fill(0)
        if dbias is not None:
            dbias.fill(0)
        for number in reversed(range(-(-len(x) // self.chunk))):  # the last is still expanded
            part = slice(number * self.chunk, (number + 1) * self.chunk)
            n = len(x[part])
            gradient = self._gradient(dy[part], out[part])
            if dbias is not None:
                pixels = gradient.reshape(-1, self.geometry.filters)
                np.matmul(self.ones[: len(pixels)], pixels, out=self.partial_bias)
                dbias += self.partial_bias
            if self.pool is None:
                conv_gradient = gradient.reshape(1, -1, self.geometry.filters)
            else:
                conv_gradient = self._pixels(n)
                self.pool.backward(number, gradient.reshape(len(gradient), -1), conv_gradient, n)
            self._load(number, x[part])
            self.expansion.weight_gradient(conv_gradient, dweight)
            if dx is not None:
                self._input_gradient(conv_gradient, weight, dx[part])

    def _load(self, number: int, x: Array) -> None:
        if number == self._loaded:
            return
        self._loaded = number
        if self.padded is not None:
            padded = self.padded[: len(x)]  # whose border stays 0
            self.geometry.window.crop(padded)[...] = x
            x = padded
        self.expansion.load(x)

    def _finish(self, rows: Array, bias: bool, out: Array) -> None:
        """Bias and relu; the last operation writes to ``out``."""
        if bias:
            np.add(rows, self.bias_row, out=rows if self.relu else out)
        if self.relu:
            np.maximum(rows, self.zero_row, out=out)  # with the scalar 0 it takes four times as long
        elif not bias:
            np.copyto(out, rows)

    def _gradient(self, dy: Array, out: Array) -> Array:
        """dy behind the relu, in the order of the chunk: (P, n, Q*K)."""
        gradient = self._rows(self.gradient, len(dy))
        if self.relu:
            mask_less(self.zero_row, self._by_row(out), out=gradient)
            np.bitwise_and(bits(gradient), bits(self._by_row(dy)), out=bits(gradient))
        else:
            np.copyto(gradient, self._by_row(dy))
        return gradient

    def _input_gradient(self, dy: Array, weight: Array, dx: Array) -> None:
        target = dx if self.dpadded is None else self.dpadded[: len(dx)]
        target.fill(0)
        self.expansion.input_gradient(dy, weight, target)
        if self.dpadded is not None:
            dx[...] = self.geometry.window.crop(target)

    def _pixels(self, images: int) -> Array:
        """The chunk's convolution, (b, P*n*Q/b, K)."""
        b = self.geometry.blocked_columns[0]
        return cut(self.y, b, images * self.geometry.pixels, self.geometry.filters)

    def _rows(self, chunk: Array, images: int) -> Array:
        """What a chunk gives after its pool, (P, n, Q*K), from a flat array or one with P as its first axis."""
        P, Q, K = self.out_shape
        return cut(chunk, P, images, Q * K) if chunk.ndim == 1 else chunk.reshape(P, images, Q * K)

    def _by_row(self, images: Array) -> Array:
        """(n, P, Q, K) seen as (P, n, Q*K)."""
        P, Q, K = self.out_shape
        return images.reshape(len(images), P, Q * K).transpose(1, 0, 2)

    def _check(self, x: Array, weight: Array, name: str) -> None:
        if len(x) > self.images:
            raise ShapeError(f"{name}: {len(x)} images for a block of at most {self.images}")
        expect(name, x, (len(x), *self.geometry.in_shape), self.dtype)
        shape = (*self.geometry.window.kernel, self.geometry.in_shape[2], self.geometry.filters)
        expect("weight", weight, shape, self.dtype)

"""Dense + bias + relu as one operation over one slice of a batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from bareconv.device import Array
from bareconv.errors import BareconvError, ShapeError
from bareconv.kernels.tuned.memory import bits, expect, expect_bias, float_type, mask_less


class DenseBlock:
    """Y = relu(X W + b), with or without bias and relu.

    Shapes: x and dx (n, F), weight and dweight (F, K), bias and dbias (K), out and dy (n, K); n <= ``images``; all of
    ``dtype`` and C-contiguous. Between forward and backward x and out must stay as they are.
    """

    def __init__(
        self, features: int, units: int, *, bias: bool, relu: bool, images: int, dtype: DTypeLike = np.float32
    ) -> None:
        self.features, self.units, self.images = features, units, images
        self.has_bias, self.relu, self.dtype = bias, relu, float_type(dtype)
        self.gradient = np.empty((images, units), self.dtype)
        self.zeros = np.zeros(units, self.dtype)
        self.ones = np.ones(images, self.dtype)
        self._saved: tuple[Array, Array] | None = None

    def forward(self, x: Array, weight: Array, bias: Array | None, out: Array) -> None:
        """Overwrites ``out``."""
        if len(x) > self.images:
            raise ShapeError(f"x: {len(x)} rows for a block of at most {self.images}")
        expect("x", x, (len(x), self.features), self.dtype)
        expect("weight", weight, (self.features, self.units), self.dtype)
        expect_bias(bias, self.has_bias)
        expect("out", out, (len(x), self.units), self.dtype)
        np.matmul(x, weight, out=out)
        if bias is not None:
            np.add(out, bias, out=out)
        if self.relu:
            np.maximum(out, self.zeros, out=out)
        self._saved = x, out

    def backward(self, dy: Array, weight: Array, dweight: Array | None, dbias: Array | None, dx: Array | None) -> Array:
        """Overwrites ``dweight``, ``dbias`` and ``dx``; returns dZ (n, K), the gradient before the relu, a buffer.

        Without ``dweight`` it is left to the caller: X^T dZ over a whole batch, split by the rows of the weights, saves
        several threads from adding up as many copies of a large matrix.
        """
        if self._saved is None:
            raise BareconvError("backward needs one forward before it")
        x, out = self._saved
        expect("dy", dy, out.shape, self.dtype)
        dz = dy
        if self.relu:
            dz = self.gradient[: len(dy)]
            mask_less(self.zeros, out, out=dz)
            np.bitwise_and(bits(dz), bits(dy), out=bits(dz))
        if dweight is not None:
            np.matmul(x.T, dz, out=dweight)
        if dbias is not None:
            np.matmul(self.ones[: len(dz)], dz, out=dbias)
        if dx is not None:
            np.matmul(dz, weight.T, out=dx)
        return dz

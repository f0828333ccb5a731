"""Buffers that are reused, checked arguments, and masks made of sign bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from bareconv.device import Array
from bareconv.errors import ShapeError, UsageError

_INTEGERS: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.float32): np.dtype(np.int32),
    np.dtype(np.float64): np.dtype(np.int64),
}


def float_type(dtype: DTypeLike) -> np.dtype[Any]:
    """``dtype`` as one that these kernels compute in; UsageError where it is another than float32 or float64."""
    found = np.dtype(dtype)
    if found not in _INTEGERS:
        raise UsageError(f"precision {found}: the tuned kernels compute in float32 or float64")
    return found


def cut(memory: Array, *shape: int) -> Array:
    """The beginning of the flat array ``memory``, in that shape: a view."""
    return memory[: math.prod(shape)].reshape(shape)


def bits(x: Array) -> Array:
    """The float array ``x`` as integers of the same size: a view, for masks."""
    return x.view(_INTEGERS[x.dtype])


def mask_less(a: Array, b: Array, out: Array) -> None:
    """``out``, a float array: all its bits set where a < b, none elsewhere, also where both are 0 of either sign.

    Two passes without a branch: the sign of a - b, spread over the number. Bitwise "and" with such a mask keeps a
    number or makes it 0, at the speed of an addition; a product with a boolean array first converts it.
    """
    np.subtract(a, b, out=out)
    spread = bits(out)
    np.right_shift(spread, 8 * spread.itemsize - 1, out=spread)


def expect(name: str, array: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """ShapeError unless ``array`` has that shape and dtype and is C-contiguous, so that views of it are no copies."""
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        layout = "" if array.flags.c_contiguous else ", not contiguous"
        raise ShapeError(f"{name}: expected {shape} {dtype}, contiguous; got {array.shape} {array.dtype}{layout}")


def expect_bias(bias: Array | None, built_with: bool) -> None:
    """ShapeError where a bias comes to a block that was built without, or none to one with."""
    if (bias is not None) != built_with:
        raise ShapeError(f"bias: this block was built with{'' if built_with else 'out'} one")

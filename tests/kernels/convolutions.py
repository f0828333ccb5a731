"""Shapes of convolutions to try, and their weights in the order of the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from bareconv.ops.windows import Pair, Window

CHANNELS = (1, 2, 3, 5, 8, 9)
FILTERS = (1, 3, 4, 7, 8, 16, 17, 33, 50)


@dataclass(frozen=True)
class Shapes:
    """N images of (H, W, C) meet a window and K filters; the kernel is called for images from ``first`` on."""

    images: int
    size: Pair
    channels: int
    filters: int
    window: Window
    first: int = 0

    @property
    def out(self) -> Pair:
        return self.window.output_size(self.size)

    @property
    def weight(self) -> tuple[int, int, int, int]:
        return (*self.window.kernel, self.channels, self.filters)

    @property
    def range(self) -> range:
        return range(self.first, self.images)


@st.composite
def shapes(draw: st.DrawFn, *, plain: bool = False, pool: Pair = (1, 1)) -> Shapes:
    """Any convolution that has kernels; ``plain``: stride and dilation 1. A window of ``pool`` fits its output."""
    kernel, stride, padding, dilation, size = ([0, 0] for _ in range(5))
    for axis in (0, 1):
        kernel[axis] = draw(st.integers(1, 4))
        padding[axis] = draw(st.integers(0, 2))
        stride[axis], dilation[axis] = (1, 1) if plain else draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (3, 1)]))
        extent = (kernel[axis] - 1) * dilation[axis] + 1
        least = max(1, extent - 2 * padding[axis] + (pool[axis] - 1) * stride[axis])
        size[axis] = draw(st.integers(least, least + 6))
    images = draw(st.integers(1, 3))
    window = Window(*((a[0], a[1]) for a in (kernel, stride, padding, dilation)))
    first = draw(st.integers(0, images - 1))
    channels, filters = draw(st.sampled_from(CHANNELS)), draw(st.sampled_from(FILTERS))
    return Shapes(images, (size[0], size[1]), channels, filters, window, first)


# One pixel; an image as large as the kernel, far padding; a stride beyond the kernel; more than one block of filters.
EDGES = (
    Shapes(1, (1, 1), 1, 1, Window((1, 1))),
    Shapes(1, (1, 1), 3, 17, Window((3, 3), (1, 1), (1, 1))),
    Shapes(2, (4, 3), 5, 16, Window((4, 3))),
    Shapes(2, (2, 3), 2, 5, Window((3, 2), (1, 1), (2, 2))),
    Shapes(1, (7, 8), 3, 9, Window((2, 1), (3, 3))),
    Shapes(2, (6, 9), 4, 100, Window((3, 3), (1, 1), (1, 1))),
    Shapes(1, (9, 9), 2, 6, Window((3, 2), (1, 1), (2, 2), (2, 3))),
)


def packed(places: NDArray[np.int32], weight: NDArray[Any]) -> NDArray[Any]:
    """The weights in the order of ``places``, which count from 1: place 0 holds zero."""
    return np.concatenate([[0.0], weight.reshape(-1)])[places]


def places_of(shape: tuple[int, ...]) -> NDArray[np.int32]:
    return np.arange(1, 1 + int(np.prod(shape)), dtype=np.int32).reshape(shape)


def whole_numbers(seed: int, *shape: int) -> NDArray[np.float64]:
    """Small integers: their sums of products are exact in every precision, and equal ones are frequent."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float64)

"""Calls one kernel on arrays, and watches the memory around them.

Every array lies in a ``Block``: images some elements apart, between guards. All of a block that holds no data is
poison, bytes of 255, which are NaN as numbers: what a kernel must not use shows in its result, what it must not write
shows afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bareconv.errors import UsageError
from bareconv.kernels.cpu.clock import FUNCTION
from bareconv.kernels.cpu.jit import compile_kernels
from bareconv.kernels.cpu.kernel import Kernel
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.program import Address, Call, _operand_table
from bareconv.kernels.cpu.target import Target, host_target
from bareconv.plan.cpu.memory import LINE, SLACK

POISON = 0xFF
GUARD = 1024  # bytes on either side of a block: more than kernels may read beyond it
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
NAMES = ("AVX-512", "AVX2", "NEON", "SSE2")


def _is_here(unit: str) -> bool:
    try:
        host_target(name=unit)
    except UsageError:
        return False
    return True


HERE = [unit for unit in NAMES if _is_here(unit)]
# In float64 a unit in between has nothing that another of as many lanes has not.
UNITS = [(unit, "float32") for unit in HERE] + [(unit, "float64") for unit in sorted({HERE[0], HERE[-1]})]


def target_of(unit: str | None, dtype: str) -> Target:
    """That vector unit of this machine; the test is skipped where it has none."""
    try:
        return host_target(dtype, unit)
    except UsageError as error:
        pytest.skip(str(error))


class Block:
    """``images`` arrays of ``elements`` each, ``gap`` elements of poison after each, guards around all."""

    def __init__(self, elements: int, images: int = 1, dtype: str = "float32", gap: int = 0) -> None:
        self.dtype = np.dtype(dtype)
        self.elements, self.images, self.pitch = elements, images, elements + gap
        size = self.pitch * images * self.dtype.itemsize
        self._raw = np.full(size + 2 * GUARD + SLACK + LINE, POISON, np.uint8)
        self._start = GUARD + -(self._raw.ctypes.data + GUARD) % LINE
        self._all = self._raw[self._start : self._start + size].view(self.dtype).reshape(images, self.pitch)

    @property
    def data(self) -> NDArray[Any]:
        """(images, elements), the arrays themselves."""
        return self._all[:, : self.elements]

    @property
    def address(self) -> Address:
        return Address(self._raw.ctypes.data + self._start, self.pitch * self.dtype.itemsize)

    def pixels(self, plane: Plane) -> NDArray[Any]:
        """(images, H, W, C) of planes, a view without the border."""
        (ph, pw), width = plane.border, plane.width + 2 * plane.border[1]
        whole = self.data.reshape(self.images, plane.height + 2 * ph, width, plane.channels)
        return whole[:, ph : ph + plane.height, pw : pw + plane.width]

    def snapshot(self) -> NDArray[np.uint8]:
        return self._raw.copy()

    def changed(self, before: NDArray[np.uint8]) -> NDArray[np.intp]:
        """The bytes that differ from ``before``, counted from the block's first element."""
        return np.flatnonzero(self._raw != before) - self._start

    def changed_outside(self, before: NDArray[np.uint8], images: range, slack: int) -> NDArray[np.intp]:
        """Those bytes that lie neither in the arrays of ``images`` nor in ``slack`` elements after one."""
        at = self.changed(before)
        image, place = np.divmod(at, self.pitch * self.dtype.itemsize)
        last = images.stop - 1  # what lies beyond it counts as its own
        place = np.where(image > last, at - last * self.pitch * self.dtype.itemsize, place)
        image = np.minimum(image, last)
        fine = (image >= images.start) & (place < (self.elements + slack) * self.dtype.itemsize)
        return at[~fine]


def filled(values: NDArray[Any], dtype: str | None = None, gap: int = 0) -> Block:
    """A block with these values, an image for each of the first axis."""
    rows = np.asarray(values).reshape(len(values), -1)
    block = Block(rows.shape[1], len(rows), dtype or str(rows.dtype), gap)
    block.data[...] = rows
    return block


def single(values: NDArray[Any], dtype: str | None = None) -> Block:
    """A block with one array that belongs to all images: weights, sums, a word."""
    return filled(np.asarray(values).reshape(1, -1), dtype)


def planes(values: NDArray[Any], plane: Plane, dtype: str, gap: int = 5, border: float = 0.0) -> Block:
    """(N, H, W, C) as planes with ``border`` around each."""
    block = Block(plane.size, len(values), dtype, gap)
    block.data[...] = border
    block.pixels(plane)[...] = values
    return block


def empty(plane: Plane, images: int, dtype: str, gap: int = 5) -> Block:
    """Planes that hold nothing yet: poison, border and all."""
    return Block(plane.size, images, dtype, gap)


def call(
    kernel: Kernel,
    blocks: dict[str, Block],
    writes: Iterable[str],
    images: range,
    *,
    slack: dict[str, int] | None = None,
    whole: Iterable[str] = (),
) -> None:
    """Run the kernel for ``images``, a round of their own, as worker 0.

    Only blocks named in ``writes`` may change, within the arrays of these images, and ``slack`` elements after them;
    those named in ``whole`` belong to no image and may change altogether.
    """
    address = compile_kernels([kernel]).addresses[kernel]
    table = _operand_table(Call(kernel, {name: block.address for name, block in blocks.items()}))
    before = {name: block.snapshot() for name, block in blocks.items()}
    FUNCTION(address)(table.ctypes.data, images.start, images.stop, 0, images.start)
    for name, block in blocks.items():
        if name not in writes:
            assert not block.changed(before[name]).size, f"{name} is an input and was changed"
            continue
        own = range(block.images) if name in whole else images
        wrong = block.changed_outside(before[name], own, (slack or {}).get(name, 0))
        assert not wrong.size, f"{name}: written outside its arrays, at bytes {wrong[:8]}"


def distance(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The relative error in the 2-norm; NaN or infinite where ``found`` is."""
    scale = float(np.linalg.norm(np.asarray(expected, np.float64).ravel()))
    difference = np.asarray(found, np.float64).ravel() - np.asarray(expected, np.float64).ravel()
    return float(np.linalg.norm(difference)) / (scale or 1.0)


def assert_close(found: NDArray[Any], expected: NDArray[Any], target: Target, what: str = "") -> None:
    """Equal to the reference but for the rounding of the target's precision."""
    assert found.shape == expected.shape
    error = distance(found, expected)
    assert error <= TOLERANCE[target.dtype], f"{what or 'result'} is off by {error:.2e}"


def rounded(values: NDArray[np.float64], target: Target) -> NDArray[np.float64]:
    """The values as the target can hold them, in float64: what the reference is given."""
    return values.astype(target.dtype).astype(np.float64)


def draws(seed: int, *shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(shape)

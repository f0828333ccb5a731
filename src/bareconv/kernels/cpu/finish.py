"""What follows a convolution, on one register of channels, from sums to memory."""

from __future__ import annotations

from collections.abc import Sequence

from bareconv.kernels.cpu.emit import I8, Builder, Pointer, Value


def finish(
    b: Builder,
    pixels: Sequence[Value],
    bias: Pointer | None,
    y: Pointer,
    where: Pointer | None,
    mask: Value | None,
    *,
    relu: bool,
    add: bool,
) -> None:
    """Write the maximum of ``pixels`` (the first of equals), plus bias, through relu, plus what is there.

    The maximum's position goes into ``where``.
    """
    value, position = pixels[0], b.zero
    for i, pixel in enumerate(pixels[1:], start=1):
        larger = pixel > value
        value = b.select(larger, pixel, value)
        position = b.select(larger, b.constant(float(i)), position)
    if bias is not None:
        value = value + bias.vector(0, mask)
    if relu:
        value = b.maximum(value, b.zero)
    if add:
        value = value + y.vector(0, mask)
    y.store(value, 0, mask)
    if where is not None:
        where.store(b.convert(position, I8), 0, mask)

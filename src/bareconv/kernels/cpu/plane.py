"""How the activations of one image lie in memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plane:
    """(height, width, channels) numbers, channels last, within a border of zeros of ``border`` (vertical, horizontal).

    The border is the padding of whoever reads it: a convolution then needs no test for the image's edge.
    """

    height: int
    width: int
    channels: int
    border: tuple[int, int] = (0, 0)

    @property
    def numbers(self) -> int:
        """Elements of an image without its border."""
        return self.height * self.width * self.channels

    @property
    def row(self) -> int:
        """Elements from a pixel to the one below it."""
        return (self.width + 2 * self.border[1]) * self.channels

    @property
    def size(self) -> int:
        """Elements of an image with its border."""
        return (self.height + 2 * self.border[0]) * self.row

    def at(self, y: int, x: int) -> int:
        """The offset of pixel (y, x); it may lie in the border."""
        return (y + self.border[0]) * self.row + (x + self.border[1]) * self.channels

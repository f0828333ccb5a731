"""Where a plan's buffers lie: in one block of memory, in which those that are never in use together share bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(eq=False, kw_only=True)
class Placed:
    """Of a buffer: when it is in use, and where it lies.

    ``zeros``: it starts as zeros, and what no kernel writes stays so. ``kept``: someone else reads it after the step,
    or it outlives one. Either way it shares its place with nothing.
    """

    zeros: bool = False
    kept: bool = False
    span: tuple[int, int] | None = None  # its first and its last use, in whatever the plan counts
    offset: int = -1  # bytes from the block's start

    def use(self, first: int, last: int | None = None) -> None:
        """It is in use at ``first``, or from ``first`` to ``last``; and all the time between that and other uses."""
        last = first if last is None else last
        begin, end = self.span or (first, last)
        self.span = min(begin, first), max(end, last)

    def meets(self, other: Placed) -> bool:
        """Whether the two may be in use at one time."""
        if self.zeros or other.zeros or self.kept or other.kept or self.span is None or other.span is None:
            return True
        return self.span[0] <= other.span[1] and other.span[0] <= self.span[1]


def place(buffers: Iterable[tuple[Placed, int]], alignment: int) -> int:
    """Give every buffer, which comes with its size in bytes, its offset; returns the bytes of all together.

    Larger ones first, each at the lowest multiple of ``alignment`` where it meets nothing.
    """
    placed: list[tuple[int, int, Placed]] = []
    for buffer, size in sorted(buffers, key=lambda one: -one[1]):
        room, offset = -(-size // alignment) * alignment, 0
        for low, high, other in sorted(placed, key=lambda one: one[0]):
            if buffer.meets(other) and offset < high and low < offset + room:
                offset = high
        buffer.offset = offset
        placed.append((offset, offset + room, buffer))
    return max((high for _, high, _ in placed), default=0)

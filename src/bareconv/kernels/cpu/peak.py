"""The ceilings of a core, measured by doing nothing else: multiply-adds, bytes moved, a call of a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bareconv.kernels.cpu.kernel import Frame, Kernel


@dataclass(frozen=True)
class PeakFma(Kernel):
    """As many independent chains of multiply-adds as there are registers for; ``end - begin`` rounds of ``ROUND``."""

    operands: ClassVar[tuple[str, ...]] = ("sums",)
    ROUND: ClassVar[int] = 1000

    @property
    def chains(self) -> int:
        return self.target.registers * 3 // 4

    @property
    def flops(self) -> int:
        return 2 * self.ROUND * self.chains * self.target.lanes

    @property
    def label(self) -> str:
        return f"{self.chains} chains of multiply-adds"

    def write(self, k: Frame) -> None:
        b = k.b
        out = k.operand("sums").base
        sums = [b.variable(out.vector(i * b.lanes)) for i in range(self.chains)]
        factor, addend = b.constant(0.999), b.constant(0.5)
        for _ in k.images():
            for _ in b.range(0, self.ROUND):
                for s in sums:
                    s.value = b.fma(s.value, factor, addend)
        for i, s in enumerate(sums):
            out.store(s.value, i * b.lanes)


@dataclass(frozen=True)
class Stream(Kernel):
    """Goes through the worker's own arrays, ``PIECE`` registers at a time, from the first piece on, ``passes`` times.

    ``operation``: "fill" a = 1, "read" the sum of a, "copy" b = a, "triad" c = a + b / 2. ``end - begin``: how many
    pieces. ``passes``: a word of memory; ``sums``: one piece, so that what was read is of use.
    Source: McCalpin, "Memory bandwidth and machine balance in current high performance computers", 1995 (STREAM), of
    which "read" is no part.
    """

    operands: ClassVar[tuple[str, ...]] = ("a", "b", "c", "passes", "sums")
    PIECE: ClassVar[int] = 8
    ARRAYS: ClassVar[dict[str, int]] = {"fill": 1, "read": 1, "copy": 2, "triad": 3}

    operation: str

    @property
    def piece_bytes(self) -> int:
        """Of one array."""
        return self.PIECE * self.target.lanes * self.target.element_bytes

    def bytes(self, count: int, images: int) -> int:
        return count * self.piece_bytes * self.ARRAYS[self.operation]

    def write(self, k: Frame) -> None:
        from bareconv.kernels.cpu.emit import I64

        b = k.b
        places = {name: k.operand(name).base for name in ("a", "b", "c", "sums")}
        sums = [b.variable(places["sums"].vector(i * b.lanes)) for i in range(self.PIECE)]
        one, half = b.constant(1.0), b.constant(0.5)
        for _ in b.range(0, k.operand("passes", I64).base.load()):
            for piece in b.range(0, k.end - k.begin):
                for i, total in enumerate(sums):
                    at = piece * (self.PIECE * b.lanes) + i * b.lanes
                    if self.operation == "fill":
                        places["a"].store(one, at)
                        continue
                    value = places["a"].vector(at)
                    if self.operation == "read":
                        total.value = total.value + value
                    elif self.operation == "copy":
                        places["b"].store(value, at)
                    else:
                        places["c"].store(b.fma(places["b"].vector(at), half, value), at)
        for i, total in enumerate(sums):
            places["sums"].store(total.value, i * b.lanes)


@dataclass(frozen=True)
class Nothing(Kernel):
    """What it costs to call a kernel, and to start a program."""

    def write(self, k: Frame) -> None:
        """No code."""

"""The ceilings of a core: how many multiply-adds it can do, measured by doing nothing else."""

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

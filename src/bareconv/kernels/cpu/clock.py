"""The processor's counter, read from Python: to find out how long a tick is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bareconv.kernels.cpu.kernel import Frame, Kernel


@dataclass(frozen=True)
class ReadClock(Kernel):
    """ticks[0] = the counter."""

    operands: ClassVar[tuple[str, ...]] = ("ticks",)

    def write(self, k: Frame) -> None:
        from bareconv.kernels.cpu.emit import I64

        k.operand("ticks", I64).base.store(k.b.clock)

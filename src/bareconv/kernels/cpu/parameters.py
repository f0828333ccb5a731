"""What happens to parameters: gradients of the workers summed, the optimizer's step, other layouts for other kernels.

All parameters lie in one array, each from a multiple of ``ALIGNMENT`` elements on, zeros between them; the first
``ALIGNMENT`` elements are zeros too, for layouts that need a zero somewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bareconv.kernels.cpu.emit import I32, I64
from bareconv.kernels.cpu.kernel import Frame, Kernel
from bareconv.kernels.cpu.rules import prepare_rule
from bareconv.optim.rule import Rule

ALIGNMENT = 16  # elements: a cache line of float32, and a multiple of every vector's lanes


@dataclass(frozen=True)
class Update(Kernel):
    """The optimizer's step on elements ``begin`` to ``end`` of the parameters.

    The gradient is the sum over ``workers`` (a word of memory) of ``partial``, ``pitch`` elements apart, each set to
    zero for the next step. With ``mapped``, element i's is at ``places[i]`` of a partial, else at i.
    """

    operands: ClassVar[tuple[str, ...]] = (
        *("partial", "places", "workers", "scalars"),
        *("weight", "gradient", "state1", "state2"),
    )

    pitch: int
    mapped: bool
    rule: Rule

    def bytes(self, count: int, images: int) -> int:
        return count * (1 + self.rule.moved) * self.target.element_bytes

    @property
    def label(self) -> str:
        return f"sum over threads, {self.rule.name}"

    def write(self, k: Frame) -> None:
        b = k.b
        partial, places = k.operand("partial").base, k.operand("places", I32).base
        workers = k.operand("workers", I64).base.load()
        arrays = {name: k.operand(name).base for name in ("weight", "gradient", "state1", "state2")}
        update = prepare_rule(self.rule, b, k.operand("scalars").base)
        for i in b.range(k.begin, k.end, b.lanes):
            total = b.variable(b.zero)
            if self.mapped:
                place = places.vector(i)
                for worker in b.range(0, workers):
                    mine = partial + worker * self.pitch
                    total.value = total.value + mine.gather(place)
                    mine.scatter(place, b.zero)
            else:
                for worker in b.range(0, workers):
                    at = worker * self.pitch + i
                    total.value = total.value + partial.vector(at)
                    partial.store(b.zero, at)
            update(arrays, i, total.value, None)


@dataclass(frozen=True)
class Pack(Kernel):
    """The weights in the order another kernel reads them.

    packed[i] = weight[places[i]] for i from ``begin`` to ``end``.
    """

    operands: ClassVar[tuple[str, ...]] = ("weight", "places", "packed")

    def bytes(self, count: int, images: int) -> int:
        return 2 * count * self.target.element_bytes

    @property
    def label(self) -> str:
        return "weights in the order in which they are read"

    def write(self, k: Frame) -> None:
        b, weight, packed = k.b, k.operand("weight").base, k.operand("packed").base
        places = k.operand("places", I32).base
        for i in b.range(k.begin, k.end, b.lanes):
            packed.store(weight.gather(places.vector(i)), i)

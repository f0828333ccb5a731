"""A step as it is written down: launches of kernels over buffers, in order, before anything has an address."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from bareconv.kernels.cuda.kernel import Kernel
from bareconv.plan.placing import Placed, place

ALIGNMENT = 256  # bytes at whose multiples buffers start
TRUNK, BRANCH = 0, 1  # what a step's later launches wait for, and what may run beside it


@dataclass(eq=False)
class Buffer(Placed):
    """``elements`` of ``dtype`` in the device's memory. Its ``span`` counts launches."""

    name: str
    elements: int
    dtype: str

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.elements * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Place:
    """An operand: a buffer, from ``offset`` bytes on."""

    buffer: Buffer
    offset: int = 0


Operand: TypeAlias = Buffer | Place | None  # None: a null pointer


@dataclass
class Recorded:
    """A launch: its kernel and its operands, None where a pointer is null. ``node``: what it is for.

    ``joins``: it waits for what runs beside the trunk. ``reads``: what it finds through a table in memory.
    """

    kernel: Kernel
    operands: dict[str, Place | None]
    node: str
    phase: str
    branch: int = TRUNK
    joins: bool = False
    reads: Sequence[Buffer] = ()


@dataclass
class RecordedHost:
    """Python's turn between launches: ``work(views, images, step)``."""

    work: Callable[..., None]
    uses: Sequence[Buffer]
    node: str
    phase: str
    why: str


@dataclass
class Recorder:
    """Collects a program's launches, in order."""

    items: list[Recorded | RecordedHost] = field(default_factory=list)
    node: str = ""
    phase: str = ""
    branch: int = TRUNK
    joins: bool = False  # the next launch

    def launch(self, kernel: Kernel, operands: Mapping[str, Operand], reads: Sequence[Buffer] = ()) -> None:
        """A launch on these operands; those of the kernel that are not named are null pointers.

        A name that the kernel does not have may be given with None.
        """
        given = {name: Place(one) if isinstance(one, Buffer) else one for name, one in operands.items()}
        odd = [name for name, place in given.items() if place is not None and name not in kernel.operands]
        assert not odd, f"{kernel.entry} takes {kernel.operands}, not {odd}"
        places = {name: given.get(name) for name in kernel.operands}
        self.items.append(Recorded(kernel, places, self.node, self.phase, self.branch, self.joins, reads))
        self.joins = False

    def host(self, work: Callable[..., None], why: str, uses: Sequence[Buffer]) -> None:
        """Python's turn; ``why`` no kernel does it."""
        self.items.append(RecordedHost(work, list(uses), self.node, self.phase, why))

    def buffers(self) -> Iterator[tuple[int, int, Buffer]]:
        """(launch, branch, buffer) for each use."""
        for number, item in enumerate(self.items):
            if isinstance(item, RecordedHost):
                for buffer in item.uses:
                    yield number, TRUNK, buffer
            else:
                for place in item.operands.values():
                    if place is not None:
                        yield number, item.branch, place.buffer
                for buffer in item.reads:
                    yield number, item.branch, buffer


def lay_out(recorder: Recorder, outside: Container[Buffer] = ()) -> int:
    """Give every buffer but those ``outside`` its offset; returns the bytes of all."""
    last = len(recorder.items)
    buffers: dict[Buffer, None] = {}
    for number, branch, buffer in recorder.buffers():
        if buffer not in outside:
            # What the branch uses may be in use until the two join, at the end.
            buffer.use(number, last if branch == BRANCH else number)
            buffers[buffer] = None
    return place([(buffer, buffer.bytes) for buffer in buffers], ALIGNMENT)

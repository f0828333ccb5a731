"""A kernel: its shape, known when it is written; its operands, known when it is bound; a range of images to work on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bareconv.kernels.cpu.target import Target

if TYPE_CHECKING:
    from bareconv.kernels.cpu.emit import Builder, Pointer, Value

SLOTS = 4  # 64-bit words of an operand in the table of a call: base, image stride, worker stride, what it is local to
LOCAL_TO_CALL, LOCAL_TO_ROUND = 1, 2


@dataclass(frozen=True)
class Kernel:
    """One piece of machine code, general over data and specialised to a shape: the fields are the shape.

    Called as ``(table, begin, end, worker, round)``: work on images (or rows, or parameters: the kernel says) from
    ``begin`` to ``end`` as worker number ``worker``, in the round that began with image ``round``. ``table`` holds the
    operands' addresses, in the order of ``operands``.
    """

    operands: ClassVar[tuple[str, ...]] = ()

    target: Target

    def write(self, k: Frame) -> None:
        """Write the code."""
        raise NotImplementedError

    @property
    def flops(self) -> int:
        """Floating-point operations executed for one image; a multiply-add counts two."""
        return 0

    def bytes(self, count: int, images: int) -> int:
        """That must at least be read and written where the range is ``count`` long, in a batch of ``images``.

        What is read comes in once, whole arrays of it, and what is written goes out once: nothing for lists of places,
        scratch memory, or a second visit.
        """
        return 0

    @property
    def label(self) -> str:
        """What ``explain`` calls it."""
        return type(self).__name__


class Frame:
    """The kernel being written: its builder ``k.b`` is reached through it, its range and its operands."""

    def __init__(self, builder: Builder, operands: tuple[str, ...]) -> None:
        from bareconv.kernels.cpu.emit import I64, Pointer, Value

        self.b = builder
        table, *numbers = builder.function.args
        self.begin, self.end, self.worker, self.round = (Value(builder, v) for v in numbers)
        self.table = Pointer(builder, table, I64)
        self._operands = operands

    def images(self) -> Any:
        """A loop over the images of the call."""
        return self.b.range(self.begin, self.end)

    def operand(self, name: str, element: Any = None) -> Operand:
        """The operand of that name: elements of the target's type unless said otherwise."""
        return Operand(self, SLOTS * self._operands.index(name), element or self.b.number)


class Operand:
    """An array given to a kernel. ``base``: where it starts; ``image(i)``: where image i of it starts."""

    def __init__(self, frame: Frame, slot: int, element: Any) -> None:
        self._frame, self._slot, self._element = frame, slot, element
        self._origin: Any = None
        self._stride: Any = None

    @property
    def base(self) -> Pointer:
        """The start, of this worker's part where each has its own."""
        return self._at(self._word(0) + self._frame.worker * self._word(2))

    def image(self, i: Value) -> Pointer:
        """The start of image ``i``. What is local to a call, or a round, holds its images only, from the first on."""
        if self._origin is None:
            frame = self._frame
            with frame.b.ir.goto_block(frame.b.function.blocks[0]):
                self._stride, local = self._word(1), self._word(3)
                first = frame.b.select(local.equals(LOCAL_TO_ROUND), frame.round, frame.begin)
                skipped = frame.b.select(local > 0, first, frame.b.index(0)) * self._stride
                self._origin = self._word(0) + frame.worker * self._word(2) - skipped
        return self._at(self._origin + i * self._stride)

    def _word(self, i: int) -> Any:
        return self._frame.table.load(self._slot + i)

    def _at(self, address: Any) -> Pointer:
        return self._frame.b.pointer(address, self._element)

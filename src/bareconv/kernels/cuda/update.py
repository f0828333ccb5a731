"""What ends a training step: gradients summed, parameters updated, losses summed, on to the next step.

All parameters that one launch updates lie in flat float32 arrays (masters, the optimizer's states, gradients). What a
block of the launch does is a row of a table, ``update_table``, which says where in memory things lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv.kernels.cuda.kernel import KEPT_BYTES, NUMBER, Kernel, Precision, padded
from bareconv.kernels.cuda.limits import Limits
from bareconv.optim.rule import SCALARS, Rule

THREADS = 256
_MOST_AT_ONCE = 8  # parts of an element that a thread has registers for
RULES = ("gradient", "sgd", "rmsprop", "adam", "adamw")  # by the number that RULE has in the sources

_ROW = np.dtype(
    [
        *((name, np.int64) for name in ("start", "partial", "copy")),
        *((name, np.int32) for name in ("place", "count", "parts", "pitch", "channels", "filters", "lanes", "width")),
    ],
    align=True,
)


@dataclass(frozen=True)
class Parameter:
    """One parameter of an update: ``count`` elements from ``start`` on in the flat arrays.

    Its gradient is the sum of ``parts`` arrays of float32 that follow each other, [parts][count]. A weight of
    (taps, ``channels``, ``filters``) has a working copy, [taps][padded channels][padded filters]; a bias has none, and
    then both are 0.
    """

    start: int
    count: int
    parts: int
    channels: int = 0
    filters: int = 0

    @property
    def width(self) -> int:
        """Elements that a thread takes at once: 4 where they begin at a multiple of 16 bytes in every array."""
        return 4 if self.start % 4 == 0 and self.count % 4 == 0 else 1

    @property
    def copy_size(self) -> int:
        """Elements of the working copy."""
        if not self.filters:
            return 0
        return self.count // (self.channels * self.filters) * padded(self.channels) * padded(self.filters)


def rule_defines(rule: Rule) -> dict[str, int]:
    """The constants that ``update.cuh`` is compiled with, in any kernel that includes it."""
    return {
        "RULE": RULES.index(rule.name),
        "MOMENTUM": int(rule.momentum),
        "NESTEROV": int(rule.nesterov),
        "DECAY": int(rule.decay),
    }


def update(precision: Precision, rule: Rule, parameters: Sequence[Parameter], limits: Limits, batch: int) -> Kernel:
    """All ``parameters`` by ``rule``, and the step's end. It must be the last kernel of the step.

    Operands: ``pieces``, the rows of ``update_table``; ``memory``, what its places are counted from; ``master``,
    ``state1``, ``state2``, ``gradient``, float32, flat, of which a rule uses what it has ("gradient" writes its array
    alone); ``scalars``, float32 (steps, SCALARS); ``position``, one int32, the row of them that is this step's, as the
    kernel that has the loss hands it on; ``control``, which is moved on to the next step; ``image_loss`` float32 and
    ``image_hit`` int32 (batch); ``losses`` float32 and ``hits`` int32 (steps), where the step's mean loss and number of
    hits go. Working copies are written but for their padding, which must be zeros.
    """
    moved = 0 if rule.name == "gradient" else 8 + 8 * rule.states
    return Kernel(
        "update.cu",
        "update",
        tuple({"PRECISION": NUMBER[precision], **rule_defines(rule), "PARTS": _at_once(parameters)}.items()),
        grid=(1 + len(list(_pieces(parameters, limits))), 1, 1),
        threads=THREADS,
        shared_bytes=0,
        operands=(
            *("pieces", "memory", "master", "state1", "state2", "gradient", "scalars", "position", "control"),
            *("image_loss", "image_hit", "losses", "hits"),
        ),
        bytes=8 * batch
        + sum(
            one.count * (4 * one.parts + (moved or 4) + (KEPT_BYTES[precision] if one.filters and moved else 0))
            for one in parameters
        ),
    )


def copy_weights(precision: Precision, parameters: Sequence[Parameter], limits: Limits) -> Kernel:
    """Masters to working copies, for when another than ``update`` has changed them; operands as there."""
    return Kernel(
        "update.cu",
        "copy_weights",
        (("PRECISION", NUMBER[precision]),),
        grid=(len(list(_pieces(parameters, limits))), 1, 1),
        threads=THREADS,
        shared_bytes=0,
        operands=("pieces", "memory", "master"),
        bytes=sum(one.count * (4 + KEPT_BYTES[precision]) for one in parameters if one.filters),
    )


def update_table(
    parameters: Sequence[Parameter],
    limits: Limits,
    partials: Sequence[int],
    copies: Sequence[int | None],
) -> NDArray[np.uint8]:
    """The bytes of ``pieces`` for ``update`` and ``copy_weights`` of the same ``parameters`` and ``limits``.

    ``partials`` and ``copies``: where each parameter's partial gradients and working copy (None: it has none) lie, in
    bytes from the operand ``memory``; so they are addresses where that is null. Multiples of 16, as addresses.
    """
    rows = list(_pieces(parameters, limits))
    table: NDArray[Any] = np.zeros(len(rows), _ROW)
    for row, (index, place, count, lanes) in zip(table, rows, strict=True):
        one = parameters[index]
        unpadded = one.channels % 8 == 0 and one.filters % 8 == 0
        row["start"] = one.start + place
        assert partials[index] % 16 == 0
        row["partial"] = partials[index] + 4 * place
        copy = copies[index]
        row["copy"] = -1 if copy is None else copy
        row["place"], row["count"], row["lanes"] = place, count, lanes
        row["width"] = one.width
        row["parts"], row["pitch"] = one.parts, one.count
        row["channels"], row["filters"] = (0, 0) if unpadded else (one.channels, one.filters)
    return table.view(np.uint8)


def _pieces(parameters: Sequence[Parameter], limits: Limits) -> Iterator[tuple[int, int, int, int]]:
    """(parameter, first element, elements, lanes) of each block.

    A block is given about as many numbers to load as fill the machine eight blocks a multiprocessor, but no fewer than
    keep its threads busy. Threads share the parts of an element where one could not load them at once.
    """
    work = sum(one.count * (one.parts + 3) for one in parameters)
    share = min(max(work // (8 * limits.multiprocessors), 16 * THREADS), 64 * THREADS)
    for index, one in enumerate(parameters):
        lanes = _lanes(one)
        round_of_block = lanes * one.width
        elements = max(share // (one.parts + 3) // round_of_block, 1) * round_of_block
        for place in range(0, one.count, elements):
            yield index, place, min(elements, one.count - place), lanes


def _lanes(one: Parameter) -> int:
    """Threads side by side; the others of a block take other parts."""
    lanes = THREADS
    while lanes > 8 and (one.parts * lanes > _MOST_AT_ONCE * THREADS or one.count <= lanes // 2 * one.width):
        lanes //= 2
    return lanes


def _at_once(parameters: Sequence[Parameter]) -> int:
    """How many parts a thread loads at once: its share of the parameter that there is most to load of, or an even
    part of that share."""
    if not parameters:
        return 1
    most = max(parameters, key=lambda one: one.count * one.parts)
    share = -(-most.parts * _lanes(most) // THREADS)
    return -(-share // -(-share // _MOST_AT_ONCE))


__all__ = [
    "SCALARS",
    "Parameter",
    "copy_weights",
    "rule_defines",
    "update",
    "update_table",
]

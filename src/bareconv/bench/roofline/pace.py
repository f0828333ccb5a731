"""How long to measure a step's parts, and steps with and without marks by turns."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from bareconv.bench.deadline import Deadline

WARM_UP = 0.2  # of the time, at most
WARM_PAIRS = 10  # of steps, at most
ENOUGH_SHARE = 0.5  # of the time, after which it is enough, if there are so many pairs:
ENOUGH = 200


@dataclass(frozen=True)
class Pace:
    """Until ``deadline``, or less where steps are many; but at least ``least`` steps of each kind."""

    deadline: Deadline
    least: int = 2


def alternate(
    plain: Callable[[int], float],
    marked: Callable[[int], float],
    steps: int,
    pace: Pace,
    on_warm: Callable[[], object],
) -> dict[str, float]:
    """Steps without and with marks, by turns: ``step_seconds``, ``marked_seconds``, ``marks_cost`` of a result.

    Both take the number of a step, of ``steps`` over and over, and return its seconds; the medians count. ``on_warm``
    is called when the steps that only warm up are done, at least one of each.
    """
    numbers = itertools.cycle(range(steps))
    warm, enough = pace.deadline.part(WARM_UP), pace.deadline.part(ENOUGH_SHARE)
    for pair in range(WARM_PAIRS):
        if pair and warm.passed:
            break
        plain(next(numbers))
        marked(next(numbers))
    on_warm()
    without: list[float] = []
    with_marks: list[float] = []
    while len(without) < pace.least or not (pace.deadline.passed or (len(without) >= ENOUGH and enough.passed)):
        # Whoever comes second in one pair comes first in the next: what is in the caches helps both alike.
        for take in (plain, marked) if len(without) % 2 == 0 else (marked, plain):
            (without if take is plain else with_marks).append(take(next(numbers)))
    usual, slowed = statistics.median(without), statistics.median(with_marks)
    return {"step_seconds": usual, "marked_seconds": slowed, "marks_cost": slowed / usual - 1 if usual > 0 else 0.0}

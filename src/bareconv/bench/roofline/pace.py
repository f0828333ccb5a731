"""How long to measure a step's parts, and steps with and without marks by turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from bareconv.bench.deadline import Deadline

WARM_UP = 0.2  # of the time


@dataclass(frozen=True)
class Pace:
    """Until ``deadline``, but ``least`` steps of each kind and no more than ``most``."""

    deadline: Deadline
    least: int = 2
    most: int = 100


def alternate(
    plain: Callable[[int], float],
    marked: Callable[[int], float],
    pace: Pace,
    on_warm: Callable[[], object],
) -> dict[str, float]:
    """Steps without and with marks, by turns: ``step_seconds``, ``marked_seconds``, ``marks_cost`` of a result.

    Both take the number of a step and return its seconds; the medians count. ``on_warm`` is called when the steps that
    only warm up are done: a pair, and more for a share of the time.
    """
    step, warm = 0, pace.deadline.part(WARM_UP)
    for repeat in range(pace.most):
        if repeat and warm.passed:
            break
        plain(step)
        marked(step + 1)
        step += 2
    on_warm()
    without: list[float] = []
    with_marks: list[float] = []
    for repeat in range(pace.most):
        if repeat >= pace.least and pace.deadline.passed:
            break
        # Whoever comes second in one pair comes first in the next: what is in the caches helps both alike.
        order = (plain, marked) if repeat % 2 == 0 else (marked, plain)
        for take in order:
            (without if take is plain else with_marks).append(take(step))
            step += 1
    usual, slowed = statistics.median(without), statistics.median(with_marks)
    return {"step_seconds": usual, "marked_seconds": slowed, "marks_cost": slowed / usual - 1 if usual > 0 else 0.0}

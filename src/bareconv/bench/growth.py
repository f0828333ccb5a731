"""How the cost of a training step grows along an axis: a fixed part, and a part that grows as a power.

    seconds of a step = fixed + each * value ** power

fixed >= 0 and each >= 0, by least squares of relative errors: a point of 10 µs counts as much as one of a second. The
power is given, or chosen among several as the one with the least error. Each point's figure is the median of its
samples; what is uncertain is found by the bootstrap over them (``bench.estimates``). That is the noise of the
measurement; how far the formula itself is from the points, ``largest_error`` says.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bareconv import random
from bareconv.bench.estimates import CONFIDENCE, RESAMPLES, Estimate

Curve: TypeAlias = Mapping[float, Sequence[float]]  # the samples at each value of an axis
Floats: TypeAlias = NDArray[np.float64]

FEWEST = 3  # points of a fit: any two would lie on it


@dataclass(frozen=True)
class Fit:
    """``fixed`` in seconds; ``each`` in seconds for a ``value ** power`` of 1; the largest relative error of a point.

    Where the power was chosen, the intervals are for that power.
    """

    fixed: Estimate
    each: Estimate
    power: float
    largest_error: float

    def seconds(self, value: float) -> float:
        """Of a step at that value."""
        return self.fixed.value + self.each.value * value**self.power

    def record(self, text: str) -> dict[str, Any]:
        """The ``fit`` object of a result; ``text`` says it in words."""
        return {
            "fixed_seconds": dataclasses.asdict(self.fixed),
            "each_seconds": dataclasses.asdict(self.each),
            "power": self.power,
            "largest_error": self.largest_error,
            "text": text,
        }


def fit(points: Curve, powers: Sequence[float] = (1.0,)) -> Fit | None:
    """The formula that fits best to the seconds of a step at each value; None of fewer than three points.

    ``points``: at each value, more than 0, samples of seconds, more than 0. ``powers``: to choose from; with fewer than
    four points there is nothing to choose by, and the last of them, the largest that is expected, is taken.
    """
    values = np.array(sorted(points), float)
    if len(values) < FEWEST:
        return None
    medians = np.array([np.median(points[value]) for value in values])[None, :]
    tried = powers if len(values) > FEWEST else powers[-1:]
    fits = [(_fitted(values**power, medians), power) for power in tried]
    (fixed, each), power = min(fits, key=lambda one: float(_errors(values ** one[1], medians, *one[0])[0]))
    resampled = np.stack([resampled_medians(points[value], place) for place, value in enumerate(values)], axis=1)
    fixed_again, each_again = _fitted(values**power, resampled)
    relative = np.abs((fixed + each * values**power) / medians[0] - 1)
    return Fit(
        fixed=estimate(float(fixed[0]), fixed_again),
        each=estimate(float(each[0]), each_again),
        power=power,
        largest_error=float(relative.max()),
    )


def resampled_medians(samples: Sequence[float], place: int) -> Floats:
    """(RESAMPLES,) medians of resamples, the same every time; points at other places of a curve draw others."""
    values = np.asarray(samples, float)
    return np.median(values[resamples(len(values), place)], axis=1)


@functools.lru_cache(maxsize=64)
def resamples(count: int, place: int) -> NDArray[np.int64]:
    """(RESAMPLES, count) indices below ``count``, drawn uniformly."""
    drawn = random.uniform(0, (random.BOOTSTRAP, 1 + place, 0), (RESAMPLES, count))
    return (drawn * count).astype(np.int64)


def estimate(value: float, resampled: Floats) -> Estimate:
    """A figure with the percentile bootstrap's interval; it does not lie outside of it."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value))


def _fitted(powers: Floats, seconds: Floats) -> tuple[Floats, Floats]:
    """(fixed, each) for each row of ``seconds`` (rows, points), where a point is fixed + each * its power of a value.

    Divided by the seconds, the relative errors are fixed * a + each * b - 1: linear least squares of two unknowns.
    Where one would be negative, the best that is not has it at 0.
    """
    a, b = 1 / seconds, powers / seconds
    aa, ab, bb = (a * a).sum(1), (a * b).sum(1), (b * b).sum(1)
    a1, b1 = a.sum(1), b.sum(1)
    determinant = aa * bb - ab * ab
    fixed, each = (a1 * bb - b1 * ab) / determinant, (b1 * aa - a1 * ab) / determinant
    without_fixed, without_each = fixed < 0, each < 0
    fixed = np.where(without_fixed, 0, np.where(without_each, a1 / aa, fixed))
    each = np.where(without_each, 0, np.where(without_fixed, b1 / bb, each))
    return fixed, each


def _errors(powers: Floats, seconds: Floats, fixed: Floats, each: Floats) -> Floats:
    """The sum of squared relative errors of each row."""
    errors: Floats = (((fixed[:, None] + each[:, None] * powers) / seconds - 1) ** 2).sum(1)
    return errors

"""Medians and their uncertainty, from the raw samples of a measurement; and whether these are to be trusted.

An interval is the percentile bootstrap's: the statistic of many resamples, drawn with replacement, and the range in
which 95% of them lie. Nothing is assumed of how times are distributed; an outlier counts as what it is, one sample.
Source: Efron, "Bootstrap methods: another look at the jackknife", 1979.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv import random

RESAMPLES = 2000
CONFIDENCE = 0.95

FEW = 6  # blocks: fewer say nothing of how much they differ
WIDE = 0.15  # interquartile range over the median: above it, a median is of two or more kinds of block
DRIFT = 0.05  # of the later half over the earlier one
SLOW, OFTEN = 1.5, 0.1  # a block that takes so many times the median's time; the share of such that is remarkable

WINDOW = 3  # blocks of the warm-up that are compared with those before them
STEADY = 0.03  # how much they may differ


@dataclass(frozen=True)
class Estimate:
    """A figure, and the interval that holds it with 95% confidence; one sample gives an interval of no width."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Half the interval's width over the value; infinite where that is 0."""
        return (self.high - self.low) / 2 / abs(self.value) if self.value else math.inf

    def interval(self) -> dict[str, float]:
        """The interval as a result file has it."""
        return {"low": self.low, "high": self.high}


def median(samples: Sequence[float]) -> Estimate:
    """The median of at least one sample."""
    values = np.asarray(samples, float)
    return _estimate(float(np.median(values)), np.median(values[_resamples(len(values))], axis=1))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """The median of one side over that of the other, which were sampled by turns.

    What disturbs the machine for a while disturbs neighbouring samples of both, so that pairs are resampled: the i-th
    of one with the i-th of the other. One side may have a sample more than the other; no pair has that one.
    """
    pairs = min(len(numerators), len(denominators))
    above, below = np.asarray(numerators, float), np.asarray(denominators, float)
    chosen = _resamples(pairs)
    value = float(np.median(above) / np.median(below))
    return _estimate(value, np.median(above[chosen], axis=1) / np.median(below[chosen], axis=1))


@dataclass(frozen=True)
class Noise:
    """How much rates differ, and whether too much: then ``stable`` is False, and ``remarks`` say why.

    ``spread``: the interquartile range over the median. ``drift``: the median of the later half over that of the
    earlier one, less 1.
    """

    stable: bool
    spread: float
    drift: float
    remarks: list[str]


def noise(rates: Sequence[float]) -> Noise:
    """Judge at least one rate (of work done, a second), in the order in which they were measured."""
    values = np.asarray(rates, float)
    middle, half = float(np.median(values)), len(values) // 2
    low, high = np.quantile(values, [0.25, 0.75])
    spread = float(high - low) / middle if middle else 0.0
    if len(values) < FEW:
        return Noise(
            False,
            spread,
            0.0,
            [f"{len(values)} {'block is' if len(values) == 1 else 'blocks are'} too few to judge by"],
        )
    remarks = []
    earlier, later = median(rates[:half]), median(rates[half:])
    drift = later.value / earlier.value - 1 if earlier.value else 0.0
    if spread > WIDE:
        remarks.append(f"half of the blocks differ by more than {spread:.0%} of the median")
    if abs(drift) > DRIFT and (later.low > earlier.high or later.high < earlier.low):
        remarks.append(f"the later half is {abs(drift):.0%} {'faster' if drift > 0 else 'slower'} than the earlier one")
    slow = int(np.count_nonzero(values * SLOW < middle))
    if slow > OFTEN * len(values):
        remarks.append(f"{slow} of {len(values)} blocks took more than {SLOW:g} times as long as the median one")
    return Noise(not remarks, spread, drift, remarks)


def is_steady(seconds: Sequence[float]) -> bool:
    """Whether the latest of these times of one and the same work are no longer falling or rising."""
    if len(seconds) < 2 * WINDOW:
        return False
    later = float(np.median(seconds[-WINDOW:]))
    earlier = float(np.median(seconds[-2 * WINDOW : -WINDOW]))
    return abs(later - earlier) <= STEADY * max(later, earlier)


def _estimate(value: float, resampled: NDArray[Any]) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    # The value is of all samples, of which the pairs may be one short: it must not lie outside.
    return Estimate(value, min(float(low), value), max(float(high), value))


def _resamples(count: int) -> NDArray[np.int64]:
    """(RESAMPLES, count) indices, the same every time."""
    drawn = random.uniform(0, (random.BOOTSTRAP, 0, 0), (RESAMPLES, count))
    return (drawn * count).astype(np.int64)

"""Medians and their uncertainty, from the raw samples of a measurement.

An interval is the percentile bootstrap's: the statistic of many resamples, drawn with replacement, and the range in
which 95% of them lie. Nothing is assumed of how times are distributed; an outlier counts as what it is, one sample.
Source: Efron, "Bootstrap methods: another look at the jackknife", 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv import random

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure, and the interval that holds it with 95% confidence; one sample gives an interval of no width."""

    value: float
    low: float
    high: float

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


def _estimate(value: float, resampled: NDArray[Any]) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    # The value is of all samples, of which the pairs may be one short: it must not lie outside.
    return Estimate(value, min(float(low), value), max(float(high), value))


def _resamples(count: int) -> NDArray[np.int64]:
    """(RESAMPLES, count) indices, the same every time."""
    drawn = random.uniform(0, (random.BOOTSTRAP, 0, 0), (RESAMPLES, count))
    return (drawn * count).astype(np.int64)

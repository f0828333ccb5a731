"""Where one curve overtakes another: two candidates' images a second along an axis, with the uncertainty of it.

Between neighbouring points a curve is a straight line through the logarithms of value and rate. What is looked at is
the logarithm of one rate over the other: it passes through zero where one overtakes the other. Where the two are about
as fast, the medians' order changes to and fro by chance alone: the points between two that can be told apart hold one
crossing, and it lies where the fewest points, weighed by how far they are from even, are on the wrong side. The same is
done with each of many resamples of the blocks, and the middle 95% of the crossings is the interval (``bench.growth``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bareconv.bench.estimates import CONFIDENCE, Estimate
from bareconv.bench.growth import Curve, Floats, estimate, resamples
from bareconv.report.format import ratio

_TAIL = (1 - CONFIDENCE) / 2


@dataclass(frozen=True)
class Crossing:
    """Where the one that is ahead below is overtaken: 0 or 1, the first or the second curve.

    ``value`` None: ``ahead_below``, which is ``ahead_above`` too, is never overtaken. ``low``, ``high``: the 95%
    interval; None where that end lies outside of what was measured.
    """

    ahead_below: int
    ahead_above: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """Two curves at the values that both were measured at.

    ``leads``: the first one's rate over the second's at each value; ``certain``: the values at which they can be told
    apart; ``crossings``: one at least, from low to high.
    """

    leads: dict[float, Estimate]
    certain: frozenset[float]
    crossings: list[Crossing]

    def text(self, first: str, second: str, at: Callable[[float], str], places: Callable[[str], str]) -> list[str]:
        """A sentence for each crossing.

        ``first`` and ``second``: what the curves are called, "the CPU"; ``at``: a value on the axis, "12"; ``places``:
        a value in a sentence, "a batch size of 12".
        """
        names = first, second
        return [self._sentence(crossing, names, at, places) for crossing in self.crossings]

    def _sentence(
        self, one: Crossing, names: tuple[str, str], at: Callable[[float], str], places: Callable[[str], str]
    ) -> str:
        if one.value is None:
            return self._never(names[one.ahead_below], names[1 - one.ahead_below], one.ahead_below == 0, at, places)
        said = f"{names[one.ahead_above]} overtakes {names[one.ahead_below]} at {places(at(one.value))}"
        least, most = at(min(self.leads)), at(max(self.leads))
        if one.low is None and one.high is None:
            return f"{said}, but that may be anywhere, also outside of what was measured ({least} to {most})"
        if one.low is None and one.high is not None:
            return f"{said} (at most {at(one.high)}; perhaps below {least}, the least that was measured)"
        if one.high is None and one.low is not None:
            return f"{said} (at least {at(one.low)}; perhaps above {most}, the most that was measured)"
        assert one.low is not None
        assert one.high is not None
        low, high = at(one.low), at(one.high)
        return f"{said} ({low} to {high})" if low != high else said

    def _never(
        self,
        ahead: str,
        behind: str,
        is_first: bool,
        at: Callable[[float], str],
        places: Callable[[str], str],
    ) -> str:
        """Who is ahead everywhere, by how much at least; and where that is not certain."""
        even = [value for value in self.leads if value not in self.certain]
        where = places(at(min(self.leads)))
        if len(self.leads) > 1:
            where += f" to {at(max(self.leads))}"
        if len(even) == len(self.leads):
            return f"{ahead} and {behind} cannot be told apart at {where}"
        least = min(self.leads[value].low if is_first else 1 / self.leads[value].high for value in self.certain)
        by = f"by at least {ratio(least)}"
        if not even:
            return f"{ahead} is ahead of {behind} at {where}, {by}"
        apart = ", ".join(map(at, even))
        return f"{ahead} is ahead of {behind} at {where}, {by}, but for {apart}, where they cannot be told apart"


def compare(first: Curve, second: Curve) -> Comparison | None:
    """Two curves of images a second; None where no value is on both."""
    values = np.array(sorted(first.keys() & second.keys()), float)
    if not len(values):
        return None
    pairs = [_pair(first[value], second[value], place) for place, value in enumerate(values)]
    lead, resampled = np.array([value for value, _ in pairs]), np.stack([again for _, again in pairs], axis=1)
    tail = _TAIL / len(values)  # of all points together (Bonferroni)
    tails = np.quantile(resampled, [tail, 1 - tail], axis=0)
    certain = (tails[0] > 0) | (tails[1] < 0)
    leads = {
        float(value): estimate(float(np.exp(lead[place])), np.exp(resampled[:, place]))
        for place, value in enumerate(values)
    }
    told_apart = frozenset(float(value) for value in values[certain])
    runs = _runs(lead, certain) if certain.any() else []
    if len(runs) < 2:
        ahead = runs[0].ahead if runs else int(lead.sum() < 0)
        return Comparison(leads, told_apart, [Crossing(ahead, ahead, None, None, None)])
    crossings = []
    for before, after in itertools.pairwise(runs):
        part = slice(before.start, after.stop)
        sign = 1.0 if before.ahead else -1.0  # so that what is looked for passes from below zero to above it
        crossings.append(_crossing(values, part, sign * lead, sign * resampled, before.ahead))
    return Comparison(leads, told_apart, crossings)


@dataclass(frozen=True)
class _Run:
    """Neighbouring points ``start`` to ``stop`` with one curve, ``ahead``, before the other."""

    start: int
    stop: int
    ahead: int


def _runs(lead: Floats, certain: np.ndarray) -> list[_Run]:
    """Runs of points, of which those within the range have at least one that is certain."""
    ahead = int(lead[np.flatnonzero(lead)[0]] < 0)
    runs = [_Run(0, 0, ahead)]
    for place, one in enumerate(lead):
        if one:  # where they are even, it goes on as it was
            ahead = int(one < 0)
        if runs[-1].ahead == ahead:
            runs[-1] = _Run(runs[-1].start, place + 1, ahead)
        else:
            runs.append(_Run(place, place + 1, ahead))
    while True:
        chance = [at for at in range(1, len(runs) - 1) if not certain[runs[at].start : runs[at].stop].any()]
        if not chance:
            return runs
        at = chance[0]
        runs[at - 1 : at + 2] = [_Run(runs[at - 1].start, runs[at + 1].stop, runs[at - 1].ahead)]


def _crossing(values: Floats, part: slice, lead: Floats, resampled: Floats, ahead: int) -> Crossing:
    """The one crossing from below zero to above it in that part of the points."""
    logs = np.log(values[part])
    found = _passes(logs, lead[None, part])[0]
    again = _passes(logs, resampled[:, part])
    low, high = np.quantile(again, [_TAIL, 1 - _TAIL], method="nearest")  # which knows of infinities
    low, high = min(low, found), max(high, found)
    # Beyond this part, though not beyond the points: whose turn it is there is certain.
    if part.start > 0:
        low = max(low, logs[0])
    if part.stop < len(values):
        high = min(high, logs[-1])
    return Crossing(ahead, 1 - ahead, float(np.exp(found)), _value(low), _value(high))


def _value(log: float) -> float | None:
    return float(np.exp(log)) if np.isfinite(log) else None


def _passes(logs: Floats, lead: Floats) -> Floats:
    """Where each row of ``lead`` (rows, points) passes from below zero to above it, on the axis of ``logs``.

    Split before the point for which the sum of what is then on the wrong side is least; infinite where that is before
    the first or after the last.
    """
    above, below = np.maximum(lead, 0).cumsum(1), np.maximum(-lead, 0).cumsum(1)
    nothing = np.zeros((len(lead), 1))
    wrong = np.hstack([nothing, above]) + below[:, -1:] - np.hstack([nothing, below])
    split = wrong.argmin(1)
    rows, last = np.arange(len(lead)), lead.shape[1] - 1
    left, right = np.clip(split - 1, 0, last), np.clip(split, 0, last)
    before, after = lead[rows, left], lead[rows, right]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(after > before, -before / (after - before), 0.5)
    found = logs[left] + share * (logs[right] - logs[left])
    found[split == 0], found[split == last + 1] = -np.inf, np.inf
    return found


def _pair(first: object, second: object, place: int) -> tuple[float, Floats]:
    """The logarithm of one median over the other, and that of each resample.

    The two were sampled by turns, and what disturbs the machine disturbs neighbouring samples of both: the i-th of one
    is resampled with the i-th of the other (``estimates.ratio``).
    """
    above, below = np.asarray(first, float), np.asarray(second, float)
    pairs = min(len(above), len(below))
    chosen = resamples(pairs, place)
    value = float(np.log(np.median(above) / np.median(below)))
    return value, np.log(np.median(above[chosen], axis=1) / np.median(below[chosen], axis=1))

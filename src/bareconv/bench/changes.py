"""How much faster one side is than another, with what is known of the machine's noise; and whether that is a change.

A median of blocks errs in three ways, and the interval of a ratio has to cover all of them:

- the blocks differ. The bootstrap's spread of the median, of runs of neighbouring blocks: what disturbs one disturbs
  the next, too;
- the machine is now faster, now slower, for longer than a block. What fifths of a measurement differ by, beyond what
  their blocks explain, is how much the whole of it would differ from another at another time: noise of this kind has no
  longest time;
- processes differ, however alike: where memory lies, which core they get. That is seen only between results, and is
  taken as ``BETWEEN`` where there is a single one of each side. Several results tell, as far as they are many.

Two results whose blocks were taken by turns share the second: then neighbouring blocks are compared.

Sources: Künsch, "The jackknife and the bootstrap for general stationary observations", 1989 (blocks of neighbours);
Kalibera and Jones, "Rigorous benchmarking in reasonable time", 2013 (levels of variation); Mytkowicz and others,
"Producing wrong data without doing anything obviously wrong!", 2009 (what differs between alike processes); Smyth,
"Linear models and empirical Bayes methods", 2004 (an assumed variance that counts as so many observations);
Satterthwaite, "An approximate distribution of estimates of variance components", 1946.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bareconv import random
from bareconv.bench.estimates import CONFIDENCE, WIDE, Estimate
from bareconv.bench.measurements import Measurement

MARGIN = 0.05  # a smaller change is none that matters
BETWEEN = 0.01  # standard deviation between processes, where nothing is known of it: what quiet machines show
ASSUMED = 4  # results that this counts as, once there are several
PARTS = 5  # of a measurement, that slow noise is looked for between
SLOWER_STILL = 2.0  # the variance between results over that between parts of one: noise grows with the time between

FASTER, SLOWER, SAME, AMBIGUOUS = "faster", "slower", "same", "ambiguous"

MIDDLE, MOST = (0.35, 0.65), (0.2, 0.8)  # of blocks in the order of their rates
RESAMPLES = 500  # enough for a variance; the ends of an interval of resamples would need more

_MANY = 1000.0  # degrees of freedom: as good as infinitely many
_NORMAL = 1.96  # half of an interval over the standard deviation, in a summary without blocks
_WIDEST = math.log(1e6)  # half of an interval: a millionth to a million times tells nothing either way
_TIMES, _RESULTS = 10, 15  # as many blocks; results of a side: more is too much to ask for

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """A variance, and the degrees of freedom that it is known with."""

    variance: float
    freedom: float = _MANY


@dataclass(frozen=True)
class Level:
    """A logarithm of a rate, or of a ratio of two, with what it may be off by."""

    value: float
    blocks: Part
    slow: Part
    between: float  # variance


@dataclass(frozen=True)
class Change:
    """The rate after over the rate before, with a 95% interval and a verdict on it.

    ``by_turns``: neighbouring blocks were compared. ``settle``: what would make an ambiguous one clear.
    """

    ratio: Estimate
    verdict: str
    by_turns: bool
    settle: str | None = None


def change(
    before: Sequence[Measurement], after: Sequence[Measurement], margin: float = MARGIN, pace: Sequence[float] = ()
) -> Change:
    """Compare one or more results' measurements of the same thing.

    ``margin``: by how much slower counts as slower, 0.05 for a twentieth; as much faster is 1 / (1 - margin). ``pace``:
    how many times as fast the machine itself was after, by one figure or several. The interval then reaches from what
    the change would be if that explained none of it to what it would be if it explained all.
    """
    pairs = _by_turns(before, after)
    if pairs:
        levels = [_together(one, other) for one, other in pairs]
        value, total = _combined([levels])
        apart: list[float] = []
    else:
        one, other = [_level(m) for m in before], [_level(m) for m in after]
        levels = [*one, *other]
        value, total = _combined([one, other])
        apart = [-math.log(times) for times in pace]
    half = min(quantile(total.freedom) * math.sqrt(total.variance), _WIDEST)
    low, high = value - half + min([0.0, *apart]), value + half + max([0.0, *apart])
    verdict = judged(low, high, margin)
    ratio = Estimate(*(math.exp(number) for number in (value, low, high)))
    if verdict != AMBIGUOUS:
        return Change(ratio, verdict, bool(pairs))
    if judged(value - half, value + half, margin) != AMBIGUOUS:
        settle = "the machine itself was not equally fast: measure both again, close together"
    else:
        results = len(pairs) if pairs else min(len(before), len(after))
        settle = _settle(value, total, half, levels, results, [*before, *after] if not pairs else [], margin)
    return Change(ratio, verdict, bool(pairs), settle)


def judged(low: float, high: float, margin: float) -> str:
    """The verdict on an interval of the logarithm of a ratio: beyond the margin as a whole, within it, or neither."""
    edge = -math.log1p(-margin)
    if high < -edge:
        return SLOWER
    if low > edge:
        return FASTER
    return SAME if -edge < low and high < edge else AMBIGUOUS


def quantile(freedom: float) -> float:
    """How many standard deviations to each side hold 95% of Student's t distribution with so many degrees of freedom.

    With t = sqrt(freedom) tan(angle), the density is proportional to cos(angle) ** (freedom - 1).
    """
    freedom = min(max(freedom, 1.0), _MANY)
    angle = np.linspace(0, math.pi / 2, 20_001)[:-1]
    density = np.cos(angle) ** (freedom - 1)
    held = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(math.sqrt(freedom) * math.tan(np.interp(CONFIDENCE, held / held[-1], angle)))


def _combined(sides: Sequence[Sequence[Level]]) -> tuple[float, Part]:
    """The mean of one side, or that of the second less that of the first; with its variance.

    Several levels of a side tell themselves how much they differ. As few tell it badly, what each of them expects
    counts as ``ASSUMED`` more.
    """
    means = [float(np.mean([level.value for level in side])) for side in sides]
    value = means[-1] - means[0] if len(sides) == 2 else means[0]
    freedom = sum(len(side) - 1 for side in sides)
    squares = sum((level.value - mean) ** 2 for side, mean in zip(sides, means, strict=True) for level in side)
    weight = ASSUMED / (ASSUMED + freedom) if freedom else 1.0
    parts: list[Part] = []
    for side in sides:
        share = weight / len(side) ** 2
        for level in side:
            parts += [
                Part(share * level.blocks.variance, level.blocks.freedom),
                Part(share * level.slow.variance, level.slow.freedom),
                # What is assumed is known for certain as long as nothing else is known.
                Part(share * level.between, ASSUMED if freedom else _MANY),
            ]
    if freedom:
        seen = squares / freedom * sum(1 / len(side) for side in sides)
        parts.append(Part((1 - weight) * seen, freedom))
    variance = sum(part.variance for part in parts)
    doubt = sum(part.variance**2 / part.freedom for part in parts)
    return value, Part(variance, variance**2 / doubt if doubt else _MANY)


def _level(measurement: Measurement) -> Level:
    """What a single result says of the logarithm of its rate."""
    if not measurement.rates:
        assert measurement.summary is not None
        known = measurement.summary
        width = math.log(known.high / known.low) / 2 / _NORMAL if known.low > 0 else 1.0
        return Level(math.log(known.value), Part(width**2, PARTS - 1), Part(0.0), BETWEEN**2)
    rates = np.log(measurement.rates)
    level = _of_blocks(float(np.median(rates)), [rates], BETWEEN**2)
    noise = measurement.noise
    if noise is None or noise.stable:
        return level
    # Blocks that the result itself does not trust: their level might lie anywhere among them.
    wide = max(level.slow.variance, noise.spread**2, noise.drift**2)
    return Level(level.value, level.blocks, Part(wide, PARTS - 1), level.between)


def _together(before: Measurement, after: Measurement) -> Level:
    """What two results with neighbouring blocks say of the logarithm of their ratio."""
    pairs = min(len(before.rates), len(after.rates))
    value = float(np.median(np.log(after.rates)) - np.median(np.log(before.rates)))
    return _of_blocks(value, [np.log(m.rates[:pairs]) for m in (before, after)], 2 * BETWEEN**2)


def _of_blocks(value: float, sides: Sequence[Array], between: float) -> Level:
    """The level of one side, or of the second less the first, whose i-th blocks belong together."""
    count = len(sides[0])
    if count == 1:  # nothing says how much it may be off: by half, or twice
        return Level(value, Part(math.log(2) ** 2, PARTS - 1), Part(0.0), between)
    correction = count / (count - 1)
    if len(sides) == 2:  # both at the same time: what is slow and of one alone is in longer runs of neighbours
        blocks = correction * _variance(sides, round(math.sqrt(count)))
        return Level(value, Part(blocks, count - 1), Part(_two_kinds(*sides), PARTS - 1), between)
    blocks, slow = correction * _variance(sides, round(count ** (1 / 3))), 0.0
    if count >= 2 * PARTS:
        parts = [float(np.median(part)) for part in np.array_split(sides[0], PARTS)]
        slow = max(0.0, float(np.var(parts, ddof=1)) - PARTS * correction * _variance(sides, 1))
    return Level(value, Part(blocks, count - 1), Part(SLOWER_STILL * slow, PARTS - 1), between)


def _two_kinds(before: Array, after: Array) -> float:
    """Where a median is between two kinds of blocks, whole and interrupted ones: how far these are apart, squared.

    Not where a whole pair is of one kind: then the machine was slow for both.
    """
    if _range(after - before, MOST) <= WIDE:
        return 0.0
    apart = max(_range(before, MIDDLE), _range(after, MIDDLE))
    return apart**2 if apart > WIDE else 0.0


def _range(values: Array, shares: tuple[float, float]) -> float:
    low, high = np.quantile(values, shares)
    return float(high - low)


def _variance(sides: Sequence[Array], neighbours: int) -> float:
    """Of the median, by the bootstrap of runs of so many neighbouring blocks, in a circle."""
    chosen = _resamples(len(sides[0]), neighbours)
    medians = [np.median(side[chosen], axis=1) for side in sides]
    return float(np.var(medians[-1] - medians[0] if len(sides) == 2 else medians[0]))


@functools.lru_cache(maxsize=16)
def _resamples(count: int, neighbours: int) -> NDArray[np.int64]:
    """(RESAMPLES, count) indices, the same every time."""
    runs = -(-count // neighbours)
    first = (random.uniform(0, (random.BOOTSTRAP, 0, neighbours), (RESAMPLES, runs)) * count).astype(np.int64)
    return ((first[:, :, None] + np.arange(neighbours)) % count).reshape(RESAMPLES, -1)[:, :count]


def _by_turns(
    before: Sequence[Measurement], after: Sequence[Measurement]
) -> list[tuple[Measurement, Measurement]] | None:
    """Each of the one side with one of the other whose blocks lie between its own; None unless all have one."""
    if len(before) != len(after):
        return None
    pairs, left = [], list(after)
    for one in before:
        partner = next((other for other in left if took_turns(one, other)), None)
        if partner is None:
            return None
        left.remove(partner)
        pairs.append((one, partner))
    return pairs


def took_turns(one: Measurement, other: Measurement) -> bool:
    """Whether the i-th block of one is next to the i-th of the other, and none runs during another."""
    pairs = min(len(one.begun), len(other.begun))
    if pairs < 2 or abs(len(one.begun) - len(other.begun)) > 1:
        return False
    first, second = np.array(one.begun[:pairs]), np.array(other.begun[:pairs])
    ends = first + one.lasted[:pairs], second + other.lasted[:pairs]
    apart = (ends[0] <= second) | (ends[1] <= first)
    period = (max(first[-1], second[-1]) - min(first[0], second[0])) / (pairs - 1)
    return bool(np.mean(apart) > 0.9 and np.median(np.abs(first - second)) < 2 * period)


def _settle(
    value: float,
    total: Part,
    half: float,
    levels: Sequence[Level],
    results: int,
    measured: Sequence[Measurement],
    margin: float,
) -> str:
    """What would make the interval narrow enough for a verdict."""
    if any(m.noise is not None and not m.noise.stable for m in measured):
        return "the blocks differ too much: measure on a quieter machine, or by turns"
    room = abs(abs(value) + math.log1p(-margin))  # between the ratio and the nearest edge of the margin
    wanted = (room / half) ** 2 * total.variance
    by_blocks = sum(level.blocks.variance for level in levels) / results**2
    if (rest := total.variance - by_blocks) < wanted and (times := by_blocks / (wanted - rest)) <= _TIMES:
        return f"about {max(2, math.ceil(times))} times as many blocks: a larger --budget"
    if results * total.variance < _RESULTS * wanted:
        return f"about {math.ceil(results * total.variance / wanted) + 1} results of each side"
    if room < BETWEEN:
        return f"the change is about as large as the margin: another --margin than {margin:g} tells"
    return "the blocks differ too much: a longer measurement on a quieter machine"

"""How many times as fast one measured side is as another, with its uncertainty, and what may be said of that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bareconv.bench.estimates import FEW
from bareconv.bench.estimates import ratio as paired
from bareconv.report import format as fmt

UNSTABLE = "unstable"  # what is seen beside a figure that is not to be trusted
_STEADY = 0.9  # of the largest ratio: as long as the others reach it, the advantage does not change


@dataclass(frozen=True)
class Ratio:
    """``value`` with its 95% interval; ``stable``: whether both sides were."""

    value: float
    low: float
    high: float
    stable: bool = True

    @property
    def ahead(self) -> int:
        """1 where the first side is faster for sure, -1 where it is slower, 0 where that cannot be told."""
        return 1 if self.low > 1 else -1 if self.high < 1 else 0

    def inverted(self) -> Ratio:
        """Of the second side over the first."""
        return Ratio(1 / self.value, 1 / self.high, 1 / self.low, self.stable)

    def interval(self) -> str:
        """ "3.25 to 3.44"."""
        return f"{_number(self.low)} to {_number(self.high)}"

    def __str__(self) -> str:
        return f"{_number(self.value)} ({self.interval()})"


def _number(x: float) -> str:
    return fmt.significant(x, 3 if x >= 0.9995 else 2)


@dataclass(frozen=True)
class Measured:
    """Images a second of a side: the median, its interval, and the blocks where they are known."""

    value: float
    low: float
    high: float
    rates: Sequence[float] = ()
    mark: str = ""

    @property
    def stable(self) -> bool:
        """Whether it is to be trusted."""
        return not self.mark


def mark(figure: Mapping[str, Any]) -> str:
    """What must be seen beside a sweep's point or a ``throughput``: "unstable", "only 3 blocks", or nothing."""
    if figure.get("noise", figure).get("stable", True):
        return ""
    blocks = len(block_rates(figure.get("samples")))
    return f"only {fmt.counted(blocks, 'block')}" if 0 < blocks < FEW else UNSTABLE


def with_mark(text: str, word: str) -> str:
    """ "28,508 to 29,991, unstable"; the text alone where there is no such word."""
    return f"{text}, {word}" if word else text


def measured(figure: Mapping[str, Any]) -> Measured | None:
    """Of a sweep's point or of a ``throughput``; None where it has no figures."""
    rate = figure.get("images_per_second")
    if not rate:
        return None
    rates = block_rates(figure.get("samples"))
    if isinstance(rate, Mapping):
        return Measured(rate["value"], rate["low"], rate["high"], rates, mark(figure))
    interval = figure["interval"]
    return Measured(rate, interval["low"], interval["high"], rates, mark(figure))


def rate_of(
    runs: Iterable[Mapping[str, Any]], *, device: str, engine: str, model: str, batch_size: int, precision: str
) -> float | None:
    """Images a second, at the steady state, of the run that is all of this; None where it is not among them."""
    wanted = {"device": device, "engine": engine, "model": model, "batch_size": batch_size, "precision": precision}
    for run in runs:
        if "throughput" in run and all(run.get(name) == value for name, value in wanted.items()):
            return float(run["throughput"]["images_per_second"])
    return None


def block_rates(samples: Mapping[str, Any] | None) -> list[float]:
    """Images a second of each block, in order."""
    if not samples:
        return []
    both = zip(samples["images"], samples["seconds"], strict=True)
    return [images / seconds for images, seconds in both if seconds > 0]


def over(above: Measured, below: Measured) -> Ratio:
    """Of two sides that were measured by turns, block by block.

    Where the blocks are not known, the ends of both intervals are divided, which is wider than it need be.
    """
    stable = above.stable and below.stable
    if len(above.rates) > 1 and len(below.rates) > 1:
        found = paired(above.rates, below.rates)
        return Ratio(found.value, found.low, found.high, stable)
    return Ratio(above.value / below.value, above.low / below.high, above.high / below.low, stable)


def times(r: Ratio) -> str:
    """In words: "61 times as fast as", "about as fast as", "roughly 3.1 times as fast as"; "0.5 times" where slower."""
    if r.ahead == 0 or abs(r.value - 1) < 0.005:
        return "about as fast as"
    roughly = "" if r.stable else "roughly "
    return f"{roughly}{_of(r)} times as fast as"


def amount(ratios: Sequence[Ratio]) -> str:
    """From the least to the largest of them: "24 to 26 times as fast as"; "roughly" where one is not to be trusted."""
    low, high = min(ratios, key=lambda r: r.value), max(ratios, key=lambda r: r.value)
    stable = all(r.stable for r in ratios)
    least, most = (fmt.significant(r.value, 2) for r in (low, high))
    if least == most:
        return times(Ratio(high.value, high.low, high.high, stable))
    return f"{'' if stable else 'roughly '}{least} to {most} times as fast as"


def _of(r: Ratio) -> str:
    """Two digits, or three where they matter, near 1 or in a narrow interval: "61", "3.3", "1.07"."""
    short = fmt.significant(r.value, 2)
    exact = 0.95 < r.value < 2 or not r.low <= float(short.replace(",", "")) <= r.high
    return fmt.significant(r.value) if exact else short


@dataclass(frozen=True)
class Along:
    """The ratio of two curves at the values both were measured at, in their order."""

    values: list[float]
    ratios: list[Ratio]

    @property
    def last(self) -> Ratio:
        return self.ratios[-1]

    @property
    def is_ahead(self) -> bool:
        """Whether the first one is, for sure, at every value."""
        return all(r.ahead > 0 for r in self.ratios)

    @property
    def is_behind(self) -> bool:
        """Whether the second one is ahead, for sure, at every value."""
        return all(r.ahead < 0 for r in self.ratios)

    def ahead_first(self, one: str, other: str) -> tuple[str, str, list[Ratio]]:
        """What the two curves are called, and their ratios: the other way round where ``one`` is behind everywhere."""
        if self.is_behind:
            return other, one, [r.inverted() for r in self.ratios]
        return one, other, self.ratios

    def settled(self) -> tuple[float, list[Ratio]]:
        """From which value on the ratio stays near what it is at most; and the ratios from there on.

        Where it falls again towards the end, that is the largest value alone.
        """
        best = max(range(len(self.ratios)), key=lambda i: self.ratios[i].value)
        first = len(self.ratios)
        while first > 0 and self.ratios[first - 1].value >= _STEADY * self.ratios[best].value:
            first -= 1
        if first == len(self.ratios):
            return self.values[best], [self.ratios[best]]
        return self.values[first], self.ratios[first:]

    @property
    def falls(self) -> bool:
        """Whether the largest ratio is not kept until the end."""
        return self.last.value < _STEADY * max(r.value for r in self.ratios)


def along(above: Mapping[str, Any], below: Mapping[str, Any]) -> Along | None:
    """Of two curves of a sweep; None where they have no value in common."""
    mine, theirs = (
        {point["value"]: found for point in one["points"] if (found := measured(point)) is not None}
        for one in (above, below)
    )
    values = sorted(mine.keys() & theirs.keys())
    return Along(values, [over(mine[x], theirs[x]) for x in values]) if values else None

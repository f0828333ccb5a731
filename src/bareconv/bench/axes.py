"""What a sweep may go along: what a value changes, which values there are unless one says, how it is said."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bareconv import host
from bareconv.bench.growth import Fit
from bareconv.bench.interleave import Candidate
from bareconv.bench.process import THREADS
from bareconv.bench.workload import Workload
from bareconv.errors import UsageError
from bareconv.report.format import seconds, significant

MOST = 1000  # values that dots may stand for
TENTHS = tuple(number / 10 for number in range(10, 21))


@dataclass(frozen=True)
class Axis:
    """``name``: as a result has it; ``noun``: what a value is called; ``place``: a value in a sentence.

    ``values``: unless others are asked for. ``whole``: they are whole numbers. ``powers``: of the value, by which the
    seconds of a step may grow (``bench.growth.fit``); ``each``: what the part that grows is for, after its seconds.
    ``apply``: a workload at a value.
    """

    name: str
    noun: str
    place: str
    values: tuple[float, ...]
    whole: bool
    powers: tuple[float, ...]
    each: str
    apply: Callable[[Workload, float], Workload]

    def at(self, workload: Workload, value: float) -> Workload:
        """The workload at a value. Raises UsageError where there is none."""
        self.check(value)
        return self.apply(workload, value)

    def check(self, value: float) -> None:
        """UsageError for what is no value of this axis."""
        if not 0 < value < math.inf or (self.whole and value != int(value)):
            expected = "a whole number of at least 1" if self.whole else "a number of more than 0"
            raise UsageError(f"{self.noun} {value:g}: expected {expected}")

    def candidate(self, candidate: Candidate, value: float) -> Candidate:
        """A candidate at a value: with as many threads, where that is the axis."""
        if self.name != "threads":
            return candidate
        variables = {**candidate.environment, **dict.fromkeys(THREADS, f"{value:.0f}")}
        return dataclasses.replace(candidate, environment=variables)

    def number(self, value: float) -> int | float:
        """A value as a result has it."""
        return int(value) if self.whole else value

    def said(self, value: float) -> str:
        """A value as a person writes it: "4,096", "1.4"; between values that there are, the nearest."""
        if self.whole:
            return f"{max(1, round(value)):,}"
        return f"{value:,g}" if f"{value:.3g}" == f"{value:g}" else significant(value, 2)

    def in_a_sentence(self, said: str) -> str:
        """ "a batch size of 64"."""
        text = self.place.format(said)
        return text.removesuffix("s") if said == "1" else text

    def formula(self, fit: Fit) -> str:
        """The seconds of a step in words: "41.0 µs + 0.350 µs an image"."""
        fixed, each = fit.fixed.value, fit.each.value
        if not each:
            return f"{seconds(fixed)}, whatever the {self.noun}"
        power = {1.0: "", 2.0: "²"}.get(fit.power, f"^{fit.power:g}")
        grows = f"{seconds(each)} {self.each.format(power)}"
        return f"{seconds(fixed)} + {grows}" if fixed else grows


def _side(workload: Workload, value: float) -> Workload:
    side = int(value)
    return dataclasses.replace(workload, image_shape=(side, side, workload.image_shape[2]))


def _threads() -> tuple[float, ...]:
    """Doubling, up to all cores."""
    cores = host.allowed_cores()
    return (*(float(1 << n) for n in range(cores.bit_length()) if 1 << n < cores), float(cores))


AXES = {
    axis.name: axis
    for axis in (
        Axis(
            name="batch_size",
            noun="batch size",
            place="a batch size of {}",
            values=tuple(float(1 << n) for n in range(13)),
            whole=True,
            powers=(1.0,),
            each="an image",
            apply=lambda workload, value: dataclasses.replace(workload, batch_size=int(value)),
        ),
        Axis(
            name="image_size",
            noun="image size",
            place="an image size of {}",
            values=(12, 16, 24, 32, 48, 64, 96),
            whole=True,
            powers=(2.0,),  # the pixels of a square, and with them all work but that of the last layers
            each="a pixel of each image",
            apply=_side,
        ),
        Axis(
            name="width",
            noun="width",
            place="a width of {}",
            values=(0.25, 0.5, 1, 2, 4),
            whole=False,
            # A layer that reads as many channels as it makes grows as the square; the first one, and what is done with
            # every number of an activation, in proportion.
            powers=TENTHS,
            each="× width{}",
            apply=lambda workload, value: dataclasses.replace(workload, width=value),
        ),
        Axis(
            name="images",
            noun="number of images",
            place="{} images",
            values=(1e3, 1e4, 1e5, 1e6, 1e7),
            whole=True,
            powers=(1.0,),
            each="for each image of the data set",
            apply=lambda workload, value: dataclasses.replace(workload, images=int(value)),
        ),
        Axis(
            name="threads",
            noun="number of threads",
            place="{} threads",
            values=_threads(),
            whole=True,
            powers=(-1.0,),  # Amdahl's law: a part that is shared among the threads, and one that is not
            each="/ threads",
            apply=lambda workload, value: dataclasses.replace(workload, threads=int(value)),
        ),
    )
}


def parse(axis: Axis, text: str) -> tuple[float, ...]:
    """The values that "1,2,4,...,4096" means: ascending, each once. Raises UsageError.

    Dots stand for what goes on as it began: the same factor, where that meets the value after them, else the same step.
    """
    words = [word.strip() for word in text.split(",")]
    values: list[float] = []
    for place, word in enumerate(words):
        if word in ("...", "…"):
            end = _number(axis, words[place + 1]) if place + 1 < len(words) else 0.0
            values += _between(values, end, text)
        else:
            values.append(_number(axis, word))
    return tuple(sorted(set(values)))


def _number(axis: Axis, word: str) -> float:
    try:
        value = float(word.replace("_", ""))
    except ValueError:
        raise UsageError(f"{axis.noun} {word!r}: expected numbers with commas between them, such as 1,2,4") from None
    axis.check(value)
    return value


def _between(before: Sequence[float], end: float, text: str) -> list[float]:
    """What lies between the last two of ``before`` and ``end``, which it must meet."""
    if len(before) >= 2 and 0 < before[-2] < before[-1] < end:
        factor, step = before[-1] / before[-2], before[-1] - before[-2]
        for times, more in ((factor, 0.0), (1.0, step)):
            found = [before[-1]]
            while found[-1] < end * (1 - 1e-6) and len(found) <= MOST:
                found.append(found[-1] * times + more)
            if abs(found[-1] - end) < 1e-6 * end:
                return found[1:-1]
    raise UsageError(f"{text}: expected two ascending values before the dots, and one after them that they lead to")


def covering(values: Iterable[float]) -> list[float]:
    """The values, each once, in an order that covers the range from its beginning: the ends, the middle, between."""
    ordered = sorted(set(values))
    ends = [0, len(ordered) - 1] if len(ordered) > 1 else [0] if ordered else []
    places, gaps = ends, [(0, len(ordered) - 1)]
    while gaps:
        low, high = gaps.pop(0)
        if high - low > 1:
            middle = (low + high) // 2
            places.append(middle)
            gaps += [(low, middle), (middle, high)]
    return [ordered[place] for place in places]

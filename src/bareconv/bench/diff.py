"""Two results, or several of each side, laid side by side: what became faster, what slower, what nobody can tell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bareconv.bench.alike import MACHINE, Difference, differences, unlike
from bareconv.bench.changes import AMBIGUOUS, MARGIN, SLOWER, Change, change
from bareconv.bench.estimates import Estimate, median
from bareconv.bench.measurements import Key, Measurement, measurements
from bareconv.bench.pace import Pace, from_peer, paces
from bareconv.errors import UsageError


@dataclass(frozen=True)
class Source:
    """A result, and the file that it is from."""

    path: Path
    result: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """As a ``diff`` names it."""
        names = ("created", "bareconv", "commit", "command")
        return {"file": str(self.path), **{name: self.result[name] for name in names if name in self.result}}


@dataclass(frozen=True)
class Pair:
    """The measurements of one thing, of the baseline and of the results; ``key``: as the baseline has it."""

    key: Key
    before: list[Measurement]
    after: list[Measurement]

    @property
    def label(self) -> str:
        """What was measured, in a person's words, with what the two sides did not have alike."""
        own, other = self.key, self.after[0].key
        precisions = list(dict.fromkeys([own.precision, other.precision]))
        return own.worded(" against ".join(precisions), [own.threads, other.threads])

    @property
    def is_control(self) -> bool:
        """Whether it is another library, in the same version on both sides: no change of ours could move it."""
        return not self.before[0].ours and not any(unlike(self.before[0], one) for one in self.after)


def diff(
    baseline: Sequence[Source], results: Sequence[Source], *, margin: float = MARGIN, force: bool = False
) -> dict[str, Any]:
    """The ``diff`` object of a result; ``result.schema.json`` says what is in it.

    Where environments or settings differ nothing is compared, unless by ``force``: then of two machines the difference
    is told, and of one machine what became of it beside what its own pace explains. Raises UsageError where both sides
    have no measurement in common, or the margin is none.
    """
    if not 0 < margin < 1:
        raise UsageError(f"margin {margin:g}: expected more than 0 and less than 1, such as 0.05 for a twentieth")
    before, after = _by_key(baseline), _by_key(results)
    pairs, alone = _matched(before, after)
    if not pairs:
        raise UsageError(f"the results have no measurement in common: {_listed(before)} against {_listed(after)}")
    everything = [*(source.result for source in baseline), *(source.result for source in results)]
    found = differences(everything, [pair.key for pair in pairs])
    for pair in pairs:
        for one in [*pair.before[1:], *pair.after]:
            found += unlike(pair.before[0], one)
    found = list(dict.fromkeys(found))
    compared = force or not found
    # Another machine's pace is no noise: it is what the comparison is to tell.
    same = not any(difference.what in MACHINE for difference in found)
    known = paces([one.result for one in baseline], [one.result for one in results]) if same else []
    measured, pace = _compared(pairs, known, same, margin) if compared else ([], [])
    changes = [one for _, one in measured]
    return {
        "baseline": [source.record() for source in baseline],
        "results": [source.record() for source in results],
        "margin": margin,
        "forced": force and bool(found),
        "differences": [difference.record() for difference in found],
        "machine": [one.record() for one in pace],
        "measurements": [_record(pair, one) for pair, one in measured],
        "geometric_mean": dataclasses.asdict(_mean(changes)) if changes else None,
        "only_baseline": [key.label for key in before if key in alone],
        "only_results": [key.label for key in after if key in alone],
    }


def is_regression(compared: Mapping[str, Any]) -> bool:
    """Whether anything in a ``diff`` object became slower."""
    return any(one["verdict"] == SLOWER for one in compared["measurements"])


def is_refused(compared: Mapping[str, Any]) -> bool:
    """Whether nothing was compared, because of differences."""
    return bool(compared["differences"]) and not compared["forced"]


def listed(found: Iterable[Mapping[str, str]]) -> str:
    """Differences in a line."""
    return "; ".join(str(Difference(**one)) for one in found)


def _compared(
    pairs: Sequence[Pair], known: Sequence[Pace], peers_tell: bool, margin: float
) -> tuple[list[tuple[Pair, Change]], list[Pace]]:
    """Every pair with its change, and what is known of the machine's own pace, to which peers may add."""
    known = list(known)
    for pair in pairs:
        if pair.is_control and peers_tell:
            own = change(pair.before, pair.after, margin)
            told = None if own.by_turns else from_peer(pair.key, own)
            known += [told] if told is not None else []
    return [
        (pair, change(pair.before, pair.after, margin, [one.times for one in known if one.applies(pair.key)]))
        for pair in pairs
    ], known


def _by_key(sources: Sequence[Source]) -> dict[Key, list[Measurement]]:
    found: dict[Key, list[Measurement]] = {}
    for source in sources:
        for one in measurements(source.result):
            found.setdefault(one.key, []).append(one)
    return found


def _matched(
    before: Mapping[Key, list[Measurement]], after: Mapping[Key, list[Measurement]]
) -> tuple[list[Pair], set[Key]]:
    """What both sides have, and the keys that one side has alone.

    Of what is left over, the same work in another precision or with other threads belongs together, where there is no
    choice; that is a difference to be told.
    """
    pairs = [Pair(key, found, after[key]) for key, found in before.items() if key in after]
    left = [key for key in before if key not in after], [key for key in after if key not in before]
    loose = [_unique(keys) for keys in left]
    also = [(key, loose[1][kind]) for kind, key in loose[0].items() if kind in loose[1]]
    pairs += [Pair(key, before[key], after[other]) for key, other in also]
    return pairs, {*left[0], *left[1]} - {key for both in also for key in both}


def _unique(keys: Sequence[Key]) -> dict[Key, Key]:
    """Keys by their loose form, those that share it with no other."""
    kinds = [key.loose for key in keys]
    return {key.loose: key for key in keys if kinds.count(key.loose) == 1}


def _record(pair: Pair, one: Change) -> dict[str, Any]:
    key = pair.key
    settle = {"settle": one.settle} if one.verdict == AMBIGUOUS else {}
    return {
        **{name: value for name, value in vars(key).items() if value is not None},
        "label": pair.label,
        "ours": pair.before[0].ours,
        "baseline": dataclasses.asdict(_rate(pair.before)),
        "result": dataclasses.asdict(_rate(pair.after)),
        "ratio": dataclasses.asdict(one.ratio),
        "verdict": one.verdict,
        "by_turns": one.by_turns,
        **settle,
    }


def _rate(measured: Sequence[Measurement]) -> Estimate:
    """The rate of a side: the geometric mean of its results' medians, and so the ends of their intervals."""
    return _geometric([one.summary or median(one.rates) for one in measured])


def _mean(changes: Sequence[Change]) -> Estimate:
    """The geometric mean of all ratios, and of the ends of their intervals: as wide as if all erred together.

    So they may: it is the same machine at the same two times.
    """
    return _geometric([one.ratio for one in changes])


def _geometric(estimates: Sequence[Estimate]) -> Estimate:
    ends = zip(*((one.value, one.low, one.high) for one in estimates), strict=True)
    return Estimate(*(math.exp(fmean(math.log(max(end, 1e-300)) for end in one)) for one in ends))


def _listed(side: Mapping[Key, object]) -> str:
    return "; ".join(key.label for key in list(side)[:3]) + (" ..." if len(side) > 3 else "") or "none"

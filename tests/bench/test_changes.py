"""Verdicts on measurements whose true change is known, because they are drawn here: how often they are right."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from bareconv.bench.changes import BETWEEN, MARGIN, change, judged, quantile, took_turns
from bareconv.bench.estimates import Estimate, Noise, noise
from bareconv.bench.measurements import Key, Measurement

KEY = Key("throughput", "cpu", "lenet5", 64, "float32", "plan", threads=1)
BLOCKS, SEEDS = 20, 40
TENTH, FIFTH, HALF = -math.log(1.1), -math.log(1.2), -math.log(1.5)  # of the rate, for so much more time


def measured(logs, **more):
    rates = tuple(1000.0 * np.exp(logs))
    return Measurement(KEY, True, rates, noise=noise(rates), **more)


def correlated(rng, count, next_to_each_other, spread):
    """A stationary series whose neighbours correlate so much."""
    x = [rng.normal()]
    for _ in range(count - 1):
        x.append(next_to_each_other * x[-1] + math.sqrt(1 - next_to_each_other**2) * rng.normal())
    return spread * np.array(x)


def with_outliers(rng, count):
    return 0.02 * rng.normal(size=count) - math.log(2) * (rng.random(count) < 0.1)


def drifting(rng, count):
    return np.linspace(-1, 1, count) * rng.uniform(-0.1, 0.1) + 0.02 * rng.normal(size=count)


def disturbed(rng, count):
    """Another program runs for a third of the time."""
    x, first = 0.015 * rng.normal(size=count), rng.integers(count)
    x[first : first + count // 3] -= 0.25
    return x


NOISES = {
    "quiet": lambda rng, count: 0.01 * rng.normal(size=count),
    "noisy": lambda rng, count: 0.05 * rng.normal(size=count),
    "correlated": lambda rng, count: correlated(rng, count, 0.6, 0.03),
    "slow": lambda rng, count: correlated(rng, count, 0.95, 0.03),
    "outliers": with_outliers,
    "drift": drifting,
    "disturbed": disturbed,
}


def verdicts(kind, truth, seeds, results=1):
    """How often each verdict comes, and the interval holds the truth; every process has a speed of its own."""
    counted: Counter[str] = Counter()
    for seed in range(seeds):
        rng = np.random.default_rng([seed, len(kind), results])
        before, after = [
            [measured(shift + BETWEEN * rng.normal() + NOISES[kind](rng, BLOCKS)) for _ in range(results)]
            for shift in (0.0, truth)
        ]
        found = change(before, after)
        assert found.ratio.low <= found.ratio.value <= found.ratio.high
        assert (found.settle is not None) == (found.verdict == "ambiguous")
        counted[found.verdict] += 1
        counted["held"] += found.ratio.low <= math.exp(truth) <= found.ratio.high
    return {name: count / seeds for name, count in counted.items()}


# For each kind of noise: the least share of intervals that hold the truth, and of slowdowns by a half that are found.
@pytest.mark.parametrize(
    ("kind", "held", "found"),
    [
        ("quiet", 0.85, 1.0),
        ("noisy", 0.85, 0.95),
        ("correlated", 0.85, 0.95),
        ("slow", 0.7, 0.9),
        ("outliers", 0.9, 0.4),
        ("drift", 0.95, 0.8),
        ("disturbed", 0.95, 0.0),
    ],
)
def test_verdicts_under_noise(kind, held, found):
    """No slowdown is invented, nor does a real one count as none; what cannot be told is said to be ambiguous."""
    alike = verdicts(kind, 0.0, SEEDS)
    assert alike.get("slower", 0) + alike.get("faster", 0) <= (2 / SEEDS if kind == "slow" else 0)
    assert alike["held"] >= held
    slowed = verdicts(kind, HALF, SEEDS)
    assert slowed.get("slower", 0) >= found
    assert not {"faster", "same"} & slowed.keys()


def test_a_tenth_on_a_quiet_machine():
    single, several = verdicts("quiet", TENTH, SEEDS), verdicts("quiet", TENTH, SEEDS, results=4)
    assert single["slower"] >= 0.6
    assert several["slower"] >= 0.95
    assert verdicts("quiet", 0.0, SEEDS)["same"] >= 0.75
    assert verdicts("quiet", 0.0, SEEDS, results=4)["same"] >= 0.95


def test_several_results_tell_what_one_cannot():
    """Processes that differ by six times what is assumed: pairs of single results err, five of each side hardly do."""

    def wrong(results):
        count = 0
        for seed in range(SEEDS):
            rng = np.random.default_rng([seed, results])
            before, after = [
                [measured(6 * BETWEEN * rng.normal() + 0.01 * rng.normal(size=BLOCKS)) for _ in range(results)]
                for _ in range(2)
            ]
            count += change(before, after).verdict in ("slower", "faster")
        return count

    assert wrong(1) >= 5
    assert wrong(5) <= 1


def by_turns(first, second, *, seconds=0.01):
    """Measurements whose blocks went A B, B A, A B, ..."""
    order = [(0, 1), (3, 2)]
    begun = [[seconds * (2 * (i - i % 2) + order[i % 2][side]) for i in range(len(first))] for side in range(2)]
    lasted = (0.9 * seconds,) * len(first)
    return [
        measured(logs, begun=tuple(times), lasted=lasted) for logs, times in zip((first, second), begun, strict=True)
    ]


def test_by_turns_noise_of_the_machine_is_of_both():
    """A machine that halves its speed now and then: one after the other nothing is found, by turns every slowdown."""
    found: dict[float, Counter[str]] = {0.0: Counter(), FIFTH: Counter()}
    apart: Counter[str] = Counter()
    for seed in range(20):
        for truth, counted in found.items():
            rng = np.random.default_rng([seed, int(truth * 100) % 100])
            common = correlated(rng, 60, 0.9, 0.3)
            logs = [common + shift + BETWEEN * rng.normal() + 0.02 * rng.normal(size=60) for shift in (0.0, truth)]
            one, other = by_turns(*logs)
            told = change([one], [other])
            assert told.by_turns
            counted[told.verdict] += 1
            apart[change([measured(logs[0])], [measured(logs[1])]).verdict] += 1
    assert found[FIFTH]["slower"] == 20
    assert found[0.0]["slower"] + found[0.0]["faster"] == 0
    assert found[0.0]["same"] >= 5
    assert apart["ambiguous"] >= 30


def test_by_turns_with_interruptions():
    """Blocks of which nearly half take twice as long, of either side whichever: that is told from a change."""
    counted: Counter[str] = Counter()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        one, other = (0.02 * rng.normal(size=40) - math.log(2) * (rng.random(40) < 0.45) for _ in range(2))
        before, after = by_turns(one, other)
        counted[change([before], [after]).verdict] += 1
    assert counted["ambiguous"] >= 18
    assert counted["slower"] + counted["faster"] == 0


def test_who_took_turns():
    zero = np.zeros(12)
    one, other = by_turns(zero, zero)
    assert took_turns(one, other)
    assert took_turns(other, one)
    assert not took_turns(one, one)  # at the same time
    later = Measurement(KEY, True, other.rates, begun=tuple(t + 10 for t in other.begun), lasted=other.lasted)
    assert not took_turns(one, later)
    assert not took_turns(one, measured(zero))
    # Three of each side, in another order.
    shifted = [by_turns(zero, zero, seconds=s) for s in (0.01, 0.02, 0.04)]
    before, after = zip(*shifted, strict=True)
    assert change(before, after[::-1]).by_turns
    assert not change(before, [*after[:2], later]).by_turns


def test_the_machine_itself_was_slower():
    """A rate that fell as the machine's own figures did is no slowdown of ours; nor is one that did not, faster."""
    rng = np.random.default_rng(3)
    before, same, slow = (measured(shift + 0.005 * rng.normal(size=BLOCKS)) for shift in (0.0, 0.0, -0.2))
    assert change([before], [slow]).verdict == "slower"
    told = change([before], [slow], pace=[0.85])
    assert told.verdict == "ambiguous"
    assert told.settle is not None
    assert "machine itself" in told.settle
    assert told.ratio.high == pytest.approx(change([before], [slow]).ratio.high / 0.85)
    assert told.ratio.low == change([before], [slow]).ratio.low
    assert change([before], [slow], pace=[1.1]).verdict == "slower"  # a faster machine explains nothing of it
    assert change([before], [same]).verdict == "same"
    assert change([before], [same], pace=[0.85]).verdict == "ambiguous"
    one, other = by_turns(np.zeros(20), np.full(20, -0.2))
    assert change([one], [other], pace=[0.8]).verdict == "slower"  # by turns it was the same machine


def test_blocks_that_the_result_does_not_trust():
    rng = np.random.default_rng(5)
    logs = 0.005 * rng.normal(size=BLOCKS)
    shaky = Measurement(
        KEY, True, tuple(1000 * np.exp(logs)), noise=Noise(False, 0.3, 0.0, ["half of the blocks differ"])
    )
    told = change([measured(logs + 0.3)], [shaky])
    assert told.verdict == "ambiguous"
    assert told.settle == "the blocks differ too much: measure on a quieter machine, or by turns"
    assert change([measured(logs + 0.3)], [measured(logs)]).verdict == "slower"


def test_what_would_settle_it():
    few = [measured(shift + 0.05 * np.array([-2, -1, 1, 0, 2, -1, 1, -2, 2])) for shift in (0.0, -0.14)]
    assert "times as many blocks: a larger --budget" in str(change([few[0]], [few[1]]).settle)
    quiet = 0.002 * np.random.default_rng(1).normal(size=(2, BLOCKS))
    assert "results of each side" in str(change([measured(quiet[0])], [measured(quiet[1] - 0.072)]).settle)
    edge = change([measured(quiet[0])], [measured(quiet[1] + math.log1p(-MARGIN))])
    assert edge.settle == "the change is about as large as the margin: another --margin than 0.05 tells"
    assert change([measured(np.zeros(1))], [measured(np.full(1, -0.5))]).verdict == "ambiguous"


def test_a_summary_without_blocks():
    def point(value, share):
        return Measurement(KEY, True, summary=Estimate(value, value * (1 - share), value * (1 + share)))

    assert change([point(100, 0.01)], [point(80, 0.01)]).verdict == "slower"
    assert change([point(100, 0.01)], [point(100, 0.01)]).verdict == "same"
    assert change([point(100, 0.2)], [point(80, 0.2)]).verdict == "ambiguous"


def test_the_margin():
    low = math.log(0.95)
    assert judged(low - 0.2, low - 0.001, 0.05) == "slower"
    assert judged(-low + 0.001, 1.0, 0.05) == "faster"
    assert judged(low + 0.001, -low - 0.001, 0.05) == "same"
    assert judged(low - 0.001, 0.0, 0.05) == "ambiguous"
    assert judged(low - 0.001, -low + 0.001, 0.05) == "ambiguous"
    rng = np.random.default_rng(2)
    before, after = [[measured(shift + 0.003 * rng.normal(size=BLOCKS))] for shift in (0.0, -0.1)]
    assert [change(before, after, margin=margin).verdict for margin in (0.02, 0.09, 0.3)] == [
        "slower",
        "ambiguous",
        "same",
    ]


def test_students_quantiles():
    """Of tables of the t distribution, two-sided, 95%."""
    for freedom, expected in ((1, 12.706), (2, 4.303), (4, 2.776), (10, 2.228), (30, 2.042), (1e6, 1.962)):
        assert quantile(freedom) == pytest.approx(expected, rel=2e-3)


def test_a_single_block_may_be_off_by_several_times_but_not_by_anything():
    told = change([measured(np.zeros(1))], [measured(np.full(BLOCKS, 0.1))])
    assert told.verdict == "ambiguous"
    assert 3 < told.ratio.high / told.ratio.value < 30

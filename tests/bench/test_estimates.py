"""Medians, ratios and their bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from bareconv.bench.estimates import is_steady, median, noise, ratio


def test_the_median_and_an_interval_around_it(rng):
    samples = rng.normal(100.0, 10.0, 101)
    estimate = median(samples.tolist())
    assert estimate.value == sorted(samples)[50]
    assert estimate.low < estimate.value < estimate.high
    # The median of n normal samples has a standard deviation of about 1.253 sigma / sqrt(n).
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * 1.253 * 10 / np.sqrt(101), rel=0.4)
    assert estimate.interval() == {"low": estimate.low, "high": estimate.high}


def test_an_interval_covers_as_often_as_it_says(rng):
    covered = 0
    for _ in range(200):
        estimate = median(rng.normal(5.0, 1.0, 25).tolist())
        covered += estimate.low <= 5.0 <= estimate.high
    assert covered >= 180  # of 190 to be expected


def test_an_outlier_moves_little():
    samples = [10.0, 10.1, 9.9, 10.05, 9.95, 10.02, 9.98]
    assert median([*samples, 0.01]).value == pytest.approx(median(samples).value, rel=0.01)


def test_one_sample_has_an_interval_of_no_width():
    estimate = median([3.0])
    assert (estimate.value, estimate.low, estimate.high) == (3.0, 3.0, 3.0)


def test_drift_that_both_share_is_no_uncertainty_of_the_ratio():
    drift = np.linspace(1.0, 3.0, 20)
    both = ratio((20 * drift).tolist(), (10 * drift).tolist())
    assert both.value == both.low == both.high == 2.0
    alone = median((20 * drift).tolist())
    assert alone.high > 1.2 * alone.low


def test_a_ratio_of_noisy_sides_and_one_sample_more(rng):
    above, below = rng.normal(30, 1, 40), rng.normal(20, 1, 41)
    estimate = ratio(above.tolist(), below.tolist())
    assert estimate.value == np.median(above) / np.median(below)
    assert estimate.low < 1.5 < estimate.high
    assert estimate.high - estimate.low < 0.2


def test_the_same_every_time():
    assert median([1.0, 2.0, 4.0, 8.0]) == median([1.0, 2.0, 4.0, 8.0])


def test_calm_rates_are_stable(rng):
    judged = noise(rng.normal(1000.0, 10.0, 40).tolist())
    assert judged.stable
    assert judged.remarks == []
    assert judged.spread == pytest.approx(1.35 * 0.01, rel=0.5)
    assert abs(judged.drift) < 0.01


@pytest.mark.parametrize(
    ("rates", "remark"),
    [
        ([1000.0] * 5, "5 blocks are too few to judge by"),
        ([1000.0, 1300.0] * 10, "half of the blocks differ by more than 26% of the median"),
        (np.linspace(1100, 950, 30).tolist(), "the later half is 7% slower than the earlier one"),
        (np.linspace(950, 1100, 30).tolist(), "the later half is 8% faster than the earlier one"),
        ([1000.0] * 26 + [600.0, 500.0, 400.0, 300.0], "4 of 30 blocks took more than 1.5 times as long"),
    ],
)
def test_noise_is_marked(rates, remark):
    judged = noise(rates)
    assert not judged.stable
    assert any(one.startswith(remark) for one in judged.remarks), judged.remarks


def test_noise_alone_is_seldom_called_drift(rng):
    found = [noise(rng.normal(1000.0, 50.0, 20).tolist()) for _ in range(200)]
    assert sum(not one.stable for one in found) <= 4


def test_steady():
    falling = [4.0, 3.0, 2.0, 1.5, 1.2, 1.1]
    assert not is_steady([1.0] * 5)  # too few to know
    assert is_steady([1.0] * 6)
    assert not is_steady(falling)
    assert is_steady([*falling, 1.05, 1.04, 1.03, 1.02, 1.02])
    assert is_steady([1.0, 1.0, 1.0, 1.0, 9.0, 1.0])  # one that was disturbed

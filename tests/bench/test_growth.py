"""Fits to curves whose formula is known, exactly and under noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bareconv.bench import growth

VALUES = (1, 4, 16, 64, 256, 1024)


def fit(points, powers=(1.0,)):
    """Of points enough for one."""
    found = growth.fit(points, powers)
    assert found is not None
    return found


def curve(seconds, noise=0.0, rng=None, samples=20):
    """Samples about ``seconds(value)``, whose median that is."""
    drawn = np.zeros((len(VALUES), samples)) if rng is None else rng.standard_normal((len(VALUES), samples))
    return {value: seconds(value) * np.exp(noise * row) for value, row in zip(VALUES, drawn, strict=True)}


@given(fixed=st.floats(1e-7, 1e-2), each=st.floats(1e-9, 1e-3), power=st.sampled_from([-1.0, 1.0, 1.6, 2.0]))
def test_what_follows_the_formula_is_found(fixed, each, power):
    found = fit(curve(lambda value: fixed + each * value**power, samples=3), [power])
    largest = fixed + each * max(value**power for value in VALUES)
    assert found.fixed.value == pytest.approx(fixed, rel=1e-6, abs=1e-9 * largest)
    assert found.each.value == pytest.approx(each, rel=1e-6, abs=1e-9 * largest)
    assert found.largest_error < 1e-6
    assert (found.power, found.seconds(64)) == (power, pytest.approx(fixed + each * 64**power))


def test_intervals_cover_as_often_as_they_say(rng):
    covered = np.zeros(2)
    for _ in range(100):
        found = fit(curve(lambda value: 41e-6 + 0.35e-6 * value, 0.05, rng))
        covered += [one.low <= true <= one.high for one, true in ((found.fixed, 41e-6), (found.each, 0.35e-6))]
    assert min(covered) >= 87  # of 95 to be expected; fewer in one of ten thousand runs


def test_small_points_count_as_much_as_large_ones():
    """By absolute errors the point at 1 would not matter at all."""
    points = {1: [1.2], 10: [10.0], 100: [100.0], 1000: [1000.0]}
    found = fit(points)
    assert 0.15 < found.fixed.value < 0.25
    assert found.seconds(1) == pytest.approx(1.2, rel=0.01)
    assert found.largest_error == max(abs(found.seconds(value) / points[value][0] - 1) for value in points)


@pytest.mark.parametrize("scale", [1e-6, 1.0])
def test_neither_part_is_negative(scale):
    falling = {1: [3 * scale], 2: [2 * scale], 3: [1 * scale]}
    found = fit(falling)
    assert (found.each.value, found.each.low, found.each.high) == (0, 0, 0)
    # The best constant by relative errors: sum(1/s) / sum(1/s^2).
    assert found.fixed.value == pytest.approx(scale * (1 / 3 + 1 / 2 + 1) / (1 / 9 + 1 / 4 + 1))
    steep = {1: [1 * scale], 2: [4 * scale], 3: [9 * scale]}
    found = fit(steep)
    assert found.fixed.value == 0
    assert found.each.value == pytest.approx(scale * (1 + 2 / 4 + 3 / 9) / (1 + 4 / 16 + 9 / 81))


def test_the_power_that_fits_best_is_taken(rng):
    powers = [number / 10 for number in range(10, 21)]
    found = fit(curve(lambda value: 1e-5 + 1e-6 * value**1.7, 0.01, rng), powers)
    assert found.power == pytest.approx(1.7, abs=0.11)
    few = {value: [1e-5 + 1e-6 * value**1.2] for value in VALUES[:3]}
    assert fit(few, powers).power == 2.0  # three points have no say


def test_too_few_points_have_no_fit():
    assert growth.fit({1.0: [1.0], 2.0: [2.0]}) is None
    assert growth.fit({}) is None


def test_the_same_every_time_in_whatever_order(rng):
    points = curve(lambda value: 1 + value, 0.1, rng)
    assert fit(points) == fit(dict(reversed(points.items())))


def test_as_a_result_has_it(rng):
    found = fit(curve(lambda value: 1 + value, 0.1, rng))
    entry = found.record("1 s + 1 s an image")
    assert entry.keys() == {"fixed_seconds", "each_seconds", "power", "largest_error", "text"}
    assert entry["fixed_seconds"] == {"value": found.fixed.value, "low": found.fixed.low, "high": found.fixed.high}

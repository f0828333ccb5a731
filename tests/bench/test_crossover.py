"""Curves whose crossings are known, exactly and under noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bareconv.bench import crossover

VALUES = (1, 4, 16, 64, 256, 1024)


def compare(first, second):
    """Two curves that share a point."""
    found = crossover.compare(first, second)
    assert found is not None
    return found


def flat(rate=1000.0, values=VALUES, samples=20):
    return {value: [rate] * samples for value in values}


def lead(leads, values=VALUES, samples=20):
    """A curve that is so many times as fast as ``flat`` at each value."""
    return {value: [1000.0 * one] * samples for value, one in zip(values, leads, strict=True)}


def noisy(rate, noise, rng, samples=20, values=VALUES):
    return {value: rate(value) * np.exp(noise * rng.standard_normal(samples)) for value in values}


def said(comparison):
    return comparison.text("the CPU", "the GPU", lambda value: f"{value:.0f}", lambda text: f"a batch size of {text}")


@given(true=st.floats(1.5, 700.0), slope=st.floats(0.1, 3.0))
def test_straight_lines_through_logarithms_cross_where_they_should(true, slope):
    rising = {value: [1000.0 * (value / true) ** slope] * 3 for value in VALUES}
    (one,) = compare(flat(samples=3), rising).crossings
    assert (one.ahead_below, one.ahead_above) == (0, 1)
    assert (one.value, one.low, one.high) == pytest.approx((true, true, true))
    (other,) = compare(rising, flat(samples=3)).crossings
    assert (other.ahead_below, other.ahead_above, other.value) == (1, 0, pytest.approx(true))


@settings(max_examples=20)
@given(factor=st.floats(1e-3, 1e3), stretch=st.floats(0.5, 100.0))
def test_units_do_not_matter(factor, stretch):
    rng = np.random.default_rng(5)
    first, second = noisy(lambda _: 1000.0, 0.1, rng), noisy(lambda value: 300 * math.sqrt(value), 0.1, rng)
    (one,) = compare(first, second).crossings
    faster = [{value * stretch: factor * rates for value, rates in curve.items()} for curve in (first, second)]
    (other,) = compare(*faster).crossings
    expected = [stretch * end for end in (one.value, one.low, one.high)]
    assert [other.value, other.low, other.high] == pytest.approx(expected)


def test_intervals_cover_as_often_as_they_say(rng):
    covered = 0
    for _ in range(100):
        cpu = noisy(lambda value: 1000 * value**0.3, 0.1, rng)
        gpu = noisy(lambda value: 1000 * value**0.3 * (value / 12) ** 0.5, 0.1, rng)
        (one,) = compare(cpu, gpu).crossings
        covered += one.low <= 12 <= one.high
        assert one.high / one.low < 2
    assert covered >= 87  # of 95 to be expected


def test_one_sentence(rng):
    cpu = noisy(lambda _: 1000.0, 0.3, rng)
    gpu = noisy(lambda value: 1000 * (value / 12) ** 0.5, 0.3, rng)
    compared = compare(cpu, gpu)
    (one,), (text,) = compared.crossings, said(compared)
    assert text == (f"the GPU overtakes the CPU at a batch size of {one.value:.0f} ({one.low:.0f} to {one.high:.0f})")
    assert 6 < one.low < one.value < one.high < 20


def test_several_crossings():
    compared = compare(flat(), lead([2, 2, 0.5, 0.5, 2, 2]))
    assert [(one.ahead_below, one.ahead_above) for one in compared.crossings] == [(1, 0), (0, 1)]
    # Halfway between the neighbours, by their logarithms.
    assert [one.value for one in compared.crossings] == pytest.approx([8, 128])
    assert said(compared) == [
        "the CPU overtakes the GPU at a batch size of 8",
        "the GPU overtakes the CPU at a batch size of 128",
    ]


def test_an_order_that_changes_by_chance_alone_is_one_crossing(rng):
    """About even in the middle: the medians' order goes to and fro there."""
    values = [2**n for n in range(12)]
    leads = [0.4, 0.6, 0.9, 1.003, 0.998, 1.002, 0.997, 1.001, 1.1, 1.5, 2, 3]
    for _ in range(10):
        first = noisy(lambda _: 1000.0, 0.05, rng, values=values)
        second = noisy(lambda value: 1000.0 * leads[values.index(value)], 0.05, rng, values=values)
        (one,) = compare(first, second).crossings
        assert (one.ahead_below, one.ahead_above) == (0, 1)
        assert 4 <= one.low <= one.value <= one.high <= 256
        assert one.low < 16 < one.high  # anywhere in there


def test_ahead_everywhere(rng):
    compared = compare(flat(), lead([2, 3, 1.8, 4, 5, 6]))
    (one,) = compared.crossings
    assert (one.ahead_below, one.ahead_above, one.value, one.low, one.high) == (1, 1, None, None, None)
    assert said(compared) == ["the GPU is ahead of the CPU at a batch size of 1 to 1024, by at least 1.80×"]
    assert compared.leads[16].value == pytest.approx(1 / 1.8)
    compared = compare(lead([2, 3, 1.8, 4, 5, 6]), flat())
    assert said(compared) == ["the CPU is ahead of the GPU at a batch size of 1 to 1024, by at least 1.80×"]


def test_even_at_one_point(rng):
    leads = dict(zip(VALUES, [2, 2, 1.0, 2, 2, 2], strict=True))
    compared = compare(noisy(lambda _: 1000.0, 0.1, rng), noisy(lambda value: 1000.0 * leads[value], 0.1, rng))
    (text,) = said(compared)
    assert text.startswith("the GPU is ahead of the CPU at a batch size of 1 to 1024, by at least 1.")
    assert text.endswith("but for 16, where they cannot be told apart")


def test_two_that_are_one(rng):
    for _ in range(20):
        compared = compare(noisy(lambda _: 1000.0, 0.1, rng), noisy(lambda _: 1000.0, 0.1, rng))
        (one,) = compared.crossings
        if compared.certain:  # of 120 points, one in twenty at most
            continue
        assert one.value is one.low is one.high is None
        assert said(compared)[0].endswith("cannot be told apart at a batch size of 1 to 1024")


def test_an_end_outside_of_what_was_measured(rng):
    """At the first point they are even: it may have been overtaken before."""
    leads = dict(zip(VALUES, [1.01, 2, 2, 3, 4, 4], strict=True))
    for sign, words in ((1, "perhaps below 1, the least that was measured"), (-1, "perhaps above 1024, the most")):
        places = dict(zip(VALUES, VALUES[::sign], strict=True))
        found = 0
        for _ in range(8):
            first = noisy(lambda _: 1000.0, 0.1, rng)
            second = noisy(lambda value, places=places: 1000.0 * leads[places[value]], 0.1, rng)
            compared = compare(first, second)
            (one,), (text,) = compared.crossings, said(compared)
            if one.value is None:
                assert text.endswith(f"but for {1 if sign > 0 else 1024}, where they cannot be told apart")
                continue
            assert (one.low if sign > 0 else one.high) is None
            assert words in text
            found += 1
        assert found


def test_what_both_have_is_compared():
    compared = compare(flat(values=(1, 2, 3)), flat(2000.0, values=(3, 4)))
    assert list(compared.leads) == [3]
    assert said(compared) == ["the GPU is ahead of the CPU at a batch size of 3, by at least 2.00×"]
    assert crossover.compare({1.0: [1.0]}, {2.0: [1.0]}) is None


def test_exactly_even_points():
    for leads, value in (([0.5, 1, 1, 2], 4.0), ([1, 2, 2, 2], None), ([1, 1, 1, 1], None)):
        (one,) = compare(flat(values=(1, 4, 16, 64)), lead(leads, values=(1, 4, 16, 64))).crossings
        assert one.value == (None if value is None else pytest.approx(value))


def test_disturbances_that_both_share_are_no_uncertainty(rng):
    shared = {value: np.exp(0.3 * rng.standard_normal(20)) for value in VALUES}
    first = {value: 1000 * noise for value, noise in shared.items()}
    second = {value: 1000 * (value / 12) ** 0.5 * noise for value, noise in shared.items()}
    (one,) = compare(first, second).crossings
    assert (one.low, one.high) == pytest.approx((12, 12))

"""What a sweep goes along: values from text, their order, what they change, how they are said."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bareconv import host
from bareconv.bench.axes import AXES, covering, parse
from bareconv.bench.estimates import Estimate
from bareconv.bench.growth import Fit
from bareconv.bench.interleave import our_candidate
from bareconv.bench.process import THREADS
from bareconv.bench.workload import Workload
from bareconv.errors import ShapeError, UsageError

BATCH, WIDTH = AXES["batch_size"], AXES["width"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2,4,...,4096", tuple(2**n for n in range(13))),
        ("3", (3,)),
        ("8, 2,2, 4", (2, 4, 8)),
        ("10,20,...,50", (10, 20, 30, 40, 50)),
        ("1,10,…,1e4", (1, 10, 100, 1000, 10000)),
        ("1,2,...,8,12,...,20", (1, 2, 4, 8, 12, 16, 20)),
        ("1_000,3_000", (1000, 3000)),
        ("1,2,...,4", (1, 2, 4)),
    ],
)
def test_values_of_text(text, values):
    assert parse(BATCH, text) == values


def test_dots_between_factors():
    assert parse(WIDTH, "0.25,0.5,...,8") == (0.25, 0.5, 1, 2, 4, 8)
    assert parse(WIDTH, "0.1,0.2,...,0.5") == pytest.approx((0.1, 0.2, 0.3, 0.4, 0.5))


@pytest.mark.parametrize(
    "text",
    [
        "1,...,8",
        "...,8",
        "1,2,...",
        "1,2,...,8,...,7",
        "2,1,...,8",
        "1,3,...,8",
        "1,2,...,...",
        "999999,1000000,...,2000001",
    ],
)
def test_dots_that_lead_nowhere(text):
    with pytest.raises(UsageError, match="expected two ascending values before the dots|expected numbers"):
        parse(BATCH, text)


@pytest.mark.parametrize("text", ["", "1,,2", "one", "0", "-2", "1.5", "inf", "nan"])
def test_what_is_no_value(text):
    with pytest.raises(UsageError, match="batch size .*: expected"):
        parse(BATCH, text)


@given(st.lists(st.integers(1, 10**6), unique=True, max_size=40))
def test_every_beginning_covers_the_range(values):
    order = covering(values)
    assert sorted(order) == sorted(values)
    places = [sorted(values).index(value) for value in order]
    assert places[:3] == [0, len(values) - 1, (len(values) - 1) // 2][: len(values)]
    for size in range(2, len(places)):  # no gap is more than some four times another that is not filled yet
        there = sorted(places[:size])
        gaps = [after - before for before, after in itertools.pairwise(there)]
        assert max(gaps) <= 4 * max(1, math.ceil(len(values) / (size - 1)))


def test_what_a_value_changes():
    work = Workload("lenet5", (28, 28, 1), batch_size=64, threads=1)
    assert BATCH.at(work, 32.0) == Workload("lenet5", (28, 28, 1), batch_size=32, threads=1)
    assert AXES["image_size"].at(work, 20.0).image_shape == (20, 20, 1)
    assert AXES["images"].at(work, 1e5).images == 100_000
    assert AXES["threads"].at(work, 2.0).threads == 2
    wide = WIDTH.at(work, 0.5)
    assert wide.network().parameters()["conv1.weight"].shape == (5, 5, 1, 3)
    with pytest.raises(ShapeError, match="layer"):
        AXES["image_size"].at(work, 4)
    with pytest.raises(UsageError, match="number of threads 0.5: expected a whole number"):
        AXES["threads"].at(work, 0.5)


def test_a_candidate_gets_the_threads():
    candidate = our_candidate("reference", "cpu", 1)
    there = AXES["threads"].candidate(candidate, 3.0)
    assert {there.environment[name] for name in THREADS} == {"3"}
    assert {candidate.environment[name] for name in THREADS} == {"1"}
    assert BATCH.candidate(candidate, 3.0) is candidate


def test_threads_double_up_to_all_cores():
    values = AXES["threads"].values
    assert (values[0], values[-1]) == (1, host.allowed_cores())
    assert all(after <= 2 * before for before, after in itertools.pairwise(values))


def test_every_axis_can_be_measured_as_it_comes():
    for axis in AXES.values():
        assert parse(axis, ",".join(f"{value:g}" for value in axis.values)) == axis.values
        for model in ("basic", "lenet5", "small"):
            assert axis.at(Workload(model, (28, 28, 1)), min(axis.values)).network().output_shape == (10,)


def sure(value):
    return Estimate(value, value, value)


@pytest.mark.parametrize(
    ("axis", "fixed", "each", "power", "words"),
    [
        ("batch_size", 41e-6, 0.35e-6, 1.0, "41.0 µs + 350 ns an image"),
        ("batch_size", 0.0, 2e-3, 1.0, "2.00 ms an image"),
        ("batch_size", 3e-5, 0.0, 1.0, "30.0 µs, whatever the batch size"),
        ("image_size", 1e-3, 1e-6, 2.0, "1.00 ms + 1.00 µs a pixel of each image"),
        ("width", 1e-3, 2e-3, 1.6, "1.00 ms + 2.00 ms × width^1.6"),
        ("width", 1e-3, 2e-3, 2.0, "1.00 ms + 2.00 ms × width²"),
        ("width", 1e-3, 2e-3, 1.0, "1.00 ms + 2.00 ms × width"),
        ("images", 1e-3, 2e-9, 1.0, "1.00 ms + 2.00 ns for each image of the data set"),
        ("threads", 1e-3, 8e-3, -1.0, "1.00 ms + 8.00 ms / threads"),
    ],
)
def test_a_formula_in_words(axis, fixed, each, power, words):
    assert AXES[axis].formula(Fit(sure(fixed), sure(each), power, 0.0)) == words


def test_a_value_in_words():
    assert [BATCH.said(value) for value in (0.4, 1, 11.6, 4096)] == ["1", "1", "12", "4,096"]
    assert [WIDTH.said(value) for value in (0.25, 1, 1.4142, 8, 0.125)] == ["0.25", "1", "1.4", "8", "0.125"]
    assert AXES["images"].in_a_sentence(AXES["images"].said(1e7)) == "10,000,000 images"
    assert BATCH.in_a_sentence("12") == "a batch size of 12"

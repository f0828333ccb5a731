"""Accuracy over time as a report tells it: which goal the candidates are compared at, and when each reached it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bareconv.report.lessons import goal, seconds_to


def learner(*accuracy: float, ours: bool = False) -> dict[str, Any]:
    return {"ours": ours, "seconds": [float(i + 1) for i in range(len(accuracy))], "accuracy": list(accuracy)}


def test_when_an_accuracy_was_reached() -> None:
    looks = {"seconds": [0.0, 1.0, 2.0, 4.0], "accuracy": [0.99, 0.9, 0.96, 0.99]}
    assert seconds_to(looks, 0.9) == 1.0  # at 0 s nothing was trained: that is no figure
    assert seconds_to(looks, 0.96) == pytest.approx(2.0)
    # From 4% of errors after 2 s to 1% after 4 s: 2% lie in the middle, on logarithmic axes.
    assert seconds_to(looks, 0.98) == pytest.approx(math.sqrt(8))
    assert seconds_to(looks, 0.995) is None
    assert seconds_to(looks, None) is None
    assert seconds_to({"seconds": [], "accuracy": []}, 0.5) is None


def test_no_errors_at_all() -> None:
    assert seconds_to({"seconds": [1.0, 2.0], "accuracy": [0.5, 1.0]}, 0.9) == 2.0


def test_who_fell_back_had_reached_it() -> None:
    assert seconds_to({"seconds": [1.0, 2.0, 3.0], "accuracy": [0.5, 0.98, 0.97]}, 0.98) == pytest.approx(2.0)


def test_looking_less_often_makes_nobody_slower() -> None:
    """Two that learn alike: errors that halve whenever the time doubles."""
    often = {"seconds": [1.0, 2.0, 4.0, 8.0, 16.0], "accuracy": [1 - 0.4 / s for s in (1, 2, 4, 8, 16)]}
    seldom = {"seconds": [1.0, 16.0], "accuracy": [1 - 0.4, 1 - 0.4 / 16]}
    assert seconds_to(often, 0.95) == pytest.approx(8.0)
    assert seconds_to(seldom, 0.95) == pytest.approx(8.0)


def test_the_goal_is_the_highest_that_ours_and_another_reached() -> None:
    ours, near, far = learner(0.5, 0.987, ours=True), learner(0.5, 0.972), learner(0.5, 0.83)
    assert goal([{"candidates": [ours]}]) == 0.985
    assert goal([{"candidates": [ours, near]}]) == 0.97
    assert goal([{"candidates": [ours, near, far]}]) == 0.97
    assert goal([{"candidates": [learner(0.9, ours=True), near, far]}]) == 0.9
    assert goal([{"candidates": [ours, near]}, {"candidates": [near, far]}]) == 0.97  # on another device
    assert goal([{"candidates": [ours, learner()]}]) == 0.985  # who has learned nothing does not count
    assert goal([{"candidates": [near, far]}]) is None  # none of ours
    assert goal([{"candidates": [learner(0.1, ours=True)]}]) is None
    assert goal([]) is None

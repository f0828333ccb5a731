"""A deadline, on a clock that is set by hand."""

import pytest

from bareconv.bench.deadline import Deadline
from bareconv.errors import UsageError


def test_the_time_that_is_left_and_shares_of_it():
    now = [100.0]
    whole = Deadline.after(10.0, lambda: now[0])
    half = whole.part(0.5)
    assert (whole.left, half.left, whole.passed) == (10.0, 5.0, False)
    now[0] = 106.0
    assert (whole.left, half.left, half.passed) == (4.0, 0.0, True)
    assert whole.part(0.25).at == 107.0
    now[0] = 110.0
    assert whole.passed
    assert whole.part(0.5).at == 110.0


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(UsageError, match="budget 0: expected more than 0 seconds"):
        Deadline.after(0)

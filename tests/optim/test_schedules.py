"""Schedules: both ends, the warm-up's seam, drops on the right step, and PyTorch's where it has the same."""

from __future__ import annotations

import itertools
import json
import math

import pytest

from bareconv.errors import UsageError
from bareconv.optim import SCHEDULES, Constant, Cosine, OneCycle, Step, schedule_from_config, schedule_from_name

LENGTHS = [1, 2, 3, 4, 5, 7, 10, 100, 1173]


def rates(schedule, total):
    return [schedule.rate(step, total) for step in range(total)]


@pytest.mark.parametrize("total", LENGTHS)
def test_both_ends(total):
    for schedule in (Constant(), Step(), Cosine(), Cosine(final=0.1), OneCycle(warmup=0)):
        assert schedule.rate(0, total) == 1.0, schedule
    if total > 1:
        assert Constant().rate(total - 1, total) == 1.0
        assert Cosine().rate(total - 1, total) == 0.0
        assert Cosine(final=0.1).rate(total - 1, total) == 0.1
        assert OneCycle().rate(total - 1, total) == 1e-4
        assert OneCycle(warmup=0, final=0.2).rate(total - 1, total) == 0.2
    if total > 2:
        assert OneCycle().rate(0, total) == 1 / 25


@pytest.mark.parametrize("total", LENGTHS)
@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.3, 0.99])
def test_stays_within_bounds_and_has_its_peak(name, warmup, total):
    found = rates(schedule_from_name(name, warmup=warmup), total)
    assert all(0 <= rate <= 1 for rate in found)
    assert max(found) == 1.0  # the base rate is reached, so that "lr" means what it says
    if total == 1:
        assert found == [1.0]


def test_warmup_rises_linearly_and_meets_the_curve_without_a_step():
    assert rates(Constant(warmup=0.4), 10) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1])
    found = rates(Cosine(warmup=0.4), 10)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[4:] == rates(Cosine(), 6)
    assert found[-1] == 0.0
    assert rates(Step(every=0.5, warmup=0.5), 8) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 0.1, 0.1])


@pytest.mark.parametrize("total", [3, 10, 30, 99, 100, 101, 1173])
@pytest.mark.parametrize("parts", [2, 3, 4, 7, 10])
def test_step_drops_at_the_nearest_step_and_not_once_more_at_the_end(parts, total):
    found = rates(Step(every=1 / parts, gamma=0.5), total)
    if total >= parts:
        for part in range(1, parts):
            boundary = part * total / parts
            assert found[math.floor(boundary - 0.501)] >= 0.5 ** (part - 1) * 0.999
            assert found[min(math.ceil(boundary + 0.501), total - 1)] <= 0.5**part * 1.001
        assert found[-1] == 0.5 ** (parts - 1)


def test_step_by_hand():
    assert rates(Step(every=0.5), 6) == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1])
    assert rates(Step(every=1 / 3, gamma=0.5), 9) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert rates(Step(every=1 / 3, gamma=0.5), 10) == [1] * 3 + [0.5] * 4 + [0.25] * 3  # at 3.3 and 6.7
    assert Step(every=0.55).rate(55, 100) == pytest.approx(0.1)  # 0.55 * 100 is 55.00000000000001
    assert rates(Step(every=1.0), 5) == [1] * 5


def test_cosine_by_hand():
    assert rates(Cosine(), 5) == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0])
    assert rates(Cosine(final=0.2), 3) == pytest.approx([1, 0.6, 0.2])


def test_one_cycle_by_hand():
    found = rates(OneCycle(warmup=0.5, start=0.1, final=0.0, shape="linear"), 8)  # peak: the last of 4 steps, step 3
    assert found == pytest.approx([0.1, 0.4, 0.7, 1.0, 0.75, 0.5, 0.25, 0.0])
    found = rates(OneCycle(warmup=0.25, start=0.2, final=0.0), 20)
    assert found[4] == 1.0
    assert found[2] == pytest.approx(0.6)
    assert all(a < b for a, b in itertools.pairwise(found[:5]))
    assert all(a > b for a, b in itertools.pairwise(found[4:]))


@pytest.mark.parametrize("step", [-1, 10, 11])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_refuses_a_step_outside(name, step):
    with pytest.raises(UsageError, match=f"expected a step from 0 to 9; got {step}"):
        schedule_from_name(name).rate(step, 10)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "cosine", "final": 1.5}, "Cosine: final must be a number, at least 0 and at most 1; got 1.5"),
        ({"type": "step", "every": 0}, "Step: every must be a number, above 0 and at most 1; got 0"),
        ({"type": "step", "gamma": -1}, "Step: gamma must be a number, above 0 and at most 1; got -1"),
        ({"type": "constant", "warmup": 1}, "Constant: warmup must be a number, at least 0 and below 1; got 1"),
        ({"type": "one-cycle", "shape": "square"}, "OneCycle: shape must be cosine or linear; got 'square'"),
        ({"type": "linear"}, "schedule 'linear': expected one of constant, step, cosine, one-cycle"),
        ({"type": "cosine", "gamma": 1}, "schedule cosine: expected final, warmup; got gamma"),
    ],
)
def test_bad_settings_are_named(config, message):
    with pytest.raises(UsageError) as caught:
        schedule_from_config(config)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["constant", "step", "cosine", "one-cycle", "OneCycle", "one_cycle"])
def test_config_builds_the_same_again(name):
    made = schedule_from_name(name, warmup=0.2)
    again = schedule_from_config(json.loads(json.dumps(made.config())))
    assert type(again) is type(made)
    assert rates(again, 50) == rates(made, 50)
    assert repr(again) == repr(made)


def torch_rates(make, total):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch==2.13.0")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    scheduler, found = make(torch.optim.lr_scheduler, optimizer), []
    for step in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < total - 1:
            scheduler.step()
    return found


@pytest.mark.parametrize("total", [2, 5, 100])
def test_cosine_equals_pytorchs(total):
    expected = torch_rates(lambda s, o: s.CosineAnnealingLR(o, T_max=total - 1, eta_min=0.1), total)
    assert rates(Cosine(final=0.1), total) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("total", [8, 40, 400])
@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_one_cycle_equals_pytorchs(shape, total):
    expected = torch_rates(
        lambda s, o: s.OneCycleLR(
            o,
            max_lr=1.0,
            total_steps=total,
            pct_start=0.25,
            div_factor=25,
            final_div_factor=400,
            anneal_strategy="cos" if shape == "cosine" else "linear",
        ),
        total,
    )
    assert rates(OneCycle(final=1 / 10_000, shape=shape), total) == pytest.approx(expected, abs=1e-12)


def test_step_equals_pytorchs():
    expected = torch_rates(lambda s, o: s.StepLR(o, step_size=30, gamma=0.3), 90)
    assert rates(Step(every=1 / 3, gamma=0.3), 90) == pytest.approx(expected, rel=1e-12)

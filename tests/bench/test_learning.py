"""Accuracy over time: when it is looked at, what the clock counts, what ends it; stand-ins, and a real training."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from bench_stand_ins import LOSSES, QUICK, stand_in

from bareconv.bench import results
from bareconv.bench.deadline import Deadline
from bareconv.bench.environment import describe
from bareconv.bench.interleave import Listener, Side, our_candidate
from bareconv.bench.learning import EPOCHS, measure_learning, next_look, points, share
from bareconv.bench.workload import Workload
from bareconv.errors import BareconvError

WORK = Workload("mlp", (6, 6, 1), batch_size=32)  # 2,048 drawn images: 64 steps an epoch


def learned(*candidates, seconds=20.0, ready=()):
    found = measure_learning(WORK, candidates, Deadline.after(seconds), Listener(), limits=QUICK, ready=ready)
    results.validate(results.new("it", {}, learning=[found], environment=describe()))
    return found


def test_it_is_looked_at_soon_and_then_less_often():
    looks = points(937)
    assert looks == sorted(set(looks))
    assert looks[0] == 9
    assert looks[-1] == EPOCHS * 937
    gaps = [after - before for before, after in pairwise(looks)]
    assert gaps[0] < 20
    assert max(gaps) <= 469
    assert points(3)[0] == len(LOSSES)  # not before the first losses were compared


def test_curves_of_all_from_the_same_steps():
    quick, slow = learned(stand_in("plan", ours=True, step=0.001), stand_in("peer", step=0.002))["candidates"]
    assert (quick["ours"], slow["ours"]) == (True, False)
    for one in (quick, slow):
        assert set(one["steps"]) <= set(points(64))
        assert (one["steps"][0], one["steps"][-1]) == (points(64)[0], points(64)[-1])
    assert quick["accuracy"] == pytest.approx([1 - 1 / steps for steps in quick["steps"]])
    for one, step in ((quick, 0.001), (slow, 0.002)):
        assert one["error"] is None
        # The clock begins after the first steps, in which a library gets ready.
        assert one["seconds"] == pytest.approx([step * (steps - len(LOSSES)) for steps in one["steps"]])


def test_who_is_slow_at_it_looks_less_often():
    looks = [10, 20, 50, 100]
    assert next_look(looks, 5, 0.1, 0.0, 60.0) == 10  # how long a look takes is not known yet
    assert next_look(looks[1:], 10, 0.1, 0.1, 60.0) == 20
    assert next_look(looks[1:], 10, 0.1, 2.0, 60.0) == 50  # before 20 there is 1 s of training
    assert next_look(looks[1:], 10, 0.1, 4.0, 9.0) == 50  # for 100, which would be worth it, there is no time
    assert next_look(looks[1:], 10, 0.1, 40.0, 44.5) == 50  # none is worth it: the last that there is time for
    assert next_look(looks[1:], 10, 0.1, 1.0, 1.5) is None
    assert next_look(looks, 5, 0.001, 1.0, 60.0) == 10  # there is so much time that a look is nothing
    assert next_look([], 100, 0.1, 1.0, 60.0) is None


def test_each_has_its_share_of_the_time():
    begun = time.monotonic()
    first, second = learned(stand_in("plan", ours=True, step=0.02), stand_in("peer", step=0.02), seconds=3.0)[
        "candidates"
    ]
    assert time.monotonic() - begun < 4.5
    for one in (first, second):
        assert one["error"] is None
        assert 0 < one["steps"][-1] < EPOCHS * 64


def test_who_comes_first_has_more_of_the_time():
    assert [share(place, 1, 4) for place in range(4)] == [3 / 8, 3 / 5, 1 / 2, 1]
    assert share(1, 2, 4) == 4 / 5
    assert share(0, 1, 1) == 1


def test_who_computes_something_else_has_no_curve():
    wrong = stand_in("wrong", losses=[1.2 * loss for loss in LOSSES])
    dying = stand_in("dying", "die at accuracy")
    ours, other, ended = learned(stand_in("plan", ours=True), wrong, dying)["candidates"]
    assert ours["steps"]
    assert other["steps"] == ended["steps"] == []
    assert "it computes something else" in other["error"]
    assert "something broke" in ended["error"]


def test_who_is_ready_begins_again_in_its_process(tmp_path):
    WORK.write(tmp_path)
    ours, peer, dead = (stand_in(name, ours=name == "plan") for name in ("plan", "peer", "dead"))
    ready = [Side(one, tmp_path, QUICK) for one in (peer, ours, dead)]
    for side in ready:
        side.prepare(len(LOSSES), 0.0, lambda: False)
        side.run(0.05)
    ready[2].fail(BareconvError("it ended"))
    workers = [side._worker for side in ready[:2]]
    found = learned(ours, peer, stand_in("new"), dead, ready=ready)["candidates"]
    assert [one["name"] for one in found] == ["plan", "peer", "new", "dead"]
    for one in found:
        assert one["error"] is None
        # From the first weights again: the steps that were measured before do not count.
        assert one["accuracy"] == pytest.approx([1 - 1 / steps for steps in one["steps"]])
    assert all(worker is not None and worker.process.poll() is not None for worker in workers)
    assert [len(side.samples.seconds) > 1 for side in ready] == [True, True, False]  # they learned, and not new ones


def test_who_cannot_begin_again_has_no_curve(tmp_path):
    WORK.write(tmp_path)
    broken, ours = Side(stand_in("broken", "cannot restart"), tmp_path, QUICK), stand_in("plan", ours=True)
    broken.prepare(len(LOSSES), 0.0, lambda: False)
    first, second = learned(ours, broken.candidate, ready=[broken])["candidates"]
    assert first["error"] is None
    assert second["error"] == "layer type Twist has no counterpart here"


def test_who_has_no_time_to_begin_again(tmp_path):
    WORK.write(tmp_path)
    ours, slow = stand_in("plan", ours=True), Side(stand_in("slow", "hang at restart"), tmp_path, QUICK)
    slow.prepare(len(LOSSES), 0.0, lambda: False)
    _, second = learned(ours, slow.candidate, ready=[slow], seconds=2.0)["candidates"]
    assert second["error"] == "the time was up before it could begin again"


def test_a_real_training_learns():
    work = Workload("mlp", (28, 28, 1), batch_size=512, lr=0.05)
    candidates = [our_candidate(name, "cpu", 1) for name in ("plan", "reference")]
    found = measure_learning(work, candidates, Deadline.after(60.0), Listener())
    assert found["test_images"] == 10_000
    plan, reference = found["candidates"]
    for one in (plan, reference):
        assert one["error"] is None
        assert one["accuracy"][-1] >= 0.8
        assert one["seconds"] == sorted(one["seconds"])
    own, other = (dict(zip(one["steps"], one["accuracy"], strict=True)) for one in (plan, reference))
    shared = own.keys() & other.keys()
    assert len(shared) >= 3
    for steps in shared:
        assert own[steps] == pytest.approx(other[steps], abs=0.003)

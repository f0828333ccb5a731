"""Many steps at once: the numbers of one after another, whatever the windows, and a device that never waits."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import gpu_stand_in
import numpy as np
import pytest

from bareconv import optim
from bareconv.errors import NotFiniteError
from bareconv.optim import SGD, Adam
from bareconv.training import CudaPlanEngine, Settings, Trainer, loop
from bareconv.training.checkpoint import load, save


@pytest.fixture
def gpu(monkeypatch):
    """A stand-in for a GPU, on which the engine "plan" is the CUDA plan's."""
    return gpu_stand_in.install(monkeypatch)


def trainer_of(make_model, data, device, optimizer=None, **settings):
    wanted = Settings(**{"batch_size": 16, "seed": 3, "engine": "plan", **settings})
    trainer = Trainer(make_model(), data, optimizer or SGD(0.05, momentum=0.9), wanted, device)
    assert isinstance(trainer.engine, CudaPlanEngine) == (trainer.settings.engine == "plan")
    return trainer


def plainly(make_model, data, optimizer=None, **settings):
    """The same training, step by step."""
    trainer = trainer_of(make_model, data, "cpu", optimizer, **settings, engine="reference")
    trainer.run()
    return trainer


def timeless(history):
    epochs = [dataclasses.replace(epoch, train_seconds=0.0) for epoch in history.epochs]
    return history.loss, history.correct, epochs


def assert_same_state(ours, theirs):
    for part in ("model", "optimizer"):
        state, expected = getattr(ours, part).state(), getattr(theirs, part).state()
        assert state.keys() == expected.keys()
        for key, value in state.items():
            np.testing.assert_array_equal(value, expected[key], key)
    assert ours.optimizer.step == theirs.optimizer.step


class Clock:
    """Stands in for ``time``: a step takes ``seconds``, all else nothing. A window's steps are done when it is read."""

    def __init__(self, gpu, seconds):
        self.gpu, self.seconds, self.now, self.seen = gpu, seconds, 0.0, 0

    def perf_counter(self):
        for what, *more in self.gpu.log[self.seen :]:
            if what == "read":
                self.now += more[0] * self.seconds
        self.seen = len(self.gpu.log)
        return self.now


@pytest.fixture
def timed(gpu, monkeypatch):
    """``timed(seconds)``: from now on a step takes so long."""

    def let(seconds):
        clock = Clock(gpu, seconds)
        monkeypatch.setattr(loop, "time", clock)
        return clock

    return let


def launches(gpu):
    return [(first, count) for what, first, count in (entry for entry in gpu.log if entry[0] == "launch")]


@pytest.mark.parametrize("seconds", [1e-9, 0.004, 0.02, 5.0])
@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 3},
        {"epochs": 5, "evaluate_every": 2},
        {"batch_size": 1, "epochs": 2},
        {"batch_size": 103, "epochs": 23, "evaluate_every": 5},
        {"batch_size": 200, "epochs": 7},
        {"label_smoothing": 0.2, "clip_norm": 0.5},
    ],
    ids=str,
)
def test_the_numbers_are_those_of_single_steps(make_model, squares, gpu, timed, seconds, settings):
    timed(seconds)
    ours = trainer_of(make_model, squares, gpu, **settings)
    told: list[Any] = []
    ours.run(on_epoch=told.append)
    theirs = plainly(make_model, squares, **settings)
    assert timeless(ours.history) == timeless(theirs.history)
    assert told == ours.history.epochs
    assert_same_state(ours, theirs)
    assert ours.evaluation is not None
    np.testing.assert_array_equal(ours.evaluation.predicted, theirs.evaluation.predicted)


def test_windows_grow(make_model, squares, gpu, timed):
    """1, 4, 16, ...: two of each, for the next is under way when the first of a size is read; never over an epoch."""
    timed(1e-6)
    trainer_of(make_model, squares, gpu, batch_size=1, epochs=3).run()
    assert launches(gpu)[:8] == [(0, 1), (1, 1), (2, 4), (6, 4), (10, 16), (26, 16), (42, 61), (103, 103)]
    assert launches(gpu)[8:] == [(206, 103)]


def test_windows_take_no_longer_than_they_should(make_model, squares, gpu, timed):
    """Steps of 20 ms: five of them; of 5 s: one."""
    for seconds, most in ((0.02, 5), (5.0, 1)):
        gpu.log.clear()
        timed(seconds)
        trainer_of(make_model, squares, gpu, batch_size=1, epochs=1).run()
        assert max(count for _, count in launches(gpu)) == most


def test_the_device_has_always_something_to_do(make_model, squares, gpu, timed):
    """A window is read when the next one is launched, until the end of the epoch."""
    timed(0.02)
    trainer_of(make_model, dataclasses.replace(squares, test=None), gpu, batch_size=1).run()
    log = [entry for entry in gpu.log if entry[0] in ("launch", "read")]
    under_way = list(itertools.accumulate(1 if what == "launch" else -1 for what, *_ in log))
    assert under_way[:-2] == [1, *itertools.islice(itertools.cycle([2, 1]), len(log) - 3)]
    assert under_way[-2:] == [1, 0]


def test_epochs_of_one_step_share_windows(make_model, squares, gpu, timed):
    """Nothing is waited for between them but where they are evaluated; the time is shared out evenly."""
    timed(0.0001)
    trainer = trainer_of(make_model, squares, gpu, batch_size=103, epochs=50, evaluate_every=20)
    told: list[Any] = []
    history = trainer.run(on_epoch=lambda record: told.append((record.epoch, history_of(trainer))))
    assert launches(gpu)[:4] == [(0, 1), (1, 1), (2, 4), (6, 4)]
    assert launches(gpu)[4:] == [(10, 10), (20, 20), (40, 10)]
    assert [epoch.test_loss is not None for epoch in history.epochs].count(True) == 3
    assert [epoch.epoch for epoch in history.epochs if epoch.test_loss is not None] == [20, 40, 50]
    assert [epoch.train_seconds for epoch in history.epochs] == pytest.approx([0.0001] * 50)
    assert history.train_seconds == pytest.approx(0.005)
    # Whoever is told finds a history and a model of one moment: those of the last epoch before the pause.
    assert told == [(epoch, min(50, -(-epoch // 20) * 20)) for epoch in range(1, 51)]


def history_of(trainer):
    assert trainer.history.iterations == trainer.optimizer.step == len(trainer.history.epochs)
    return trainer.history.iterations


def test_epochs_of_one_step_are_told_of_every_second(make_model, squares, gpu, timed):
    """Steps of 0.3 s that are never evaluated: a checkpoint must not wait for the end of them."""
    timed(0.3)
    trainer = trainer_of(make_model, dataclasses.replace(squares, test=None), gpu, batch_size=103, epochs=20)
    told: list[Any] = []
    trainer.run(on_epoch=lambda record: told.append((record.epoch, history_of(trainer))))
    assert [epoch for epoch, _ in told] == list(range(1, 21))
    pauses = sorted({there for _, there in told})
    assert pauses == [5, 10, 15, 20]


@pytest.mark.parametrize("asked", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("size", [1, 16, 103])
def test_a_stop_is_at_a_windows_end(make_model, squares, gpu, timed, asked, size, tmp_path):
    """What was launched counts; a resumed training ends as the unbroken one."""
    timed(0.02)
    settings = {"batch_size": size, "epochs": 4, "evaluate_every": 3}
    unbroken = plainly(make_model, squares, **settings)
    trainer = trainer_of(make_model, squares, gpu, **settings)
    calls = itertools.count(1)
    told: list[Any] = []
    history = trainer.run(told.append, should_stop=lambda: next(calls) >= asked)
    assert history.stopped == (trainer.step < trainer.total_steps)
    assert history.loss == unbroken.history.loss[: trainer.step]
    assert trainer.optimizer.step == trainer.step
    assert told[-1].step == trainer.step
    save(tmp_path / "half.safetensors", trainer)
    resumed = load(tmp_path / "half.safetensors").resume(squares, gpu)
    resumed.run()
    assert timeless(resumed.history) == timeless(unbroken.history)
    assert_same_state(resumed, unbroken)
    trainer.run()
    assert timeless(history) == timeless(unbroken.history)


def test_progress(make_model, squares, gpu, timed):
    timed(0.05)
    told: list[Any] = []
    history = trainer_of(make_model, squares, gpu, batch_size=4, epochs=2).run(told.append)
    assert told[-1].step == 52
    assert told[-1].seconds_left == 0
    assert [progress.epoch for progress in told] == sorted(progress.epoch for progress in told)
    assert {progress.step for progress in told} >= {26, 52}
    assert told[-1].loss == pytest.approx(history.epochs[-1].train_loss)


def planting(optimizer, name, at, value=np.inf):
    """An optimizer whose update before step ``at`` leaves ``value`` in a parameter."""
    update = optimizer.update

    def planted(params, grads, lr):
        update(params, grads, lr)
        if optimizer.step == at:
            params[name].flat[0] = value

    optimizer.update = planted
    return optimizer


@pytest.mark.parametrize("seconds", [1e-9, 0.02])
@pytest.mark.parametrize("at", [1, 2, 5, 6, 7, 63, 64, 65, 70, 102, 103, 104, 170, 207])
@pytest.mark.parametrize("size", [1, 16, 103])
def test_the_step_that_was_not_finite_is_named(make_model, squares, gpu, timed, seconds, at, size):
    """Whether it is the window before the last snapshot or after it, and whatever was under way behind it."""
    timed(seconds)
    optimizer = planting(Adam(0.001), "dense1.bias", at=at)
    data = dataclasses.replace(squares, test=None)
    trainer = trainer_of(make_model, data, gpu, optimizer, epochs=300, batch_size=size)
    with pytest.raises(NotFiniteError) as caught:
        trainer.run()
    assert (caught.value.step, caught.value.layer) == (at, "dense1")
    assert optimizer.step == at
    assert np.isfinite(trainer.history.loss).all()


def test_many_steps_without_reading_them(make_model, squares, gpu):
    """As a measurement takes them: over epochs, each with its own order; arrays on the device come back."""
    ours = trainer_of(make_model, squares, gpu, epochs=3, schedule=optim.Constant())
    theirs = plainly(make_model, squares, epochs=3, schedule=optim.Constant())
    gpu.log.clear()
    losses, hits = ours.take_steps(0, 5)
    more, _ = ours.take_steps(5, 16)
    assert launches(gpu) == [(0, 5), (5, 2), (7, 7), (14, 7)]
    assert all(what == "launch" for what, *_ in gpu.log)
    assert [*losses.tolist(), *more.tolist()] == theirs.history.loss
    assert hits.tolist() == theirs.history.correct[:5]


def test_the_next_order_is_drawn_while_the_device_works(make_model, squares, gpu, timed, monkeypatch):
    timed(1e-9)
    drawn: list[Any] = []
    order = Trainer.order

    def watched(self, epoch):
        drawn.append((epoch, sum(entry[0] == "read" for entry in gpu.log)))
        return order(self, epoch)

    monkeypatch.setattr(Trainer, "order", watched)
    trainer_of(make_model, squares, gpu, epochs=4).run()
    assert [epoch for epoch, _ in drawn] == [0, 1, 2, 3]
    ends = list(itertools.accumulate(sum(1 for first, _ in launches(gpu) if first // 7 == epoch) for epoch in range(4)))
    for epoch, read in drawn[1:]:
        assert read < ends[epoch - 1]  # before the last window of the epoch before was read


def test_what_only_the_first_steps_do_is_done_before_the_clock_starts(make_model, squares, gpu, timed):
    """At a rate of 0, and undone: parameters, running statistics and the optimizer are where they were."""
    timed(1e-6)
    trainer = trainer_of(make_model, squares, gpu, Adam(0.01), epochs=2)
    before = {key: value.copy() for key, value in trainer.model.state().items()}
    trainer._rehearse()
    assert gpu.log.count(("rehearse", 0, 1)) == 2
    assert ("rehearse", 0, 7) in gpu.log
    assert launches(gpu) == []
    for key, value in trainer.model.state().items():
        np.testing.assert_array_equal(value, before[key], key)
    assert trainer.optimizer.step == 0
    assert trainer.optimizer.state() == {}
    history = trainer.run()
    assert sum(what == "rehearse" for what, *_ in gpu.log) == 3
    assert timeless(history) == timeless(plainly(make_model, squares, Adam(0.01), epochs=2).history)


def test_slow_steps_are_rehearsed_one_by_one(make_model, squares, gpu, monkeypatch):
    ticks = itertools.count(0.0, 0.5)
    monkeypatch.setattr("bareconv.training.loop.time.perf_counter", lambda: next(ticks))
    trainer = trainer_of(make_model, squares, gpu)
    trainer._rehearse()
    assert [entry for entry in gpu.log if entry[0] == "rehearse"] == [("rehearse", 0, 1)] * 2

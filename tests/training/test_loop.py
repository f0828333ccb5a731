"""The loop: its order, its arithmetic against a few lines of NumPy, its figures, its interruptions, its errors."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from bareconv import nn, ops, optim
from bareconv.data import Dataset, Split
from bareconv.device import CpuDevice
from bareconv.errors import BareconvError, UsageError
from bareconv.nn import models
from bareconv.optim import SGD, Adam, Constant
from bareconv.training import ReferenceEngine, Settings, Trainer, evaluate, loop, train


def trainer_of(make_model, data, device="cpu", optimizer=None, seed=3, **settings):
    wanted = Settings(**{"batch_size": 16, "seed": seed, "engine": "reference", **settings})
    return Trainer(make_model(seed), data, optimizer or SGD(0.05, momentum=0.9), wanted, device)


def timeless(history):
    """What of a history does not depend on the clock."""
    epochs = [dataclasses.replace(epoch, train_seconds=0.0) for epoch in history.epochs]
    return history.loss, history.correct, epochs


def weights(trainer):
    return {key: trainer.device.to_host(value).copy() for key, value in trainer.model.state().items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key], key)


# --- The same again, and another -------------------------------------------------------------------------------------


def test_it_learns(make_model, squares, device, engine):
    history = trainer_of(make_model, squares, device, epochs=12, engine=engine).run()
    assert history.test_accuracy > 0.9
    assert history.epochs[-1].train_loss < 0.5 * history.epochs[0].train_loss


def test_the_same_seed_gives_the_same_history(make_model, squares, engine):
    first, again, other = (trainer_of(make_model, squares, seed=seed, epochs=2, engine=engine) for seed in (3, 3, 4))
    for trainer in (first, again, other):
        trainer.run()
    assert timeless(first.history) == timeless(again.history)
    assert_same(weights(first), weights(again))
    assert first.history.loss[0] != other.history.loss[0]


def test_model_and_order_have_seeds_of_their_own(make_model, squares):
    def losses(model_seed, seed):
        return train(make_model(model_seed), squares, batch_size=16, seed=seed, device="cpu").loss

    assert losses(1, 1)[0] != losses(2, 1)[0]
    assert losses(1, 1)[0] != losses(1, 2)[0]


def test_how_often_losses_are_read_changes_nothing(make_model, squares, monkeypatch, engine):
    expected = timeless(trainer_of(make_model, squares, epochs=2, engine=engine).run())
    for seconds, steps in ((0.0, 64), (1e9, 64), (1e9, 3)):
        monkeypatch.setattr(loop, "REPORT_SECONDS", seconds)
        monkeypatch.setattr(loop, "SNAPSHOT_STEPS", steps)
        assert timeless(trainer_of(make_model, squares, epochs=2, engine=engine).run()) == expected


# --- Batches ---------------------------------------------------------------------------------------------------------


def numbered(count):
    """Images whose two pixels spell their number; their labels are the number modulo 5."""
    number = np.arange(count)
    pixels = np.stack([number // 256, number % 256], axis=1).astype(np.uint8).reshape(count, 1, 2, 1)
    return Dataset("numbered", Split(pixels, (number % 5).astype(np.int32)), None, None, 5)


@pytest.mark.parametrize(("count", "size"), [(301, 64), (300, 100), (300, 1), (7, 6), (5, 5), (5, 800)])
def test_each_image_exactly_once_an_epoch(count, size, device):
    model = nn.Model([nn.Flatten(), nn.Dense(5, init="zeros")], (1, 2, 1), std=1.0)
    trainer: Any = Trainer(
        model, numbered(count), SGD(1e-9), Settings(epochs=3, batch_size=size, engine="reference"), device
    )
    batches, forward = [], trainer.engine.forward

    def watched(x, labels, step, watch=None):
        pixels, labels_ = device.to_host(x).reshape(-1, 2), device.to_host(labels)
        batches.append((pixels @ [256, 1]).astype(int).tolist())
        assert labels_.tolist() == [number % 5 for number in batches[-1]]
        return forward(x, labels, step, watch)

    trainer.engine.forward = watched
    history = trainer.run()
    whole, short = divmod(count, min(size, count))
    sizes = [min(size, count)] * whole + [short] * bool(short)
    assert [len(batch) for batch in batches] == 3 * sizes
    assert history.batch_size == min(size, count)
    epochs = [list(itertools.chain(*batches[i * len(sizes) :][: len(sizes)])) for i in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    if len(sizes) > 1:
        assert epochs[0] != epochs[1] != epochs[2]
        assert list(range(count)) not in epochs


def test_the_order_is_the_same_on_every_device(make_model, squares, device):
    here = trainer_of(make_model, squares, device)
    reference = trainer_of(make_model, squares)
    for epoch in range(3):
        np.testing.assert_array_equal(here.order(epoch), reference.order(epoch))
    with device.activate():
        for step in (0, 6, 7):
            x, labels = (device.to_host(array) for array in here.reference().inputs(here.batch(step)))
            expected, expected_labels = reference.reference().inputs(reference.batch(step))
            np.testing.assert_allclose(x, expected, rtol=1e-6)
            np.testing.assert_array_equal(labels, expected_labels)


def test_a_batch_is_the_next_part_of_the_order(make_model, squares):
    """Also where steps are not asked for in turn, as a resumed run and a profile do."""
    trainer = trainer_of(make_model, squares)
    for step in (8, 0, 6, 13, 7):
        epoch, index = divmod(step, 7)
        chosen = trainer.order(epoch)[16 * index : 16 * (index + 1)]
        x, labels = trainer.reference().inputs(trainer.batch(step))
        np.testing.assert_allclose(x, squares.train.images[chosen] / np.float32(255), rtol=1e-6)
        np.testing.assert_array_equal(labels, squares.train.labels[chosen])


def test_orders_that_are_kept_are_not_drawn_again(make_model, squares, device, monkeypatch):
    plain, keeping = (trainer_of(make_model, squares, device) for _ in range(2))
    keeping.keep_orders(2)
    drawn = []

    def order(epoch):
        drawn.append(epoch)
        return plain.order(epoch)

    monkeypatch.setattr(keeping, "order", order)
    for step in (0, 8, 13, 15, 1, 9):  # of epochs 0, 1, 1, 2, 0 and 1
        chosen, expected = (device.to_host(one.batch(step).chosen) for one in (keeping, plain))
        np.testing.assert_array_equal(chosen, expected)
    assert drawn == [2]


# --- One step, written out -------------------------------------------------------------------------------------------


def test_steps_of_the_perceptron_by_hand(digits, device, engine):
    """mlp in float64: five steps of SGD with momentum, the last of a short batch, in plain NumPy.

    The gradient is that of the mean: divided by N once, in dz.
    """
    data = digits.take(70)
    settings = Settings(batch_size=16, schedule=Constant(), precision="float64", seed=11, engine=engine)
    trainer = Trainer(models.mlp(seed=2), data, SGD(0.1, momentum=0.8), settings, device)
    w1, b1, w2, b2 = (array.astype(np.float64) for array in models.mlp(seed=2).parameters().values())
    velocity = [np.zeros_like(w) for w in (w1, b1, w2, b2)]
    order, losses, correct = trainer.order(0), [], []
    for step in range(5):
        chosen = order[16 * step : 16 * step + 16]
        N = len(chosen)
        x, t = data.train.images[chosen].reshape(N, 784) / 255.0, np.eye(10)[data.train.labels[chosen]]
        a = x @ w1 + b1
        h = np.where(a > 0, a, 0)
        z = h @ w2 + b2
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        losses.append(-np.log((p * t).sum(axis=1)).mean())
        correct.append(int((z.argmax(axis=1) == t.argmax(axis=1)).sum()))
        dz = (p - t) / N
        da = dz @ w2.T * (a > 0)
        gradients = [x.T @ da, da.sum(axis=0), h.T @ dz, dz.sum(axis=0)]
        velocity = [0.8 * v + g for v, g in zip(velocity, gradients, strict=True)]
        w1, b1, w2, b2 = (w - 0.1 * v for w, v in zip((w1, b1, w2, b2), velocity, strict=True))

    assert len(chosen) == 6
    history = trainer.run()
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
    assert history.correct == correct
    ours = trainer.model.parameters()
    for key, expected in zip(ours, (w1, b1, w2, b2), strict=True):
        np.testing.assert_allclose(device.to_host(ours[key]), expected, rtol=1e-11, atol=1e-14)


def test_full_batch_is_prepared_once_and_computes_the_same(make_model, squares, monkeypatch):
    """No layer may change its input, for it is the next step's too. In another order the sums round differently."""
    prepared, prepare = [], nn.Model.prepare

    def counted(self, images):
        prepared.append(len(images))
        return prepare(self, images)

    monkeypatch.setattr(nn.Model, "prepare", counted)
    data = dataclasses.replace(squares, test=None)
    layers = [nn.Conv2d(3, 3, padding=1), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dense(4)]
    config = nn.Model(layers, (8, 8, 1)).config()
    full, parts = (
        Trainer(
            nn.Model.from_config(config),
            data,
            SGD(0.1, momentum=0.9),
            Settings(epochs=4, batch_size=103, precision="float64", engine="reference"),
            "cpu",
        )
        for _ in range(2)
    )
    full.run()
    assert prepared == [103]
    assert full.data_bytes() == 103 * 64 + 103 * 4 + 103 * 64 * 8
    assert parts.data_bytes() == 103 * 64 + 103 * 4
    for step in range(4):
        chosen = parts.order(step)
        engine = parts.reference()
        loss, _ = engine.forward(parts.model.prepare(parts.images[chosen]), parts.labels[chosen], step)
        engine.backward()
        engine.update(parts.learning_rate(step))
        assert float(loss) == pytest.approx(full.history.loss[step], rel=1e-10)
    for key, value in parts.model.state().items():
        np.testing.assert_allclose(full.model.state()[key], value, rtol=1e-8, atol=1e-12)


def test_learning_rate_follows_the_schedule(make_model, squares, engine):
    """A line from 1 to 0.5 over the steps of both epochs; with plain SGD an update is rate times gradient."""
    schedule = optim.schedule_from_name("one-cycle", warmup=0.0, final=0.5, shape="linear")
    trainer = trainer_of(make_model, squares, optimizer=SGD(0.2), schedule=schedule, epochs=2, engine=engine)
    rates, train_ = [], trainer.engine.train

    def watched(batch, lr):
        rates.append(lr)
        return train_(batch, lr)

    trainer.engine.train = watched
    history = trainer.run()
    np.testing.assert_allclose(rates, np.linspace(0.2, 0.1, 14), rtol=1e-12)
    assert [epoch.learning_rate for epoch in history.epochs] == [rates[6], rates[13]]


def test_label_smoothing(squares, engine):
    """Equal logits lose log 4 whatever the target; the first update's direction is that of the smoothed target."""
    model = nn.Model([nn.Flatten(), nn.Dense(4, init="zeros")], (8, 8, 1))
    settings = Settings(batch_size=103, label_smoothing=0.2, schedule=Constant(), precision="float64", engine=engine)
    history = Trainer(model, squares, SGD(1.0), settings, "cpu").run()
    assert history.loss == pytest.approx([np.log(4)])
    targets = 0.8 * np.eye(4)[squares.train.labels] + 0.05
    np.testing.assert_allclose(model.parameters()["dense1.bias"], -(0.25 - targets).mean(axis=0), rtol=1e-12)
    assert history.test_loss != history.loss[0]


def test_label_smoothing_is_not_in_the_evaluation(squares, make_model, engine):
    """It is a target of the training; what is reported of held-out images is the plain loss."""
    trainer = trainer_of(make_model, squares, label_smoothing=0.5, engine=engine)
    trainer.run()
    logits = trainer.engine.predict(squares.test.images).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    plain = -log_p[np.arange(37), squares.test.labels].mean()
    assert trainer.evaluation.loss == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("share", [0.25, 2.0])
def test_clipping_shortens_the_step_and_keeps_its_direction(make_model, squares, share, device, engine):
    def change(clip_norm):
        settings = {"clip_norm": clip_norm, "precision": "float64", "engine": engine}
        trainer = trainer_of(make_model, squares, device, SGD(1.0), schedule=Constant(), **settings)
        before = weights(trainer)
        with device.activate():
            trainer.train_step(0)
        after, names = weights(trainer), trainer.model.parameters()
        return np.concatenate([(after[key] - before[key]).ravel() for key in names])

    free = change(None)
    norm = np.linalg.norm(free)
    clipped = change(share * norm)
    np.testing.assert_allclose(clipped, free * min(share, 1), rtol=1e-4, atol=1e-9)
    assert np.linalg.norm(clipped) <= share * norm


def test_dropout_draws_by_the_step(make_model, squares, monkeypatch):
    """A new mask each step, counted from the start of the training, not of the epoch; none in the evaluations."""
    draws, mask = [], ops.dropout_mask

    def watched(x, p, seed, step, layer):
        draws.append((p, seed, step, len(x)))
        return mask(x, p, seed, step, layer)

    monkeypatch.setattr(ops, "dropout_mask", watched)
    trainer_of(make_model, squares, epochs=2).run()
    assert draws == [(0.25, 3, step, 7 if step % 7 == 6 else 16) for step in range(14)]


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_optimizer_follows_the_model(make_model, squares, precision, device, engine):
    """A second training of the same model, on another device or in another precision, goes on with its velocity."""
    model, optimizer = make_model(), SGD(0.05, momentum=0.5)
    Trainer(model, squares, optimizer, Settings(batch_size=16, engine=engine), "cpu").run()
    before = {key: value.copy() for key, value in optimizer.state().items()}
    trainer = Trainer(
        model, squares, optimizer, Settings(batch_size=16, precision=precision, engine="reference"), device
    )
    with device.activate():
        trainer.train_step(0)
    assert optimizer.step == 8
    for key, value in optimizer.state().items():
        gradient = device.to_host(model.gradients()[key.removeprefix("velocity/")])
        assert value.dtype == precision
        np.testing.assert_allclose(device.to_host(value), 0.5 * before[key] + gradient, rtol=1e-5, atol=1e-7)


# --- Figures ---------------------------------------------------------------------------------------------------------


def test_epoch_records(make_model, squares, engine):
    trainer = trainer_of(make_model, squares, epochs=2, engine=engine)
    met, train_ = [], trainer.engine.train

    def watched(batch, lr):
        loss, correct = train_(batch, lr)
        met.append((float(loss), int(correct), len(batch)))
        return loss, correct

    trainer.engine.train = watched
    told: list[Any] = []
    history = trainer.run(on_epoch=told.append)
    assert told == history.epochs
    assert history.images_seen == 206
    assert history.images_per_second == 206 / history.train_seconds
    for number, epoch in enumerate(history.epochs, start=1):
        steps = met[7 * (number - 1) : 7 * number]
        assert (epoch.epoch, epoch.iterations) == (number, 7 * number)
        assert epoch.train_loss == pytest.approx(sum(loss * size for loss, _, size in steps) / 103, rel=1e-12)
        assert epoch.train_accuracy == sum(correct for _, correct, _ in steps) / 103
    assert sum(epoch.train_seconds for epoch in history.epochs) == pytest.approx(history.train_seconds, rel=1e-9)
    assert history.loss == [loss for loss, _, _ in met]
    assert history.correct == [correct for _, correct, _ in met]


class Clock:
    """Stands in for ``time``: advances by a second with each work that is told to take one."""

    now = 0.0

    def perf_counter(self):
        return self.now

    def work(self, function, seconds):
        def working(*args, **kwargs):
            self.now += seconds
            return function(*args, **kwargs)

        return working


def test_what_is_timed(make_model, squares, monkeypatch):
    """Steps of 1 s, an evaluation of 100 s, and 1000 s that whoever is told of an epoch takes for himself."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(loop, "evaluate", clock.work(evaluate, 100))
    trainer = trainer_of(make_model, squares, epochs=3, evaluate_every=2)
    trainer.train_step = clock.work(trainer.train_step, 1)
    history = trainer.run(on_epoch=clock.work(lambda record: None, 1000))
    assert history.train_seconds == 21
    assert [epoch.train_seconds for epoch in history.epochs] == [7, 7, 7]
    assert history.evaluate_seconds == 200
    assert clock.now == 21 + 200 + 3000


def test_the_device_is_waited_for_at_both_ends(make_model, squares, monkeypatch):
    """A device that works behind the host's back: what it was told to do before does not count, what it is told in a
    step does, also the last step's."""
    clock = Clock()

    class Behind(CpuDevice):
        done_at = 0.0

        def synchronize(self):
            clock.now = max(clock.now, self.done_at)

        def to_host(self, x):
            self.synchronize()
            return x

    device = Behind()
    monkeypatch.setattr(loop, "time", clock)
    trainer = trainer_of(make_model, dataclasses.replace(squares, test=None), device)
    step_ = trainer.train_step

    def step_behind(step):
        device.done_at = max(device.done_at, clock.now) + 1
        return step_(step)

    trainer.train_step = step_behind
    device.done_at = 50.0  # the transfer of the data, say
    history = trainer.run()
    assert history.train_seconds == 7
    assert clock.now == 57


def test_evaluate_every(make_model, squares):
    history = trainer_of(make_model, squares, epochs=5, evaluate_every=2).run()
    assert [epoch.test_accuracy is not None for epoch in history.epochs] == [False, True, False, True, True]
    assert [epoch.test_loss is not None for epoch in history.epochs] == [False, True, False, True, True]


def test_what_is_evaluated(make_model, squares):
    """Test where there is one, else validation, else nothing."""
    held_out = Split(squares.test.images[:11], squares.test.labels[:11])
    both = trainer_of(make_model, dataclasses.replace(squares, validation=held_out))
    both.run()
    assert len(both.evaluation.labels) == 37
    validation = trainer_of(make_model, dataclasses.replace(squares, validation=held_out, test=None))
    validation.run()
    assert len(validation.evaluation.labels) == 11
    none = trainer_of(make_model, dataclasses.replace(squares, test=None))
    history = none.run()
    assert none.evaluation is None
    assert history.test_accuracy is history.epochs[0].test_loss is None
    assert history.evaluate_seconds == 0


def test_compiling_is_before_the_clock(make_model, squares, monkeypatch):
    """An engine that compiles for 500 s when it is prepared, and 30 s more when it first predicts."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    told: list[Any] = []

    class Compiling(ReferenceEngine):
        compile_seconds = 0.0

        def spend(self, seconds):
            clock.now += seconds
            self.compile_seconds += seconds

        def prepare(self, on_compile=None):
            self.spend(500)
            on_compile(1, 2)

        def predict(self, images):
            if self.compile_seconds == 500:
                self.spend(30)
            clock.now += 1
            return super().predict(images)

    monkeypatch.setattr(loop, "make_engine", lambda name, model, optimizer, *_: Compiling(model, optimizer))
    trainer = trainer_of(make_model, squares)
    history = trainer.run(on_compile=lambda done, total: told.append((done, total)))
    assert told == [(1, 2)]
    assert history.train_seconds == 0
    assert history.evaluate_seconds == 1
    assert clock.now == 531


def test_progress(make_model, squares, monkeypatch):
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    trainer = trainer_of(make_model, squares, epochs=2)
    told: list[Any] = []
    history = trainer.run(on_progress=told.append)
    assert [progress.step for progress in told] == list(range(1, 15))
    assert [progress.epoch for progress in told] == [1] * 7 + [2] * 7
    assert {(progress.total_steps, progress.epochs) for progress in told} == {(14, 2)}
    for progress in told:
        first = 7 * (progress.epoch - 1)
        sizes = [16, 16, 16, 16, 16, 16, 7][: progress.step - first]
        so_far = sum(loss * size for loss, size in zip(history.loss[first:], sizes, strict=False)) / sum(sizes)
        assert progress.loss == pytest.approx(so_far, rel=1e-12)
        assert progress.accuracy == sum(history.correct[first : progress.step]) / sum(sizes)
        assert progress.images_per_second > 0
    assert told[-1].seconds_left == 0
    assert all(progress.seconds_left > 0 for progress in told[:-1])


def test_progress_is_told_at_the_end_of_every_epoch(make_model, squares, monkeypatch):
    monkeypatch.setattr(loop, "REPORT_SECONDS", 1e9)
    told: list[Any] = []
    trainer_of(make_model, squares, epochs=3).run(on_progress=told.append)
    assert [progress.step for progress in told] == [7, 14, 21]


# --- Stopping --------------------------------------------------------------------------------------------------------


def stop_after(steps):
    asked = itertools.count(1)
    return lambda: next(asked) >= steps


@pytest.mark.parametrize("steps", [1, 2, 6, 8, 10])
def test_stop_within_an_epoch(make_model, squares, steps, engine):
    """Exactly so many steps, those of the unbroken run, and no evaluation of a part of an epoch."""
    unbroken = trainer_of(make_model, squares, epochs=3, engine=engine).run()
    trainer = trainer_of(make_model, squares, epochs=3, engine=engine)
    told: list[Any] = []
    history = trainer.run(told.append, should_stop=stop_after(steps + steps // 7))  # asked after each epoch too
    assert history.stopped
    assert history.loss == unbroken.loss[:steps]
    assert len(history.epochs) == steps // 7
    assert (trainer.evaluation is None) == (steps < 7)
    assert told[-1].step == trainer.step == steps
    trainer.run()
    assert not history.stopped
    assert timeless(history) == timeless(unbroken)


def test_stop_at_the_end_of_an_epoch(make_model, squares):
    """A whole epoch is evaluated and recorded; the next does not begin."""
    trainer = trainer_of(make_model, squares, epochs=3)
    history = trainer.run(should_stop=stop_after(7))
    assert history.stopped
    assert history.iterations == 7
    assert [epoch.test_accuracy is not None for epoch in history.epochs] == [True]


def test_a_stop_at_the_very_end_is_none(make_model, squares):
    trainer = trainer_of(make_model, squares, epochs=2)
    history = trainer.run(should_stop=stop_after(15))
    assert not history.stopped
    assert history.iterations == 14
    assert len(history.epochs) == 2
    before = timeless(history)
    assert timeless(trainer.run()) == before  # done is done


def test_train_is_the_short_form(squares, make_model):
    """Its defaults: SGD(0.05, momentum=0.9), one epoch of batches of 64, one cycle."""
    model = make_model()
    history = train(model, squares, device="cpu", seed=3)
    trainer = trainer_of(make_model, squares, batch_size=64, engine=Settings.engine)
    assert timeless(trainer.run()) == timeless(history)
    assert_same(model.state(), weights(trainer))


# --- What is refused -------------------------------------------------------------------------------------------------


class Untouched(CpuDevice):
    """Fails where anything is moved to it."""

    def asarray(self, host, dtype=None):
        raise AssertionError("moved to the device before it was checked")


def relabelled(data, part, label):
    split = getattr(data, part)
    labels = split.labels.copy()
    labels[5] = label
    return dataclasses.replace(data, **{part: Split(split.images, labels)}, classes=10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "^epochs 0: expected at least 1$"),
        ({"batch_size": 0}, "^batch size 0: expected at least 1$"),
        ({"batch_size": -3}, "^batch size -3: expected at least 1$"),
        ({"evaluate_every": 0}, "^evaluate every 0: expected at least 1$"),
        ({"precision": "float16"}, "^precision 'float16': expected float32, float64, tf32 or bfloat16$"),
        ({"engine": "steam"}, "^engine 'steam': expected plan, tuned, reference"),
        ({"label_smoothing": 1.0}, "^label smoothing 1.0: expected at least 0 and less than 1$"),
        ({"label_smoothing": -0.1}, "^label smoothing -0.1: expected"),
        ({"label_smoothing": float("nan")}, "^label smoothing nan: expected"),
        ({"threads": 0}, "^threads 0: expected at least 1$"),
        ({"clip_norm": 0.0}, "^gradient norm to clip at, 0.0: expected more than 0$"),
    ],
)
def test_wrong_settings(make_model, squares, settings, message):
    with pytest.raises(UsageError, match=message):
        trainer_of(make_model, squares, Untouched(), **settings)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_labels_that_the_model_does_not_know(make_model, squares, part):
    """On a GPU they would wrap around, silently."""
    data = relabelled(dataclasses.replace(squares, validation=squares.test), part, 4)
    message = f"^squares: the {part} split has labels from 0 to 4; model tiny has classes 0 to 3$"
    with pytest.raises(UsageError, match=message):
        trainer_of(make_model, data, Untouched())


def test_images_of_another_shape(digits, make_model):
    message = r"^.* has images of \(28, 28, 1\); model tiny was built for \(8, 8, 1\)$"
    with pytest.raises(UsageError, match=message):
        trainer_of(make_model, digits, Untouched())


def test_the_model_stays_where_it_was_when_refused(make_model, squares):
    model = make_model()
    with pytest.raises(UsageError):
        Trainer(model, squares, SGD(0.1), Settings(engine="steam", precision="float64"), "cpu")
    assert model.precision == "float32"


def test_optimizer_of_another_model(make_model, squares, digits, engine):
    optimizer = Adam()
    trainer_of(make_model, squares, optimizer=optimizer, engine=engine).run()
    with pytest.raises(BareconvError, match="Adam: after 7 steps the parameters must stay the same"):
        Trainer(models.mlp(), digits, optimizer, Settings(engine=engine), "cpu").run()

"""The training loop: epochs of shuffled batches, timed, checked, interruptible and resumable."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv import random
from bareconv.data import Dataset
from bareconv.data.mapped import expect_random_access
from bareconv.device import Array, Device, get_device
from bareconv.errors import NotFiniteError, UsageError
from bareconv.kernels.cache import OnCompile
from bareconv.nn.layer import Layer, Watch
from bareconv.nn.model import Model
from bareconv.optim import SGD, OneCycle, Optimizer, Schedule
from bareconv.training.engine import CHUNK, Batch, Batches, Engine, EngineSettings
from bareconv.training.engines import ReferenceEngine, make_engine
from bareconv.training.evaluation import Evaluation, evaluate
from bareconv.training.history import EpochRecord, History
from bareconv.training.precision import check_known, stored
from bareconv.training.snapshots import Snapshots
from bareconv.training.streaming import Stream, fits

REPORT_SECONDS = 0.25  # how often the losses are read from the device, which waits for it, and progress is told
SNAPSHOT_STEPS = 64  # how often the state is kept, to come back to when a loss turns out not to be finite

# Of an engine that takes many steps at once. A window is what it is given at once.
WINDOW_STEPS = 1024  # at most
WINDOW_GROWTH = 4  # times as many steps as in the window before
WINDOW_SECONDS = 0.1  # at most: so long does a Ctrl-C wait, twice, for the next window is on its way
REHEARSED_STEPS = 64  # before the clock starts
SPAN_SECONDS = 1.0  # after which whoever wants to know of epochs of one step is told of them

# NumPy would warn where CuPy is silent; a loss that is not finite is found, and explained, on either.
_QUIET = np.errstate(over="ignore", invalid="ignore")


@dataclass(frozen=True)
class Settings:
    """How to train; what a checkpoint keeps of a training besides its state."""

    epochs: int = 1
    batch_size: int = 64
    schedule: Schedule = field(default_factory=OneCycle)
    engine: str = "plan"
    precision: str = "float32"  # of the arithmetic; ``training.precision`` says more
    seed: int = 0
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    threads: int | None = None  # of the CPU plan; None: as many as there are cores for this process
    evaluate_every: int = 1  # epochs; the last is always evaluated

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', ' ')} {getattr(self, name)}: expected at least 1")
        check_known(self.precision)


@dataclass(frozen=True)
class Progress:
    """Where a training is; ``loss`` and ``accuracy`` are of the epoch so far."""

    step: int  # steps done
    total_steps: int
    epoch: int  # counted from 1
    epochs: int
    loss: float
    accuracy: float
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class _Window:
    """Steps that were launched at once, and when; ``results`` waits for their losses and hits."""

    steps: int
    begun: float
    results: Callable[[], list[NDArray[Any]]]


class Trainer:
    """One training on one device: moves model and data there, and runs the steps.

    The data stay uint8 on the device; each step gathers its batch by the epoch's permutation. Where they take more of
    the device's memory than they may, they stay on the host, and steps are brought what they need
    (``training.streaming``); there they may be a mapped file. Raises UsageError where the data do not fit the model.
    """

    def __init__(
        self,
        model: Model,
        data: Dataset,
        optimizer: Optimizer,
        settings: Settings,
        device: str | Device = "auto",
        history: History | None = None,
    ) -> None:
        _check_data(model, data)
        self.data, self.settings, self.device = data, settings, get_device(device)
        size = min(settings.batch_size, len(data.train))
        self._engine_settings = EngineSettings(
            *(size, settings.label_smoothing, settings.clip_norm, settings.threads, settings.precision)
        )
        self.engine: Engine = make_engine(settings.engine, model, optimizer, self._engine_settings, self.device)
        self.model = model.to(self.device, stored(settings.precision))  # after all that could be refused
        self.optimizer = optimizer
        with self.device.activate():
            optimizer.load_state(optimizer.state(), optimizer.step)  # which follows the model from where it was
            self._stream: Stream | None = None
            if size >= len(data.train) or fits(data.train, self.device):
                self.images = self.device.asarray(data.train.images)
                self.labels = self.device.asarray(data.train.labels)
                expect_random_access(self.images)
            else:
                self._stream = Stream(data.train, self.device, size)
                self.images, self.labels = self._stream.images, self._stream.labels
            held_out = data.evaluation
            self.test_images = None if held_out is None else self.device.asarray(held_out[1].images)
        self.history = history or History(min(settings.batch_size, len(data.train)), len(data.train))
        self.evaluation: Evaluation | None = None
        self._orders: dict[int, Array] = {}  # of this epoch and perhaps the next
        self._kept_orders: dict[int, Array] = {}
        # Where two windows are under way, the last snapshot may be of after the step that is looked for.
        self._snapshots = Snapshots(model, optimizer, 2 if self.engine.many_steps else 1)
        self._window = 1  # steps of the next
        self._rehearsed = False

    @property
    def step(self) -> int:
        """Steps done so far."""
        return self.history.iterations

    @property
    def total_steps(self) -> int:
        """Steps in all epochs."""
        return self.history.steps_per_epoch * self.settings.epochs

    @property
    def _most_steps(self) -> int:
        """Steps whose images can be on the device at once."""
        return self.total_steps if self._stream is None else self._stream.steps

    def data_bytes(self) -> int:
        """Bytes of the data on the device, with those that the engine keeps prepared."""
        arrays = (self.images, self.labels, self.test_images)
        kept = self.engine.kept_bytes().get("data", 0)
        return kept + sum(int(array.nbytes) for array in arrays if array is not None)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The epoch's permutation of the training images, the same on every device; epochs count from 0."""
        return random.permutation(self.settings.seed, (random.SHUFFLE, epoch, 0), len(self.data.train))

    def batch(self, step: int) -> Batch:
        """That step's images: the next of the epoch's permutation. The last batch may be short."""
        return self.batches(step, 1)[0]

    def batches(self, first: int, count: int) -> Batches:
        """The images of ``count`` steps from step ``first``, which are of one epoch, or have all images each.

        Where images are brought to the device, at most as many steps as there is room for (``_most_steps``), and only
        until the next are asked for.
        """
        size = self.history.batch_size
        if size >= len(self.data.train):  # one batch of everything: no order matters
            return Batches(self.images, self.labels, None, size, count, first)
        epoch, index = divmod(first, self.history.steps_per_epoch)
        chosen = self._order_there(epoch)[index * size : (index + count) * size]
        if self._stream is not None:
            return self._stream.batches(chosen, size, count, first)
        return Batches(self.images, self.labels, chosen, size, count, first)

    def _order_there(self, epoch: int) -> Array:
        """``order(epoch)`` where the images are: on the device, or on the host."""
        if epoch in self._kept_orders:
            return self._kept_orders[epoch]
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = self._where_images_are(self.order(epoch))
        return self._orders[epoch]

    def _where_images_are(self, order: NDArray[np.int64]) -> Array:
        return self.device.asarray(order) if self._stream is None else order

    def keep_orders(self, epochs: int) -> None:
        """Draw the orders of the first epochs now, for whoever goes through them again and again."""
        with self.device.activate():
            self._kept_orders = {epoch: self._where_images_are(self.order(epoch)) for epoch in range(epochs)}

    def reference(self) -> ReferenceEngine:
        """The readable engine on the same model and optimizer: to look into a step."""
        if isinstance(self.engine, ReferenceEngine):
            return self.engine
        return ReferenceEngine(self.model, self.optimizer, self._engine_settings)

    def learning_rate(self, step: int) -> float:
        """The scheduled rate of that step."""
        return self.optimizer.lr * self.settings.schedule.rate(step, self.total_steps)

    @_QUIET
    def train_step(self, step: int) -> tuple[Array, Array]:
        """One step; (loss, correct) stay on the device."""
        return self.engine.train(self.batch(step), self.learning_rate(step))

    @_QUIET
    def take_steps(self, first: int, count: int) -> tuple[Array, Array]:
        """``count`` steps from step ``first``: (losses, hits), an element each a step, on the device.

        As many at once as the engine takes; the device is not waited for.
        """
        per_epoch, end = self.history.steps_per_epoch, first + count
        losses, hits = [], []
        while first < end:
            here = end - first if per_epoch == 1 else min(end - first, per_epoch - first % per_epoch, self._most_steps)
            rates = [self.learning_rate(step) for step in range(first, first + here)]
            some_losses, some_hits = self.engine.train_steps(self.batches(first, here), rates)
            losses.append(some_losses)
            hits.append(some_hits)
            first += here
        concatenate = self.device.xp.concatenate
        return (losses[0], hits[0]) if len(losses) == 1 else (concatenate(losses), concatenate(hits))

    def train_steps(self, first: int, count: int) -> tuple[list[float], list[int]]:
        """``count`` steps from step ``first``: their losses and numbers of correct predictions, on the host."""
        losses, hits = self.take_steps(first, count)
        return self.device.to_host(losses).tolist(), self.device.to_host(hits).tolist()

    @_QUIET
    def run(
        self,
        on_progress: Callable[[Progress], None] | None = None,
        on_epoch: Callable[[EpochRecord], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        on_compile: OnCompile | None = None,
    ) -> History:
        """Train to the end, or until ``should_stop()`` after a step. Raises NotFiniteError.

        What the engine compiles is compiled before the clock starts; ``on_compile(done, total)`` is told.
        """
        history = self.history
        history.stopped = False
        self.engine.prepare(on_compile)
        run_until = self._run_steps
        if self.engine.many_steps:
            run_until = self._run_windows
            self._rehearse()
        while self.step < self.total_steps and not history.stopped:
            epoch = self.step // history.steps_per_epoch
            end = self._last_epoch_before_a_pause(epoch) * history.steps_per_epoch
            before = history.train_seconds
            stopped = run_until(end, on_progress, should_stop)
            records = self._finish_epochs(epoch, history.train_seconds - before)
            if on_epoch:
                for record in records:
                    on_epoch(record)
            history.stopped = (stopped and self.step < end) or (should_stop() and self.step < self.total_steps)
        return history

    @_QUIET
    def _rehearse(self) -> None:
        """Steps at a rate of 0, undone: what only the first steps have to do is not in the time of the training.

        They bind memory, capture graphs and load what CuPy compiles. A second time, if that is quick, with as many as
        take the larger graphs.
        """
        if self.step >= self.total_steps or self._rehearsed:
            return
        self._rehearsed = True
        first, end = self.step, (self.step // self.history.steps_per_epoch + 1) * self.history.steps_per_epoch
        if self.history.steps_per_epoch == 1:
            end = self.total_steps
        seconds = 0.0  # of a step that is not the first
        with self.device.activate():
            self._take_snapshot(first)
            for count in (1, 1, min(REHEARSED_STEPS, end - first, self._most_steps)):
                if count > 1 and seconds * count > WINDOW_SECONDS:
                    break
                begun = time.perf_counter()
                results = self.engine.train_steps(self.batches(first, count), [0.0] * count)
                self.device.fetch(*results)()  # as the training will
                seconds = time.perf_counter() - begun
            self._snapshots.back_to(first)

    def _last_epoch_before_a_pause(self, epoch: int) -> int:
        """The epoch, counted from 1, after which there is something else to do than steps.

        An epoch's end is a pause; of epochs of one step each only those are that are evaluated, where an engine can
        take many steps at once.
        """
        if self.history.steps_per_epoch > 1 or not self.engine.many_steps:
            return epoch + 1
        every, epochs = self.settings.evaluate_every, self.settings.epochs
        return epochs if self.data.evaluation is None else min(epochs, epoch + every - epoch % every)

    def _run_steps(
        self, end: int, on_progress: Callable[[Progress], None] | None, should_stop: Callable[[], bool]
    ) -> bool:
        """The rest of an epoch's steps, one after another; returns whether it was stopped."""
        history = self.history
        before, told = history.train_seconds, time.perf_counter()
        with self.device.activate():
            self.device.synchronize()
            begun = time.perf_counter()
            step, stop = self.step, False
            while step < end and not stop:
                self._keep_state(step)
                results: list[tuple[Array, Array]] = []
                window = time.perf_counter()
                while step < end and not stop and len(results) < SNAPSHOT_STEPS:
                    results.append(self.train_step(step))
                    step, stop = step + 1, should_stop()
                    if time.perf_counter() - window > REPORT_SECONDS:
                        break
                stack = self.device.xp.stack
                both = stack([loss for loss, _ in results]), stack([hits for _, hits in results])
                self._record(*map(self.device.to_host, both))
                now = time.perf_counter()
                history.train_seconds = before + now - begun
                if on_progress and (now - told > REPORT_SECONDS or step == end or stop):
                    on_progress(self._progress())
                    told = now
        return stop

    def _run_windows(
        self, end: int, on_progress: Callable[[Progress], None] | None, should_stop: Callable[[], bool]
    ) -> bool:
        """The steps until ``end``, many at once; returns whether it was stopped.

        A window's losses are read when the next one is under way, so that the device always has something to do.
        """
        history = self.history
        before, told = history.train_seconds, time.perf_counter()
        with self.device.activate():
            self.device.synchronize()
            begun = read = time.perf_counter()
            launched, stop = self.step, False
            under_way: deque[_Window] = deque()
            while under_way or (launched < end and not stop):
                while launched < end and not stop and len(under_way) < 2:
                    under_way.append(self._launch(launched, min(self._window, end - launched)))
                    launched += under_way[-1].steps
                window = under_way.popleft()
                self._record(*window.results())
                now = time.perf_counter()
                self._size_window(window.steps, now - max(read, window.begun))
                read = now
                history.train_seconds = before + now - begun
                stop = stop or should_stop()
                if history.steps_per_epoch == 1 and now - begun > SPAN_SECONDS:
                    end = launched
                if on_progress and (now - told > REPORT_SECONDS or self.step == end or (stop and not under_way)):
                    on_progress(self._progress())
                    told = now
        return stop

    def _launch(self, first: int, count: int) -> _Window:
        """A window under way, and on the host what can be done meanwhile."""
        begun = time.perf_counter()
        self._keep_state(first)
        results = self.device.fetch(*self.take_steps(first, count))
        epoch, left = divmod(first + count, self.history.steps_per_epoch)
        if self.history.steps_per_epoch > 1 and not left and epoch < self.settings.epochs:
            self._order_there(epoch)
        return _Window(count, begun, results)

    def _size_window(self, steps: int, seconds: float) -> None:
        """How large the next window is to be, after one of so many steps that took so long."""
        # An epoch's last window may have been a small one: that is no reason for the next to be.
        larger = max(WINDOW_GROWTH * steps, self._window)
        affordable = int(WINDOW_SECONDS * steps / max(seconds, 1e-9))
        self._window = max(1, min(larger, affordable, WINDOW_STEPS))

    def _record(self, losses: NDArray[Any], hits: NDArray[Any]) -> None:
        """Check the losses of the next steps, and take them into the history."""
        wrong = np.flatnonzero(~np.isfinite(losses))
        if len(wrong):
            raise self._explain_not_finite(self.step + int(wrong[0]), float(losses[wrong[0]]))
        self.history.loss += losses.tolist()
        self.history.correct += hits.tolist()

    def _finish_epochs(self, first: int, seconds: float) -> list[EpochRecord]:
        """Evaluate, and write the records of the epochs from ``first``, counted from 0, that are done.

        Only after the last of them anything is evaluated. Several are epochs of one step each: they share the time.
        """
        history, per_epoch = self.history, self.history.steps_per_epoch
        done = range(first, self.step // per_epoch)
        if not done:
            return []
        earlier = sum(record.train_seconds for record in history.epochs)
        seconds = max(seconds, history.train_seconds - earlier) / len(done)  # with what came before an interruption
        evaluation = self._evaluate_after(done[-1])
        records = []
        for epoch in done:
            loss, accuracy = history.since(epoch * per_epoch, (epoch + 1) * per_epoch)
            tested = evaluation if epoch == done[-1] else None
            records.append(
                EpochRecord(
                    epoch=epoch + 1,
                    iterations=(epoch + 1) * per_epoch,
                    train_loss=loss,
                    train_accuracy=accuracy,
                    train_seconds=seconds,
                    learning_rate=self.learning_rate((epoch + 1) * per_epoch - 1),
                    test_loss=tested.loss if tested else None,
                    test_accuracy=tested.accuracy if tested else None,
                )
            )
        history.epochs += records
        return records

    def _evaluate_after(self, epoch: int) -> Evaluation | None:
        """On the held-out images, where that is due after this epoch, counted from 0."""
        history, held_out = self.history, self.data.evaluation
        last = epoch + 1 == self.settings.epochs
        if held_out is None or not (last or (epoch + 1) % self.settings.evaluate_every == 0):
            return None
        begun, compiling = time.perf_counter(), self.engine.compile_seconds
        self.evaluation = evaluate(self.engine, held_out[1], self.test_images)
        compiling = self.engine.compile_seconds - compiling
        history.evaluate_seconds += time.perf_counter() - begun - compiling
        if not math.isfinite(self.evaluation.loss):  # no later step may come to notice it
            raise self._explain_evaluation(held_out[0], self.evaluation.loss)
        return self.evaluation

    def _progress(self) -> Progress:
        history = self.history
        epoch = (self.step - 1) // history.steps_per_epoch
        loss, accuracy = history.since(epoch * history.steps_per_epoch)
        done = max(history.iterations, 1)
        return Progress(
            step=self.step,
            total_steps=self.total_steps,
            epoch=epoch + 1,
            epochs=self.settings.epochs,
            loss=loss,
            accuracy=accuracy,
            images_per_second=history.images_per_second,
            seconds_left=(self.total_steps - self.step) * history.train_seconds / done,
        )

    # A loss that is not finite: go back to the last snapshot, take the same steps again, and look closer

    def _keep_state(self, step: int) -> None:
        """The state before ``step``, now and then."""
        newest = self._snapshots.newest
        if newest is None or step - newest >= SNAPSHOT_STEPS:
            self._take_snapshot(step)

    def _take_snapshot(self, step: int) -> None:
        self._snapshots.take(step)

    def _explain_not_finite(self, step: int, loss: float) -> NotFiniteError:
        start = self._snapshots.back_to(step)
        if step > start:
            self.take_steps(start, step - start)
        engine = self.reference()
        inputs = engine.inputs(self.batch(step))
        found = self._first_not_finite(lambda look: engine.forward(*inputs, step, watch=look))
        return self._not_finite(f"the loss became {loss} at step {step}", step, found)

    def _explain_evaluation(self, split: str, loss: float) -> NotFiniteError:
        """For the last step of an epoch, whose own loss was finite, but not what its update left."""
        images, step = self.test_images, self.step - 1
        assert images is not None

        def predict(look: Watch) -> None:
            for start in range(0, len(images), CHUNK):
                self.model.forward(self.model.prepare(images[start : start + CHUNK]), watch=look)

        with self.device.activate():
            found = self._first_not_finite(predict)
        return self._not_finite(f"the loss on the {split} images became {loss} after step {step}", step, found)

    def _first_not_finite(self, forward: Callable[[Watch], object]) -> str | None:
        """The first layer whose output is not finite in ``forward``, which is given what to watch with."""
        found: list[str] = []

        def look(phase: str, layer: Layer, result: Array | None) -> None:
            if not found and result is not None and not bool(self.device.xp.isfinite(result).all()):
                found.append(layer.name)

        forward(look)
        return found[0] if found else None

    def _not_finite(self, what: str, step: int, layer: str | None) -> NotFiniteError:
        where = f"the first output that is not finite is that of layer {layer}" if layer else "all outputs are finite"
        return NotFiniteError(
            f"{what} (epoch {step // self.history.steps_per_epoch + 1}): {where}; "
            f"a smaller learning rate (now {self.learning_rate(step):g}) or clipping the gradient may help",
            step=step,
            layer=layer or "loss",
        )


def train(
    model: Model,
    data: Dataset,
    *,
    optimizer: Optimizer | None = None,
    epochs: int = 1,
    batch_size: int = 64,
    schedule: Schedule | None = None,
    device: str | Device = "auto",
    engine: str = "plan",
    precision: str = "float32",
    seed: int = 0,
    label_smoothing: float = 0.0,
    clip_norm: float | None = None,
    threads: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> History:
    """Train ``model`` in place and return what happened.

    ``optimizer``: SGD(0.05, momentum=0.9) unless given; ``schedule``: OneCycle(). ``device``: "auto", "cpu", "cuda",
    "cuda:1". ``engine``: "plan", "tuned" or "reference"; ``threads`` of the first two, by default as many as there are
    cores for this process. After every epoch ``data.evaluation`` is evaluated. Raises UsageError where things do not
    fit, NotFiniteError where the loss explodes.
    """
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        schedule=schedule or OneCycle(),
        engine=engine,
        precision=precision,
        seed=seed,
        label_smoothing=label_smoothing,
        clip_norm=clip_norm,
        threads=threads,
    )
    trainer = Trainer(model, data, optimizer or SGD(0.05, momentum=0.9), settings, device)
    return trainer.run(on_progress, on_epoch, should_stop)


def _check_data(model: Model, data: Dataset) -> None:
    """Images of the model's shape, labels within its classes: on the host, before anything goes to a device."""
    classes = model.output_shape[0]
    if data.image_shape != model.input_shape:
        raise UsageError(
            f"{data.name} has images of {data.image_shape}; model {model.name} was built for {model.input_shape}"
        )
    for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        if split is None:
            continue
        if not len(split):
            raise UsageError(f"{data.name}: the {name} split has no images")
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= classes:
            raise UsageError(
                f"{data.name}: the {name} split has labels from {low} to {high}; model {model.name} has classes "
                f"0 to {classes - 1}"
            )

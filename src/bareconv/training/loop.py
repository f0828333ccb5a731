"""The training loop: epochs of shuffled batches, timed, checked, interruptible and resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bareconv import random
from bareconv.data import Dataset
from bareconv.device import Array, Device, get_device
from bareconv.errors import NotFiniteError, UsageError
from bareconv.nn.layer import Layer, Watch
from bareconv.nn.model import Model
from bareconv.optim import SGD, OneCycle, Optimizer, Schedule
from bareconv.training.engine import Batch, Engine, EngineSettings, OnCompile, ReferenceEngine, make_engine
from bareconv.training.evaluation import CHUNK, Evaluation, evaluate
from bareconv.training.history import EpochRecord, History

REPORT_SECONDS = 0.25  # how often the losses are read from the device, which waits for it, and progress is told
SNAPSHOT_STEPS = 64  # how often the state is kept, to come back to when a loss turns out not to be finite

# NumPy would warn where CuPy is silent; a loss that is not finite is found, and explained, on either.
_QUIET = np.errstate(over="ignore", invalid="ignore")


@dataclass(frozen=True)
class Settings:
    """How to train; what a checkpoint keeps of a training besides its state."""

    epochs: int = 1
    batch_size: int = 64
    schedule: Schedule = field(default_factory=OneCycle)
    engine: str = "plan"
    precision: str = "float32"
    seed: int = 0
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    threads: int | None = None  # of the CPU plan; None: as many as there are cores for this process
    evaluate_every: int = 1  # epochs; the last is always evaluated

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', ' ')} {getattr(self, name)}: expected at least 1")


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


class Trainer:
    """One training on one device: moves model and data there, and runs the steps.

    The data stay uint8 on the device; each step gathers its batch by the epoch's permutation. Raises UsageError where
    the data do not fit the model.
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
        self._engine_settings = EngineSettings(size, settings.label_smoothing, settings.clip_norm, settings.threads)
        self.engine: Engine = make_engine(settings.engine, model, optimizer, self._engine_settings, self.device)
        self.model = model.to(self.device, settings.precision)  # after all that could be refused
        self.optimizer = optimizer
        with self.device.activate():
            optimizer.load_state(optimizer.state(), optimizer.step)  # which follows the model from where it was
            self.images = self.device.asarray(data.train.images)
            self.labels = self.device.asarray(data.train.labels)
            held_out = data.evaluation
            self.test_images = None if held_out is None else self.device.asarray(held_out[1].images)
        self.history = history or History(min(settings.batch_size, len(data.train)), len(data.train))
        self.evaluation: Evaluation | None = None
        self._order: tuple[int, Array] | None = None
        self._snapshot: tuple[int, int, dict[str, Array]] | None = None  # steps, the optimizer's steps, the arrays

    @property
    def step(self) -> int:
        """Steps done so far."""
        return self.history.iterations

    @property
    def total_steps(self) -> int:
        """Steps in all epochs."""
        return self.history.steps_per_epoch * self.settings.epochs

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
        size = self.history.batch_size
        if size >= len(self.data.train):  # one batch of everything: no order matters
            return Batch(self.images, self.labels, None, step)
        epoch, index = divmod(step, self.history.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self.device.asarray(self.order(epoch))
        return Batch(self.images, self.labels, self._order[1][index * size : (index + 1) * size], step)

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

    def train_steps(self, first: int, count: int) -> tuple[list[float], list[int]]:
        """``count`` steps from step ``first``: their losses and numbers of correct predictions, on the host."""
        results = [self.train_step(step) for step in range(first, first + count)]
        return self._on_host(results)

    def _on_host(self, results: list[tuple[Array, Array]]) -> tuple[list[float], list[int]]:
        """Losses and numbers of correct predictions, read from the device, which waits for it."""
        stack, to_host = self.device.xp.stack, self.device.to_host
        return (
            to_host(stack([loss for loss, _ in results])).tolist(),
            to_host(stack([hits for _, hits in results])).tolist(),
        )

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
        while self.step < self.total_steps and not history.stopped:
            epoch = self.step // history.steps_per_epoch
            first = epoch * history.steps_per_epoch
            seconds = self._run_epoch(epoch, on_progress, should_stop)
            if self.step < first + history.steps_per_epoch:
                history.stopped = True
                break
            record = self._finish_epoch(epoch, first, seconds)
            if on_epoch:
                on_epoch(record)
            history.stopped = should_stop() and self.step < self.total_steps
        return history

    def _run_epoch(
        self, epoch: int, on_progress: Callable[[Progress], None] | None, should_stop: Callable[[], bool]
    ) -> float:
        """The rest of an epoch's steps; returns the seconds that they took."""
        history, end = self.history, (epoch + 1) * self.history.steps_per_epoch
        before, told = history.train_seconds, time.perf_counter()
        with self.device.activate():
            self.device.synchronize()
            begun = time.perf_counter()
            step, stop = self.step, False
            while step < end and not stop:
                if self._snapshot is None or step - self._snapshot[0] >= SNAPSHOT_STEPS:
                    self._take_snapshot(step)
                results: list[tuple[Array, Array]] = []
                window = time.perf_counter()
                while step < end and not stop and len(results) < SNAPSHOT_STEPS:
                    results.append(self.train_step(step))
                    step, stop = step + 1, should_stop()
                    if time.perf_counter() - window > REPORT_SECONDS:
                        break
                self._record(results)
                now = time.perf_counter()
                history.train_seconds = before + now - begun
                if on_progress and (now - told > REPORT_SECONDS or step == end or stop):
                    on_progress(self._progress(epoch))
                    told = now
        return history.train_seconds - before

    def _record(self, results: list[tuple[Array, Array]]) -> None:
        """Read the steps' losses from the device, which waits for it, and check them."""
        first = self.step
        losses, correct = self._on_host(results)
        for offset, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise self._explain_not_finite(first + offset, loss)
        self.history.loss += losses
        self.history.correct += correct

    def _finish_epoch(self, epoch: int, first: int, seconds: float) -> EpochRecord:
        """Evaluate, and write the epoch's record."""
        history, held_out, evaluation = self.history, self.data.evaluation, None
        earlier = sum(record.train_seconds for record in history.epochs)
        last = epoch + 1 == self.settings.epochs
        if held_out is not None and (last or (epoch + 1) % self.settings.evaluate_every == 0):
            begun, compiling = time.perf_counter(), self.engine.compile_seconds
            evaluation = self.evaluation = evaluate(self.engine, held_out[1], self.test_images)
            compiling = self.engine.compile_seconds - compiling
            history.evaluate_seconds += time.perf_counter() - begun - compiling
            if not math.isfinite(evaluation.loss):  # no later step may come to notice it
                raise self._explain_evaluation(held_out[0], evaluation.loss)
        loss, accuracy = history.since(first)
        record = EpochRecord(
            epoch=epoch + 1,
            iterations=self.step,
            train_loss=loss,
            train_accuracy=accuracy,
            train_seconds=max(seconds, history.train_seconds - earlier),  # with what came before an interruption
            learning_rate=self.learning_rate(self.step - 1),
            test_loss=evaluation.loss if evaluation else None,
            test_accuracy=evaluation.accuracy if evaluation else None,
        )
        history.epochs.append(record)
        return record

    def _progress(self, epoch: int) -> Progress:
        history = self.history
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

    def _take_snapshot(self, step: int) -> None:
        live = {**self.model.state(), **self.optimizer.state()}
        kept = self._snapshot[2] if self._snapshot is not None else {}
        if kept.keys() == live.keys():
            for key, array in kept.items():
                array[...] = live[key]
        else:
            kept = {key: value.copy() for key, value in live.items()}
        self._snapshot = step, self.optimizer.step, kept

    def _explain_not_finite(self, step: int, loss: float) -> NotFiniteError:
        assert self._snapshot is not None
        start, updates, kept = self._snapshot
        self.model.load_state({key: kept[key] for key in self.model.state()})
        self.optimizer.load_state({key: kept[key] for key in kept if key not in self.model.state()}, updates)
        for again in range(start, step):
            self.train_step(again)
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

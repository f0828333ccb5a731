"""The plan of a model's training step on a GPU: compiled, laid out in memory, captured as a graph, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bareconv.device import Array, CudaDevice
from bareconv.errors import ShapeError, UsageError
from bareconv.kernels.cache import OnCompile
from bareconv.kernels.cuda.kernel import PRECISIONS, Precision
from bareconv.nn import layers
from bareconv.nn.layer import features
from bareconv.nn.model import Model
from bareconv.optim import Optimizer, clip_grad_norm
from bareconv.optim.rule import SCALARS, Rule, scalars
from bareconv.plan.cuda.binding import Bound, NoRoomError, Program
from bareconv.plan.cuda.blocks import with_sums
from bareconv.plan.cuda.fused.host import from_kept
from bareconv.plan.cuda.lowering import Lowered, lower, refresher
from bareconv.plan.cuda.parameters import Parameters
from bareconv.plan.cuda.record import BRANCH, Buffer, Recorded, RecordedHost, lay_out
from bareconv.plan.cuda.runtime import GpuRuntime, Runtime
from bareconv.plan.cuda.step import Step
from bareconv.plan.explain import Explanation, Row
from bareconv.plan.graph import graph_of

PREDICT_IMAGES = 256  # of one launch of the inference program
WINDOW = 1024  # steps that are asked for at once, at most
CONTROL_BYTES = 64


@dataclass
class _Made:
    """A program, what it was lowered from, and its binding to the arrays it was last asked for."""

    lowered: Lowered
    program: Program
    arrays: tuple[Array | None, ...] = ()
    bound: Bound | None = None


class CudaPlan:
    """A training step and a prediction, planned for batches of up to ``batch_size`` images.

    ``precision``: of the arithmetic: "float32" (nothing is rounded to less; ``kernels.cuda.dense`` says how it
    multiplies pixels), "tf32" or "bfloat16"; weights and the optimizer's state are float32 in each. The model's
    parameters and the optimizer's state become views of the plan's memory: both stay what they are, and may be read
    and written between calls. ``clip_norm`` and an optimizer that has no kernel are applied by the reference, to
    gradients that the plan made. ``runtime``: where it runs, the model's GPU unless given.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        batch_size: int,
        *,
        precision: str = "float32",
        label_smoothing: float = 0.0,
        clip_norm: float | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise UsageError(f"precision {precision!r}: the plan on a GPU computes in {', '.join(PRECISIONS)}")
        if runtime is None:
            if not isinstance(model.device, CudaDevice):
                raise UsageError(f"model {model.name} is on {model.device.name}; a CUDA plan needs it on a GPU")
            runtime = GpuRuntime(model.device)
        self.model, self.optimizer, self.batch_size = model, optimizer, batch_size
        self.precision: Precision = next(one for one in PRECISIONS if one == precision)
        self.runtime, self.clip_norm, self._smoothing = runtime, clip_norm, label_smoothing
        xp = runtime.xp
        self._graph = with_sums(graph_of(model))
        self.parameters = Parameters(model, self._graph, self.precision, xp)
        self.rule = Rule.of(optimizer, clip_norm)
        self._update_on_host = self.rule.name == "gradient"
        # Control and the steps' scalars are written together, by one copy.
        self._numbers = xp.zeros(CONTROL_BYTES + 4 * SCALARS * WINDOW, xp.uint8)
        self._losses = xp.zeros(WINDOW, xp.float32)
        self._hits = xp.zeros(WINDOW, xp.int32)
        self._order: Array | None = None
        self._labels: tuple[Array, Array] | None = None  # as they came, and as the kernels read them
        self._staged: tuple[Array, Array] | None = None  # images to predict, and labels
        self._training: _Made | None = None
        self._inference: _Made | None = None
        self._refresher: Callable[[], None] | None = None
        self._seconds: list[float] = []  # of a step's launches, where they were timed

    @property
    def compiled(self) -> int:
        """Kernels so far, of those that were in no cache."""
        return self.runtime.compiled

    @property
    def compile_seconds(self) -> float:
        """Spent on them so far."""
        return self.runtime.compile_seconds

    # Making

    def prepare(self, on_compile: OnCompile | None = None) -> None:
        """Compile and lay out a training step, which the first step does otherwise."""
        self._prepared(on_compile)

    def _prepared(self, on_compile: OnCompile | None = None) -> _Made:
        if self._training is None:
            try:
                self._training = self._made(self.batch_size, True, on_compile)
            except NoRoomError as error:
                raise UsageError(f"batch size {self.batch_size}: {error}; {self._largest(error)}") from None
        return self._training

    def _made(self, batch: int, training: bool, on_compile: OnCompile | None = None) -> _Made:
        lowered = self._lowered(batch, training)
        return _Made(lowered, Program(lowered.record, self.runtime, lowered.step.outside.all(), on_compile))

    def _lowered(self, batch: int, training: bool) -> Lowered:
        graph = self._graph if training else with_sums(graph_of(self.model, drop=(layers.Dropout,)))
        step = Step(
            *(graph, self.model, self.precision, self.runtime.limits, self.parameters, self.rule, batch),
            smoothing=self._smoothing,
            training=training,
        )
        return lower(step)

    def _largest(self, error: NoRoomError) -> str:
        """What batch would fit, for the error that says that this one does not."""
        fits, too_many = 0, self.batch_size
        while too_many - fits > 1:
            batch = (fits + too_many) // 2
            lowered = self._lowered(batch, True)
            if lay_out(lowered.record, set(lowered.step.outside.all())) <= error.free:
                fits = batch
            else:
                too_many = batch
        return f"the largest batch that fits is {fits}" if fits else "not even a batch of one image fits"

    def _bind(self, made: _Made, pixels: Array, labels: Array | None, order: Array | None) -> Bound:
        arrays = (pixels, labels, order)
        if made.bound is None or any(a is not b for a, b in zip(arrays, made.arrays, strict=True)):
            parameters, step = self.parameters, made.lowered.step
            outside, numbers = step.outside, self._numbers
            states = [*parameters.states, None, None]
            places: dict[Buffer, Array | None] = {
                outside.pixels: pixels,
                outside.labels: labels,
                outside.order: order,
                outside.control: numbers[:CONTROL_BYTES],
                outside.scalars: numbers[CONTROL_BYTES:],
                outside.losses: self._losses,
                outside.hits: self._hits,
                outside.weight: parameters.weight,
                outside.state1: states[0],
                outside.state2: states[1],
                outside.gradient: parameters.gradient if self._update_on_host else None,
                outside.copy: parameters.copy,
            }
            buffers = self.model.buffers()
            places |= {buffer: buffers[name] for name, buffer in outside.running.items()}
            places |= made.lowered.tables(made.program, self.runtime, places)
            made.bound, made.arrays = made.program.bind(places), arrays
        return made.bound

    # Running

    def steps(
        self, pixels: Array, labels: Array, order: Array | None, rates: Sequence[float], first_step: int = 0
    ) -> tuple[Array, Array]:
        """Train on the images (N, H, W, C) that ``order`` names, ``batch_size`` a step; the last may have fewer.

        Without ``order`` every step takes all images. ``rates``: the learning rate of each step; ``first_step``: the
        number of the first, counted from the training's start. Returns (losses, correct predictions), an element each a
        step, on the device, which is not waited for.
        """
        images = len(pixels) if order is None else len(order)
        self._check(pixels, labels, images, len(rates), order is None)
        size, xp = self.batch_size, self.runtime.xp
        losses, hits = [], []
        for start in range(0, len(rates), WINDOW):
            part = rates[start : start + WINDOW]
            chosen = None if order is None else order[start * size : (start + len(part)) * size]
            if self._update_on_host:
                self._by_hand(pixels, labels, chosen, part, first_step + start)
            else:
                bound = self._ready(pixels, labels, chosen, part, first_step + start)
                if bound.program.why_not_captured is None:
                    bound.run_many(len(part))
                else:
                    self._one_by_one(bound, len(part), images if chosen is None else len(chosen), first_step + start)
                self.optimizer.step += len(part)
            losses.append(self._losses[: len(part)].astype(xp.float64))
            hits.append(self._hits[: len(part)].astype(xp.int64))
        return xp.concatenate(losses), xp.concatenate(hits)

    def _ready(
        self, pixels: Array, labels: Array, order: Array | None, rates: Sequence[float], first_step: int
    ) -> Bound:
        """The bound program, with everything in device memory that these steps read."""
        xp, made = self.runtime.xp, self._prepared()
        parameters = self.parameters
        parameters.take_over()
        if not self._update_on_host:
            parameters.adopt(self.optimizer)
        if order is not None:
            if self._order is None or len(self._order) < len(order):
                self._order = xp.zeros(max(len(order), WINDOW * min(self.batch_size, 1024)), xp.int32)
            self._order[: len(order)] = order
        if self._labels is None or self._labels[0] is not labels:
            self._labels = labels, xp.ascontiguousarray(labels, dtype=xp.int32)
        total = len(pixels) if order is None else len(order)
        table: list[list[float]] = []
        if not self._update_on_host:
            table = [scalars(self.optimizer, rate, ahead) for ahead, rate in enumerate(rates)]
        self._tell(total, 0 if order is None else self.batch_size, first_step, table)
        bound = self._bind(made, pixels, self._labels[1], None if order is None else self._order)
        self._refresh(made)
        return bound

    def _tell(self, total: int, batch: int, first_step: int, table: Sequence[Sequence[float]] = ()) -> None:
        """Write the control block, and what the optimizer needs to know of each step."""
        host = np.zeros(CONTROL_BYTES + 4 * SCALARS * len(table), np.uint8)
        host[:20].view(np.int32)[:] = [0, min(batch or total, total), total, batch, first_step]
        rows = host[CONTROL_BYTES:].view(np.float32).reshape(-1, SCALARS)
        for row, numbers in zip(rows, table, strict=True):
            row[: len(numbers)] = numbers
        self._numbers[: len(host)] = self.runtime.xp.asarray(host)

    def _refresh(self, made: _Made) -> None:
        """Make the working copies anew: whoever has changed a parameter since has not told."""
        if self._refresher is None:
            self._refresher = refresher(made.lowered.step, self.runtime)
        self._refresher()

    def _one_by_one(self, bound: Bound, count: int, images: int, first_step: int) -> None:
        """Steps that Python takes part in."""
        for number in range(count):
            here = min(self.batch_size, images - number * self.batch_size) if images > self.batch_size else images
            bound.run(bound.program.view, here, first_step + number)

    def _by_hand(
        self, pixels: Array, labels: Array, order: Array | None, rates: Sequence[float], first_step: int
    ) -> None:
        """Steps whose gradients are scaled, or applied, by the reference."""
        xp, losses, hits = self.runtime.xp, [], []
        for number, rate in enumerate(rates):
            size = self.batch_size
            chosen = None if order is None else order[number * size : (number + 1) * size]
            bound = self._ready(pixels, labels, chosen, [rate], first_step + number)
            if bound.program.why_not_captured is None:
                bound.run_many(1)
            else:
                bound.run(bound.program.view, len(pixels) if chosen is None else len(chosen), first_step + number)
            losses.append(self._losses[:1].copy())
            hits.append(self._hits[:1].copy())
            gradients = self.gradients()
            if self.clip_norm is not None:
                clip_grad_norm(gradients, self.clip_norm)
            self.optimizer.update(self.model.parameters(), gradients, rate)
        self._losses[: len(losses)] = xp.concatenate(losses)
        self._hits[: len(hits)] = xp.concatenate(hits)

    def gradients(self) -> dict[str, Array]:
        """The last step's gradients by parameter, where the plan keeps them: not where it updates at once."""
        if not self._update_on_host:
            raise UsageError("this plan updates parameters where their gradients are made; it keeps none")
        return self.parameters.gradients()

    def predict(self, pixels: Array) -> Array:
        """float32 logits (N, classes) of uint8 images."""
        xp = self.runtime.xp
        self.model.check_pixels(pixels)
        if self._inference is None:
            self._inference = self._made(PREDICT_IMAGES, False)
            # A head computes a loss as well; its labels are anything.
            self._staged = (
                xp.zeros((PREDICT_IMAGES, *self.model.input_shape), xp.uint8),
                xp.zeros(PREDICT_IMAGES, xp.int32),
            )
        assert self._staged is not None
        made, (staged, no_labels) = self._inference, self._staged
        self.parameters.take_over()
        bound = self._bind(made, staged, no_labels, None)
        self._refresh(made)
        classes = features(self.model.output_shape)
        out = xp.empty((len(pixels), classes), xp.float32)
        for start in range(0, len(pixels), PREDICT_IMAGES):
            part = pixels[start : start + PREDICT_IMAGES]
            staged[: len(part)] = part
            self._tell(len(part), 0, 0)
            if bound.program.why_not_captured is None:
                bound.run_many(1)
            else:
                bound.run(bound.program.view, len(part), 0)
            logits = made.program.view(made.lowered.logits).reshape(PREDICT_IMAGES, -1)
            out[start : start + len(part)] = from_kept(logits[: len(part), :classes])
        return out

    def _check(self, pixels: Array, labels: Array, images: int, steps: int, everything: bool) -> None:
        """Kernels believe what they are given."""
        self.model.check_pixels(pixels)
        if len(labels) != len(pixels):
            raise ShapeError(f"{len(labels)} labels: expected one for each of {len(pixels)} images")
        if everything and images > self.batch_size:
            raise UsageError(f"a batch of {images} images: the plan was made for at most {self.batch_size}")
        if not everything and steps != -(-images // self.batch_size):
            raise UsageError(f"{steps} rates for {images} images in batches of {self.batch_size}")

    def kept_bytes(self) -> dict[str, int]:
        """What the plan has allocated: activations with their gradients and partial sums; gradients of parameters."""
        made = [one.program.bytes for one in (self._training, self._inference) if one is not None]
        return {"activations": sum(made), "gradients": self.parameters.bytes}

    @property
    def why_not_captured(self) -> str | None:
        """Why a step is no graph; None where it is one."""
        if self._update_on_host:
            what = "clipping the gradient's norm" if self.clip_norm is not None else repr(self.optimizer)
            return f"{what}: applied by the reference after every step"
        return self._prepared().program.why_not_captured

    # Looking at it

    def explain(self) -> Explanation:
        """A row for every launch of a step: what it is for, its kernel, its work; times once ``profile`` has run."""
        made = self._prepared()
        rows = [self._row(item) for item in made.program.record.items]
        if self._seconds:
            rows = [replace(row, seconds=seconds) for row, seconds in zip(rows, self._seconds, strict=True)]
        title = f"{self.model.name}: {self.runtime.limits.architecture}, {self.precision}, {self._graph_words()}"
        title += f", batches of up to {self.batch_size}"
        return Explanation(title, tuple(rows), 0.0, sum(self.kept_bytes().values()))

    def launches(self) -> list[Recorded]:
        """Every launch of a step, in order, as it was recorded."""
        return [item for item in self._prepared().program.record.items if isinstance(item, Recorded)]

    def _graph_words(self) -> str:
        reason = self.why_not_captured
        return "one CUDA graph" if reason is None else f"no CUDA graph ({reason})"

    def _row(self, item: Recorded | RecordedHost) -> Row:
        if isinstance(item, RecordedHost):
            return Row(item.node, item.phase, "Python", item.why, 0, None)
        kernel, batch = item.kernel, self.batch_size
        how = self.runtime.describe(kernel) + (", beside the others" if item.branch == BRANCH else "")
        work = round(kernel.flops / batch), None, round(kernel.bytes / batch)
        return Row(item.node, item.phase, kernel.name, how, *work)

    def profile(
        self, pixels: Array, labels: Array, order: Array | None = None, repeats: int = 20
    ) -> list[tuple[Row, float]]:
        """(row, seconds) of every launch, each timed alone, ``repeats`` times in a row on the same data.

        Parameters, the optimizer's state and running statistics are put back. Only where a step is a graph.
        """
        rule = [] if self._update_on_host else [scalars(self.optimizer, 0.0)]
        bound = self._ready(pixels, labels, order, [0.0], 0)
        changed = [self.parameters.weight, *self.parameters.states, *self.model.buffers().values()]
        before = [array.copy() for array in changed]
        bound.run()
        extent = (len(pixels), 0) if order is None else (len(order), self.batch_size)
        seconds = []
        for launch in bound.launches():
            self._tell(*extent, 0, rule)
            seconds.append(self.runtime.time(launch, repeats))
        for array, kept in zip(changed, before, strict=True):
            array[...] = kept
        self._seconds = seconds
        return [(self._row(item), one) for item, one in zip(bound.program.record.items, seconds, strict=True)]

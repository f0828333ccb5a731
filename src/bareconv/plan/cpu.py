"""The plan of a model's training step on a CPU: compiled, laid out in memory, ready to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv.errors import ShapeError, UsageError
from bareconv.host import blas_threads
from bareconv.kernels.cpu.jit import compile_kernels
from bareconv.kernels.cpu.kernel import Kernel
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.program import Address, Call, Program, Run, Stage
from bareconv.kernels.cpu.rules import SCALARS, Rule, scalars
from bareconv.kernels.cpu.target import Target, host_target
from bareconv.kernels.cpu.workers import Workers
from bareconv.nn import layers
from bareconv.nn.model import Model
from bareconv.optim import Optimizer, clip_grad_norm
from bareconv.plan.explain import Explanation, Row
from bareconv.plan.graph import graph_of
from bareconv.plan.lowering import Lowering, is_sparse
from bareconv.plan.memory import Buffer, allocate, lay_out
from bareconv.plan.parameters import Parameters
from bareconv.plan.record import Recorded, RecordedStage

PREDICT_IMAGES = 256  # of one call of the inference program
OnCompile = Callable[[int, int], None]


class CpuPlan:
    """A training step and a prediction, planned for batches of up to ``batch_size`` images.

    ``threads``: workers, by default as many as there are cores for this process. The model's parameters and the
    optimizer's state become views of the plan's memory: both stay what they are, and may be read and written between steps.
    ``clip_norm`` and an optimizer that has no kernel are applied by the reference, to gradients that the plan made.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        batch_size: int,
        *,
        label_smoothing: float = 0.0,
        clip_norm: float | None = None,
        threads: int | None = None,
        simd: str | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"threads {threads}: expected at least 1")
        self.model, self.optimizer, self.batch_size = model, optimizer, batch_size
        self.clip_norm, self._smoothing = clip_norm, label_smoothing
        self.target: Target = host_target(model.precision, simd)
        self.workers = Workers(threads or blas_threads())
        self.compile_seconds = 0.0
        self.compiled = 0  # kernels that were in no cache
        graph = graph_of(model)
        sparse = {f"{node.layers[0].name}.weight" for node in graph.nodes if is_sparse(node, self.target)}
        dense = {f"{leaf.name}.weight" for leaf in model.leaves() if type(leaf) is layers.Dense}
        self.parameters = Parameters(model, sparse, dense)
        self.rule = self._rule()
        self._update_on_host = self.rule.name == "gradient"
        self._graph = graph
        self._training: _Bound | None = None
        self._inference: _Bound | None = None

    def prepare(self, on_compile: OnCompile | None = None) -> None:
        """Compile and lay out a training step, which the first step does otherwise."""
        self._prepared(on_compile)

    def _prepared(self, on_compile: OnCompile | None = None) -> _Bound:
        if self._training is None:
            lowering = Lowering(
                self._graph, self.model, self.target, self.parameters, self.rule, self._smoothing
            )
            self._training = _Bound(self, lowering, self.batch_size, on_compile)
        return self._training

    def _rule(self) -> Rule:
        if self.clip_norm is not None:
            return Rule("gradient")
        try:
            return Rule.of(self.optimizer)
        except TypeError:
            return Rule("gradient")

    def step(
        self, pixels: NDArray[np.uint8], labels: NDArray[np.int64], order: NDArray[np.int64], lr: float, step: int = 0
    ) -> tuple[float, int]:
        """Train on the images (N, H, W, C) and labels that ``order`` chooses; (mean loss, correct predictions)."""
        loss, hits = self._gradients(pixels, labels, order, lr, step)
        if self._update_on_host:
            gradients = self.gradients()
            if self.clip_norm is not None:
                clip_grad_norm(gradients, self.clip_norm)
            self.optimizer.update(self.model.parameters(), gradients, lr)
        else:
            self.optimizer.step += 1
        return loss, hits

    def _gradients(
        self, pixels: NDArray[np.uint8], labels: NDArray[np.int64], order: NDArray[np.int64], lr: float, step: int
    ) -> tuple[float, int]:
        images = len(order)
        self._check(pixels, order)
        if len(labels) != len(pixels) or labels.dtype != np.int64:
            raise ShapeError(
                f"labels {labels.shape} of {labels.dtype}: expected an int64 for each of {len(pixels)} images"
            )
        if images > self.batch_size:
            raise UsageError(f"a batch of {images} images: the plan was made for at most {self.batch_size}")
        self.parameters.take_over()
        if not self._update_on_host:
            self.parameters.adopt(self.optimizer)
        bound = self._prepared()
        bound.numbers[:] = [*scalars(self.optimizer, lr), *[0.0] * SCALARS][:SCALARS] if not self._update_on_host else 0
        bound.run(images, pixels, order, labels, step)
        losses = bound.view(bound.lowering.losses, None, images)
        hits = bound.view(bound.lowering.hits, None, images)
        return float(losses.sum()) / images, int(hits.sum())

    def _check(self, pixels: NDArray[Any], order: NDArray[np.int64] | None = None) -> None:
        """Machine code believes what it is given."""
        if pixels.shape[1:] != self.model.input_shape or pixels.dtype != np.uint8:
            raise ShapeError(
                f"model {self.model.name} was built for uint8 images of {self.model.input_shape}; "
                f"got {pixels.dtype} images of {pixels.shape[1:]}"
            )
        if order is not None and not (len(order) and order.min() >= 0 and order.max() < len(pixels)):
            raise ShapeError(f"order of {len(order)} images: expected at least one, each from 0 to {len(pixels) - 1}")

    def gradients(self) -> dict[str, NDArray[Any]]:
        """The last step's gradients by parameter, where the plan keeps them: not where it updates at once."""
        if not self._update_on_host:
            raise UsageError("this plan updates parameters where their gradients are made; it keeps none")
        return {name: self.parameters.view(self.parameters.gradient, name) for name in self.model.parameters()}

    def predict(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Logits (N, classes) of uint8 images."""
        if self._inference is None:
            graph = graph_of(self.model, drop=(layers.Dropout,))
            lowering = Lowering(
                graph, self.model, self.target, self.parameters, self.rule, self._smoothing, training=False
            )
            self._inference = _Bound(self, lowering, PREDICT_IMAGES, None)
        self._check(pixels)
        self.parameters.take_over()
        bound = self._inference
        out = np.empty((len(pixels), *self.model.output_shape), self.model.precision)
        for start in range(0, len(pixels), PREDICT_IMAGES):
            part = np.arange(start, min(start + PREDICT_IMAGES, len(pixels)))
            bound.run(len(part), pixels, part, None, 0)
            out[start : start + len(part)] = bound.view(*bound.lowering.logits, len(part)).reshape(len(part), -1)
        return out

    def explain(self) -> Explanation:
        """A row for every call of a step: what it is for, its kernel, its work, and the time it has taken so far."""
        return self._prepared().explain()

    def clear_times(self) -> None:
        """Begin the times that ``explain`` shows anew."""
        self._prepared().clear_times()

    def kept_bytes(self) -> dict[str, int]:
        """What the plan has allocated: activations with their gradients and scratch memory, and gradients of parameters."""
        bound = [one for one in (self._training, self._inference) if one is not None]
        gradients = sum(one.partial.nbytes for one in bound)
        if self._update_on_host:
            gradients += self.parameters.gradient.nbytes
        return {"activations": sum(one.memory.nbytes for one in bound), "gradients": gradients}

    def close(self) -> None:
        """End the threads."""
        self.workers.close()


class _Bound:
    """A lowering with addresses: memory, machine code, programs, and Python's turns between them."""

    def __init__(self, plan: CpuPlan, lowering: Lowering, images: int, on_compile: OnCompile | None) -> None:
        self.plan, self.lowering, self.capacity = plan, lowering, images
        workers, parameters = plan.workers.count, plan.parameters
        compiled = compile_kernels(
            [Run(plan.target), *(call.kernel for stage in lowering.stages for call in stage.calls)], on_compile
        )
        plan.compile_seconds += compiled.seconds
        plan.compiled += compiled.written
        buffers = [buffer for buffer in lowering.buffers if buffer.span is not None or buffer.kept]
        self.memory = allocate(lay_out(buffers, images, workers))
        for buffer in buffers:
            if id(buffer) in lowering.tables:
                table = lowering.tables[id(buffer)]
                start = buffer.offset
                self.memory[start : start + table.nbytes] = table.view(np.uint8).reshape(-1)
        self.partial_pitch = lowering._partial_pitch()
        size = np.dtype(plan.target.dtype).itemsize
        self.partial = allocate(self.partial_pitch * workers * size).view(plan.target.dtype)
        self.numbers = np.zeros(SCALARS, plan.target.dtype)
        self.words = np.array([0, workers], np.int64)  # images of the batch, workers
        outside: dict[Buffer, Address] = {
            lowering.images: Address(self.words.ctypes.data),
            lowering.workers: Address(self.words.ctypes.data + 8),
            lowering.scalars: Address(self.numbers.ctypes.data),
            lowering.weight: Address(parameters.weight.ctypes.data),
            lowering.partial: Address(self.partial.ctypes.data, worker=self.partial_pitch * size),
        }
        if plan._update_on_host:
            outside[lowering.gradient] = Address(parameters.gradient.ctypes.data)
        else:
            parameters.adopt(plan.optimizer)
            for buffer, flat in zip((lowering.state1, lowering.state2), parameters.states, strict=False):
                outside[buffer] = Address(flat.ctypes.data)
        self._running = dict(plan.model.buffers())
        for name, buffer in lowering.running.items():
            outside[buffer] = Address(self._running[name].ctypes.data)
        self._outside = outside
        self.order = np.zeros(images, np.int64)
        self._bound: dict[Buffer, int] = {}  # pixels and labels: where they were at the last run
        self._rows: dict[Buffer, list[NDArray[np.int64]]] = {lowering.pixels: [], lowering.labels: []}
        outside[lowering.order] = Address(self.order.ctypes.data)
        self._turns: list[Program | RecordedStage] = []
        stages: list[Stage] = []
        calls_so_far: list[Recorded] = []
        for recorded in [*lowering.stages, None]:
            if recorded is not None and recorded.host is None:
                calls = [self._call(call) for call in recorded.calls]
                calls_so_far += recorded.calls
                stages.append(Stage(calls, recorded.extent, recorded.chunk, recorded.grain, recorded.wait and bool(stages)))
                continue
            if stages:
                program = Program(stages, compiled.addresses, Run(plan.target), plan.workers)
                self._turns.append(program)
                for call, table in zip(calls_so_far, program.operand_tables, strict=True):
                    for row, name in zip(table, call.kernel.operands, strict=True):
                        place = call.operands.get(name)
                        if place is not None and place.buffer in self._rows:
                            self._rows[place.buffer].append(row)
                stages, calls_so_far = [], []
            if recorded is not None:
                self._turns.append(recorded)

    def _call(self, call: Recorded) -> Call:
        return Call(call.kernel, {name: self._address(p.buffer, p.offset, p.shared) for name, p in call.operands.items()})

    def _address(self, buffer: Buffer, offset: int, shared: bool) -> Address:
        if buffer.per == "outside":
            at = self._outside.get(buffer, Address())
            moved = offset * np.dtype(self.plan.target.dtype).itemsize if offset else 0
            return Address(at.base + moved, at.image, 0 if shared else at.worker)
        base = self.memory.ctypes.data + buffer.offset + offset * np.dtype(buffer.dtype).itemsize
        if buffer.per == "plan":
            return Address(base)
        if buffer.per == "worker":
            return Address(base, worker=0 if shared else buffer.pitch)
        if buffer.local:
            return Address(base, buffer.pitch, buffer.worker_pitch, local=True)
        return Address(base, buffer.pitch)

    def run(
        self, images: int, pixels: NDArray[np.uint8], order: NDArray[np.int64], labels: NDArray[np.int64] | None, step: int
    ) -> None:
        """One turn of everything."""
        self.words[0] = images
        self.order[:images] = order
        self._bind(self.lowering.pixels, pixels)
        if labels is not None:
            self._bind(self.lowering.labels, labels)
        for turn in self._turns:
            if isinstance(turn, Program):
                turn.run(images)
            else:
                assert turn.host is not None
                turn.host(self.view, self._add_gradient, images, step)

    def _bind(self, buffer: Buffer, array: NDArray[Any]) -> None:
        """Let the calls that read the data find them where they are now."""
        assert array.flags.c_contiguous
        if self._bound.get(buffer) != array.ctypes.data:
            self._bound[buffer] = array.ctypes.data
            for row in self._rows[buffer]:
                row[0] = array.ctypes.data

    def view(self, buffer: Buffer, plane: Plane | None, images: int) -> NDArray[Any]:
        """The images of a buffer that all workers share, without their border."""
        kind = np.dtype(buffer.dtype)
        if plane is None:
            return np.ndarray((images,), kind, self.memory.data, buffer.offset, (buffer.pitch,))
        strides = (buffer.pitch, plane.row * kind.itemsize, plane.channels * kind.itemsize, kind.itemsize)
        at = buffer.offset + plane.at(0, 0) * kind.itemsize
        return np.ndarray((images, plane.height, plane.width, plane.channels), kind, self.memory.data, at, strides)

    def _add_gradient(self, name: str, gradient: NDArray[Any]) -> None:
        start = self.plan.parameters.start[name]
        self.partial[start : start + gradient.size] += gradient.reshape(-1)

    def explain(self) -> Explanation:
        """What is called, and how long each call has taken."""
        programs = [turn for turn in self._turns if isinstance(turn, Program)]
        seconds = [time for program in programs for time in program.seconds()[1:]]
        waiting = sum(program.seconds()[0] for program in programs)
        rows, times = [], iter(seconds)
        for stage in self.lowering.stages:
            if stage.host is not None:
                node, phase, what = stage.label
                rows.append(Row(node, phase, "Python", what, 0, None))
            for call in stage.calls:
                rows.append(
                    Row(call.node, call.phase, type(call.kernel).__name__, call.kernel.label, call.kernel.flops, next(times))
                )
        return Explanation(
            f"{self.plan.model.name}: {self.plan.target.name}, {self.plan.target.dtype}, "
            f"{self.plan.workers.count} threads, batches of up to {self.capacity}",
            tuple(rows),
            waiting,
            sum(self.plan.kept_bytes().values()),
        )

    def clear_times(self) -> None:
        for turn in self._turns:
            if isinstance(turn, Program):
                turn.clear_ticks()

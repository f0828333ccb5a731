"""A lowered step with addresses: memory, machine code, programs, and Python's turns between them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv.kernels.cache import OnCompile
from bareconv.kernels.cpu.jit import compile_kernels
from bareconv.kernels.cpu.kernel import Kernel
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.program import Address, Call, Program, Run, Stage
from bareconv.kernels.cpu.workers import Workers
from bareconv.optim import Optimizer
from bareconv.optim.rule import SCALARS
from bareconv.plan.cpu.lowering import Lowered
from bareconv.plan.cpu.memory import Buffer, allocate, lay_out
from bareconv.plan.cpu.record import Recorded, RecordedStage
from bareconv.plan.explain import Row


class Bound:
    """Ready to run, for batches of up to ``capacity`` images.

    ``optimizer`` None: gradients go to the parameters' own array of gradients, and nothing is updated.
    """

    def __init__(
        self,
        lowered: Lowered,
        capacity: int,
        workers: Workers,
        optimizer: Optimizer | None,
        on_compile: OnCompile | None,
    ) -> None:
        step = self.step = lowered.step
        self.lowered, self.capacity, self._workers = lowered, capacity, workers
        self._run_kernel = Run(step.target)
        kernels = [call.kernel for stage in lowered.stages for call in stage.calls]
        self.compiled = compile_kernels([self._run_kernel, *kernels], on_compile)
        self.memory = self._allocate()
        self._itemsize = np.dtype(step.target.dtype).itemsize
        self.partial = allocate(step.partial_pitch * workers.count * self._itemsize).view(step.target.dtype)
        self.scalars = np.zeros(SCALARS, step.target.dtype)  # of the optimizer's rule, for the next run
        self._order = np.zeros(capacity, np.int64)
        self._words = np.array([0, workers.count], np.int64)  # images of the batch, workers
        self._outside = self._addresses(optimizer)
        self.losses, self.hits = self._column(lowered.losses), self._column(lowered.hits)
        # What may lie elsewhere at every run: the words that hold its address, and the array of the last run.
        moving = [step.outside.pixels, step.outside.labels, *step.outside.running.values()]
        self._moving: dict[Buffer, list[NDArray[np.int64]]] = {buffer: [] for buffer in moving}
        self._last: dict[Buffer, NDArray[Any]] = {}
        self._turns: list[Program | RecordedStage] = []
        self._run_addresses: dict[Kernel, int] = {}  # with and without clocks, where that was asked for
        self._host_seconds: dict[int, float] = {}  # of Python's turns, by their place
        self._make_programs()

    def _allocate(self) -> NDArray[np.uint8]:
        step = self.step
        buffers = [buffer for buffer in step.buffers if buffer.span is not None]
        memory = allocate(lay_out(buffers, self.capacity, self._workers.count))
        for buffer, values in step.tables.items():
            if buffer.span is not None:
                memory[buffer.offset : buffer.offset + values.nbytes] = values.view(np.uint8).reshape(-1)
        return memory

    def _addresses(self, optimizer: Optimizer | None) -> dict[Buffer, Address]:
        """Of the memory that is not in the block; what kernels do without is left out."""
        outside, parameters = self.step.outside, self.step.parameters
        found = {
            outside.order: Address(self._order.ctypes.data),
            outside.images: Address(self._words.ctypes.data),
            outside.workers: Address(self._words[1:].ctypes.data),
            outside.scalars: Address(self.scalars.ctypes.data),
            outside.weight: Address(parameters.weight.ctypes.data),
            outside.partial: Address(self.partial.ctypes.data, worker=self.step.partial_pitch * self._itemsize),
        }
        if optimizer is None:
            found[outside.gradient] = Address(parameters.gradient.ctypes.data)
        else:
            parameters.adopt(optimizer)
            for buffer, flat in zip((outside.state1, outside.state2), parameters.states, strict=False):
                found[buffer] = Address(flat.ctypes.data)
        return found

    def _make_programs(self) -> None:
        stages: list[RecordedStage] = []
        for stage in [*self.lowered.stages, None]:
            if stage is not None and stage.host is None:
                stages.append(stage)
                continue
            if stages:
                self._turns.append(self._program(stages))
                stages = []
            if stage is not None:
                self._turns.append(stage)

    def _program(self, recorded: list[RecordedStage]) -> Program:
        stages = [
            Stage(
                calls=[self._call(call) for call in stage.calls],
                extent=stage.extent,
                chunk=stage.chunk,
                grain=stage.grain,
                wait=stage.wait and stage is not recorded[0],
                segment=stage.segment,
                round=stage.round,
            )
            for stage in recorded
        ]
        program = Program(stages, self.compiled.addresses, self._run_kernel, self._workers)
        calls = [call for stage in recorded for call in stage.calls]
        for call, table in zip(calls, program.operand_tables, strict=True):
            for words, name in zip(table, call.kernel.operands, strict=True):
                place = call.operands.get(name)
                if place is not None and place.buffer in self._moving:
                    self._moving[place.buffer].append(words)
        return program

    def _call(self, call: Recorded) -> Call:
        places = call.operands.items()
        return Call(call.kernel, {name: self._address(p.buffer, p.offset, p.shared) for name, p in places})

    def _address(self, buffer: Buffer, offset: int, shared: bool) -> Address:
        if buffer.per == "outside":
            at = self._outside.get(buffer, Address())
            return Address(at.base + offset * self._itemsize, at.image, 0 if shared else at.worker)
        base = self.memory.ctypes.data + buffer.offset + offset * np.dtype(buffer.dtype).itemsize
        if buffer.per == "plan":
            return Address(base)
        if buffer.per == "worker":
            return Address(base, worker=0 if shared else buffer.pitch)
        if buffer.local:
            return Address(base, buffer.pitch, buffer.worker_pitch, buffer.local)
        return Address(base, buffer.pitch)

    def run(
        self, pixels: NDArray[np.uint8], order: NDArray[np.int64], labels: NDArray[np.int64] | None, step: int
    ) -> None:
        """Everything once, for the images that ``order`` chooses."""
        images, outside = len(order), self.step.outside
        self._words[0] = images
        self._order[:images] = order
        self._find(outside.pixels, pixels)
        if labels is not None:
            self._find(outside.labels, labels)
        if outside.running:
            arrays = self.step.model.buffers()
            for name, buffer in outside.running.items():
                self._find(buffer, arrays[name])
        for place, turn in enumerate(self._turns):
            if isinstance(turn, Program):
                turn.run(images)
                continue
            assert turn.host is not None
            begun = time.perf_counter()
            turn.host(self.view, self._add_gradient, images, step)
            self._host_seconds[place] = self._host_seconds.get(place, 0.0) + time.perf_counter() - begun

    def _find(self, buffer: Buffer, array: NDArray[Any]) -> None:
        """Let the calls that use this array find it where it is now."""
        if self._last.get(buffer) is not array:
            assert array.flags.c_contiguous
            self._last[buffer] = array
            for words in self._moving[buffer]:
                words[0] = array.ctypes.data

    def _column(self, buffer: Buffer) -> NDArray[Any]:
        """A buffer of one number an image."""
        kind, at = np.dtype(buffer.dtype), max(0, buffer.offset)
        return np.ndarray((self.capacity,), kind, self.memory.data, at, (buffer.pitch,))

    def view(self, buffer: Buffer, plane: Plane, images: int) -> NDArray[Any]:
        """The images of a buffer that all workers share, without their border."""
        kind = np.dtype(buffer.dtype)
        strides = (buffer.pitch, plane.row * kind.itemsize, plane.channels * kind.itemsize, kind.itemsize)
        at = buffer.offset + plane.at(0, 0) * kind.itemsize
        return np.ndarray((images, plane.height, plane.width, plane.channels), kind, self.memory.data, at, strides)

    def _add_gradient(self, name: str, gradient: NDArray[Any]) -> None:
        start = self.step.parameters.start[name]
        self.partial[start : start + gradient.size] += gradient.reshape(-1)

    # What it did

    @property
    def _programs(self) -> list[Program]:
        return [turn for turn in self._turns if isinstance(turn, Program)]

    def rows(self) -> list[Row]:
        """Every call in order, with the seconds that it has taken; Python's turns have none (``seconds``)."""
        times = iter([seconds for program in self._programs for seconds in program.seconds()[1:]])
        rows = []
        for stage in self.lowered.stages:
            if stage.host is not None:
                node, phase, what = stage.label
                rows.append(Row(node, phase, "Python", what, 0, None))
            for call in stage.calls:
                kernel = call.kernel
                name = type(kernel).__name__
                moved = kernel.bytes(self.capacity if stage.extent is None else stage.extent, self.capacity)
                each = round(moved / self.capacity)
                rows.append(Row(call.node, call.phase, name, kernel.label, kernel.flops, next(times), each))
        return rows

    def seconds(self) -> list[float]:
        """What each row has taken, in their order, and last what a worker has waited for others."""
        found: list[float] = []
        for place, turn in enumerate(self._turns):
            found += turn.seconds()[1:] if isinstance(turn, Program) else [self._host_seconds.get(place, 0.0)]
        return [*found, self.waiting_seconds()]

    def waiting_seconds(self) -> float:
        """How long a worker has waited for others."""
        return sum(program.seconds()[0] for program in self._programs)

    def clear_times(self) -> None:
        """Begin them anew."""
        self._host_seconds.clear()
        for program in self._programs:
            program.clear_ticks()

    def time_calls(self, on: bool) -> None:
        """Whether the machine code looks at the clock after every call, as it does to begin with."""
        run = replace(self._run_kernel, timed=on)
        if run not in self._run_addresses:
            self._run_addresses |= compile_kernels([run]).addresses
        for program in self._programs:
            program.run_by(self._run_addresses[run])

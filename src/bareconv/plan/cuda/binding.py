"""From a step written down to one that runs: kernels compiled, memory laid out, launches bound to addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bareconv.device import Array
from bareconv.errors import BareconvError
from bareconv.kernels.cache import OnCompile
from bareconv.plan.cuda.record import BRANCH, TRUNK, Buffer, Place, Recorded, RecordedHost, Recorder, lay_out
from bareconv.plan.cuda.runtime import Runtime

GRAPH_LAUNCHES = 512  # of one graph at most: beyond, a launch of it saves no more
GRAPH_STEPS = 32


class Program:
    """A recorded step with memory of its own. ``outside``: buffers whose place is told later, by ``bind``."""

    def __init__(
        self, record: Recorder, runtime: Runtime, outside: list[Buffer], on_compile: OnCompile | None = None
    ) -> None:
        self.record, self.runtime = record, runtime
        self._outside = set(outside)
        self.bytes = lay_out(record, self._outside)
        check_room(runtime, self.bytes)
        runtime.load([item.kernel for item in record.items if isinstance(item, Recorded)], on_compile)
        self.memory = runtime.xp.zeros(max(self.bytes, 256), runtime.xp.uint8)

    @property
    def why_not_captured(self) -> str | None:
        """What of it Python does; None where all of it are launches."""
        hosts = [item for item in self.record.items if isinstance(item, RecordedHost)]
        return "; ".join(dict.fromkeys(f"{item.node}: {item.why}" for item in hosts)) or None

    def view(self, buffer: Buffer) -> Array:
        """A buffer of the program's own, as a flat array."""
        return self.memory[buffer.offset : buffer.offset + buffer.bytes].view(buffer.dtype)

    def bind(self, outside: Mapping[Buffer, Array | None]) -> Bound:
        """The program on these arrays."""
        return Bound(self, outside)

    def address(self, place: Place | None, outside: Mapping[Buffer, Array | None]) -> int | None:
        """Where an operand is; None for a null pointer."""
        if place is None:
            return None
        if place.buffer in self._outside:
            array = outside[place.buffer]
            return None if array is None else self.runtime.address(array) + place.offset
        return self.runtime.address(self.memory) + place.buffer.offset + place.offset


class Bound:
    """A program whose every pointer is known, as launches and as graphs."""

    def __init__(self, program: Program, outside: Mapping[Buffer, Array | None]) -> None:
        self.program = program
        self._alive = list(outside.values())  # a graph holds addresses, and nobody else may hold the arrays
        self._items: list[tuple[Callable[[int], None] | RecordedHost, int]] = []
        behind_kernel = {TRUNK: False, BRANCH: False}  # whether the last thing in that stream is a kernel
        last = TRUNK
        for item in program.record.items:
            if isinstance(item, RecordedHost):
                self._items.append((item, TRUNK))
                behind_kernel = {TRUNK: False, BRANCH: False}
                continue
            if item.branch == BRANCH != last or item.joins:
                behind_kernel[item.branch] = False  # an event comes between
            addresses = [program.address(item.operands[name], outside) for name in item.kernel.operands]
            launch = program.runtime.bind(item.kernel, addresses, behind_kernel[item.branch])
            self._items.append((launch, item.branch))
            behind_kernel[item.branch], last = True, item.branch
        self._graphs: dict[int, Callable[[], None] | None] = {}

    def run(self, views: Any = None, images: int = 0, step: int = 0) -> None:
        """Everything once, launch by launch; a host's work is given ``views``, ``images`` and ``step``."""
        for item, _ in self._items:
            if isinstance(item, RecordedHost):
                item.work(views, images, step)
            else:
                item(0)

    @property
    def steps_of_a_graph(self) -> int:
        """How many steps the largest graph holds."""
        return max(1, min(GRAPH_STEPS, GRAPH_LAUNCHES // max(len(self._items), 1)))

    def run_many(self, count: int) -> None:
        """Everything ``count`` times, as graphs where there are any."""
        largest = self.steps_of_a_graph
        for size in (largest, 1):
            graph = self._graph(size) if count >= size else None
            while graph is not None and count >= size:
                graph()
                count -= size
        for _ in range(count):
            self.run()

    def launches(self) -> list[Callable[[int], None]]:
        """Each launch by itself, a function of the stream; of a program that Python has no part in."""
        return [launch for launch, _, _ in self._parts()]

    def _graph(self, steps: int) -> Callable[[], None] | None:
        if steps not in self._graphs:
            capture = self.program.runtime.capture
            self._graphs[steps] = None if self.program.why_not_captured else capture(self._parts(), steps)
        return self._graphs[steps]

    def _parts(self) -> list[tuple[Callable[[int], None], int, bool]]:
        """(launch, branch, whether it waits for the other branch) in order."""
        parts = []
        for (launch, branch), item in zip(self._items, self.program.record.items, strict=True):
            assert not isinstance(launch, RecordedHost)
            assert isinstance(item, Recorded)
            parts.append((launch, branch, item.joins))
        return parts


def check_room(runtime: Runtime, wanted: int) -> None:
    """BareconvError where the device has less memory free."""
    free = runtime.free_bytes()
    if wanted > free:
        raise NoRoomError(wanted, free)


class NoRoomError(BareconvError):
    """A plan needs more memory than is free."""

    def __init__(self, wanted: int, free: int) -> None:
        super().__init__(f"the plan needs {wanted / 2**20:,.0f} MiB; {free / 2**20:,.0f} MiB are free on the GPU")
        self.wanted, self.free = wanted, free

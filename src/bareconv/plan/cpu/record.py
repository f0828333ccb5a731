"""A step as it is written down: calls of kernels over buffers, in order, before anything has an address."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bareconv.kernels.cpu.kernel import LOCAL_TO_CALL, LOCAL_TO_ROUND, Kernel
from bareconv.kernels.cpu.program import WHOLE
from bareconv.plan.cpu.memory import Buffer


@dataclass(frozen=True)
class Place:
    """An operand: a buffer, from ``offset`` elements on. ``shared``: the first worker's, whoever asks."""

    buffer: Buffer
    offset: int = 0
    shared: bool = False


@dataclass
class Recorded:
    """A kernel and its operands; ``node`` is what it is for."""

    kernel: Kernel
    operands: dict[str, Place]
    node: str
    phase: str


@dataclass
class RecordedStage:
    """Calls over one range, as ``program.Stage``; or ``host``, Python to be called between programs."""

    calls: list[Recorded] = field(default_factory=list)
    extent: int | None = None
    chunk: int = 1
    grain: int = 1
    wait: bool = False
    host: Callable[..., None] | None = None
    uses: list[Buffer] = field(default_factory=list)  # by the host
    label: tuple[str, str, str] = ("", "", "")  # of a host's work: node, phase, what it does
    segment: int = 0
    round: int = WHOLE

    def buffers(self) -> Iterator[Buffer]:
        """All that this stage reads or writes."""
        yield from self.uses
        for call in self.calls:
            for place in call.operands.values():
                yield place.buffer


class Recorder:
    """Collects the stages of a program. A chunk of ``WHOLE`` is for a kernel that wants all of a round at once."""

    def __init__(self) -> None:
        self.stages: list[RecordedStage] = []
        self.node, self.phase = "", ""

    def images(self, kernel: Kernel, chunk: int = 1, **operands: Any) -> None:
        """A call for the batch's images, ``chunk`` at a time. Calls in a row with the same chunk share a stage."""
        last = self.stages[-1] if self.stages else None
        if last is None or last.host or last.extent is not None or last.chunk != chunk:
            wait = last is not None and last.host is None and last.extent is not None
            self.stages.append(RecordedStage(chunk=chunk, wait=wait))
        self._add(kernel, operands)

    def shared(self, kernel: Kernel, extent: int, grain: int, *, wait: bool = True, **operands: Any) -> None:
        """A call over a fixed range that the workers share; they wait for each other before it, unless told not to."""
        first = not self.stages or self.stages[-1].host is not None
        self.stages.append(RecordedStage(extent=extent, chunk=WHOLE, grain=grain, wait=wait and not first))
        self._add(kernel, operands)

    def host(self, work: Callable[..., None], what: str, uses: Sequence[Buffer]) -> None:
        """Python's turn: every worker has finished before, and none goes on until it returns."""
        self.stages.append(RecordedStage(host=work, uses=list(uses), label=(self.node, self.phase, what)))

    def _add(self, kernel: Kernel, operands: dict[str, Any]) -> None:
        places = {
            name: place if isinstance(place, Place) else Place(place)
            for name, place in operands.items()
            if place is not None
        }
        self.stages[-1].calls.append(Recorded(kernel, places, self.node, self.phase))


# Images that a worker takes through a segment together: few enough for the cache, enough to read weights for.
ROUND = 32


def find_lifetimes(stages: Sequence[RecordedStage]) -> None:
    """Form segments; note in every buffer when it is in use, and which belong to one call or one round alone."""
    span, segment, before = 0, 0, None
    uses: dict[Buffer, list[RecordedStage]] = {}
    for stage in stages:
        span += int(stage.wait or stage.host is not None or (before is not None and before.host is not None))
        apart = stage.wait or stage.host or stage.extent is not None or before is None or before.host
        segment += int(bool(apart) or (before is not None and before.extent is not None))
        stage.segment, before = segment, stage
        for buffer in stage.buffers():
            buffer.use(span)
            uses.setdefault(buffer, []).append(stage)
    for stage in stages:
        if stage.extent is None and stage.host is None:
            chunks = [other.chunk for other in stages if other.segment == stage.segment and other.chunk < WHOLE]
            largest = max(chunks, default=1)
            stage.round = -(-ROUND // largest) * largest
    for buffer, users in uses.items():
        one, alike = users[0], {user.segment for user in users}
        if buffer.per != "image" or buffer.kept or len(alike) > 1 or one.host is not None or one.extent is not None:
            continue
        alone = all(user is one for user in users) and one.chunk < WHOLE
        buffer.local, buffer.chunk = (LOCAL_TO_CALL, one.chunk) if alone else (LOCAL_TO_ROUND, one.round)

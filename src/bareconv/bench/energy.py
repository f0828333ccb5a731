"""Energy of training steps: gross, and less what the machine takes anyway. Measured by a counter, or not at all.

A counter is read at the moments when it moves, which it does only now and then; the window must hold many of its
moves. The power at rest is measured before and after, with everything of ours stopped, and must be the same. Where any
of this does not hold, or others are at work, there is no figure but the reason.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from bareconv.bench.counters import Counter, Load, Source, source_of
from bareconv.bench.deadline import Deadline
from bareconv.bench.interleave import Candidate, Limits, Listener, Samples, Side, alive_one, prepare
from bareconv.bench.nvml import UnavailableError
from bareconv.bench.process import StoppedError
from bareconv.bench.workload import Workload
from bareconv.device import Device
from bareconv.report.format import percent, seconds

SECONDS = 5.0  # of steps, where there is time for as many
SHORTEST = 2.0  # seconds: a GPU's clock and power take some tenths of a second to settle
SPARE = 0.1  # of the least window, for the interval is known from a few moves only
UPDATES = 50  # of the counter in the window: an end may be off by one of them, which is 2%
IDLE_UPDATES = 20  # the same at rest, whose power is the smaller part
IDLE_SECONDS = 1.0
SETTLE_SECONDS = 1.0  # after steps: clocks and voltage go down in some tenths of a second
FRESH_SECONDS = 1.0  # since the power at rest was measured, with nothing of ours between
LEAD_SECONDS = 0.5  # of steps before the window: and up
BLOCK_SECONDS = 1.0  # between two looks at whether to stop

IDLE_DIFFERENCE = 0.1  # of the net power, by which the powers at rest may differ: so wrong could the net energy be
OTHER_LOAD = 0.05  # of what is counted, that others may use meanwhile

STOPPED = "the measurement was stopped"

WATCHED = 6  # moves of the counter, from which its interval is found
_POLL_SECONDS = 0.0005
_PATIENCE = 2.0  # seconds without a move, after which a counter counts as standing still


class Runner(Protocol):
    """What is measured: a ``bench.interleave.Side`` that is ready, whose process is stopped unless it is asked."""

    candidate: Candidate
    samples: Samples
    error: str | None

    def run(self, block: float) -> None:
        """Steps for so many seconds, added to ``samples``; what fails is in ``error``."""
        ...


class Meter:
    """Counters read together, as one. ``clock`` in seconds."""

    def __init__(self, counters: Sequence[Counter], clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self.counters, self.clock, self.sleep = counters, clock, sleep

    def move(self) -> tuple[float, float]:
        """Waits until it moves: (the moment, joules then). UnavailableError where it stands still."""
        first, begun = self._read(), self.clock()
        while (joules := self._read()) == first:
            if self.clock() - begun > _PATIENCE:
                names = ", ".join(counter.name for counter in self.counters)
                raise UnavailableError(f"{names} stood still for {seconds(_PATIENCE)}")
            self.sleep(_POLL_SECONDS)
        return self.clock(), joules

    def interval(self) -> float:
        """Seconds from one move to the next: the median of some."""
        moments = [self.move()[0] for _ in range(WATCHED)]
        return statistics.median(later - earlier for earlier, later in pairwise(moments))

    def _read(self) -> float:
        return sum(counter.read() for counter in self.counters)


@dataclass
class AtRest:
    """The power of a device at rest, as it was measured last: who is measured right after that need not do it again."""

    moment: float = float("-inf")
    watts: float = 0.0

    def is_fresh(self, now: float) -> bool:
        """Whether nothing can have happened since."""
        return now - self.moment <= FRESH_SECONDS


def measure_energies(
    workload: Workload,
    candidates: Sequence[Candidate],
    device: Device,
    deadline: Deadline,
    listener: Listener,
    ready: Sequence[Side] = (),
    at_rest: AtRest | None = None,
) -> list[dict[str, Any]]:
    """The ``energy`` entries of candidates that compute on ``device``, one after another, each in its own process.

    Where nothing counts there, none of them is started. A figure needs a certain time; those for which there is too
    little left have none. ``ready``: sides on this workload that were measured before, which these are taken from, and
    which stay. ``at_rest``: of this device, from one call to the next.
    """
    try:
        with source_of(device):
            pass
    except UnavailableError as error:
        return [{**_head(workload, one, device), "unavailable": str(error)} for one in candidates]
    found, at_rest = [], at_rest or AtRest()
    for candidate in candidates:
        with ExitStack() as own:
            side = alive_one(candidate, ready)
            if side is None:
                folder = Path(own.enter_context(tempfile.TemporaryDirectory(prefix="bareconv-")))
                workload.write(folder)
                try:
                    side = prepare(candidate, folder, deadline, 1, listener, Limits())
                except StoppedError:
                    found.append({**_head(workload, candidate, device), "unavailable": STOPPED})
                    continue
                own.callback(side.close)
            found.append(measure_energy(workload, side, device, deadline, listener, at_rest=at_rest))
    return found


def _head(workload: Workload, candidate: Candidate, device: Device) -> dict[str, Any]:
    """What an entry is of."""
    return {
        "name": candidate.name,
        "variant": candidate.variant,
        "device": device.name,
        "model": workload.model,
        "batch_size": workload.batch_size,
        "precision": device.effective_precision(candidate.options.get("precision", workload.precision)),
    }


def measure_energy(
    workload: Workload,
    side: Runner,
    device: Device,
    deadline: Deadline,
    listener: Listener,
    window: float | None = None,
    *,
    at_rest: AtRest | None = None,
    source: AbstractContextManager[Source] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """The ``energy`` entry of a result: of a side's steps for about ``window`` seconds, by what counts on ``device``.

    All other sides must be stopped. The side's own samples stay as they are. ``window``: by default as long as the
    counter needs, and ``SECONDS`` at least. ``at_rest``: of the device, as measured last and by this. ``source``: the
    counters, by default those of the device.
    """
    record = _head(workload, side.candidate, device)
    if side.error is not None:
        return {**record, "unavailable": side.error}
    kept, side.samples = side.samples, Samples()
    try:
        with source or source_of(device) as found:
            record["counter"] = "; ".join(f"{counter.name}: {counter.covers}" for counter in found.counters)
            listener.stage(f"Energy of {side.candidate.label}")
            meter = Meter(found.counters, clock, sleep)
            figures = _measure(side, meter, found.load, deadline, listener, window, at_rest or AtRest())
    except UnavailableError as error:
        return {**record, "unavailable": str(error)}
    finally:
        side.samples = kept
    return {**record, "unavailable": None, **figures}


def _measure(
    side: Runner,
    meter: Meter,
    load: Load,
    deadline: Deadline,
    listener: Listener,
    window: float | None,
    at_rest: AtRest,
) -> dict[str, Any]:
    interval = meter.interval()
    least = max(SHORTEST, UPDATES * interval)
    if window is None:
        window = max(SECONDS, (1 + SPARE) * least)
    if window < least:
        raise UnavailableError(
            f"{seconds(window)} of steps are too short: the counter moves every {seconds(interval)}, so that at least "
            f"{seconds(least)} are needed"
        )
    rest = max(IDLE_SECONDS, IDLE_UPDATES * interval)
    is_known = at_rest.is_fresh(meter.clock())
    whole = (1 if is_known else 2) * (SETTLE_SECONDS + rest) + LEAD_SECONDS + window
    if deadline.left < whole:
        raise UnavailableError(
            f"there was no time: {seconds(whole)} are needed, and {seconds(deadline.left)} were left"
        )
    before = at_rest.watts if is_known else _idle_watts(meter, load, rest)
    _run(side, LEAD_SECONDS, listener)
    side.samples = Samples()
    load.begin()
    begun, joules_then = meter.move()
    while (missing := begun + window - meter.clock()) > 0:
        _run(side, min(BLOCK_SECONDS, missing), listener)
    ended, joules = meter.move()
    if load.sees_through:
        _check_others(load, "while the steps ran")
    after = _idle_watts(meter, load, rest)
    at_rest.moment, at_rest.watts = meter.clock(), after
    length, gross, idle = ended - begun, joules - joules_then, (before + after) / 2
    net = gross - idle * length
    if abs(after - before) > IDLE_DIFFERENCE * max(net, 0.0) / length:
        raise UnavailableError(
            f"the power at rest was {before:.3g} W before and {after:.3g} W after, too far apart to be taken off from "
            f"{gross / length:.3g} W"
        )
    images = sum(side.samples.images)
    return {
        "seconds": length,
        "images": images,
        "joules": gross,
        "idle_watts": idle,
        "net_joules": net,
        "joules_per_1000_images": 1000 * gross / images,
        "net_joules_per_1000_images": 1000 * net / images,
    }


def _idle_watts(meter: Meter, load: Load, rest: float) -> float:
    """Power with everything of ours stopped."""
    meter.sleep(SETTLE_SECONDS)
    load.begin()
    begun, joules_then = meter.move()
    meter.sleep(rest)
    ended, joules = meter.move()
    _check_others(load, "at rest")
    return (joules - joules_then) / (ended - begun)


def _check_others(load: Load, when: str) -> None:
    share = load.others()
    if share > OTHER_LOAD:
        raise UnavailableError(f"others used {percent(share, 1)} of what the counter covers {when}")


def _run(side: Runner, block: float, listener: Listener) -> None:
    """A block of steps. UnavailableError where it fails, or is not to be."""
    if listener.should_stop():
        raise UnavailableError(STOPPED)
    side.run(block)
    if side.error is not None:
        raise UnavailableError(side.error)

"""Accuracy over time: candidates that train one after another from the same weights, on the same batches.

The time is that of training steps alone, by the candidate's own clock. Getting ready, compiling and the first step, in
which libraries do what they do once, are not in it; nor is finding the accuracy. That takes time all the same: who is
slow at it looks less often, and has its time for training.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bareconv.bench.deadline import Deadline
from bareconv.bench.interleave import Candidate, Limits, Listener, Side, alive_one, at_once, prepare_all
from bareconv.bench.peers import CHECKED_STEPS, check
from bareconv.bench.process import StoppedError
from bareconv.bench.workload import Workload

EPOCHS = 3
POINTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # of the first epoch; then one every half
FIRST, MORE = 2, 3.0  # so many candidates have that many times the share of the others: who comes first matters most
WORTH = 2.0  # times what a look takes, there is training before the next,
CHEAP = 0.02  # unless a look takes no more of the time that is left


def measure_learning(
    workload: Workload,
    candidates: Sequence[Candidate],
    deadline: Deadline,
    listener: Listener,
    limits: Limits | None = None,
    ready: Sequence[Side] = (),
) -> dict[str, Any]:
    """The ``learning`` entry of a result; the first candidate is ours, whose first losses the others must have.

    Each trains for ``EPOCHS`` epochs, or for its share of the time, of which those after it have what it leaves. The
    ``FIRST`` ones have a larger share.
    ``ready``: sides on this workload that were measured before. Where one is of these candidates it begins again in
    its process, which then ends. Of the others as many as get ready side by side do, and train one after another.
    """
    together = at_once(candidates)
    with tempfile.TemporaryDirectory(prefix="bareconv-") as name, ThreadPoolExecutor(together) as pool:
        folder = Path(name)
        dataset = workload.write(folder)
        looks = points(len(dataset.train) // workload.batch_size)
        sides: list[Side] = []
        curves: list[dict[str, Any]] = []
        try:
            while len(sides) < len(candidates):
                left = candidates[len(sides) :]
                wave = [(one, folder) for one in itertools.takewhile(lambda one: alive_one(one, ready) is None, left)]
                wave = wave[:together]
                part = deadline.part(share(len(sides), max(1, len(wave)), len(candidates)))
                if wave:
                    prepare_all(pool, wave, sides, part, CHECKED_STEPS, listener, limits or Limits(), warm_up=0.0)
                elif (side := alive_one(left[0], ready)) is not None:
                    sides.append(side)
                    side.restart(CHECKED_STEPS, listener.should_stop, part)
                for side in sides[len(curves) :]:
                    check(side, sides, workload.precision)
                    part = deadline.part(share(len(curves), 1, len(candidates)))
                    curves.append(_learn(side, looks, part, listener))
        except StoppedError:
            pass
        finally:
            for side in sides:
                side.close()
    return {
        "model": workload.model,
        "batch_size": workload.batch_size,
        "precision": workload.precision,
        "device": str(candidates[0].options.get("device", "cpu")),
        "data": dataset.name,
        "test_images": 0 if dataset.test is None else len(dataset.test),
        "candidates": curves,
    }


def share(place: int, count: int, all_in_all: int) -> float:
    """Of the time of the candidates from that place on: the share of the next ``count``."""
    sizes = [MORE if number < FIRST else 1.0 for number in range(place, all_in_all)]
    return sum(sizes[:count]) / sum(sizes)


def points(steps_per_epoch: int) -> list[int]:
    """After how many steps the accuracy is looked at: soon at first, then every half of an epoch."""
    shares = [*POINTS, *(1 + half / 2 for half in range(1, 2 * (EPOCHS - 1) + 1))]
    return sorted({max(CHECKED_STEPS, round(share * steps_per_epoch)) for share in shares})


def _learn(side: Side, looks: Sequence[int], deadline: Deadline, listener: Listener) -> dict[str, Any]:
    """The curve of one that has taken its first steps, as far as it comes."""
    candidate = side.candidate
    listener.stage(f"Learning: {candidate.label}")
    steps, seconds, accuracy = [], [], []
    for done, elapsed, right in _curve(side, looks, deadline, listener):
        steps.append(done)
        seconds.append(elapsed)
        accuracy.append(right)
    side.close()
    return {
        "name": candidate.name,
        "variant": candidate.variant,
        "ours": candidate.ours,
        "error": side.error,
        "steps": steps,
        "seconds": seconds,
        "accuracy": accuracy,
    }


def _curve(
    side: Side, looks: Sequence[int], deadline: Deadline, listener: Listener
) -> Iterator[tuple[int, float, float]]:
    """(steps, seconds of those after the first ones, accuracy) at each look."""
    done, elapsed, looking = CHECKED_STEPS, 0.0, 0.0
    while side.alive and not listener.should_stop():
        look = next_look([one for one in looks if one >= done], done, side.step_seconds, looking, deadline.left)
        if look is None:
            return
        if look > done:
            if not side.advance(look - done):
                return
            done, elapsed = look, elapsed + side.samples.seconds[-1]
        found = side.ask_accuracy()
        if found is None:
            return
        right, looking = found
        looks = [one for one in looks if one > done]
        yield done, elapsed, right


def next_look(looks: Sequence[int], done: int, step: float, looking: float, left: float) -> int | None:
    """The first of ``looks`` with enough training before it; if there is no time for that one, the last there is.

    ``step`` and ``looking``: seconds of a training step and of a look; ``left``: all there are. None: for none of them.
    """
    within = [one for one in looks if (one - done) * step + looking <= left]
    if looking <= CHEAP * left:
        return within[0] if within else None
    return next((one for one in within if (one - done) * step >= WORTH * looking), within[-1] if within else None)

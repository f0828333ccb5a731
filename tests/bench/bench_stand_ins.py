"""Candidates that stand in for engines and libraries: processes that answer at once, or wrongly, or not at all."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from bareconv.bench.interleave import Candidate, Limits
from bareconv.nn import BatchNorm, Conv2d, Dense, Flatten, GlobalAvgPool, MaxPool2d, ReLU, Residual, Sequential
from bareconv.nn.model import Model

QUICK = Limits(prepare=5.0, answer=0.5)

_PROGRAM = """
import json, os, sys, time
losses, step, trouble = json.loads(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
taken = len(losses)
for line in sys.stdin:
    message = json.loads(line)
    do = message["do"]
    if do == "quit":
        break
    if trouble == f"die at {do}":
        print("something broke", file=sys.stderr)
        sys.exit(3)
    if trouble == f"killed at {do}":
        os.kill(os.getpid(), 9)
    if trouble == f"hang at {do}":
        time.sleep(60)
    if trouble == f"babble at {do}":
        print("hello", flush=True)
        continue
    if trouble == f"cannot {do}":
        answer = {"error": "layer type Twist has no counterpart here", "unsupported": True}
    elif do in ("prepare", "restart"):
        taken = len(losses)
        answer = {"losses": losses[: message["checks"]], "step_seconds": step, "compile_seconds": 0.0, "versions": {}}
    elif do == "run":
        steps = message.get("steps") or max(1, round(message["seconds"] / step))
        taken += steps
        if trouble.startswith("die after ") and taken > int(trouble.split()[-1]):
            sys.exit(3)
        time.sleep(steps * step)
        answer = {"steps": steps, "images": 4 * steps, "seconds": steps * step, "loss": losses[-1]}
    elif do == "accuracy":
        answer = {"accuracy": 1 - 1 / taken, "seconds": 0.001}
    else:
        answer = {"baseline": 1000, "peak": 3000}
    print(json.dumps(answer), flush=True)
"""

LOSSES = (2.5, 2.25, 2.0, 1.75, 1.5)


def stand_in(
    name: str, trouble: str = "", *, losses: Sequence[float] = LOSSES, step: float = 0.002, ours: bool = False
) -> Candidate:
    """A candidate with these losses, that takes ``step`` seconds a step; ``trouble``: "die at run", "hang at run"."""
    command = [sys.executable, "-S", "-c", _PROGRAM, json.dumps(list(losses)), str(step), trouble]
    return Candidate(name, command, {}, dict(os.environ), ours)


def tiny(input_shape=(9, 8, 2), classes=10, seed=0, width=1.0):
    """A model with every layer of the zoo but the global maximum, small enough for a test: with a shortcut, padding."""
    body = Sequential([Conv2d(6, 3, 2, padding=1, bias=False), BatchNorm(), ReLU(), Conv2d(6, (3, 1), padding=(1, 0))])
    shortcut = Sequential([Conv2d(6, 1, 2, bias=False), BatchNorm()])
    layers = [
        *(Conv2d(4, 3), BatchNorm(), ReLU(), Residual(body, shortcut)),
        *(Residual(Sequential([Conv2d(6, 3, padding=1)])), MaxPool2d(2, 1)),
        *(Flatten(), Dense(12), ReLU(), Dense(classes)),
    ]
    return Model(layers, input_shape, seed=seed, name="tiny")


def averaged(input_shape=(6, 6, 1), classes=10, seed=0, width=1.0):
    """A model that ends in a global average."""
    return Model([Conv2d(5), ReLU(), GlobalAvgPool(), Dense(classes)], input_shape, seed=seed, name="averaged")

"""Candidates of a sweep that stand in for engines: their steps take what a formula says, and nobody waits for them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from bareconv.bench.interleave import Candidate

LOSSES = (2.5, 2.25, 2.0, 1.75, 1.5)

_PROGRAM = """
import json, math, os, sys, time
fixed, each, trouble, losses = json.loads(sys.argv[1])
number = 0
for line in sys.stdin:
    message = json.loads(line)
    do = message["do"]
    if do == "quit":
        break
    if do == "prepare":
        with open(message["folder"] + "/job.json") as file:
            job = json.load(file)
        batch = job["batch_size"]
        side = job["model"]["input_shape"][0]
        step = eval(each, {"batch": batch, "side": side, "threads": int(os.environ["OMP_NUM_THREADS"])}) + fixed
        if trouble and eval(trouble, {"batch": batch}):
            answer = {"error": "OutOfMemoryError: no room for it"}
        else:
            answer = {"losses": losses[: message["checks"]], "step_seconds": step, "compile_seconds": 0.0}
            answer |= {"versions": {}, "engine": "plan"}
    elif do == "run":
        number += 1
        steps = max(1, round(message["seconds"] / step))
        noise = 1 + 0.01 * math.sin(2.3 * number)
        answer = {"steps": steps, "images": batch * steps, "seconds": steps * step * noise, "loss": 1.0}
    else:
        answer = {"baseline": 1000, "peak": 3000}
    print(json.dumps(answer), flush=True)
"""


def growing(
    each: str,
    fixed: float = 0.0,
    device: str = "cpu",
    *,
    trouble: str = "",
    name: str = "plan",
    losses: Sequence[float] = LOSSES,
    ours: bool = True,
    precision: str | None = None,
) -> Candidate:
    """A candidate whose steps take ``fixed`` + ``each`` seconds, an expression of batch, side and threads.

    ``trouble``: an expression of the batch, true where there is no room.
    """
    arguments = json.dumps([fixed, each, trouble, list(losses)])
    options = {"device": device} | ({} if precision is None else {"precision": precision})
    command = [sys.executable, "-S", "-c", _PROGRAM, arguments]
    return Candidate(name, command, options, {**os.environ, "OMP_NUM_THREADS": "1"}, ours)

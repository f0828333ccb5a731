"""Ceilings of a device and the parts of steps on it, driven over standard input and output: a JSON object a line each.

    {"do": "begin"}  -> the answer comes when everything is imported
    {"do": "ceilings", "device": ..., "threads": n, "precisions": [...], "seconds": s, "memory_bytes": b}
        -> ceilings: what could be measured in about that time, by ``threads`` on a CPU
    {"do": "step", "device": ..., "workload": ..., "engine": ..., "ceilings": [...], "seconds": s, "least": n}
        -> step: an entry of ``rooflines.steps``
    {"do": "quit"}  -> the process ends

What cannot be done is answered by {"error": one line, "unsupported": whether there is no such thing here}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from bareconv import host
from bareconv.bench.deadline import Deadline
from bareconv.bench.roofline.records import Ceiling
from bareconv.bench.roofline.steps import measure_step
from bareconv.bench.workers.serving import end_with_parent
from bareconv.bench.workload import Workload
from bareconv.device import CudaDevice, get_device
from bareconv.errors import BareconvError

_EACH = 0.15  # seconds of a ceiling, where there is time enough
_BYTES_A_SECOND = 1 << 27  # of memory to go through, by a thread: it takes some time to be had
_LEAST_BYTES = 1 << 24  # of it for a thread, where there is time: many threads have many near caches


def begin() -> dict[str, Any]:
    """Ready."""
    return {}


def ceilings(device: str, threads: int, precisions: Sequence[str], seconds: float, memory_bytes: int) -> dict[str, Any]:
    """As many as there is time for, but one."""
    place, deadline = get_device(device), Deadline.after(seconds)
    if isinstance(place, CudaDevice):
        found = _of_gpu(place, precisions, seconds)
    else:
        from bareconv.bench.roofline import cpu

        # Of each precision there are multiply-adds and three products; then four bandwidths and the launch.
        each = min(_EACH, seconds / (4 * len(precisions) + 6))
        wanted, there_is_time_for = max(memory_bytes, _LEAST_BYTES * threads), int(_BYTES_A_SECOND * threads * seconds)
        effort = cpu.CpuEffort(each, memory_bytes=min(wanted, there_is_time_for))
        found = []
        for ceiling in cpu.measure_ceilings(threads, precisions, effort):
            found.append(ceiling)
            if deadline.passed:
                break
    return {"ceilings": [ceiling.to_json() for ceiling in found]}


def _of_gpu(device: CudaDevice, precisions: Sequence[str], seconds: float) -> list[Ceiling]:
    from bareconv.bench.roofline import cuda
    from bareconv.bench.roofline.gemm import GEMM, GPU_SIZES, matrix_product
    from bareconv.plan.cuda.runtime import GpuRuntime

    with device.activate():
        effort = cuda.Effort(warm_up=min(cuda.Effort.warm_up, seconds / 10))
        found = [*cuda.measure_ceilings(GpuRuntime(device), effort).values()]
        for precision in dict.fromkeys(["float32", *precisions]):
            if precision in GEMM:
                found.append(matrix_product(device, precision, GPU_SIZES, min(_EACH, seconds / 10)))
        device.reset_peak_memory()  # what the copies took is free for the steps
    return found


def step(
    device: str,
    workload: dict[str, Any],
    engine: str,
    ceilings: Sequence[dict[str, Any]],
    seconds: float,
    least: int,
) -> dict[str, Any]:
    """One engine's step on one workload."""
    given = Workload(**{**workload, "image_shape": tuple(workload["image_shape"])})
    known = [Ceiling(**ceiling) for ceiling in ceilings]
    return {"step": measure_step(given, engine, get_device(device), known, Deadline.after(seconds), least)}


def main() -> None:
    """Answer until "quit" or the end of standard input. Whatever else is printed goes to standard error."""
    end_with_parent()
    host.keep_freed_memory()  # as a training does
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print too
    commands: dict[str, Callable[..., dict[str, Any]]] = {"begin": begin, "ceilings": ceilings, "step": step}
    with answers:
        for line in sys.stdin:
            message = json.loads(line)
            do = message.pop("do")
            if do == "quit":
                return
            try:
                answer = commands[do](**message)
            except BareconvError as error:
                answer = {"error": " ".join(str(error).split()), "unsupported": True}
            except Exception as error:  # whatever it is: the one who asked has to know
                answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()

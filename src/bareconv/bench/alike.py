"""Whether results may be compared: what their machines, software and settings have that is not the same.

What is not the same because it is what one compares, bareconv itself, is no difference here. What a result does not
tell is none either.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bareconv.bench.measurements import Key, Measurement

PACKAGES = ("numpy", "llvmlite")  # that our engines compute with, on a CPU
GPU_PACKAGES = ("cupy",)
MACHINE = ("CPU", "cores", "GPU")  # names of differences that only another machine, or another share of it, makes
SETTINGS = ("lr", "image_shape", "seed")  # on which the work of a step depends, beside what a measurement's key has

_PYTHON = re.compile(r"\S+ \d+\.\d+")  # CPython 3.11: a patch changes no speed


@dataclass(frozen=True)
class Difference:
    """``what`` is not the same, with what it is in the baseline and in the result."""

    what: str
    baseline: str
    result: str

    def __str__(self) -> str:
        return f"{self.what}: {self.baseline} against {self.result}"

    def record(self) -> dict[str, str]:
        """As a result file has it."""
        return dataclasses.asdict(self)


def differences(results: Sequence[Mapping[str, Any]], keys: Sequence[Key]) -> list[Difference]:
    """What any result has otherwise than the first, for measurements of these keys."""
    cuda = any(key.device.startswith("cuda") for key in keys)
    found: list[Difference] = []
    first, *others = results
    known = dict(_figures(first, cuda))
    for other in others:
        for what, value in _figures(other, cuda):
            if what in known:
                found += _unless_same(what, known[what], value)
    return list(dict.fromkeys(found))


def unlike(before: Measurement, after: Measurement) -> list[Difference]:
    """What two measurements that are compared did not have alike."""
    found = []
    if before.key != after.key:
        found += _unless_same("precision", before.key.precision, after.key.precision)
        found += _unless_same("threads", str(before.key.threads), str(after.key.threads))
    for name in sorted({*before.facts, *after.facts}):
        if name in before.facts and name in after.facts:
            found += _unless_same(name, before.facts[name], after.facts[name])
        elif name.isupper() and before.facts and after.facts:  # a variable of the environment: one side has it not
            found += _unless_same(name, before.facts.get(name, "not set"), after.facts.get(name, "not set"))
    return found


def _figures(result: Mapping[str, Any], cuda: bool) -> Iterator[tuple[str, str]]:
    """What speed depends on, by a name for it; what is unknown is left out."""
    environment, settings = result["environment"], result["settings"]
    cpu, blas, packages = environment["cpu"], environment["blas"], environment["packages"]
    python = _PYTHON.match(environment["python"])
    named: dict[str, Any] = {
        "CPU": cpu["model"],
        "cores": cpu["cores_allowed"],
        "Python": python[0] if python else environment["python"],
        "BLAS": blas["library"],
        "BLAS version": blas.get("version"),
        "BLAS kernels": blas.get("architecture"),
        **{name: packages.get(name) for name in (*PACKAGES, *(GPU_PACKAGES if cuda else ()))},
    }
    if cuda:
        gpus = environment["gpus"]
        named["GPU"] = ", ".join(gpu["name"] for gpu in gpus) or "none"
        named["driver"] = ", ".join(dict.fromkeys(gpu["driver"] for gpu in gpus if gpu.get("driver"))) or None
    yield from ((what, str(value)) for what, value in named.items() if value is not None)
    yield from ((f"--{name.replace('_', '-')}", str(settings[name])) for name in SETTINGS if name in settings)


def _unless_same(what: str, before: str, after: str) -> list[Difference]:
    return [] if before == after else [Difference(what, before, after)]

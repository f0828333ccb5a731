"""What a result's runs are to each other: short labels, which GPU run belongs to which CPU run, how many times faster.

A result is a dict that has passed ``bench/result.schema.json``; nothing here checks it again.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

Run = dict[str, Any]
Times = tuple[float, float]  # seconds forward and backward

JOIN = " + "  # in the name of an operation, between the layers that run as one

# What a run's speed-ups are of, in order; the operations follow in the model's.
PARTS = ("Images per second", "Total", "Training", "One iteration", "Batch", "Forward", "Backward", "Update")

# What may tell runs of one device apart, in the order a reader asks for it.
_TELLING = ("model", "precision", "engine", "batch_size", "optimizer", "seed")


@dataclass(frozen=True)
class Pair:
    """A GPU run and the CPU run it is compared with: indices into the result's runs."""

    gpu: int
    cpu: int


@dataclass(frozen=True)
class Speedup:
    """How many times faster the GPU did one thing, which took the CPU ``seconds``. ``group``: "run" or "operation"."""

    name: str
    group: str
    ratio: float
    seconds: float


def is_gpu(run: Run) -> bool:
    """Whether the run was on a GPU."""
    return str(run["device"]).startswith("cuda")


def labels(runs: list[Run]) -> list[str]:
    """A short, distinct name for each run: "CPU", "GPU", and what tells several apart ("GPU tf32")."""
    gpus = {run["device"] for run in runs if is_gpu(run)}
    devices = [
        "CPU" if not is_gpu(run) else "GPU" if len(gpus) == 1 else f"GPU {run['device'].partition(':')[2]}"
        for run in runs
    ]
    words = [[device] for device in devices]
    for key in _TELLING:
        if len(set(map(tuple, words))) == len(runs):
            break
        values = [run.get(key) for run in runs]
        known = {value for value in values if value is not None}
        if len(known) > 1:
            for word, value in zip(words, values, strict=True):
                if value is not None:
                    word.append(f"{key.replace('_size', '')} {value}" if isinstance(value, int) else str(value))
    joined = [" ".join(word) for word in words]
    times = Counter(joined)
    seen: Counter[str] = Counter()
    for i, name in enumerate(joined):
        if times[name] > 1:
            seen[name] += 1
            joined[i] = f"{name} #{seen[name]}"
    return joined


def pairs(runs: list[Run]) -> list[Pair]:
    """Each GPU run with the CPU run most like it, of equals the fastest; only runs of one model and batch size pair."""
    found = []
    for g, gpu in enumerate(runs):
        rivals = [
            c
            for c, cpu in enumerate(runs)
            if not is_gpu(cpu) and cpu["model"] == gpu["model"] and cpu["batch_size"] == gpu["batch_size"]
        ]
        if is_gpu(gpu) and rivals:
            key = [(_likeness(runs[c], gpu), runs[c]["images_per_second"]) for c in rivals]
            found.append(Pair(g, rivals[key.index(max(key))]))
    return found


def main_pair(runs: list[Run]) -> Pair | None:
    """The pair a headline speaks of: the most alike, and of those the fastest."""
    return max(
        pairs(runs),
        key=lambda pair: (_likeness(runs[pair.cpu], runs[pair.gpu]), main_ratio(runs, pair) or 0.0),
        default=None,
    )


def main_ratio(runs: list[Run], pair: Pair) -> float | None:
    """How many times faster the GPU trained: by time where both did the same steps, else by images a second."""
    gpu, cpu = runs[pair.gpu], runs[pair.cpu]
    if gpu["iterations"] == cpu["iterations"]:
        return over(cpu["train_seconds"], gpu["train_seconds"])
    return over(gpu["images_per_second"], cpu["images_per_second"])


def speedups(runs: list[Run], pair: Pair) -> list[Speedup]:
    """Everything both runs of a pair measured, as GPU over CPU: the run's parts first, then its operations."""
    gpu, cpu = runs[pair.gpu], runs[pair.cpu]
    same_work = gpu["iterations"] == cpu["iterations"]
    times: list[tuple[str, float | None, float | None]] = []
    if same_work:
        times.append(("Total", cpu.get("total_seconds"), gpu.get("total_seconds")))
        times.append(("Training", cpu["train_seconds"], gpu["train_seconds"]))
    times.append(("One iteration", per_iteration(cpu), per_iteration(gpu)))
    for part in ("batch", "forward", "backward", "update"):
        times.append((part.capitalize(), phase(cpu, part), phase(gpu, part)))
    found = [Speedup(name, "run", r, c or 0.0) for name, c, g in times if (r := over(c, g)) is not None]
    if not same_work and (r := main_ratio(runs, pair)) is not None:
        found.insert(0, Speedup("Images per second", "run", r, cpu["train_seconds"]))
    for name, (mine, theirs) in operations([cpu, gpu]).items():
        r = over(sum(mine), sum(theirs)) if mine and theirs else None
        if r is not None and mine:
            found.append(Speedup(name, "operation", r, sum(mine)))
    return found


def engines_differ(runs: list[Run]) -> bool:
    """Whether not all runs were computed by the same engine."""
    return len({run["engine"] for run in runs}) > 1


def operations(runs: list[Run]) -> dict[str, list[Times | None]]:
    """By operation, in order: every run's forward and backward seconds of one step; None where it has no such.

    An engine may run several layers as one, which then have one time ("conv1 + relu1"). So that runs of one model can
    be compared, layers that are one operation in any of them are one here: the seconds of a run that has them apart
    are added up. A run that lacks one of these layers has no time for the whole.
    """
    found: dict[str, list[Times | None]] = {}
    for model in dict.fromkeys(run["model"] for run in runs):
        members = [i for i, run in enumerate(runs) if run["model"] == model]
        for name, times in _joined([operation_seconds(runs[i]) for i in members]).items():
            row = found.setdefault(name, [None] * len(runs))
            for i, seconds in zip(members, times, strict=True):
                row[i] = seconds
    return found


def _joined(measured: list[dict[str, Times]]) -> dict[str, list[Times | None]]:
    groups: list[list[str]] = []  # of layers that some run has as one operation
    for name in (name for run in measured for name in run):
        layers = name.split(JOIN)
        touched = [group for group in groups if not set(group).isdisjoint(layers)]
        if not touched:
            groups.append(layers)
            continue
        first, *others = touched
        together = dict.fromkeys(layer for group in [first, *others, layers] for layer in group)
        first[:] = together
        groups = [group for group in groups if group not in others]
    return {JOIN.join(group): [_of(group, run) for run in measured] for group in groups}


def _of(group: list[str], run: dict[str, Times]) -> Times | None:
    """The seconds of those of a run's operations that are of the layers ``group``, if they are all of them."""
    own = [name for name in run if not set(group).isdisjoint(name.split(JOIN))]
    if {layer for name in own for layer in name.split(JOIN)} != set(group):
        return None
    return sum(run[name][0] for name in own), sum(run[name][1] for name in own)


def operation_seconds(run: Run) -> dict[str, Times]:
    """By operation, in order: the forward and backward seconds of one step. Operations of one name are added up."""
    found: dict[str, Times] = {}
    for operation in run.get("operations", ()):
        before = found.get(operation["name"], (0.0, 0.0))
        found[operation["name"]] = (
            before[0] + operation["forward_seconds"],
            before[1] + operation["backward_seconds"],
        )
    return found


def per_iteration(run: Run) -> float | None:
    """Seconds of one training step; None where there was none."""
    given = run.get("seconds_per_iteration")
    return given if given is not None else over(run["train_seconds"], run["iterations"])


def phase(run: Run, part: str) -> float | None:
    """Seconds of one step's part ("forward", say); None where it was not profiled."""
    seconds: float | None = run.get("phases", {}).get(part)
    return seconds


def images_tested(run: Run) -> int | None:
    """On how many images the accuracy was measured, where that is known."""
    number: int | None = run.get("test_images")
    return number or sum(map(sum, run.get("confusion", ()))) or None


def same_accuracy(a: Run, b: Run) -> bool | None:
    """Whether two accuracies are as close as chance alone makes them; None where one is unknown.

    Two models that are equally good, tested on n images each, differ by a standard error of sqrt(2 p (1 - p) / n);
    up to two of them is "the same". Where n is unknown, half a percentage point stands in.
    """
    p, q = a["test_accuracy"], b["test_accuracy"]
    if p is None or q is None or a.get("test_split") != b.get("test_split"):
        return None
    numbers = [n for n in (images_tested(a), images_tested(b)) if n]
    mean = (p + q) / 2
    allowed = 2 * math.sqrt(2 * mean * (1 - mean) / min(numbers)) if numbers else 0.005
    return bool(abs(p - q) <= allowed)


def over(a: float | None, b: float | None) -> float | None:
    """a / b; None where either is unknown or the quotient is not a positive number."""
    if a is None or b is None or not (math.isfinite(a) and math.isfinite(b)) or a <= 0 or b <= 0:
        return None
    return a / b


def _likeness(cpu: Run, gpu: Run) -> tuple[bool, ...]:
    """How alike two runs are: the same work first, then the same precision, then the rest."""
    keys = ("iterations", "precision", "data", "engine", "optimizer", "seed")
    return tuple(cpu.get(key) == gpu.get(key) for key in keys)

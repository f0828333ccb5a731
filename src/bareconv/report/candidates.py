"""Whoever was measured, our engines and other libraries alike: what they are called, where numbers are beside names.

A name says what tells a candidate from the others that it stands among, and no more: "GPU", or "GPU PyTorch tf32".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bareconv.report import format as fmt

Group = Mapping[str, Any]
Candidate = Mapping[str, Any]

OURS = "bareconv"

_PRETTY = {
    "pytorch": "PyTorch",
    "dezero": "DeZero",
    "tensorflow": "TensorFlow",
    "keras": "Keras",
    "jax": "JAX",
    "numpy": "NumPy",
    "flax": "Flax",
    "mxnet": "MXNet",
    "onnxruntime": "ONNX Runtime",
}


@dataclass(frozen=True)
class Who:
    """A candidate: ``name`` is our engine's or the library's; ``device`` is "cpu" or "cuda:0"."""

    name: str
    variant: str
    ours: bool
    device: str
    precision: str
    threads: int | None = None

    @property
    def gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def library(self) -> str:
        """What a person calls whose work it is."""
        return OURS if self.ours else pretty(self.name)

    @property
    def tuned(self) -> bool:
        """Whether it is written for its processor, as the reference is not."""
        return not self.ours or self.name != "reference"


def pretty(name: str) -> str:
    """A library's name as it writes itself."""
    return _PRETTY.get(name, name)


def who(entry: Mapping[str, Any], group: Mapping[str, Any] | None = None) -> Who:
    """Of a curve, a candidate of ``peers`` or ``learning`` (``group`` is what it is in), an entry of ``energy``."""
    at = group if group is not None else entry
    return Who(
        name=entry["name"],
        variant=entry["variant"],
        ours=entry.get("ours", entry["name"] in ("plan", "reference", "tuned")),
        device=at.get("device", "cpu"),
        precision=at["precision"],
        threads=entry.get("threads") or entry.get("throughput", {}).get("threads"),
    )


def who_ran(run: Mapping[str, Any]) -> Who:
    """Of a run, a set of clocks or a step of a roofline: all are our engines'."""
    engine = run.get("engine", "plan")
    return Who(engine, "", True, run.get("device", "cpu"), run["precision"], run.get("threads"))


def names(everyone: Sequence[Who]) -> list[str]:
    """A short name for each, distinct wherever they differ at all."""
    devices = {one.device for one in everyone}
    gpus = {one.device for one in everyone if one.gpu}
    columns = [
        [device_word(one.device, len(gpus) > 1) if len(devices) > 1 else "" for one in everyone],
        [one.library for one in everyone],
        [one.name if one.ours else "" for one in everyone],
        _variants(everyone),
        [one.precision for one in everyone],
    ]
    kept = [columns[0]]
    if len(set(columns[1])) > 1 or len(devices) == 1:
        kept.append(columns[1])
    for column in columns[2:]:
        # A word is worth saying where two of those that are alike so far differ in it.
        so_far: dict[tuple[str, ...], set[str]] = {}
        for key, word in zip(zip(*kept, strict=True), column, strict=True):
            so_far.setdefault(key, set()).add(word)
        crowded = {key for key, words in so_far.items() if len(words) > 1}
        if column is columns[4] and crowded:
            kept.append(column)
        else:
            keys = list(zip(*kept, strict=True))
            kept.append([word if key in crowded else "" for key, word in zip(keys, column, strict=True)])
    joined = [" ".join(filter(None, words)) for words in zip(*kept, strict=True)]
    times, seen = Counter(joined), Counter[str]()
    for i, name in enumerate(joined):
        if times[name] > 1:
            seen[name] += 1
            joined[i] = f"{name} #{seen[name]}"
    return joined


def _variants(everyone: Sequence[Who]) -> list[str]:
    """The variants, without the words that all of one library have but the default.

    One that has nobody but the default beside it is "tuned", which says more and is shorter.
    """
    of: dict[tuple[str, str, str], set[str]] = {}
    for one in everyone:
        of.setdefault((one.device, one.name, one.precision), set()).add(one.variant)
    said = []
    for one in everyone:
        own = one.variant.split()
        others = of[one.device, one.name, one.precision] - {"default"}
        if one.variant == "default" or not own:
            said.append(one.variant)
        elif len(others) == 1:
            said.append("tuned" if "default" in of[one.device, one.name, one.precision] else one.variant)
        else:
            shared = set.intersection(*(set(variant.split()) for variant in others))
            said.append(" ".join(word for word in own if word not in shared) or one.variant)
    return said


def left_out(one: Who, name: str) -> str:
    """The variant, where ``name`` does not say all of it: that "tuned" is "channels_last graph copy"."""
    return "" if set(one.variant.split()) <= set(name.split()) else one.variant


def variants_in_full(everyone: Sequence[Who], called: Sequence[str]) -> str:
    """A sentence that says them, of those whose names do not: "PyTorch is nchw graph."; empty where all do."""
    said = [f"{name} is {full}" for one, name in zip(everyone, called, strict=True) if (full := left_out(one, name))]
    return f"{', '.join(said)}." if said else ""


def device_word(device: str, several: bool = False) -> str:
    """ "CPU", "GPU", or "GPU 1" where there are ``several``."""
    if not device.startswith("cuda"):
        return "CPU"
    return f"GPU {device.partition(':')[2]}" if several else "GPU"


def colour(one: Who) -> str:
    """Of its device: "gpu" or "cpu"."""
    return "gpu" if one.gpu else "cpu"


def everyone(group: Group) -> list[tuple[Who, str, Candidate]]:
    """The candidates of a group of ``peers`` with their names, the fastest first; last those without a figure."""
    ones = [who(one, group) for one in group["candidates"]]
    found = zip(ones, names(ones), group["candidates"], strict=True)
    return sorted(found, key=lambda one: -one[2].get("throughput", {}).get("images_per_second", 0.0))


def status_word(candidate: Candidate) -> str:
    """Why a candidate of ``peers`` has no figure, in a word or two."""
    status = str(candidate["status"])
    return "not measured" if status == "interrupted" else status


def group_title(group: Group) -> str:
    """ "basic, batches of 64, float32, GPU"."""
    device = device_word(group.get("device", "cpu"))
    return f"{group['model']}, batches of {fmt.count(group['batch_size'])}, {group['precision']}, {device}"

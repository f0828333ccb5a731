"""A result as rows, one figure or text each, that say themselves what they are: the form that tables are made of.

Rows follow from a result's own structure, so that nothing is left out, and what comes to be in results is in them too:

- ``part`` is the place in the result, by the names of the lists on the way: "peers.candidates".
- ``device`` to ``threads`` say what was measured, ``axis`` and ``at`` where on a sweep, ``detail`` what within it.
- ``quantity`` is the name that the schema has for it, within its entry; its description is there.
- ``index`` counts what is a list of figures: the blocks, the steps. A list of words is one text.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HEAD = ("schema", "schema_version", "created", "bareconv", "commit", "command")
OF_THE_MACHINE = ("settings", "environment", "conditions")  # parts that are of no measurement
AS_THEY_ARE = ("device", "model", "batch_size", "precision", "engine", "variant", "threads", "axis")
LABELS = ("node", "phase", "operation", "kernel", "name", "epoch", "class", "layers", "reference", "candidate", "what")
FIGURES = ("learning.candidates",)  # whose lists are what they are about, not raw samples

# What "name" is the name of, where it is not a detail.
NAMES = {
    "peers.candidates": "candidate",
    "sweeps.curves": "candidate",
    "learning.candidates": "candidate",
    "energy": "candidate",
    "ladder.problems": "model",
    "ladder.problems.rungs": "candidate",
    "diff.measurements": "candidate",
}

# The unit of what a name ends with; a name of its own first.
UNITS = (
    (r"images_per_second", "images/s"),
    (r"flops?_per_second", "FLOP/s"),
    (r"flops?_per_image", "FLOP/image"),
    (r"(net_)?joules_per_1000_images", "J/1000 images"),
    (r"(\w+_)?per_second", "1/s"),
    (r"(\w+_)?seconds(_per_\w+)?", "s"),
    (r"(\w+_)?bytes", "B"),
    (r"(\w+_)?flops", "FLOP"),
    (r"(\w+_)?hz", "Hz"),
    (r"(\w+_)?watts", "W"),
    (r"(\w+_)?joules", "J"),
    (r"(\w+_)?celsius", "°C"),
)


@dataclass(frozen=True)
class Row:
    """A figure, with its interval and the number of samples where it has them; or a ``text``."""

    part: str
    device: str | None = None
    model: str | None = None
    batch_size: int | None = None
    precision: str | None = None
    candidate: str | None = None
    variant: str | None = None
    threads: int | None = None
    axis: str | None = None
    at: float | None = None
    detail: str | None = None
    index: int | None = None
    quantity: str = ""
    unit: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    samples: int | None = None
    text: str | None = None


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


def rows(result: Mapping[str, Any], raw: bool = False) -> Iterator[Row]:
    """All of a valid result. ``raw``: the lists too: seconds of every block, losses of every step."""
    yield from _entry({name: result[name] for name in HEAD if name in result}, Row("result"), "", raw)
    for part, content in result.items():
        if part not in HEAD:
            yield from _any(content, Row(part), "", raw)


def _any(content: Any, row: Row, quantity: str, raw: bool) -> Iterator[Row]:
    if isinstance(content, Mapping):
        yield from _entry(content, row, quantity, raw)
    elif isinstance(content, list):
        yield from _list(content, row, quantity, raw)
    elif content is not None:
        yield _figure(row, quantity, content)


def _entry(entry: Mapping[str, Any], row: Row, quantity: str, raw: bool) -> Iterator[Row]:
    """An object's own entries, and those of the objects in it, each by its name in the object around."""
    if entry.keys() == {"value", "low", "high"}:
        yield _estimate(row, quantity, entry)
        return
    told: set[str] = set()
    if not quantity and row.part not in OF_THE_MACHINE:
        row, told = _placed(entry, row)
    for name, content in entry.items():
        if name in told:
            continue
        inner = f"{quantity}.{name}" if quantity else name
        if isinstance(content, list) and content and isinstance(content[0], Mapping):
            yield from _list(content, dataclasses.replace(row, part=f"{row.part}.{inner}"), "", raw)
        elif name == "images_per_second" and content is not None:
            # Its interval stands beside it where it is a number, and in it where it is an estimate.
            content = content if isinstance(content, Mapping) else {"value": content, **entry.get("interval", {})}
            yield dataclasses.replace(_estimate(row, inner, content), samples=_count(entry.get("samples")))
        elif name == "value" and content is not None and {"low", "high"} <= entry.keys():  # of a crossover
            yield _estimate(row, inner, entry)
        elif name == "per_second" and "unit" in entry:
            yield dataclasses.replace(_figure(row, inner, content), unit=f"{entry['unit']}/s")
        elif not (name in ("interval", "low", "high") and ("images_per_second" in entry or "value" in entry)):
            yield from _any(content, row, inner, raw)


def _list(content: Sequence[Any], row: Row, quantity: str, raw: bool) -> Iterator[Row]:
    if quantity and content and all(isinstance(item, str) for item in content):
        yield _figure(row, quantity, "; ".join(content))
        return
    for index, item in enumerate(content):
        if isinstance(item, Mapping):
            yield from _entry(item, row, quantity, raw)
        elif isinstance(item, list):
            inner = dataclasses.replace(row, detail=_joined(row.detail, str(index)))
            yield from _list(item, inner, quantity, raw)
        elif isinstance(item, str) or raw or row.part in FIGURES:
            yield dataclasses.replace(_figure(row, quantity, item), index=index)


def _placed(entry: Mapping[str, Any], row: Row) -> tuple[Row, set[str]]:
    """The row with what an entry says of itself, and the names of what was taken from it for that."""
    found: dict[str, Any] = {}
    told = {name for name in AS_THEY_ARE if isinstance(entry.get(name), str | int)}
    for name in told:
        found["candidate" if name == "engine" else name] = entry[name]
    if row.part in NAMES and "name" in entry:
        found[NAMES[row.part]] = entry["name"]
        told.add("name")
    axis = found.get("axis", row.axis)
    if axis is not None and "value" in entry and row.part in ("sweeps.curves.points", "diff.measurements"):
        found["at"] = entry["value"]
        told.add("value")
    if axis == "batch_size":  # what the sweep itself says of it is of no point
        found["batch_size"] = int(found["at"]) if "at" in found else None
    labels = [name for name in LABELS if name not in told and isinstance(entry.get(name), str | int)]
    if labels:
        found["detail"] = _joined(row.detail, *(str(entry[name]) for name in labels))
        told.update(labels)
    return dataclasses.replace(row, **found), told


def _count(samples: Any) -> int | None:
    """How many there are: lists of what was measured of each, or one list."""
    return len(next(iter(samples.values())) if isinstance(samples, Mapping) else samples) if samples else None


def _joined(*words: str | None) -> str:
    return ", ".join(filter(None, words))


def _estimate(row: Row, quantity: str, found: Mapping[str, Any]) -> Row:
    low, high = found.get("low"), found.get("high")
    return dataclasses.replace(_figure(row, quantity, found["value"]), low=low, high=high)


def _figure(row: Row, quantity: str, content: Any) -> Row:
    """True and false are 1 and 0."""
    # An entry that is nothing but a figure or a text has no name but its part's.
    quantity = quantity or row.part.rpartition(".")[2]
    if isinstance(content, str):
        return dataclasses.replace(row, quantity=quantity, text=content)
    value = int(content) if isinstance(content, bool) else content
    return dataclasses.replace(row, quantity=quantity, unit=unit(quantity), value=value)


def unit(quantity: str) -> str:
    """Of a quantity, by its name; empty where it has none: a number, a share, a ratio."""
    if re.match(r"(\w+\.)*memory\.", quantity):
        return "B"
    last = quantity.rpartition(".")[2]
    return next((found for pattern, found in UNITS if re.fullmatch(pattern, last)), "")

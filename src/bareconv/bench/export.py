"""A result as text for other programs and other people: CSV with a figure a line, and Markdown with a table a part."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bareconv.bench.tidy import COLUMNS, Row, rows
from bareconv.report.format import MISSING

IDENTITY = COLUMNS[1 : COLUMNS.index("quantity")]  # that tell the entries of a part apart
NARROW = 8  # quantities that have a column each; where there are more, and more than entries, these have the columns


def as_csv(result: Mapping[str, Any], raw: bool = False) -> str:
    """One figure or text a line, in the columns of ``tidy.Row``; numbers as exact as they are in the result.

    An empty cell is what there is not. ``raw``: with the samples.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows(result, raw):
        writer.writerow(["" if cell is None else cell for cell in dataclasses.astuple(row)])
    return text.getvalue()


def as_markdown(result: Mapping[str, Any], raw: bool = False) -> str:
    """A heading and a table for each part, in the order of the result; intervals in brackets. ``raw``: with samples."""
    parts: dict[str, list[Row]] = {}
    for row in rows(result, raw):
        parts.setdefault(row.part, []).append(row)
    blocks = [f"# {_escaped(str(result['command']))}"]
    for part, found in parts.items():
        blocks += [f"## {part.replace('_', ' ').replace('.', ' / ')}", _table(found)]
    return "\n\n".join(blocks) + "\n"


def _table(found: Sequence[Row]) -> str:
    """An entry a line and a quantity a column; the other way round where entries have many quantities."""
    used = [name for name in IDENTITY if any(getattr(row, name) is not None for row in found)]
    entries = _entries(found, used)
    quantities = list(dict.fromkeys((row.quantity, row.unit) for row in found))
    heads = [_heading(*one) for one in quantities]
    if len(quantities) <= max(NARROW, len(entries)):
        lines = [[*map(_text, key), *(_cell(entry.get(one)) for one in quantities)] for key, entry in entries]
        return _markdown([*(name.replace("_", " ") for name in used), *heads], lines)
    lines = [[name.replace("_", " "), *(_text(key[at]) for key, _ in entries)] for at, name in enumerate(used)]
    for head, one in zip(heads, quantities, strict=True):
        lines.append([head, *(_cell(entry.get(one)) for _, entry in entries)])
    return _markdown(["", *(str(1 + place) for place in range(len(entries)))], lines)


def _entries(found: Sequence[Row], used: Sequence[str]) -> list[tuple[tuple[Any, ...], dict[tuple[str, str], Row]]]:
    """Rows that are of the same entry, each by its quantity and unit; a quantity that comes again begins another."""
    made: list[tuple[tuple[Any, ...], dict[tuple[str, str], Row]]] = []
    latest: dict[tuple[Any, ...], dict[tuple[str, str], Row]] = {}
    for row in found:
        key, name = tuple(getattr(row, one) for one in used), (row.quantity, row.unit)
        if key not in latest or name in latest[key]:
            latest[key] = {}
            made.append((key, latest[key]))
        latest[key][name] = row
    return made


def _heading(quantity: str, unit: str) -> str:
    words = [word.replace("_", " ") if word.islower() else word for word in quantity.split(".")]
    return _escaped(": ".join(words) + (f" ({unit})" if unit else ""))


def _cell(row: Row | None) -> str:
    """The figure with its interval in brackets, or the text."""
    if row is None:
        return MISSING
    if row.text is not None or row.value is None:
        return _text(row.text)
    if row.low is None or row.high is None:
        return _text(row.value)
    return f"{_text(row.value)} ({_text(row.low)} to {_text(row.high)})"


def _text(content: Any) -> str:
    """Five digits of a number are more than any of them is known to; whole numbers stay whole."""
    if content is None:
        return MISSING
    if isinstance(content, float):
        return f"{content:.0f}" if abs(content) >= 1e5 and abs(content) < 1e15 else f"{content:.5g}"
    return _escaped(str(content))


def _escaped(text: str) -> str:
    """In one line, with nothing that Markdown would take for its own."""
    text = " ".join(text.split())
    for sign in "\\|*_`<>[]#":
        text = text.replace(sign, "\\" + sign)
    return text


def _markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *lines])

"""Energy as a report tells it: whose is known, and why the others' is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bareconv.report import format as fmt
from bareconv.report.candidates import Who, left_out, names, who

Entry = Mapping[str, Any]


def is_known(entry: Entry) -> bool:
    """Whether there is a figure."""
    return entry["unavailable"] is None and "joules_per_1000_images" in entry


def everyone(entries: Sequence[Entry]) -> list[tuple[Who, str, Entry]]:
    """The entries with their names."""
    ones = [who(entry) for entry in entries]
    called = names(ones)
    if len({(e["model"], e["batch_size"]) for e in entries}) > 1:
        called = [f"{n}, {e['model']} {fmt.count(e['batch_size'])}" for n, e in zip(called, entries, strict=True)]
    return list(zip(ones, called, entries, strict=True))


def unknown(entries: Sequence[Entry]) -> list[str]:
    """A sentence for every reason why there is no figure, with those that it holds for."""
    without: dict[str, list[str]] = {}
    for _, name, entry in everyone(entries):
        if not is_known(entry):
            without.setdefault(entry["unavailable"] or "it was not told", []).append(name)
    return [f"No figure for {', '.join(called)}: {reason}." for reason, called in without.items()]


def energy_lines(entries: Sequence[Entry]) -> list[str]:
    """What each took, and why nobody knows what the others did."""
    known = [
        (f"{name} ({full})" if (full := left_out(one, name)) else name, entry)
        for one, name, entry in everyone(entries)
        if is_known(entry)
    ]
    said = [f"{name} {fmt.metric(entry['joules_per_1000_images'], 'J')} for 1,000 images" for name, entry in known]
    return [*said, *unknown(entries)]

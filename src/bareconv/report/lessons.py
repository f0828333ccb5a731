"""Accuracy over time as a report tells it: trainings that belong together, and when each reached a goal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from bareconv.report import format as fmt
from bareconv.report.candidates import Who, colour, left_out, names, who
from bareconv.report.sections import Cell, Column, Table, figures

GOALS = (0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.985, 0.99, 0.992, 0.995, 0.999)

Entry = Mapping[str, Any]
Shown = tuple[Who, str, Mapping[str, Any]]  # a candidate, its name, its record


def workloads(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries of ``learning`` that belong in one chart: one model, one batch size. Not those where nobody learned."""
    groups: dict[tuple[str, int], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry["model"], entry["batch_size"]), []).append(entry)
    return [group for group in groups.values() if any(one["steps"] for e in group for one in e["candidates"])]


def candidates(entries: Sequence[Entry]) -> list[Shown]:
    """Everyone in a chart, with a name."""
    both = [(who(one, entry), one) for entry in entries for one in entry["candidates"]]
    called = names([one for one, _ in both])
    return [(one, name, record) for (one, record), name in zip(both, called, strict=True)]


def goal(entries: Sequence[Entry]) -> float | None:
    """The highest of ``GOALS`` that one of ours reached, and another library where there is one; None without one.

    Who is slow does not come far in its share of the time: a goal that all reach says little of what a training is for.
    """
    best = [(one["ours"], max(one["accuracy"])) for entry in entries for one in entry["candidates"] if one["accuracy"]]
    kinds = [[most for is_ours, most in best if is_ours is ours] for ours in (True, False)]
    if not kinds[0]:
        return None
    within_reach = min(max(kind) for kind in kinds if kind)
    return next((accuracy for accuracy in reversed(GOALS) if accuracy <= within_reach), None)


def seconds_to(candidate: Entry, accuracy: float | None) -> float | None:
    """Seconds of training until ``accuracy`` was first reached; None where it was not.

    Between two looks the logarithm of the errors falls evenly over that of the time, as it does in the charts: who
    looks less often than another is not the slower one for that.
    """
    if accuracy is None:
        return None
    looks = [(s, a) for s, a in zip(candidate["seconds"], candidate["accuracy"], strict=True) if s > 0]
    if looks and looks[0][1] >= accuracy:
        return float(looks[0][0])
    for (before, below), (after, above) in pairwise(looks):
        if above >= accuracy:
            if above == 1:  # no errors, which have no logarithm
                return float(after)
            share = math.log((1 - below) / (1 - accuracy)) / math.log((1 - below) / (1 - above))
            return float(before * (after / before) ** share)
    return None


def learning_table(entries: Sequence[Entry]) -> Table:
    """A row for each candidate: when it reached the goal, and where it ended."""
    target = goal(entries)
    rows = []
    for one, name, record in candidates(entries):
        reached = seconds_to(record, target)
        head = Cell(name, note=left_out(one, name), device=colour(one), strong=one.ours and bool(record["accuracy"]))
        if not record["accuracy"]:
            why = record["error"] or "the time was up before its accuracy was looked at"
            rows.append([head, Cell(fmt.MISSING, note=why), Cell(""), Cell("")])
            continue
        rows.append(
            [
                head,
                Cell(fmt.seconds(reached) if reached is not None else "not reached", strong=one.ours),
                Cell(fmt.count(record["steps"][-1])),
                Cell(fmt.percent(record["accuracy"][-1]), note=record["error"] or ""),
            ]
        )
    heading = f"To {fmt.percent(target, 1)}" if target is not None else "To a goal"
    return Table("Time to accuracy", [Column("Candidate"), *figures(heading, "Steps", "Last accuracy")], rows)

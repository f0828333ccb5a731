"""A sweep in words: what its axis is, which points have figures, who overtakes whom where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bareconv.bench import axes
from bareconv.report import format as fmt
from bareconv.report.candidates import names, who
from bareconv.report.ratios import amount
from bareconv.report.verdict import best_pair

Sweep = Mapping[str, Any]
Curve = Mapping[str, Any]


AXES = {  # the section's title, its name among the contents, what stands below the chart, of a point
    "batch_size": ("Throughput by batch size", "Batch size", "images in a batch", "batch"),
    "image_size": ("Throughput by image size", "Image size", "pixels of a side of the images", "size"),
    "width": ("Throughput by width of the network", "Width", "factor on filters and hidden units", "width"),
    "images": ("Throughput by size of the data set", "Data set", "images in the data set", "images"),
    "threads": ("Throughput by threads", "Threads", "threads", "threads"),
}


def points(curve: Curve) -> list[Mapping[str, Any]]:
    """Those with figures, in the order of the axis."""
    return sorted((p for p in curve["points"] if p.get("images_per_second")), key=lambda p: p["value"])


def curve_names(sweep: Sweep) -> list[str]:
    """What each curve is called."""
    return names([who(curve) for curve in sweep["curves"]])


def main_crossover(sweep: Sweep) -> Mapping[str, Any] | None:
    """Where the GPU overtakes the CPU, of the curves that a verdict speaks of; else the first that there is."""
    known = [c for c in sweep["crossovers"] if c["value"] is not None]
    pair = best_pair(sweep)
    if pair is None:
        return known[0] if known else None
    return next((c for c in known if {c["ahead_below"], c["ahead_above"]} == {pair[0], pair[1]}), None)


def crossover_sentences(sweep: Sweep) -> list[str]:
    """Each crossover of two curves in words, the main one first; else by how much the GPU is ahead, or behind."""
    called = curve_names(sweep)
    unit = AXES[sweep["axis"]][3]
    main = main_crossover(sweep)
    said = []
    for one in sorted(sweep["crossovers"], key=lambda c: c is not main):
        below, above = called[one["ahead_below"]], called[one["ahead_above"]]
        if one["value"] is None:
            continue
        interval = (
            f" ({fmt.significant(one['low'])} to {fmt.significant(one['high'])})"
            if None not in (one["low"], one["high"])
            else ""
        )
        said.append(f"{above} overtakes {below} at {unit} {fmt.significant(one['value'])}{interval}")
    sentences = [f"{'; '.join(said)}. In brackets: 95% intervals."] if said else []
    return [*sentences, *(_apart(sweep) if main is None else [])]


def _apart(sweep: Sweep) -> list[str]:
    """How many times as fast the GPU is along a sweep on which the CPU is at no value as fast, or the other way."""
    pair = best_pair(sweep)
    if pair is None or not (pair[2].is_ahead or pair[2].is_behind):
        return []
    called, (gpu, cpu, ratio) = curve_names(sweep), pair
    ahead, behind, ratios = ratio.ahead_first(called[gpu], called[cpu])
    return [f"{ahead} is {amount(ratios)} {behind} at every {axes.AXES[sweep['axis']].noun} that was measured."]


def without_time(sweep: Sweep) -> list[float]:
    """The values at which there was no time for any curve."""
    errors: dict[float, list[str]] = {}
    for curve in sweep["curves"]:
        for point in curve["points"]:
            errors.setdefault(point["value"], []).append(point.get("error") or "")
    return sorted(value for value, some in errors.items() if all("the time was up" in error for error in some))


def notes(sweep: Sweep) -> list[str]:
    """What a reader should know of the points, those that are missing too."""
    missing = ", ".join(map(fmt.count, without_time(sweep)))
    return [*sweep.get("notes", ()), *([f"There was no time for {missing}."] if missing else [])]

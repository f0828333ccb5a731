"""What the machine did while it was measured on: its clocks, temperatures and power, and what disturbed it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bareconv.report import format as fmt
from bareconv.report.canvas import NARROW, WIDE, NothingToShow, label, new_figure, styled
from bareconv.report.marks import short, tick_seconds, titles
from bareconv.report.palette import LIGHT
from bareconv.report.sections import Block, Chart, Facts, Prose, Section, Words

Series = tuple[str, bool, list[float], Callable[[float], str]]  # title, whether a GPU's, samples, their text

_OF_GPU: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("sm_clock_hz", "clock", lambda x: fmt.metric(x, "Hz")),
    ("memory_clock_hz", "memory clock", lambda x: fmt.metric(x, "Hz")),
    ("temperature_celsius", "temperature", lambda x: f"{fmt.significant(x)} °C"),
    ("watts", "power", lambda x: fmt.metric(x, "W")),
)


def conditions_section(result: Mapping[str, Any]) -> Section | None:
    """What disturbed the measurement, first; then what was recorded. None where nobody watched."""
    found = result.get("conditions")
    if not found:
        return None
    blocks: list[Block] = [Prose(remark, "note") for remark in found["remarks"]]
    if not blocks:
        blocks.append(Prose("Nothing was seen to disturb the measurement.", "good"))
    if series(found):
        blocks.append(Chart("conditions", lambda w: conditions_chart(found, width=w), lambda: conditions_words(found)))
    blocks.append(Facts(facts(found)))
    return Section("conditions", "Conditions", "Conditions", blocks)


def series(found: Mapping[str, Any]) -> list[Series]:
    """What was recorded over the time, those that have more than one sample."""
    cpu = found.get("cpu", {})
    every: list[Series] = [
        ("CPU frequency", False, cpu.get("frequency_hz", []), lambda x: fmt.metric(x, "Hz")),
        ("CPU temperature", False, cpu.get("temperature_celsius", []), lambda x: f"{fmt.significant(x)} °C"),
    ]
    gpus = found.get("gpus", ())
    for place, gpu in enumerate(gpus):
        called = "GPU" if len(gpus) == 1 else f"GPU {place}"
        every += [(f"{called} {name}", True, gpu.get(key, []), text) for key, name, text in _OF_GPU]
    return [one for one in every if len(one[2]) > 1]


@styled
def conditions_chart(found: Mapping[str, Any], *, width: float = WIDE) -> Figure:
    """A small panel for each thing that was recorded, over the time of the measurement."""
    shown = series(found)
    if not shown:
        raise NothingToShow("nothing was recorded over time")
    columns = 2 if width <= NARROW else min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = new_figure(width, lines * 1.5 + 0.1)
    boxes = np.ravel(figure.subplots(lines, columns, squeeze=False))
    for axes in boxes[len(shown) :]:
        axes.set_axis_off()
    for axes, (name, gpu, samples, text) in zip(boxes, shown, strict=False):
        times = np.linspace(0, found["seconds"], len(samples))
        axes.plot(times, samples, color=LIGHT["gpu" if gpu else "cpu"], linewidth=1.4)
        low, high = min(samples), max(samples)
        room = max(0.25 * (high - low), 0.04 * abs(high), 1e-9)
        axes.set_ylim(low - room, high + room)
        axes.set_xlim(0, max(found["seconds"], 1e-9))
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _, text=text: short(text(y))))
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tick_seconds(x) if x else "0"))
        titles(axes, label(name))
    return figure


def conditions_words(found: Mapping[str, Any]) -> Words:
    """The range of each."""
    said = [f"{name} {fmt.between(min(samples), max(samples), text)}" for name, _, samples, text in series(found)]
    return Words(
        f"Line charts over the time of the measurement: {'; '.join(said)}.",
        f"Over the {fmt.seconds(found['seconds'])} of the measurement.",
    )


def facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Shares of time that were lost, and the range of what was recorded."""
    cpu = found.get("cpu", {})
    rows = [("Watched for", fmt.seconds(found["seconds"]))]
    for key, name, unknown in (
        ("steal_share", "Taken by other machines", "unknown"),
        ("others_share", "Taken by other programs", "unknown"),
        ("throttled_share", "Periods in which the container's quota was used up", "there is no quota"),
    ):
        if key in cpu:
            rows.append((name, fmt.percent(cpu[key], 1) if cpu[key] is not None else unknown))
    if cpu.get("heat_events") is not None:
        rows.append(("CPU slowed down by heat", f"{fmt.count(cpu['heat_events'])} times"))
    rows += [(name, f"{fmt.between(min(samples), max(samples), text)}") for name, _, samples, text in series(found)]
    for gpu in found.get("gpus", ()):
        if "throttle_reasons" in gpu:
            rows.append((f"{gpu['name']} slowed down by", _reasons(gpu)))
        if "other_processes" in gpu:
            rows.append((f"Other programs on {gpu['name']}", fmt.count(gpu["other_processes"])))
    return rows


def _reasons(gpu: Mapping[str, Any]) -> str:
    reasons, shares = gpu["throttle_reasons"], gpu.get("throttled_shares", ())
    if len(shares) == len(reasons):
        reasons = [f"{reason} ({fmt.percent(share, 0)})" for reason, share in zip(reasons, shares, strict=True)]
    return ", ".join(reasons) or "nothing"

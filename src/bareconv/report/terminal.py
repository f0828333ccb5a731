"""A benchmark's result in a few lines of a terminal: the verdict, small charts, and what takes from the trust in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from bareconv.report import format as fmt
from bareconv.report import steadiness
from bareconv.report.candidates import (
    Who,
    device_word,
    everyone,
    group_title,
    names,
    status_word,
    variants_in_full,
    who,
    who_ran,
)
from bareconv.report.consumption import energy_lines
from bareconv.report.headline import headline
from bareconv.report.lessons import candidates, learning_table, workloads
from bareconv.report.nodes import by_node
from bareconv.report.ratios import mark
from bareconv.report.sweep import AXES, Sweep, crossover_sentences, curve_names, points
from bareconv.report.verdict import verdict

if TYPE_CHECKING:
    from bareconv.cli.screen import Screen

_STEPS = "▁▂▃▄▅▆▇█"
_BAR = 24  # characters of the longest bar
_LAYERS = 5  # shown of a step
_SENTENCES = 5  # below the verdict; all of them are in the page
_STYLES = {False: "blue", True: "yellow"}  # of the CPU, of a GPU

Result = Mapping[str, Any]


def show_summary(screen: Screen, result: dict[str, Any], *, brief: bool = False) -> None:
    """Print what a validated result says: the verdict first. ``brief``: nothing but that."""
    found = verdict(result) or headline(result)
    screen.say()
    screen.say(Text(_plain(found.title), "bold"))
    for sentence in found.lead:
        screen.say(_plain(sentence))
    if brief:
        return
    for sentence in found.also[:_SENTENCES]:
        screen.say(f"- {_plain(sentence)}")
    for sweep in result.get("sweeps", ()):
        _sweep(screen, sweep)
    for group in result.get("peers", ()):
        _peers(screen, group)
    _learning(screen, result)
    _layers(screen, result)
    _clocks(screen, result)
    _energy(screen, result)
    _trust(screen, result)


def _plain(text: str) -> str:
    return text.replace("`", "")


def sparkline(values: Sequence[float | None], low: float, high: float) -> str:
    """A character for each value, logarithmic from ``low`` to ``high``, both positive; a space where there is none."""
    span = math.log(high / low) if high > low else 1.0
    steps = [
        " " if value is None or value <= 0 else _STEPS[min(7, max(0, int(8 * math.log(value / low) / span)))]
        for value in values
    ]
    return "".join(steps)


def bar(value: float, most: float, width: int = _BAR) -> str:
    """A bar, its length in proportion; of anything above zero at least a character."""
    return "█" * max(1 if value > 0 else 0, round(width * value / most)) if most > 0 else ""


def _sweep(screen: Screen, sweep: Sweep) -> None:
    """A row for each curve: images a second along the axis as a small chart, its ends in numbers."""
    shown = [(who(c), n, points(c)) for c, n in zip(sweep["curves"], curve_names(sweep), strict=True) if points(c)]
    if not shown:
        return
    values = sorted({p["value"] for _, _, found in shown for p in found})
    rates = [
        p["images_per_second"]["value"] for _, _, found in shown for p in found if p["images_per_second"]["value"] > 0
    ]
    title, _, below, short = AXES[sweep["axis"]]
    ends = list(dict.fromkeys((values[0], values[-1])))
    table = screen.table(
        f"{title}: {sweep['model']}",
        " to ".join(map(fmt.count, ends)),
        *(f"at {short} {fmt.count(value)}" for value in ends),
    )
    for one, name, found in shown:
        by_value = {p["value"]: p for p in found}
        every = [by_value[v]["images_per_second"]["value"] if v in by_value else None for v in values]
        chart = sparkline(every, min(rates), max(rates)) if rates else ""
        cells = [_rate(by_value.get(value)) for value in ends]
        table.add_row(name, Text(chart, _STYLES[one.gpu]), *cells)
    screen.say()
    screen.show(table)
    _variants(screen, [(one, name) for one, name, _ in shown])
    for sentence in crossover_sentences(sweep):
        screen.say(sentence)


def _rate(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return fmt.MISSING
    return f"{fmt.rate(point['images_per_second']['value'])} {mark(point)}".rstrip()


def _peers(screen: Screen, group: Mapping[str, Any]) -> None:
    """A row for each candidate: its bar, its rate, and how many times as fast ours is."""
    found = everyone(group)
    most = max((c["throughput"]["images_per_second"] for _, _, c in found if "throughput" in c), default=0.0)
    ours = "bareconv over it" if group.get("ours") == "plan" else f"{group.get('ours') or 'ours'} over it"
    table = screen.table(group_title(group), "images/s", "95% interval", ours)
    table.add_column("", justify="left")
    for one, name, candidate in found:
        steady, ratio = candidate.get("throughput"), candidate.get("ratio")
        if steady is None:
            table.add_row(name, status_word(candidate))
            continue
        interval = steady["interval"]
        table.add_row(
            name,
            f"{fmt.rate(steady['images_per_second']).removesuffix('/s')} {mark(steady)}".rstrip(),
            fmt.between(interval["low"], interval["high"], lambda x: fmt.rate(x).removesuffix("/s")),
            f"{fmt.ratio(ratio['value'])} ({fmt.between(ratio['low'], ratio['high'], fmt.significant)})"
            if ratio
            else "",
            Text(bar(steady["images_per_second"], most), _STYLES[one.gpu]),
        )
    screen.say()
    screen.show(table)
    _variants(screen, [(one, name) for one, name, _ in found])


def _variants(screen: Screen, shown: Sequence[tuple[Who, str]]) -> None:
    """What a table's names leave out of the variants that were measured."""
    full = variants_in_full([one for one, _ in shown], [name for _, name in shown])
    if full:
        screen.say(full)


def _learning(screen: Screen, result: Result) -> None:
    for entries in workloads(result.get("learning", ())):
        shown = learning_table(entries)
        table = screen.table(f"{shown.label}, {entries[0]['model']}", *(column.name for column in shown.columns[1:]))
        for row in shown.rows:
            table.add_row(*(cell.text for cell in row))
        screen.say()
        screen.show(table)
        _variants(screen, [(one, name) for one, name, record in candidates(entries) if record["accuracy"]])


def _layers(screen: Screen, result: Result) -> None:
    """Of each device's first step the nodes that take the most."""
    for found in result.get("rooflines", ()):
        if not found["steps"] or not found["steps"][0]["launches"]:
            continue
        step = found["steps"][0]
        sums = {node: math.fsum(times.values()) for node, times in by_node(step).items()}
        whole = math.fsum(sums.values()) or 1.0
        title = f"{device_word(found['device'])}, {step['model']}, batches of {fmt.count(step['batch_size'])}"
        table = screen.table(f"Layers, {title}", "of one step", "share")
        table.add_column("", justify="left")
        for node in sorted(sums, key=lambda node: -sums[node])[:_LAYERS]:
            drawn = Text(bar(sums[node], max(sums.values())), _STYLES[found["device"] != "cpu"])
            table.add_row(node, fmt.seconds(sums[node]), fmt.percent(sums[node] / whole, 0), drawn)
        screen.say()
        screen.show(table)


def _clocks(screen: Screen, result: Result) -> None:
    clocks = result.get("clocks", ())
    if not clocks:
        return
    table = screen.table("Whole training", "cold", "warm", "steps alone", "accuracy")
    for one, name in zip(clocks, names([who_ran(one) for one in clocks]), strict=True):
        times = (one["cold"]["whole_seconds"], one["warm"]["whole_seconds"], one["steady_seconds"])
        table.add_row(
            f"{name}, {one['model']}, {fmt.counted(one['epochs'], 'epoch')}",
            *map(fmt.seconds, times),
            fmt.percent(one.get("test_accuracy")),
        )
    screen.say()
    screen.show(table)


def _energy(screen: Screen, result: Result) -> None:
    entries = result.get("energy", ())
    if entries:
        screen.say()
    for line in energy_lines(entries):
        screen.say(f"Energy: {line}")


def _trust(screen: Screen, result: Result) -> None:
    """What is not to be trusted, and what disturbed the measurement."""
    number, whole = steadiness.figures(result)
    if number:
        screen.warn(
            f"{number} of {fmt.counted(whole, 'figure')} {'are' if number > 1 else 'is'} marked: "
            "too few blocks, or blocks that differ too much"
        )
    for remark in result.get("conditions", {}).get("remarks", ()):
        screen.warn(remark)

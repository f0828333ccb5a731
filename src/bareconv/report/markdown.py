"""A benchmark's result as Markdown, for documents: the verdict, the tables, and its figures as files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bareconv.report import format as fmt
from bareconv.report import steadiness
from bareconv.report.bench.clocks import clocks_chart, phases_table, sentences
from bareconv.report.bench.layers import doubts, layers_chart, nodes_table, workload_title, workloads
from bareconv.report.bench.learning import learning_chart
from bareconv.report.bench.peers import rates_table
from bareconv.report.bench.roofline import ceiling_remarks, ceilings_table, roofline_chart
from bareconv.report.bench.sweeps import fit_table, points_table, throughput_chart
from bareconv.report.candidates import group_title, pretty
from bareconv.report.canvas import NothingToShow, png
from bareconv.report.consumption import energy_lines
from bareconv.report.lessons import learning_table
from bareconv.report.lessons import workloads as lessons
from bareconv.report.page import notes
from bareconv.report.sections import Cell, Table
from bareconv.report.sweep import AXES, crossover_sentences, points
from bareconv.report.sweep import notes as sweep_notes
from bareconv.report.verdict import verdict

Result = Mapping[str, Any]


def benchmark(result: Result, link: str, images: str) -> str:
    """Everything of a result for a document, from headings of the second level down; empty where it says nothing.

    ``link``: Markdown that leads to the file; ``images``: what the addresses of its ``pictures`` begin with.
    """
    found = verdict(result)
    if found is None:
        return ""
    lines = [f"## {machine(result)}", "", f"**{found.title}.** {' '.join(found.lead)}", ""]
    lines += [f"- {sentence}" for sentence in found.also]
    lines += ["", f"From {link}, by `{result['command']}`.", ""]
    for part in (sweeps, _peers, _learning, _layers, _clocks, _energy, _trust):
        lines += part(result, images)
    return "\n".join(lines).rstrip("\n") + "\n"


def machine(result: Result) -> str:
    """ "2 cores of Intel(R) Xeon(R) Processor and NVIDIA H200"."""
    cpu, gpus = result["environment"]["cpu"], result["environment"]["gpus"]
    return " and ".join([f"{cpu['cores_allowed']} cores of {cpu['model']}", *(gpu["name"] for gpu in gpus)])


def pictures(result: Result) -> Iterator[tuple[str, bytes]]:
    """The names of a result's figures, as ``benchmark`` refers to them, with their PNG."""
    drawn: list[tuple[str, Any]] = []
    for name, sweep in _swept(result):
        drawn.append((name, lambda sweep=sweep: throughput_chart(sweep)))
    for place, entries in enumerate(lessons(result.get("learning", ()))):
        drawn.append((f"learning-{place}", lambda entries=entries: learning_chart(entries)))
    for place, group in enumerate(workloads(result.get("rooflines", ()))[:1]):
        drawn.append((f"layers-{place}", lambda group=group: layers_chart(group)))
        drawn.append((f"roofline-{place}", lambda group=group: roofline_chart(group)))
    if result.get("clocks"):
        drawn.append(("clocks", lambda: clocks_chart(result["clocks"])))
    for name, draw in drawn:
        try:
            yield name, png(draw())
        except NothingToShow:
            continue


def table(shown: Table) -> str:
    """A table in Markdown; headings over its rows become rows of their own."""
    lines = [
        f"| {' | '.join(_escaped(column.name) for column in shown.columns)} |",
        f"| {' | '.join('---:' if column.figures else '---' for column in shown.columns)} |",
    ]
    for place, row in enumerate(shown.rows):
        if place in shown.groups:
            lines.append(f"| **{_escaped(shown.groups[place])}** |" + " |" * (len(shown.columns) - 1))
        lines.append(f"| {' | '.join(map(_cell, row))} |")
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    text = f"**{_escaped(cell.text)}**" if cell.strong and cell.text else _escaped(cell.text)
    note = f"({_escaped(cell.note)})" if cell.note else ""
    return " ".join(filter(None, (text, note, f"*{cell.mark}*" if cell.mark else "")))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _swept(result: Result) -> list[tuple[str, Mapping[str, Any]]]:
    """The sweeps that have figures, with their pictures' names: those over the batch size first."""
    every = [(f"sweep-{place}", sweep) for place, sweep in enumerate(result.get("sweeps", ()))]
    every = [(name, sweep) for name, sweep in every if any(points(curve) for curve in sweep["curves"])]
    return sorted(every, key=lambda one: one[1]["axis"] != "batch_size")


def sweeps(result: Result, images: str) -> list[str]:
    """A chart, its crossovers and its numbers for every axis."""
    lines: list[str] = []
    for name, sweep in _swept(result):
        title, _, below, _ = AXES[sweep["axis"]]
        lines += [f"### {title}, `{sweep['model']}`", "", f"![Images a second by {below}]({images}{name}.png)", ""]
        lines += [*(f"{said}\n" for said in [*crossover_sentences(sweep), *sweep_notes(sweep)])]
        lines += [table(points_table(sweep)), "", "Images a second; in brackets the 95% interval.", ""]
        if any(curve["fit"] for curve in sweep["curves"]):
            lines += [table(fit_table(sweep)), ""]
    return lines


def _peers(result: Result, images: str) -> list[str]:
    lines: list[str] = []
    for group in result.get("peers", ()):
        lines += [f"### Beside other libraries: {group_title(group)}", "", table(rates_table(group)), ""]
        absent = [f"{pretty(name)} is absent: {reason}." for name, reason in group["absent"].items()]
        lines += [" ".join(absent), ""] if absent else []
    return lines


def _learning(result: Result, images: str) -> list[str]:
    lines: list[str] = []
    for place, entries in enumerate(lessons(result.get("learning", ()))):
        lines += [f"### Time to accuracy, `{entries[0]['model']}`", ""]
        lines += [f"![Test accuracy over the time of training]({images}learning-{place}.png)", ""]
        lines += [table(learning_table(entries)), ""]
    return lines


def _layers(result: Result, images: str) -> list[str]:
    lines: list[str] = []
    for place, group in enumerate(workloads(result.get("rooflines", ()))[:1]):
        lines += [f"### Where a step's time goes: {workload_title(group)}", ""]
        lines += [
            f"![The time of each layer in one step]({images}layers-{place}.png)",
            "",
            table(nodes_table(group)),
            "",
            *(f"{text}\n" for text in doubts(group, result)),
        ]
        lines += [f"![The roofline of each operation]({images}roofline-{place}.png)", ""]
        devices = [found for found, _ in group]
        lines += [table(ceilings_table(devices)), "", *(f"{text}\n" for text in ceiling_remarks(devices))]
    return lines


def _clocks(result: Result, images: str) -> list[str]:
    clocks = result.get("clocks")
    if not clocks:
        return []
    lines = ["### From the start of a process to a trained model", "", *sentences(clocks), ""]
    return [*lines, f"![The phases of whole trainings]({images}clocks.png)", "", table(phases_table(clocks)), ""]


def _energy(result: Result, images: str) -> list[str]:
    said = energy_lines(result.get("energy", ()))
    return ["### Energy", "", *(f"- {line}" for line in said), ""] if said else []


def _trust(result: Result, images: str) -> list[str]:
    """How many of the figures are stable, and what disturbed them."""
    number, whole = steadiness.figures(result)
    steady = whole - number
    verb = "is" if steady == 1 else "are"
    stable = f"{fmt.count(steady)} of {fmt.counted(whole, 'figure')} {verb} stable." if whole else ""
    lines = ["### How far to trust it", "", stable or "Whether the figures are stable was not judged."]
    remarks = result.get("conditions", {}).get("remarks", ())
    return [*lines, "", *(f"- {remark}" for remark in [*remarks, *notes(result)]), ""]

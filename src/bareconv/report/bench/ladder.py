"""The ladder of a result: for each problem a table of its rungs, and a chart of them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bareconv.report import format as fmt
from bareconv.report.ladder import ladder_bars
from bareconv.report.rungs import executed, remarks, slowest_and_fastest
from bareconv.report.sections import Block, Cell, Chart, Column, Heading, Prose, Section, Table, Words, cells, figures

Problem = Mapping[str, Any]


def ladder_section(result: dict[str, Any]) -> Section | None:
    """The chart, the tables, and how to read them; None where no ladder was climbed."""
    if "ladder" not in result:
        return None
    problems = result["ladder"]["problems"]
    blocks: list[Block] = [Chart("ladder", lambda w: ladder_bars(result, width=w), lambda: ladder_words(problems))]
    for problem in problems:
        blocks += [Heading(title(problem)), rungs_table(problem), *(Prose(said, "aside") for said in remarks(problem))]
    peaks = [
        f"{fmt.flops(peak['flops_per_second'])} on "
        + (fmt.counted(peak["threads"], "thread") if peak["device"] == "cpu" else "the GPU")
        for peak in result["ladder"]["peaks"]
    ]
    blocks.append(
        Prose(
            "Effective FLOP/s count the work of the direct method, whatever a rung does instead; executed are those "
            f"that it does, and of peak is their share of the most that there is: {', '.join(peaks)}. The error is the "
            "relative difference from the same in float64.",
            "aside",
        )
    )
    return Section("ladder", "The same work in every way", "Ladder", blocks)


def title(problem: Problem) -> str:
    """What was to be done."""
    text = problem["description"]
    return f"{text[:1].upper()}{text[1:]}, {problem['precision']}, {fmt.counted(problem['threads'], 'thread')}"


def rungs_table(problem: Problem) -> Table:
    """A row for each rung, also for those that could not run."""
    columns = [
        Column("rung"),
        *figures("images/s", "FLOP/s, effective", "executed", "of peak", "error"),
        Column("what it changes", long=True),
    ]
    return Table(f"The rungs: {problem['description']}", columns, [_row(problem, rung) for rung in problem["rungs"]])


def _row(problem: Problem, rung: Mapping[str, Any]) -> list[Cell]:
    name = Cell(rung["name"], device="cpu" if rung["device"] == "cpu" else "gpu")
    if rung["status"] == "unavailable":
        return cells(name, *[""] * 5, f"not run: {rung['reason']}")
    error = fmt.scientific(rung["error"])
    if rung["status"] == "wrong":
        return cells(name, "wrong", "", "", "", error, rung["change"])
    done, of_peak = executed(problem, rung)
    part = f"scaled up from {fmt.significant(100 * rung['share'], 2)}% of the work" if rung["share"] < 1 else ""
    return cells(
        name,
        Cell(fmt.rate(rung["images_per_second"]).removesuffix("/s"), note=part),
        fmt.flops(rung["effective_flops_per_second"]),
        fmt.flops(done),
        fmt.percent(of_peak, 1),
        error,
        rung["change"],
    )


def ladder_words(problems: list[dict[str, Any]]) -> Words:
    """The figure's texts: the slowest and the fastest rung of each problem."""
    said = []
    for problem in problems:
        if ends := slowest_and_fastest(problem):
            slow, fast = (f"{fmt.rate(rung['images_per_second'], 'images')} ({rung['name']})" for rung in ends)
            said.append(f"{problem['description']}: from {slow} to {fast}")
    return Words(f"Chart of images a second by rung. {'; '.join(said)}.", "Images a second of every rung.")

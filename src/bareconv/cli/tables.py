"""The tables that ``bareconv compare`` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from bareconv.cli.screen import Screen
from bareconv.report.format import bytes_, counted, percent, rate, ratio, scientific, seconds
from bareconv.report.runs import Run, engines_differ, is_gpu, over, pairs, phase
from bareconv.report.runs import operations as by_name

Value = Callable[[Run], float | None]

PHASES = ("batch", "forward", "backward", "forward_backward", "update", "other")


def groups(runs: list[Run]) -> list[list[Run]]:
    """Runs that belong in one table: each CPU run with the GPU runs that are compared with it, or a run alone."""
    partner = {pair.gpu: pair.cpu for pair in pairs(runs)}
    heads = [i for i in range(len(runs)) if i not in partner]
    return [[runs[i], *(runs[g] for g, cpu in partner.items() if cpu == i)] for i in heads]


def measured(screen: Screen, group: list[Run]) -> Table:
    """Times, accuracy and memory: a row for each, a column for each run, and how many times faster a GPU is."""
    table = screen.table("", *_columns(group, ""))

    def times(name: str, value: Value) -> None:
        table.add_row(name, *_with_ratios(group, value))

    def plain(name: str, text: Callable[[Run], str]) -> None:
        table.add_row(name, *(cell for run in group for cell in (text(run), *([""] if _faster(group, run) else []))))

    times("total time", lambda run: run["total_seconds"])
    times("training time", lambda run: run["train_seconds"])
    times("  per iteration", lambda run: run["seconds_per_iteration"])
    for name in PHASES:
        if any(phase(run, name) is not None for run in group):
            times("  " + name.replace("_", " and "), lambda run, name=name: phase(run, name))  # type: ignore[misc]
    plain("images/s", lambda run: rate(run["images_per_second"]).removesuffix("/s"))
    plain("accuracy", lambda run: percent(run["test_accuracy"]))
    plain("peak memory", lambda run: bytes_(run["peak_memory_bytes"]))
    for part in group[0]["memory"]:
        plain(f"  {part}", lambda run, part=part: bytes_(run["memory"][part]))  # type: ignore[misc]
    return table


def operations(screen: Screen, group: list[Run]) -> list[Table]:
    """Each operation's seconds in one step, forward and backward: in one table, or in two where that is too wide.

    Those that all runs of the group have; none where there is none, or an engine does not tell operations apart.
    """
    if not any(None not in times for times in by_name(group).values()):
        return []
    both = _operations(screen, group, ["forward", "backward"])
    return [both] if screen.fits(both) else [_operations(screen, group, [way]) for way in ("forward", "backward")]


def _operations(screen: Screen, group: list[Run], ways: list[str]) -> Table:
    table = screen.table("operation", *(heading for way in ways for heading in _columns(group, way)))
    for name, times in by_name(group).items():
        if None in times:
            continue
        columns = [[found[way == "backward"] for found in times if found] for way in ways]
        table.add_row(name, *(cell for seconds_ in columns for cell in _cells(group, seconds_)))
    return table


def speedups(runs: list[Run]) -> list[Text]:
    """A sentence for each GPU run that has a CPU run to compare with."""
    lines = []
    for pair in pairs(runs):
        gpu, cpu = runs[pair.gpu], runs[pair.cpu]
        training = ratio(over(cpu["train_seconds"], gpu["train_seconds"]))
        total = ratio(over(cpu["total_seconds"], gpu["total_seconds"]))
        names = [" ".join((run["device"], run["precision"], *_engine([gpu, cpu], run))) for run in (gpu, cpu)]
        lines.append(Text(f"Speed-up of {names[0]} over {names[1]}: {training} in training, {total} in total"))
    return lines


def verdict(proof: dict[str, Any]) -> Text:
    """A parity proof in a sentence."""
    text = Text(
        f"Parity of {proof['candidate']} with {proof['reference']} over {counted(proof['steps'], 'step')}: "
        f"losses differ by at most {scientific(proof['max_loss_difference'])}, the final weights by "
        f"{scientific(proof['final_weight_difference'])}; tolerance {scientific(proof['tolerance'])}: "
    )
    return text.append("passed", "green") if proof["passed"] else text.append("FAILED", "bold red")


def _columns(group: list[Run], what: str) -> list[str]:
    """Headings of a group's columns: device, precision, engine where they differ, what is in it; and "speed-up" behind
    a GPU's.
    """
    headings = []
    for run in group:
        headings.append("\n".join(filter(None, (run["device"], run["precision"], *_engine(group, run), what))))
        if _faster(group, run):
            headings.append("speed-up")
    return headings


def _with_ratios(group: list[Run], value: Value) -> list[str]:
    return _cells(group, [value(run) for run in group])


def _cells(group: list[Run], values: Sequence[float | None]) -> list[str]:
    """A cell for each run's seconds, and behind a GPU's how many times faster that is."""
    cells = []
    for run, value in zip(group, values, strict=True):
        cells.append(seconds(value))
        if _faster(group, run):
            r = over(values[0], value)
            cells.append(ratio(r) if r is not None else "")
    return cells


def _engine(group: list[Run], run: Run) -> list[str]:
    return [run["engine"]] if engines_differ(group) else []


def _faster(group: list[Run], run: Run) -> bool:
    """Whether there is a CPU run in the group that this one is compared with."""
    return is_gpu(run) and run is not group[0]

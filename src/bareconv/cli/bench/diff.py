"""``bareconv bench diff``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from bareconv.bench import results
from bareconv.bench.alike import Difference
from bareconv.bench.changes import AMBIGUOUS, FASTER, MARGIN, SAME, SLOWER
from bareconv.bench.diff import Source, is_refused, is_regression
from bareconv.bench.diff import diff as laid_side_by_side
from bareconv.cli.folder import find_result
from bareconv.cli.screen import Screen, on_screen
from bareconv.errors import UsageError
from bareconv.report.format import percent, rate, significant

EPILOG = """\b
Examples:
  bareconv bench diff before.json after.json
  bareconv bench diff before.json after.json --margin 0.02
  bareconv bench diff --baseline a1.json --baseline a2.json b1.json b2.json
  bareconv bench diff laptop.json server.json --force
"""

STYLES = {FASTER: "green", SLOWER: "bold red", SAME: "", AMBIGUOUS: "yellow"}

Found = Mapping[str, Any]
File = click.Path(path_type=Path)


@click.command(epilog=EPILOG, short_help="What became faster or slower between results.")
@click.argument("files", nargs=-1, required=True, type=File, metavar="[BEFORE] AFTER ...")
@click.option(
    "--baseline",
    "baseline",
    type=File,
    metavar="FILE",
    multiple=True,
    help="A result to compare with; may be repeated. All files are compared with it then.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    default=MARGIN,
    show_default=True,
    help="By how much slower counts as slower, and as much faster as faster.",
)
@click.option("--force", is_flag=True, help="Compare though machines, software or settings differ.")
@on_screen
def diff(screen: Screen, files: tuple[Path, ...], baseline: tuple[Path, ...], margin: float, force: bool) -> int:
    """Compare the throughput in result files: every measurement that both sides have.

    Ratios are of the later over the earlier, each with a 95% interval, which covers what blocks differ by, what the
    machine differs by from one time to another, and what one process differs by from the next. Wholly beyond the margin
    it is faster or slower, wholly within it the same, and else ambiguous: nobody can tell, and what would settle it is
    said. Several results of each side, taken in turn, tell much more than one.

    Exit code 1 if anything became slower; 2 if the results cannot be compared.
    """
    if not baseline and len(files) != 2:
        raise UsageError(f"{len(files)} files: expected BEFORE and AFTER; give several of each side with --baseline")
    before, after = (baseline, files) if baseline else (files[:1], files[1:])
    found = laid_side_by_side(_read(before), _read(after), margin=margin, force=force)
    _sources(screen, found)
    _differences(screen, found)
    if is_refused(found):
        screen.warn("not compared, as the results differ in this; --force compares nevertheless.")
    else:
        _table(screen, found)
        _remarks(screen, found, len(before))
    screen.finish(screen.result(diff=found))
    return 2 if is_refused(found) else 1 if is_regression(found) else 0


def _read(paths: Sequence[Path]) -> list[Source]:
    return [Source(path, results.read(find_result(path))) for path in paths]


def _sources(screen: Screen, found: Found) -> None:
    for side, name in (("baseline", "before"), ("results", "after")):
        for source in found[side]:
            commit = (source.get("commit") or "")[:12]
            words = [source["created"], f"bareconv {source['bareconv']}", f"commit {commit}" if commit else ""]
            screen.say(f"{name:6} {source['file']} ({', '.join(filter(None, words))})")


def _differences(screen: Screen, found: Found) -> None:
    for one in found["differences"]:
        screen.warn(str(Difference(**one)))


def _table(screen: Screen, found: Found) -> None:
    table = screen.table("measurement", "before", "after", "after / before", "95% interval", "verdict")
    for one in found["measurements"]:
        cells = [rate(one[side]["value"]).removesuffix("/s") for side in ("baseline", "result")]
        verdict = one["verdict"]
        table.add_row(one["label"], *cells, *_ratio(one["ratio"]), Text(verdict, STYLES[verdict]))
    if len(found["measurements"]) > 1:
        table.add_row("geometric mean", "", "", *_ratio(found["geometric_mean"]), "")
    screen.say()
    screen.show(table)


def _ratio(figure: Mapping[str, float]) -> list[str]:
    """With as many digits as tell a per cent apart, also below 1."""
    value, low, high = (significant(figure[name], 3) for name in ("value", "low", "high"))
    return [value, f"{low} to {high}"]


def _remarks(screen: Screen, found: Found, results_before: int) -> None:
    """What would settle what is ambiguous; what the machine did; what one side has alone."""
    lines = []
    for pace in found["machine"]:
        verb = "faster" if pace["times"] > 1 else "slower"
        lines.append(f"The machine was {percent(abs(pace['times'] - 1), 1)} {verb} by {pace['what']}.")
    lines += [f"To settle {one['label']}: {one['settle']}." for one in found["measurements"] if "settle" in one]
    for side, name in (("only_baseline", "before"), ("only_results", "after")):
        lines += [f"Only {name}: {label}." for label in found[side]]
    if results_before == 1 and not all(one["by_turns"] for one in found["measurements"]):
        lines.append("One result of a side says nothing of how much results differ: 1% is assumed.")
    if lines:
        screen.say()
    for line in lines:
        screen.say(line)

"""``bareconv report``: the page of a result, or of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bareconv.bench import results
from bareconv.cli.folder import RESULT, find_result
from bareconv.cli.screen import Screen, on_screen
from bareconv.errors import UsageError
from bareconv.files import check_writable, write_whole
from bareconv.report.page import render, render_machines
from bareconv.report.terminal import show_summary

EPILOG = """\b
Examples:
  bareconv report result.json
  bareconv report results/latest --output page.html
  bareconv report laptop.json server.json --output machines.html
"""


@click.command(epilog=EPILOG, short_help="The page of a result, or of several machines beside each other.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    default=Path("report.html"),
    show_default=True,
    help="The page that is written.",
)
@on_screen
def report(screen: Screen, **options: Any) -> int:
    """Write the page of a result: one HTML file that needs nothing else, and a summary on the terminal.

    FILE is a result that a verb wrote with --output, or the folder that compare wrote. Of several results it is one
    page that sets the machines beside each other: whose training is how many times as fast, the curves of all in one
    chart, and what differs between the machines and settings.
    """
    output: Path = options["output"]
    check_writable(output, "--output")
    if output.resolve() in {path.resolve() for path in options["files"]}:
        raise UsageError(f"--output {output}: that is one of the results; expected another file")
    found = [_read(path) for path in options["files"]]
    page = render(found[0][1], name=found[0][0]) if len(found) == 1 else render_machines(found)
    write_whole(output, page.encode("utf-8", "replace"))  # before anything is printed, which may fail
    for path, (_, result) in zip(options["files"], found, strict=True):
        if len(found) > 1:
            screen.say(f"{path}:")
        show_summary(screen, result, brief=len(found) > 1)
    screen.say(f"\nWrote {output}")
    screen.finish(screen.result(notes=[f"Wrote {output}."]))
    return 0


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """A result with its file's name, of a result.json its folder's: there are many of those. DataError in one line."""
    file = find_result(path)
    name = f"{file.resolve().parent.name}.json" if file.name == RESULT else file.name
    return name, results.read(file)

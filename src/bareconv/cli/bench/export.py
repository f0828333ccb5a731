"""``bareconv bench export``."""

from __future__ import annotations

from pathlib import Path

import click

from bareconv.bench import results
from bareconv.bench.export import as_csv, as_markdown
from bareconv.cli.folder import find_result
from bareconv.cli.screen import Screen, on_screen
from bareconv.errors import UsageError
from bareconv.files import check_writable, write_whole

EPILOG = """\b
Examples:
  bareconv bench export results/latest
  bareconv bench export result.json --format csv --output result.csv
  bareconv bench export result.json --format csv --raw > blocks.csv

In Python: pandas.read_csv("result.csv"); in R: read.csv("result.csv").
"""

FORMATS = {"markdown": as_markdown, "csv": as_csv}


@click.command(epilog=EPILOG, short_help="A result as tables: Markdown or CSV.")
@click.argument("file", type=click.Path(path_type=Path), metavar="RESULT")
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMATS)),
    metavar="NAME",
    default="markdown",
    show_default=True,
    help="markdown: a table for each part. csv: a figure a line, with all that says what it is.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write to this file. [default: standard output]",
)
@click.option("--raw", is_flag=True, help="With the samples: seconds of every block, losses of every step.")
@on_screen
def export(screen: Screen, file: Path, form: str, output: Path | None, raw: bool) -> int:
    """Write all that a result holds as tables, with units and intervals.

    RESULT is the file of a result, of this version or an older one, or the folder that it is in. The columns of CSV:
    part, device, model, batch_size, precision, candidate, variant, threads, axis, at (on the axis), detail, index,
    quantity (as the result's schema names it), unit, value, low and high (the 95% interval), samples, text.
    """
    if output is None and screen.as_json:
        raise UsageError("--json: standard output is for the JSON then; give --output for the tables")
    path = find_result(file)
    if output is not None:
        check_writable(output, "--output")
        if output.resolve() == path.resolve():
            raise UsageError(f"--output {output}: that is the result; expected another file")
    text = FORMATS[form](results.read(path), raw)
    if output is None:
        screen.hand_out(text)
        screen.finished = True
        return 0
    write_whole(output, text.encode("utf-8", "replace"))
    screen.say(f"Wrote {output}")
    screen.finish(screen.result(notes=[f"Wrote {output}."]))
    return 0

"""``bareconv bench VERB``: steady-state throughput of training steps."""

from __future__ import annotations

import click

from bareconv.cli import Verbs

VERBS = {
    "run": "All of it, within a budget, with a page to look at.",
    "peers": "Our engines beside other libraries, by turns.",
    "clocks": "A whole training from cold, from warm, and at its steady rate.",
    "ceilings": "What this machine can do at best: arithmetic, memory, a launch.",
    "layers": "Each layer's forward, gradients and update beside that.",
    "sweep": "How the cost grows, and where the GPU overtakes the CPU.",
    "diff": "What became faster or slower between results.",
    "export": "A result as tables: Markdown or CSV.",
}

EPILOG = """\b
Examples:
  bareconv bench run --model basic
  bareconv bench peers --model basic --model small --budget 300
  bareconv bench clocks --device cuda
  bareconv bench layers --model basic --batch-size 64
  bareconv bench sweep --axis width --model basic
  bareconv bench diff before.json after.json
  bareconv bench export result.json --format csv

"bareconv bench VERB --help" shows a verb's options.
"""


@click.group(
    cls=Verbs,
    verbs=VERBS,
    package="bareconv.cli.bench",
    epilog=EPILOG,
    subcommand_metavar="VERB ...",
    options_metavar="",
    invoke_without_command=True,
)
@click.pass_context
def bench(ctx: click.Context) -> None:
    """Measure training on this machine, each candidate in a process of its own, with intervals and raw numbers."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())

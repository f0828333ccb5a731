"""``bareconv bench VERB``: steady-state throughput of training steps."""

from __future__ import annotations

import click

from bareconv.cli import Verbs

VERBS = {
    "run": "How many images a second our engines train.",
    "peers": "The same beside other libraries, measured by turns.",
    "clocks": "A whole training from cold, from warm, and at its steady rate.",
    "ceilings": "What this machine can do at best: arithmetic, memory, a launch.",
    "layers": "Each layer's forward, gradients and update beside that.",
    "sweep": "How the cost grows, and where the GPU overtakes the CPU.",
}

EPILOG = """\b
Examples:
  bareconv bench run --model basic --budget 10
  bareconv bench peers --model basic --model small --budget 60
  bareconv bench clocks --device cuda
  bareconv bench layers --model basic --batch-size 64
  bareconv bench sweep --axis width --model basic

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
    """Measure the steady-state throughput of training steps on this machine, each candidate in its own process."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())

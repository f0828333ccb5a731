"""The command line: ``bareconv VERB``. One file a verb, imported when it is called; ``bench`` is a group of verbs.

Exit codes: 0 done; 1 the work failed (a check out of tolerance, a loss not finite, a full disk); 2 bad usage or input;
130 interrupted.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import Any

import click

import bareconv

VERBS = {
    "train": "Train a model and save a checkpoint.",
    "evaluate": "Accuracy, loss, confusion and worst mistakes of a checkpoint.",
    "predict": "Predict a Kaggle test.csv or drawn digits.",
    "compare": "The same training on the CPU and on the GPU, compared.",
    "ladder": "From naive loops up: one convolution and one step, in every way.",
    "explain": "What the plan of a training step consists of, and its time.",
    "bench": "How fast training steps are, alone and beside other libraries.",
    "report": "The page of a result, or of several machines beside each other.",
    "check": "Check every gradient, and every engine against the reference.",
    "info": "What this machine is and what will be used.",
}


class Verbs(click.Group):
    """Finds verbs by name without importing them: ``bareconv --help`` must not load NumPy.

    ``verbs``: what each does, by name; each is in the module of its name within ``package``.
    """

    def __init__(self, verbs: dict[str, str], package: str, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.verbs, self.package = verbs, package

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.verbs:
            return None
        command = getattr(importlib.import_module(f"{self.package}.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.verbs:
            raise click.UsageError(f"there is no verb {args[0]!r}; expected one of {', '.join(self.verbs)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(self.verbs.items()))


@click.group(
    cls=Verbs,
    verbs=VERBS,
    package="bareconv.cli",
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="VERB ...",
    options_metavar="",
)
@click.version_option(bareconv.__version__, prog_name="bareconv")
def cli() -> None:
    """A convolutional network from first principles, on NumPy and CuPy, and an honest comparison of the two.

    \b
    Examples:
      bareconv info
      bareconv compare --quick
      bareconv train --model basic --epochs 3 --checkpoint basic.safetensors
      bareconv evaluate basic.safetensors
      bareconv predict basic.safetensors digit-recognizer/test.csv -o submission.csv

    "bareconv VERB --help" shows a verb's options.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process; an error is one line on standard error."""
    from bareconv.cli.legible import make_legible

    make_legible(sys.stdout)
    make_legible(sys.stderr)
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. Without arguments it shows the help."""
    from bareconv.errors import BareconvError

    given = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        return int(cli.main(given, prog_name="bareconv", standalone_mode=False, obj=["bareconv", *given]) or 0)
    except click.ClickException as error:
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "bareconv"
        _complain(f"{error.format_message()} (see {path} --help)")
        return error.exit_code
    except BareconvError as error:
        _complain(str(error))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        return 130


def _complain(message: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print("bareconv: " + " ".join(message.split()), file=sys.stderr)

"""``bareconv check``."""

from __future__ import annotations

import math
from typing import Any

import click

from bareconv.bench.gradients import Check, check_all
from bareconv.cli.options import command_line, json_option
from bareconv.cli.screen import Screen, TrainingBar
from bareconv.device import all_devices, get_device, why_no_cuda
from bareconv.nn.models import ZOO
from bareconv.report.format import scientific

EPILOG = """\b
Examples:
  bareconv check
  bareconv check --model lenet5 --device cpu
"""


@click.command(epilog=EPILOG, short_help="Check every gradient against a numerical one.")
@click.option("--model", type=click.Choice(list(ZOO)), default="basic", show_default=True, help="The whole model.")
@click.option("--device", default="all", show_default=True, metavar="all|cpu|cuda|cuda:1", help="Where to check.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@json_option
@command_line
def check(settings: dict[str, Any], model: str, device: str, seed: int, as_json: bool) -> int:
    """Check the gradients of every layer and of a whole model, in float64, on every device there is.

    Each derivative is compared with a central difference. Exit code 1 if one is out of tolerance.
    """
    screen = Screen(as_json)
    devices = all_devices() if device == "all" else [get_device(device)]
    table = screen.table("gradient of", "device", "derivatives", "largest error", "tolerance", "")
    checks: list[Check] = []
    for place in devices:
        with TrainingBar(screen) as bar:
            bar.begin(f"Checking on {place.name}", 27)
            for done, one in enumerate(check_all(place, model, seed), start=1):
                checks.append(one)
                bar.count(done, one.name)
                verdict = "[green]ok[/green]" if one.passed else "[bold red]WRONG[/bold red]"
                table.add_row(
                    one.name,
                    one.device,
                    str(one.checked),
                    scientific(one.error) if math.isfinite(one.error) else "not finite",
                    scientific(one.tolerance),
                    verdict,
                )
    screen.show(table)
    reason = why_no_cuda()
    if device == "all" and reason is not None:
        screen.say(f"Not checked on a GPU: {reason}.")
    wrong = [one for one in checks if not one.passed]
    screen.say(f"{len(checks) - len(wrong)} of {len(checks)} within tolerance")
    records = [
        {
            "name": one.name,
            "device": one.device,
            "error": one.error if math.isfinite(one.error) else None,
            "tolerance": one.tolerance,
            "checked": one.checked,
            "passed": one.passed,
        }
        for one in checks
    ]
    screen.finish(screen.result(settings, gradient_checks=records))
    return 1 if wrong else 0

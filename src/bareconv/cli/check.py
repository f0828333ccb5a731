"""``bareconv check``."""

from __future__ import annotations

import math

import click
from rich.text import Text

from bareconv.bench.gradients import Check, check_all, layer_cases
from bareconv.cli.options import devices_option, model_option, seed_option
from bareconv.cli.screen import Bar, Screen, on_screen
from bareconv.device import all_devices, get_device, why_no_cuda
from bareconv.report.format import scientific

EPILOG = """\b
Examples:
  bareconv check
  bareconv check --model lenet5 --device cpu
"""


@click.command(epilog=EPILOG, short_help="Check every gradient against a numerical one.")
@model_option
@devices_option
@seed_option
@on_screen
def check(screen: Screen, model: str, device: str, seed: int) -> int:
    """Check the gradients of every layer and of a whole model, in float64, on every device there is.

    Each derivative is compared with a central difference. Exit code 1 if one is out of tolerance.
    """
    devices = all_devices() if device == "all" else [get_device(device)]
    table = screen.table("gradient of", "device", "derivatives", "largest error", "")
    checks: list[Check] = []
    for place in devices:
        with Bar(screen) as bar:
            bar.begin(f"Checking on {place.name}", len(layer_cases()) + 3)  # with the loss, twice, and the model
            for done, one in enumerate(check_all(place, model, seed), start=1):
                checks.append(one)
                bar.count(done, one.name)
                table.add_row(
                    one.name,
                    one.device,
                    str(one.checked),
                    scientific(one.error) if math.isfinite(one.error) else "not finite",
                    Text("ok", "green") if one.passed else Text("WRONG", "bold red"),
                )
    screen.show(table)
    reason = why_no_cuda()
    if device == "all" and reason is not None:
        screen.say(f"Not checked on a GPU: {reason}.")
    wrong = [one for one in checks if not one.passed]
    tolerance = scientific(max(one.tolerance for one in checks))
    screen.say(f"{len(checks) - len(wrong)} of {len(checks)} within the tolerance of {tolerance}")
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
    screen.finish(screen.result(gradient_checks=records))
    return 1 if wrong else 0

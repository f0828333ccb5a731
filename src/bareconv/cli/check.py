"""``bareconv check``."""

from __future__ import annotations

import math
from typing import Any

import click
from rich.text import Text

from bareconv.bench.engines import check_engines
from bareconv.bench.engines import count as engine_count
from bareconv.bench.gradients import Check, check_all, layer_cases
from bareconv.cli.options import devices_option, model_option, seed_option, threads_option
from bareconv.cli.screen import Bar, Screen, on_screen
from bareconv.device import Device, all_devices, get_device, why_no_cuda
from bareconv.report.format import count, scientific
from bareconv.training import why_no_plan

EPILOG = """\b
Examples:
  bareconv check
  bareconv check --model lenet5 --device cpu
"""


@click.command(epilog=EPILOG, short_help="Check every gradient, and every engine against the reference.")
@model_option
@devices_option
@threads_option
@seed_option
@on_screen
def check(screen: Screen, model: str, device: str, threads: int | None, seed: int) -> int:
    """Check the gradients of every layer and of a whole model, in float64, on every device there is.

    Each derivative is compared with a central difference. Then, on each device, every engine trains the model, and a
    few others on small images, in lockstep with the reference there, in every precision that it has: losses must agree,
    in float64 weights too. Exit code 1 if something is out of tolerance.
    """
    screen.only_prints = True
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
    proofs = [proof for place in devices for proof in _engines(screen, place, model, seed, threads)]
    screen.finish(screen.result(gradient_checks=records, parity=proofs))
    return 0 if not wrong and all(proof["passed"] for proof in proofs) else 1


def _engines(screen: Screen, device: Device, model: str, seed: int, threads: int | None) -> list[dict[str, Any]]:
    """Check a device's engines, show how far each is from the reference, and return the proofs."""
    table = screen.table("model", "images", "engine", "steps", "losses differ by", "weights differ by", "")
    proofs: list[dict[str, Any]] = []
    with Bar(screen) as bar:
        text, total = f"Checking the engines on {device.name}", engine_count(model, device)
        bar.begin(text, total)
        for done, proof in enumerate(check_engines(model, seed, threads, bar.compiling, device), start=1):
            proofs.append(proof)
            bar.text, bar.total = text, total
            bar.count(done, f"{proof['model']}, {proof['candidate']}")
            table.add_row(
                proof["model"],
                " x ".join(map(str, proof["image_shape"])),
                proof["candidate"],
                count(proof["steps"]),
                scientific(proof["max_loss_difference"]),
                scientific(proof["final_weight_difference"]),
                Text("ok", "green") if proof["passed"] else Text("WRONG", "bold red"),
            )
    reason = why_no_plan(device)
    if proofs:
        screen.say(f"\nIn lockstep with the reference on {device.name}:")
        screen.show(table)
    if reason is not None:
        screen.say(f"Not checked on {device.name}: the plan ({reason}).")
    if not proofs:
        return []
    right = sum(proof["passed"] for proof in proofs)
    tolerances = {proof["precision"]: scientific(proof["tolerance"]) for proof in proofs}
    said = ", ".join(f"{tolerance} in {precision}" for precision, tolerance in tolerances.items())
    screen.say(f"{right} of {len(proofs)} within the tolerance of {said}")
    return proofs

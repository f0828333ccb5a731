"""``bareconv info``."""

from __future__ import annotations

from typing import Any

import click

from bareconv.bench import environment
from bareconv.cli.options import command_line, json_option
from bareconv.cli.screen import Screen
from bareconv.device import get_device
from bareconv.report.format import bytes_

EPILOG = """\b
Examples:
  bareconv info
  bareconv info --json
"""


@click.command(epilog=EPILOG, short_help="What this machine is and what will be used.")
@json_option
@command_line
def info(settings: dict[str, Any], as_json: bool) -> int:
    """What this machine is, what will be used of it, and the command that installs what is missing."""
    screen = Screen(as_json)
    result = screen.result(settings)
    here = result["environment"]
    table = screen.table("", "")
    table.show_header = False
    table.columns[1].justify = "left"
    for name, text in _rows(here):
        table.add_row(f"[bold]{name}[/bold]", text)
    screen.show(table)
    screen.say(f"\nWill be used: {get_device('auto')!r}")
    for warning in here["warnings"]:
        screen.say(f"Warning: {warning}")
    for absent in environment.missing():
        screen.say(f"Missing: {absent.name}: {absent.why}")
        screen.say(f"  {absent.command}")
    screen.finish(result)
    return 0


def _rows(here: dict[str, Any]) -> list[tuple[str, str]]:
    cpu, blas, packages = here["cpu"], here["blas"], here["packages"]
    quota = cpu.get("quota")
    cores = f"{cpu['cores_allowed']} of {cpu['cores']} allowed (affinity {cpu.get('affinity', '?')}"
    cores += f", container quota {quota:g})" if quota else ", no container quota)"
    rows = [
        ("platform", here["platform"]),
        ("Python", here["python"]),
        ("CPU", cpu["model"]),
        ("cores", cores),
        ("SIMD", ", ".join(cpu.get("simd", [])) or "unknown"),
        ("memory", bytes_(cpu["memory_bytes"]) if "memory_bytes" in cpu else "unknown"),
        (
            "BLAS",
            f"{blas['library']} {blas.get('version') or ''}, {blas.get('architecture') or 'unknown'} kernels, "
            f"{blas.get('threads') or '?'} threads",
        ),
    ]
    for gpu in here["gpus"]:
        about = [gpu["name"]]
        if "memory_bytes" in gpu:
            about.append(bytes_(gpu["memory_bytes"]))
        if gpu.get("compute_capability"):
            about.append(f"compute capability {gpu['compute_capability']}")
        if gpu.get("driver"):
            about.append(f"driver {gpu['driver']} (CUDA {gpu.get('driver_cuda') or '?'})")
        rows.append(("GPU", ", ".join(about)))
    if not here["gpus"]:
        rows.append(("GPU", "none"))
    rows.append(("CUDA", here["cuda_missing"] or "works"))
    rows.append(("packages", ", ".join(f"{name} {version}" for name, version in packages.items() if version)))
    return rows

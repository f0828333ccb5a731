"""``bareconv info``."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from bareconv import host
from bareconv.bench import environment
from bareconv.cli.screen import Screen, on_screen
from bareconv.device import CpuDevice, Device, get_device
from bareconv.report.format import bytes_, counted
from bareconv.training import why_no_plan

EPILOG = """\b
Examples:
  bareconv info
  bareconv info --json > machine.json
"""


@click.command(epilog=EPILOG, short_help="What this machine is and what will be used.")
@on_screen
def info(screen: Screen) -> int:
    """What this machine is, what will be used of it, and the command that installs what is missing."""
    here = screen.environment
    table = screen.table("", "")
    table.show_header = False
    table.columns[1].justify = "left"
    for name, text in _rows(here):
        table.add_row(Text(name, "bold"), text)
    screen.show(table)
    device = get_device("auto")
    screen.say(f"\nWill be used: {device.name} ({device.description})")
    screen.say(f"Engine on the CPU: {_engine()}")
    if not isinstance(device, CpuDevice):
        screen.say(f"Engine on the GPU: {_engine_on_gpu(device)}")
    for warning in here["warnings"]:
        screen.warn(warning)
    for absent in environment.missing():
        screen.say(f"\n{absent.name} is not installed: {absent.why}. To install it:")
        screen.command(absent.command)
    screen.finish(screen.result())
    return 0


def _engine() -> str:
    """What trains on the CPU unless told otherwise, and why no plan where there is none."""
    count = host.blas_threads()
    threads = counted(count, "thread")
    reason = why_no_plan()
    if reason is not None:
        return f"tuned (NumPy, {threads}); no plan: {reason}"
    from bareconv.kernels.cpu.target import host_target

    unit = host_target()
    return f"plan ({unit.name}, {unit.lanes} numbers of float32 at a time, {threads})"


def _engine_on_gpu(device: Device) -> str:
    reason = why_no_plan(device)
    return "plan (CUDA graphs; float32, tf32 or bfloat16)" if reason is None else f"reference; no plan: {reason}"


def _rows(here: dict[str, Any]) -> list[tuple[str, str]]:
    cpu, blas, packages = here["cpu"], here["blas"], here["packages"]
    quota, threads = cpu.get("quota"), blas.get("threads")
    cores = f"{cpu['cores_allowed']} of {cpu['cores']} allowed (affinity {cpu.get('affinity', '?')}"
    cores += f", container quota {quota:g})" if quota else ", no container quota)"
    library = " ".join(filter(None, (blas["library"], blas.get("version"))))
    rows = [
        ("Platform", here["platform"]),
        ("Python", here["python"]),
        ("CPU", cpu["model"]),
        ("Cores", cores),
        ("SIMD", ", ".join(cpu.get("simd", [])) or "unknown"),
        ("Memory", bytes_(cpu["memory_bytes"]) if "memory_bytes" in cpu else "unknown"),
        (
            "BLAS",
            f"{library}, {blas.get('architecture') or 'unknown'} kernels, "
            + (counted(threads, "thread") if threads else "? threads"),
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
    rows.append(("CUDA", "not used: " + here["cuda_missing"] if here["cuda_missing"] else "works"))
    rows.append(("Packages", ", ".join(f"{name} {version}" for name, version in packages.items() if version)))
    if here.get("variables"):
        rows.append(("Variables", " ".join(f"{name}={value}" for name, value in here["variables"].items())))
    return rows

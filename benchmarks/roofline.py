"""How near the kernels of our plan come to what the GPU can do, launch by launch (``bareconv.bench.roofline``).

    python benchmarks/roofline.py --output roofline.json --case basic:64,256:bfloat16

``benchmarks/gpu.py`` runs it, in a process of its own, and takes over what it has written.
"""

from __future__ import annotations

from pathlib import Path

import click

from bareconv.bench import results
from bareconv.bench.roofline import CASES, record, table
from bareconv.bench.roofline.cuda import measure_ceilings, measure_step
from bareconv.bench.workload import Workload, cases, natural_shape
from bareconv.device import CudaDevice, get_device
from bareconv.errors import BareconvError, UsageError


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--device", "device_name", default="cuda", show_default=True)
@click.option("--case", "case_words", multiple=True, default=CASES, show_default=True, help="MODEL:BATCHES:PRECISIONS")
def main(output: Path, device_name: str, case_words: tuple[str, ...]) -> None:
    """Measure the ceilings, then a step of each case; write the result and print a table."""
    try:
        run(output, device_name, case_words)
    except BareconvError as error:
        raise click.ClickException(str(error)) from None


def run(output: Path, device_name: str, case_words: tuple[str, ...]) -> None:
    """What the options say."""
    device, chosen = get_device(device_name), cases(case_words)
    if not isinstance(device, CudaDevice):
        raise UsageError(f"--device {device_name}: the roofline is of the plan on a GPU")
    from bareconv.plan.cuda.runtime import GpuRuntime

    with device.activate():
        ceilings = measure_ceilings(GpuRuntime(device))
        device.reset_peak_memory()  # what the copies took is free for the steps
    steps = []
    for model, batch_size, precision in chosen:
        steps.append(measure_step(Workload(model, natural_shape(model), batch_size, precision), device, ceilings))
        drawn = record(device, ceilings, steps)
        settings = {"device": device_name, "cases": case_words}
        results.write(results.new("benchmarks/roofline.py", settings, rooflines=[drawn]), output)
        print(table({**drawn, "ceilings": drawn["ceilings"] if len(steps) == 1 else [], "steps": steps[-1:]}))


if __name__ == "__main__":
    main()

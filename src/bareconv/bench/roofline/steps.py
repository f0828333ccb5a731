"""A step of one engine on one workload, on whichever device: its parts, what bounds them, its memory."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

from bareconv import optim
from bareconv.bench.deadline import Deadline
from bareconv.bench.roofline import cpu, memory
from bareconv.bench.roofline.layers import measure_reference, measure_tuned
from bareconv.bench.roofline.pace import Pace
from bareconv.bench.roofline.records import Ceiling, Roof
from bareconv.bench.workload import MOMENTUM, Workload
from bareconv.data import Dataset
from bareconv.device import CudaDevice, Device
from bareconv.training import PlanEngine, Settings, Trainer, TunedEngine, why_no_plan


def measure_step(
    workload: Workload, engine: str, device: Device, ceilings: Sequence[Ceiling], deadline: Deadline, least: int = 2
) -> dict[str, Any]:
    """A ``rooflines.steps`` entry of a result, measured until ``deadline``, but with ``least`` steps of each kind.

    The step's "engine" says which engine it was: another than the one asked for, where that cannot run here. Raises
    BareconvError where there is none.
    """
    gc.collect()  # what was measured before holds memory no longer
    if engine == "plan" and isinstance(device, CudaDevice) and why_no_plan(device, workload.precision) is None:
        from bareconv.bench.roofline import cuda

        by_name = {ceiling.name: ceiling for ceiling in ceilings}
        return {"engine": "plan", **cuda.measure_step(workload, device, by_name, deadline=deadline)}
    dataset = workload.dataset()
    device.reset_peak_memory()
    held = device.memory()
    trainer = _trainer(workload, dataset, engine, device)
    before = memory.predicted(trainer)
    pace, roof = Pace(deadline, least), _roof(device, ceilings, workload.threads)
    used = trainer.engine
    if isinstance(used, PlanEngine):
        from bareconv.bench.roofline.plan import measure_plan

        try:
            found = measure_plan(trainer, used, roof, pace)
        finally:
            used.plan.close()
    elif isinstance(used, TunedEngine):
        found = measure_tuned(trainer, used, roof, pace)
    else:
        found = measure_reference(trainer, roof, pace)
    # On a CPU the data were there before; a process that had none would have grown by them too.
    there = 0 if isinstance(device, CudaDevice) else trainer.data_bytes()
    growth = max(0, device.peak_memory() - held) + there
    return {
        "engine": used.name,
        "model": workload.model,
        "batch_size": workload.batch_size,
        "precision": used.precision,
        "memory": {"predicted": before, "measured": memory.measured(trainer, growth)},
        **found,
    }


def _trainer(workload: Workload, dataset: Dataset, engine: str, device: Device) -> Trainer:
    settings = Settings(
        batch_size=workload.batch_size,
        schedule=optim.Constant(),
        engine=engine,
        precision=workload.precision,
        seed=workload.seed,
        threads=workload.threads,
    )
    optimizer = optim.SGD(workload.lr, MOMENTUM)
    return Trainer(workload.network(), dataset, optimizer, settings, device)


def _roof(device: Device, ceilings: Sequence[Ceiling], threads: int) -> Roof:
    if not isinstance(device, CudaDevice):
        return cpu.roof(ceilings, threads)
    from bareconv.bench.roofline import cuda
    from bareconv.kernels.cuda import driver

    with device.activate():
        limits = driver.device_limits(device.index)
    return cuda.roof({ceiling.name: ceiling for ceiling in ceilings}, limits)

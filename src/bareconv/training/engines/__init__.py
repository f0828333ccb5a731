"""The engines, and which of them there is where.

plan        the whole step planned at once, on kernels written for its shapes: for a CPU (``bareconv.plan.cpu``) and
            for a CUDA GPU (``bareconv.plan.cuda``)
tuned       the same groups of layers by tuned NumPy kernels, without a compiler (``bareconv.plan.tuned``), on a CPU
reference   the readable path, layer by layer, the same program on every device

The reference is the specification: the others offer the same step and are tested against it. Where one of them cannot
run, ``make_engine`` gives the next, and the engine's name says which it is.
"""

from __future__ import annotations

import importlib.util

from bareconv.device import CpuDevice, CudaDevice, Device
from bareconv.errors import BareconvError, UsageError
from bareconv.nn.model import Model
from bareconv.optim import Optimizer
from bareconv.training.engine import Engine, EngineSettings
from bareconv.training.engines.cpu import PlanEngine
from bareconv.training.engines.cuda import CudaPlanEngine
from bareconv.training.engines.reference import ReferenceEngine
from bareconv.training.engines.tuned import TunedEngine
from bareconv.training.precision import ON_GPU_ONLY, check_known

__all__ = [
    "ENGINES",
    "CudaPlanEngine",
    "PlanEngine",
    "ReferenceEngine",
    "TunedEngine",
    "check_precision",
    "make_engine",
    "why_no_plan",
]

ENGINES = ("plan", "tuned", "reference")

OLDEST_GPU = 75  # compute capability that the kernels are written for


def why_no_plan(device: Device | None = None, precision: str = "float32") -> str | None:
    """Why there is no planned step in ``precision`` on ``device``, by default the CPU; None where there is one."""
    if device is not None and not isinstance(device, CpuDevice):
        return _why_no_plan_on_gpu(device, precision)
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed: pip install llvmlite"
    from bareconv.kernels.cpu.target import host_target

    try:
        host_target()
    except UsageError as error:
        return str(error)
    return None


def _why_no_plan_on_gpu(device: Device, precision: str) -> str | None:
    if not isinstance(device, CudaDevice):
        return f"there is none for {device!r}"
    if precision == "float64":
        return "on a GPU it computes in float32, tf32 or bfloat16, not in float64"
    from bareconv.kernels.cuda import driver, nvrtc

    try:
        with device.activate():
            limits = driver.device_limits(device.index)
    except BareconvError as error:
        return str(error)
    if limits.capability < OLDEST_GPU:
        return f"{device.description} is {limits.architecture}; the kernels need sm_{OLDEST_GPU} or newer"
    return nvrtc.why_not()


def check_precision(engine: str, precision: str, device: Device) -> None:
    """UsageError, with what can be done, where ``make_engine`` has no engine of that precision there."""
    check_known(precision)
    if precision not in ON_GPU_ONLY:
        return
    instead = "choose float32 or float64"
    if not isinstance(device, CudaDevice):
        raise UsageError(
            f"precision {precision}: only the plan on a CUDA GPU computes in it, and this is {device.name}; "
            f"use a GPU, or {instead}"
        )
    if engine != "plan":
        raise UsageError(f"precision {precision}: only the engine plan computes in it, not {engine}; {instead}")
    reason = why_no_plan(device, precision)
    if reason is not None:
        raise UsageError(
            f"precision {precision}: only the engine plan computes in it, and there is none here ({reason}); {instead}"
        )


def make_engine(
    name: str,
    model: Model,
    optimizer: Optimizer,
    settings: EngineSettings | None = None,
    device: Device | None = None,
) -> Engine:
    """The engine of that name for a model on ``device`` (its own unless given); UsageError where there is none.

    Where "plan" or "tuned" cannot run, the reference, or for "plan" on a CPU the tuned one.
    """
    if name not in ENGINES:
        raise UsageError(f"engine {name!r}: expected {', '.join(ENGINES)}")
    settings = settings or EngineSettings()
    place, precision = device or model.device, settings.precision or model.precision
    check_precision(name, precision, place)
    if not isinstance(place, CpuDevice):
        if name == "plan" and why_no_plan(place, precision) is None:
            return CudaPlanEngine(model, optimizer, settings)
        return ReferenceEngine(model, optimizer, settings)
    if name == "plan" and why_no_plan() is None:
        return PlanEngine(model, optimizer, settings)
    return (ReferenceEngine if name == "reference" else TunedEngine)(model, optimizer, settings)

"""A GPU's stand-in for what is above the CUDA plan: a device on NumPy, and a plan that is the reference inside.

The device works behind the host's back as a GPU does: ``log`` says in which order steps were launched and results read.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv.device import Array, CpuDevice, CudaDevice
from bareconv.kernels.cuda.limits import H100
from bareconv.plan.explain import Explanation, Row
from bareconv.training.engine import Batch, EngineSettings
from bareconv.training.engines import ReferenceEngine

PRECISIONS = ("float32", "tf32", "bfloat16")


class StandInGpu(CudaDevice):
    """The CPU by the name of a GPU."""

    def __init__(self) -> None:
        self.name, self.index, self.description, self.xp = "cuda:0", 0, "a stand-in for a GPU", np
        self.log: list[tuple[Any, ...]] = []
        self.free = 1 << 34  # bytes

    @contextlib.contextmanager
    def activate(self) -> Iterator[None]:
        yield

    def asarray(self, host: Any, dtype: Any = None) -> Array:
        return np.array(host, dtype=dtype)

    def to_host(self, x: Array) -> Array:
        self.log.append(("wait",))
        return x.copy()

    def fetch(self, *arrays: Array) -> Callable[[], list[NDArray[Any]]]:
        copies = [array.copy() for array in arrays]

        def wait() -> list[NDArray[Any]]:
            rehearsing = bool(self.log) and self.log[-1][0] == "rehearse"
            self.log.append(("rehearsed" if rehearsing else "read", len(copies[0])))
            return copies

        return wait

    def synchronize(self) -> None:
        self.log.append(("wait",))

    def free_bytes(self) -> int:
        return self.free

    mark = CpuDevice.mark
    seconds_between = CpuDevice.seconds_between
    reset_peak_memory = CpuDevice.reset_peak_memory
    memory = CpuDevice.memory
    peak_memory = CpuDevice.peak_memory


class StandInPlan:
    """What ``CudaPlan`` offers, done by the reference in float32, a step at a time."""

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        batch_size: int,
        *,
        precision: str = "float32",
        label_smoothing: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        assert precision in PRECISIONS
        assert isinstance(model.device, StandInGpu)
        assert model.precision == "float32"
        self.model, self.batch_size, self.precision = model, batch_size, precision
        self.engine = ReferenceEngine(model, optimizer, EngineSettings(batch_size, label_smoothing, clip_norm))
        self.runtime = types.SimpleNamespace(limits=H100)
        self.compiled, self.compile_seconds = 0, 0.0
        self.why_not_captured = None
        self._seconds: float | None = None

    def prepare(self, on_compile: Any = None) -> None:
        self.compiled, self.compile_seconds = 3, 1e-6
        if on_compile:
            on_compile(3, 3)

    def steps(
        self, pixels: Array, labels: Array, order: Array | None, rates: Sequence[float], first_step: int = 0
    ) -> tuple[Array, Array]:
        device, size = self.model.device, self.batch_size
        device.log.append(("launch" if any(rates) else "rehearse", first_step, len(rates)))
        if order is None:
            assert len(pixels) <= size
        else:
            assert len(rates) == -(-len(order) // size)
        losses, hits = [], []
        for number, rate in enumerate(rates):
            chosen = None if order is None else order[number * size : (number + 1) * size]
            loss, correct = self.engine.train(Batch(pixels, labels, chosen, first_step + number), rate)
            losses.append(np.float64(loss))
            hits.append(np.int64(correct))
        return np.array(losses), np.array(hits)

    def predict(self, pixels: Array) -> Array:
        self.model.device.log.append(("predict", len(pixels)))
        return self.engine.predict(pixels)

    def kept_bytes(self) -> dict[str, int]:
        return {"activations": 4096, "gradients": 2048}

    def explain(self) -> Explanation:
        rows = [
            Row("images", "forward", "gather", "sm_90", 0, None, 784),
            Row("dense1 + relu1", "forward", "dense", "sm_90", 2000, None, 800),
            Row("dense2", "forward", "dense", "sm_90", 200, None, 80),
            Row("loss", "forward", "loss", "sm_90", 10, None, 40),
            Row("dense2", "backward", "dense", "sm_90", 400, None, 80),
            Row("dense1 + relu1", "backward", "dense", "sm_90", 2000, None, 800),
            Row("parameters", "update", "sgd", "sm_90", 100, None, 400),
        ]
        timed = tuple(Row(*vars(row).values()) for row in rows)
        if self._seconds is not None:
            timed = tuple(
                Row(row.node, row.phase, row.kernel, row.how, row.flops, self._seconds, row.bytes) for row in rows
            )
        return Explanation(f"{self.model.name}: sm_90, {self.precision}", timed, 0.0, 6144)

    def profile(self, pixels: Array, labels: Array, order: Array | None = None, repeats: int = 20) -> Any:
        self._seconds = 1e-6
        return [(row, self._seconds) for row in self.explain().rows]


def install(monkeypatch: Any) -> StandInGpu:
    """Let the engine "plan" on the device that comes back be the stand-in."""
    module = types.ModuleType("bareconv.plan.cuda.plan")
    module.CudaPlan = StandInPlan  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bareconv.plan.cuda.plan", module)

    def why_not_on_gpu(device: Any, precision: str) -> str | None:
        return None if precision in PRECISIONS else f"not in {precision}"

    monkeypatch.setattr("bareconv.training.engines._why_no_plan_on_gpu", why_not_on_gpu)
    return StandInGpu()

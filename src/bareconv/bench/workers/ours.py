"""Our own engines, through the trainer that everybody uses."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv import __version__, host, optim
from bareconv.bench.workers.serving import CHUNK, Candidate, Job, serve
from bareconv.data import Dataset, Split
from bareconv.device import CpuDevice, get_device
from bareconv.nn.model import Model
from bareconv.training import Settings, Trainer
from bareconv.training.evaluation import predict

GPU_CHUNK = 8192  # steps of some microseconds each, between two waits for the GPU


class Ours(Candidate):
    """``options``: the engine's name and the device's; the precision, where it is not the job's."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        host.keep_freed_memory()
        self.device = get_device(options["device"])
        self.chunk = CHUNK if isinstance(self.device, CpuDevice) else GPU_CHUNK

    def build(self, job: Job) -> None:
        values = job.settings
        settings = Settings(
            epochs=len(job.order),
            batch_size=job.batch_size,
            schedule=optim.Constant(),
            engine=self.options["engine"],
            precision=self.options.get("precision", values["precision"]),
            seed=values["seed"],
            threads=values["threads"],
        )
        data = Dataset(values["data"], Split(job.images, job.labels), None, None, values["classes"])
        optimizer = optim.SGD(values["lr"], values["momentum"])
        self.trainer = Trainer(Model.from_config(values["model"]), data, optimizer, settings, self.device)
        self.trainer.keep_orders(len(job.order))  # as every other candidate has them: drawn, and on the device
        # For good: a training holds the device from its first step to its last, and so does this process.
        contextlib.ExitStack().enter_context(self.device.activate())

    def timed(self, first: int, count: int) -> tuple[float, float]:
        """By the device's own clock: CUDA's events on a GPU. The losses stay there, but for the last."""
        device = self.device
        begun = device.mark()
        losses, _ = self.trainer.take_steps(first, count)
        device.synchronize()  # so that the second mark comes after all of it, on whichever streams that is
        (seconds,) = device.seconds_between([begun, device.mark()])
        return float(device.to_host(losses[-1])), seconds

    def steps(self, first: int, count: int) -> float:
        return self.timed(first, count)[0]

    def accuracy(self, images: NDArray[np.uint8], labels: NDArray[np.int32]) -> float:
        predicted, _ = predict(self.trainer.engine, np.asarray(images))
        return float((predicted == labels).mean())

    def flags(self) -> dict[str, str]:
        engine = self.trainer.engine
        return {
            "device": self.device.description,
            "engine": engine.description,
            "precision": engine.precision,
            **({} if engine.threads is None else {"threads": str(engine.threads)}),
        }

    def engine(self) -> str:
        return self.trainer.engine.name

    def compile_seconds(self, first_step: float, step: float) -> float:
        return float(getattr(self.trainer.engine, "compile_seconds", 0.0))

    def versions(self) -> dict[str, str]:
        return {"bareconv": __version__, "numpy": np.__version__}

    def memory(self) -> int:
        return self.device.memory()

    def peak_memory(self) -> int:
        return self.device.peak_memory()


if __name__ == "__main__":
    serve(Ours)

"""Our own engines, through the trainer that everybody uses."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from bareconv import __version__, host, optim
from bareconv.bench.workers.serving import Candidate, Job, serve
from bareconv.data import Dataset, Split
from bareconv.device import get_device
from bareconv.nn.model import Model
from bareconv.training import Settings, Trainer


class Ours(Candidate):
    """``options``: the engine's name and the device's."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        host.keep_freed_memory()
        self.device = get_device(options["device"])

    def build(self, job: Job) -> None:
        values = job.settings
        settings = Settings(
            epochs=len(job.order),
            batch_size=job.batch_size,
            schedule=optim.Constant(),
            engine=self.options["engine"],
            precision=values["precision"],
            seed=values["seed"],
            threads=values["threads"],
        )
        data = Dataset(values["data"], Split(job.images, job.labels), None, None, values["classes"])
        optimizer = optim.SGD(values["lr"], values["momentum"])
        self.trainer = Trainer(Model.from_config(values["model"]), data, optimizer, settings, self.device)
        # For good: a training holds the device from its first step to its last, and so does this process.
        contextlib.ExitStack().enter_context(self.device.activate())

    def steps(self, first: int, count: int) -> float:
        losses, _ = self.trainer.train_steps(first, count)
        self.device.synchronize()  # the last update may still be under way
        return losses[-1]

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

"""Our own worker, of which every training step waits for the ``pause`` among its options, in seconds.

It waits busily: a sleep hands the core to whatever else wants it, and on a busy machine takes many times as long as it
was to. A slower kernel does not let go of its core either.
"""

from __future__ import annotations

import time

from bareconv.bench.workers.ours import Ours
from bareconv.bench.workers.serving import Job, serve
from bareconv.device import Array
from bareconv.training.engine import Batch


class Slowed(Ours):
    """The engine's step, with a wait before it."""

    def build(self, job: Job) -> None:
        super().build(job)
        engine, pause = self.trainer.engine, float(self.options["pause"])
        train = engine.train

        def slowed(batch: Batch, lr: float) -> tuple[Array, Array]:
            end = time.perf_counter() + pause
            while time.perf_counter() < end:
                pass
            return train(batch, lr)

        if pause:
            engine.train = slowed  # type: ignore[method-assign]


if __name__ == "__main__":
    serve(Slowed)

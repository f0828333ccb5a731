"""One at a time on a GPU, where candidates get ready side by side and choose algorithms by their times."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bareconv.bench.workers.serving import UnsupportedError

LOCK = "BARECONV_BENCH_LOCK"  # the environment variable that names the file of ``Alone``


class Alone:
    """Within it, no other process that shares the lock is choosing algorithms by their times on the GPU.

    Several candidates get ready side by side; what is timed while others use the GPU is chosen by chance. Without a
    lock's file in the environment it does nothing. Entering it again from within is allowed.
    """

    def __init__(self) -> None:
        path = os.environ.get(LOCK)
        self.file = Path(path).open("a") if path else None  # noqa: SIM115 (for as long as the process)
        self.depth = 0

    def __enter__(self) -> None:
        if self.file is not None and self.depth == 0:
            import fcntl

            fcntl.flock(self.file, fcntl.LOCK_EX)
        self.depth += 1

    def __exit__(self, *exc: object) -> None:
        self.depth -= 1
        if self.file is not None and self.depth == 0:
            import fcntl

            fcntl.flock(self.file, fcntl.LOCK_UN)

    def guard_autotuning(self) -> None:
        """Let torch.compile time each of its kernels alone; compiling them goes on side by side."""
        try:
            from torch._inductor.runtime.benchmarking import benchmarker
        except ImportError as error:
            raise UnsupportedError(f"this PyTorch's autotuning is not where it was looked for: {error}") from None
        measure = benchmarker.benchmark_gpu

        def alone(*arguments: Any, **named: Any) -> Any:
            with self:
                return measure(*arguments, **named)

        benchmarker.benchmark_gpu = alone

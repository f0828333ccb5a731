"""A moment by which something has to end, and shares of the time until then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from bareconv.errors import UsageError


@dataclass(frozen=True)
class Deadline:
    """A moment ``at`` of a ``clock`` that counts seconds."""

    at: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """That long from now; UsageError unless it is more than nothing."""
        if not seconds > 0:
            raise UsageError(f"budget {seconds}: expected more than 0 seconds")
        return cls(clock() + seconds, clock)

    @property
    def left(self) -> float:
        """Seconds until then, at least 0."""
        return max(0.0, self.at - self.clock())

    @property
    def passed(self) -> bool:
        """Whether the time is up."""
        return self.clock() >= self.at

    def part(self, share: float) -> Deadline:
        """The end of that share of what is left."""
        return Deadline(self.clock() + share * self.left, self.clock)

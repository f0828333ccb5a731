"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no state of theirs.

A schedule gives a factor; the loop multiplies the optimizer's base rate by it. Steps count from 0; the last one is
``total_steps - 1``, and it is the last step, not the one after it, that has a schedule's final rate. Lengths within a
schedule are shares of the whole, so that the same schedule holds for any number of epochs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bareconv.errors import UsageError
from bareconv.optim.settings import built, config_of, number


class Schedule:
    """Base of the schedules: a linear warm-up over the share ``warmup`` of all steps, then the schedule's own curve.

    The warm-up's W = round(warmup * total_steps) steps have the factors 1/(W+1), 2/(W+1), ... W/(W+1): neither is the
    first update wasted on a rate of 0, nor the curve's first value taken twice. The curve spans the steps that are
    left, at least one. A run of a single step uses the base rate. Source: Goyal et al., "Accurate, large minibatch
    SGD: training ImageNet in 1 hour", 2017.
    """

    def __init__(self, warmup: float = 0.0) -> None:
        self.warmup = number(self, "warmup", warmup, low=0, high=1)

    def rate(self, step: int, total_steps: int) -> float:
        """The factor of the base learning rate at ``step``, in [0, 1]. Raises UsageError outside 0 <= step < total."""
        if not 0 <= step < total_steps:
            raise UsageError(f"{type(self).__name__}: expected a step from 0 to {total_steps - 1}; got {step}")
        return self._factor(step, total_steps)

    def _factor(self, step: int, total: int) -> float:
        warm = min(round(self.warmup * total), total - 1)
        return (step + 1) / (warm + 1) if step < warm else self._curve(step - warm, total - warm)

    def _curve(self, step: int, total: int) -> float:
        """The factor at ``step`` of the ``total`` steps after the warm-up."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The type and every setting, JSON-able; ``from_config`` builds the same schedule from it."""
        return config_of(self)

    def __repr__(self) -> str:
        config = self.config()
        return f"{config.pop('type')}({', '.join(f'{name}={value!r}' for name, value in config.items())})"


class Constant(Schedule):
    """The base rate throughout."""

    def _curve(self, step: int, total: int) -> float:
        return 1.0


class Step(Schedule):
    """The base rate, multiplied by ``gamma`` each time another share ``every`` of the steps has passed.

        factor = gamma ^ floor((step + 1/2) / (every * total))

    A step counts by its middle, so that a boundary falls on the nearest step, and rounding adds no drop at the end.
    The first step has the base rate, however short the run is.
    """

    def __init__(self, every: float = 1 / 3, gamma: float = 0.1, warmup: float = 0.0) -> None:
        super().__init__(warmup)
        self.every = number(self, "every", every, low=0, high=1, ends="(]")
        self.gamma = number(self, "gamma", gamma, low=0, high=1, ends="(]")

    def _curve(self, step: int, total: int) -> float:
        drops = math.floor((step + 0.5) / (self.every * total)) if step else 0
        return float(self.gamma**drops)


class Cosine(Schedule):
    """Half a cosine from the base rate at the first step down to ``final`` times it at the last.

        factor = final + (1 - final) (1 + cos(pi step / (total - 1))) / 2

    PyTorch's CosineAnnealingLR with T_max = total - 1. Source: Loshchilov, Hutter, "SGDR: stochastic gradient descent
    with warm restarts", ICLR 2017, equation 5, without restarts.
    """

    def __init__(self, final: float = 0.0, warmup: float = 0.0) -> None:
        super().__init__(warmup)
        self.final = number(self, "final", final, low=0, high=1, ends="[]")

    def _curve(self, step: int, total: int) -> float:
        return _cosine(1.0, self.final, step / max(1, total - 1))


class OneCycle(Schedule):
    """Up from ``start`` to 1 over the share ``warmup`` of the steps, then down to ``final``, each half a cosine.

    With peak = round(warmup * total) - 1, but at least 1 and before the last step:

        step <= peak    from start to 1 by step / peak
        step >= peak    from 1 to final by (step - peak) / (total - 1 - peak)

    ``shape="linear"`` goes along straight lines instead. PyTorch's OneCycleLR with pct_start = warmup, div_factor =
    1 / start, final_div_factor = start / final, without its cycle of the momentum, where warmup * total is whole.
    Source: Smith, Topin, "Super-convergence: very fast training of neural networks using large learning rates", 2017.
    """

    def __init__(self, warmup: float = 0.25, start: float = 1 / 25, final: float = 1e-4, shape: str = "cosine") -> None:
        super().__init__(warmup)
        self.start = number(self, "start", start, low=0, high=1, ends="[]")
        self.final = number(self, "final", final, low=0, high=1, ends="[]")
        if shape not in ("cosine", "linear"):
            raise UsageError(f"OneCycle: shape must be cosine or linear; got {shape!r}")
        self.shape = shape

    def _factor(self, step: int, total: int) -> float:
        between = _cosine if self.shape == "cosine" else _linear
        last = total - 1
        peak = max(0, min(max(round(self.warmup * total) - 1, 1), last - 1)) if self.warmup else 0
        if step < peak:
            return between(self.start, 1.0, step / peak)
        return between(1.0, self.final, (step - peak) / max(1, last - peak))


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "step": Step,
    "cosine": Cosine,
    "one-cycle": OneCycle,
}


def from_name(name: str, **settings: Any) -> Schedule:
    """The schedule of that name (a key of ``SCHEDULES``), for example ``from_name("cosine", final=0.01)``.

    Raises UsageError for an unknown name or setting, or a value out of range.
    """
    return built({**settings, "type": name}, SCHEDULES, "schedule")


def from_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule that ``config`` describes, as ``Schedule.config`` gives it. Raises UsageError as ``from_name``."""
    return built(config, SCHEDULES, "schedule")


def _linear(a: float, b: float, share: float) -> float:
    """From ``a`` (share 0) to ``b`` (share 1), exact at both ends."""
    return a * (1 - share) + b * share


def _cosine(a: float, b: float, share: float) -> float:
    """The same along half a cosine."""
    return _linear(a, b, (1 - math.cos(math.pi * share)) / 2)

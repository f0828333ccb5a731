"""What kernels are told of an optimizer: its rule, known when their code is written, and the numbers of each step.

The formulas are those of ``bareconv.optim.rules``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bareconv.optim.optimizer import Optimizer
from bareconv.optim.rules import SGD, Adam, AdamW, RMSprop

SCALARS = 8  # numbers that a rule may read in a step


@dataclass(frozen=True)
class Rule:
    """How a gradient becomes a step: what of an optimizer is known when the code is written.

    ``name`` "gradient" writes the gradient and changes nothing else: for checks, and where it must be scaled first.
    """

    name: str
    momentum: bool = False
    nesterov: bool = False
    decay: bool = False

    @property
    def states(self) -> int:
        """How many arrays of state it uses, 0 to 2."""
        return {"gradient": 0, "sgd": 0, "rmsprop": 1, "adam": 2, "adamw": 2}[self.name] + self.momentum

    @property
    def moved(self) -> int:
        """Numbers of the parameter and its state that a step reads and writes for one weight, beside its gradient."""
        return 1 if self.name == "gradient" else 2 + 2 * self.states

    @classmethod
    def of(cls, optimizer: Optimizer, clip_norm: float | None = None) -> Rule:
        """The rule of that optimizer; "gradient" for a class that has none here, and where a norm is to be clipped."""
        if clip_norm is not None:
            return cls("gradient")
        decay = optimizer.weight_decay > 0
        if type(optimizer) is SGD:
            return cls("sgd", optimizer.momentum > 0, optimizer.nesterov, decay)
        if type(optimizer) is RMSprop:
            return cls("rmsprop", optimizer.momentum > 0, decay=decay)
        if type(optimizer) in (Adam, AdamW):
            return cls(type(optimizer).__name__.lower(), decay=decay)
        return cls("gradient")


def scalars(optimizer: Optimizer, lr: float, ahead: int = 0) -> list[float]:
    """The numbers, in the order in which kernels read them, of the step that comes ``ahead`` steps after the next."""
    decay = 1 - lr * optimizer.weight_decay if optimizer.decoupled else optimizer.weight_decay
    if isinstance(optimizer, SGD):
        return [lr, decay, optimizer.momentum]
    if isinstance(optimizer, RMSprop):
        return [lr, decay, optimizer.alpha, 1 - optimizer.alpha, optimizer.eps, optimizer.momentum]
    assert isinstance(optimizer, Adam)
    t = optimizer.step + 1 + ahead
    c1, c2 = 1 - optimizer.beta1**t, math.sqrt(1 - optimizer.beta2**t)
    return [lr * c2 / c1, decay, optimizer.beta1, optimizer.beta2, 1 - optimizer.beta2, optimizer.eps * c2]

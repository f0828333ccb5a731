"""The optimizers' rules on one register of parameters, for kernels that have its gradient at hand.

The formulas are those of ``bareconv.optim.rules``, and tested against them. What changes from step to step is read from
memory ("scalars"): the numbers that ``scalars`` returns, in that order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from bareconv.optim import SGD, Adam, AdamW, Optimizer, RMSprop

if TYPE_CHECKING:
    from bareconv.kernels.cpu.emit import Builder, Index, Pointer, Value

Update: TypeAlias = "Callable[[Mapping[str, Pointer], Index, Value, Value | None], None]"
SCALARS = 8  # numbers that a rule may read


@dataclass(frozen=True)
class Rule:
    """How a gradient becomes a step: what of an optimizer is known when the code is written.

    ``name`` "gradient" writes the gradient and changes nothing else: for checks, and where it must be scaled first.
    """

    name: str
    momentum: bool = False
    nesterov: bool = False
    decay: bool = False

    @classmethod
    def of(cls, optimizer: Optimizer) -> Rule:
        """The rule of that optimizer. TypeError for a class that has none here."""
        decay = optimizer.weight_decay > 0
        if type(optimizer) is SGD:
            return cls("sgd", optimizer.momentum > 0, optimizer.nesterov, decay)
        if type(optimizer) is RMSprop:
            return cls("rmsprop", optimizer.momentum > 0, decay=decay)
        if type(optimizer) in (Adam, AdamW):
            return cls(type(optimizer).__name__.lower(), decay=decay)
        raise TypeError(f"optimizer {type(optimizer).__name__} has no kernel")

    def prepare(self, b: Builder, scalars: Pointer) -> Update:
        """Load the step's numbers; the result updates one register: (arrays, offset, gradient, mask)."""
        lr, decay, one, two, three, four = (scalars.splat(i) for i in range(6))

        def update(arrays: Mapping[str, Pointer], at: Index, g: Value, mask: Value | None) -> None:
            if self.name == "gradient":
                arrays["gradient"].store(g, at, mask)
                return
            w = arrays["weight"].vector(at, mask)
            if self.name == "adamw" and self.decay:
                w = w * decay
            elif self.decay:
                g = b.fma(w, decay, g)
            if self.name == "sgd":
                if not self.momentum:
                    step = g
                else:
                    v = b.fma(arrays["state1"].vector(at, mask), one, g)
                    arrays["state1"].store(v, at, mask)
                    step = b.fma(v, one, g) if self.nesterov else v
            elif self.name == "rmsprop":
                s = arrays["state1"].vector(at, mask) * one + g * g * two
                arrays["state1"].store(s, at, mask)
                step = g / (b.sqrt(s) + three)
                if self.momentum:
                    step = b.fma(arrays["state2"].vector(at, mask), four, step)
                    arrays["state2"].store(step, at, mask)
            else:  # Adam: the rate comes with its correction
                m = arrays["state1"].vector(at, mask) * one + g * (b.constant(1.0) - one)
                v = arrays["state2"].vector(at, mask) * two + g * g * three
                arrays["state1"].store(m, at, mask)
                arrays["state2"].store(v, at, mask)
                step = m / (b.sqrt(v) + four)
            arrays["weight"].store(w - lr * step, at, mask)

        return update


def scalars(optimizer: Optimizer, lr: float) -> list[float]:
    """The numbers of the step that follows ``optimizer.step`` done ones, at rate ``lr``, in ``prepare``'s order."""
    decay = 1 - lr * optimizer.weight_decay if optimizer.decoupled else optimizer.weight_decay
    if isinstance(optimizer, SGD):
        return [lr, decay, optimizer.momentum]
    if isinstance(optimizer, RMSprop):
        return [lr, decay, optimizer.alpha, 1 - optimizer.alpha, optimizer.eps, optimizer.momentum]
    assert isinstance(optimizer, Adam)
    t = optimizer.step + 1
    c1, c2 = 1 - optimizer.beta1**t, math.sqrt(1 - optimizer.beta2**t)
    return [lr * c2 / c1, decay, optimizer.beta1, optimizer.beta2, 1 - optimizer.beta2, optimizer.eps * c2]

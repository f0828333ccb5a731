"""The optimizers' rules on one register of parameters, for kernels that have its gradient at hand.

The formulas are those of ``bareconv.optim.rules``, and tested against them. What changes from step to step is read from
memory ("scalars"): the numbers that ``optim.rule.scalars`` returns, in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from bareconv.optim.rule import Rule

if TYPE_CHECKING:
    from bareconv.kernels.cpu.emit import Builder, Index, Pointer, Value

Update: TypeAlias = "Callable[[Mapping[str, Pointer], Index, Value, Value | None], None]"


def prepare_rule(rule: Rule, b: Builder, scalars: Pointer) -> Update:
    """Load the step's numbers; the result updates one register: (arrays, offset, gradient, mask)."""
    lr, decay, one, two, three, four = (scalars.splat(i) for i in range(6))

    def update(arrays: Mapping[str, Pointer], at: Index, g: Value, mask: Value | None) -> None:
        if rule.name == "gradient":
            arrays["gradient"].store(g, at, mask)
            return
        w = arrays["weight"].vector(at, mask)
        if rule.name == "adamw" and rule.decay:
            w = w * decay
        elif rule.decay:
            g = b.fma(w, decay, g)
        if rule.name == "sgd":
            if not rule.momentum:
                step = g
            else:
                v = b.fma(arrays["state1"].vector(at, mask), one, g)
                arrays["state1"].store(v, at, mask)
                step = b.fma(v, one, g) if rule.nesterov else v
        elif rule.name == "rmsprop":
            s = arrays["state1"].vector(at, mask) * one + g * g * two
            arrays["state1"].store(s, at, mask)
            step = g / (b.sqrt(s) + three)
            if rule.momentum:
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

"""The update rules: SGD, RMSprop, Adam, AdamW. Each has its formula beside the code, and PyTorch's semantics.

Symbols: w weights, g gradient (with the L2 penalty, where there is one), eta learning rate, t the number of this step,
counted from 1. All arithmetic is elementwise and in place; factors are Python floats, so that float32 stays float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bareconv.device import Array, namespace
from bareconv.errors import UsageError
from bareconv.optim.optimizer import Optimizer
from bareconv.optim.settings import built, number


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum mu.

        v <- mu v + g
        w <- w - eta v               momentum
        w <- w - eta (g + mu v)      Nesterov's

    The rate stands outside the velocity, so that a schedule acts at once, as in PyTorch. Sources: Polyak, "Some
    methods of speeding up the convergence of iteration methods", 1964; Sutskever, Martens, Dahl, Hinton, "On the
    importance of initialization and momentum in deep learning", ICML 2013.
    """

    def __init__(self, lr: float, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> None:
        super().__init__(lr, weight_decay)
        self.momentum = number(self, "momentum", momentum, low=0, high=1)
        if not isinstance(nesterov, bool):
            raise UsageError(f"SGD: nesterov must be True or False; got {nesterov!r}")
        if nesterov and not self.momentum:
            raise UsageError(f"SGD: nesterov needs a momentum above 0; got momentum {momentum!r}")
        self.nesterov = nesterov
        self.slots = ("velocity",) if self.momentum else ()

    def _rule(self, w: Array, g: Array, state: list[Array], scratch: Array, lr: float) -> None:
        xp = namespace(w)
        if not state:
            w -= xp.multiply(g, lr, out=scratch)
            return
        (v,) = state
        v *= self.momentum
        v += g
        if self.nesterov:
            xp.multiply(v, self.momentum, out=scratch)
            scratch += g
            scratch *= lr
        else:
            xp.multiply(v, lr, out=scratch)
        w -= scratch


class RMSprop(Optimizer):
    """The gradient over its own running size; with momentum mu.

        s <- alpha s + (1 - alpha) g^2
        v <- mu v + g / (sqrt(s) + eps)
        w <- w - eta v

    Sources: Tieleman, Hinton, "Lecture 6.5 - RMSProp", Coursera, 2012; eps outside the root, as in PyTorch.
    """

    def __init__(
        self, lr: float = 0.01, alpha: float = 0.99, eps: float = 1e-8, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(lr, weight_decay)
        self.alpha = number(self, "alpha", alpha, low=0, high=1)
        self.eps = number(self, "eps", eps, low=0, ends="()")
        self.momentum = number(self, "momentum", momentum, low=0, high=1)
        self.slots = ("square", "velocity") if self.momentum else ("square",)

    def _rule(self, w: Array, g: Array, state: list[Array], scratch: Array, lr: float) -> None:
        xp = namespace(w)
        s, *velocity = state
        _average_square(s, g, self.alpha, scratch)
        xp.sqrt(s, out=scratch)
        scratch += self.eps
        xp.divide(g, scratch, out=scratch)
        if velocity:
            (v,) = velocity
            v *= self.momentum
            v += scratch
            xp.multiply(v, lr, out=scratch)
        else:
            scratch *= lr
        w -= scratch


class Adam(Optimizer):
    """Momentum over the running size of the gradient, both corrected for their start at zero.

        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        w <- w - eta (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    computed in the order that the paper's section 2 gives as the faster one:

        w <- w - (eta c2 / c1) m / (sqrt(v) + eps c2),    c1 = 1 - beta1^t, c2 = sqrt(1 - beta2^t)

    t counts steps, not tensors. The weight decay is the L2 penalty, part of g; see AdamW for the other.
    Source: Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1.
    """

    slots = ("mean", "square")

    def __init__(
        self,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr, weight_decay)
        self.beta1 = number(self, "beta1", beta1, low=0, high=1)
        self.beta2 = number(self, "beta2", beta2, low=0, high=1)
        self.eps = number(self, "eps", eps, low=0, ends="()")

    def _rule(self, w: Array, g: Array, state: list[Array], scratch: Array, lr: float) -> None:
        xp = namespace(w)
        m, v = state
        c1, c2 = 1 - self.beta1**self.step, math.sqrt(1 - self.beta2**self.step)
        m *= self.beta1
        m += xp.multiply(g, 1 - self.beta1, out=scratch)
        _average_square(v, g, self.beta2, scratch)
        xp.sqrt(v, out=scratch)
        scratch += self.eps * c2
        xp.divide(m, scratch, out=scratch)
        scratch *= lr * c2 / c1
        w -= scratch


class AdamW(Adam):
    """Adam with the weight decay lambda apart from the gradient, so that its running size does not divide the decay.

        w <- (1 - eta lambda) w, then Adam's step with the gradient alone

    The rate is the scheduled one, as in PyTorch. Source: Loshchilov, Hutter, "Decoupled weight decay regularization",
    ICLR 2019, algorithm 2.
    """

    decoupled = True

    def __init__(
        self,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, beta1, beta2, eps, weight_decay)

    def _rule(self, w: Array, g: Array, state: list[Array], scratch: Array, lr: float) -> None:
        if self.weight_decay:
            w *= 1 - lr * self.weight_decay
        super()._rule(w, g, state, scratch, lr)


OPTIMIZERS: dict[str, type[Optimizer]] = {"SGD": SGD, "RMSprop": RMSprop, "Adam": Adam, "AdamW": AdamW}


def from_config(config: Mapping[str, Any]) -> Optimizer:
    """The optimizer that ``config`` describes, such as {"type": "SGD", "lr": 0.1, "momentum": 0.9}; without state.

    Case does not matter in the type. Raises UsageError for an unknown type or argument, or a value out of range.
    """
    return built(config, OPTIMIZERS, "optimizer")


def _average_square(average: Array, g: Array, beta: float, scratch: Array) -> None:
    """average <- beta average + (1 - beta) g^2, in place."""
    namespace(g).multiply(g, g, out=scratch)
    scratch *= 1 - beta
    average *= beta
    average += scratch

"""All parameters of a model in one array, and the optimizer's state and the gradients alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bareconv.kernels.cpu.parameters import ALIGNMENT
from bareconv.nn.model import Model
from bareconv.optim import Optimizer
from bareconv.plan.cpu.memory import allocate


class Parameters:
    """The model's parameters, moved into one array: its layers' arrays become views of it.

    ``summed`` names come first: their gradients are sums over threads; then ``mapped`` ones, sums too, but laid out by
    their kernel; then the rest, which are updated where their gradient is made.
    """

    def __init__(self, model: Model, mapped: set[str], fused: set[str]) -> None:
        live = model.parameters()
        self.summed = [name for name in live if name not in mapped and name not in fused]
        self.mapped = [name for name in live if name in mapped]
        self.fused = [name for name in live if name in fused]
        self.model, self.dtype = model, np.dtype(model.precision)
        self.start: dict[str, int] = {}
        at = ALIGNMENT
        for name in [*self.summed, *self.mapped, *self.fused]:
            self.start[name] = at
            at += -(-live[name].size // ALIGNMENT) * ALIGNMENT
        self.size = at
        self.shapes = {name: array.shape for name, array in live.items()}
        self.sizes = {name: int(array.size) for name, array in live.items()}
        self.weight = self._flat()
        self._gradient: NDArray[np.generic] | None = None
        self.states: list[NDArray[np.generic]] = []
        self._slots: dict[str, tuple[NDArray[np.generic], ...]] | None = None
        self._owners = [
            (leaf.params, key, self.view(self.weight, f"{leaf.name}.{key}"))
            for leaf in model.leaves()
            for key in leaf.params
        ]
        self.take_over()

    def _flat(self) -> NDArray[np.generic]:
        return allocate(self.size * self.dtype.itemsize + 256)[: self.size * self.dtype.itemsize].view(self.dtype)

    @property
    def gradient(self) -> NDArray[np.generic]:
        """The gradients, where they are kept at all."""
        if self._gradient is None:
            self._gradient = self._flat()
        return self._gradient

    def end(self, name: str) -> int:
        """Where the next parameter starts."""
        return self.start[name] + -(-self.sizes[name] // ALIGNMENT) * ALIGNMENT

    def view(self, flat: NDArray[np.generic], name: str) -> NDArray[np.generic]:
        """That parameter's part of a flat array, in its shape."""
        return flat[self.start[name] : self.start[name] + self.sizes[name]].reshape(self.shapes[name])

    def places(self, name: str) -> NDArray[np.int32]:
        """Where each element of that parameter is, in its shape."""
        return np.arange(self.start[name], self.start[name] + self.sizes[name], dtype=np.int32).reshape(
            self.shapes[name]
        )

    def take_over(self) -> None:
        """Make the layers' arrays views of ours, with their values, where they are not."""
        for params, key, mine in self._owners:
            if params[key] is not mine:
                mine[...] = params[key]
                params[key] = mine

    def adopt(self, optimizer: Optimizer) -> None:
        """Make the optimizer's state views of ours, with its values, where it is not."""
        if self._slots is None:
            self.states = [self._flat() for _ in optimizer.slots]
            self._slots = {name: tuple(self.view(flat, name) for flat in self.states) for name in self.start}
        optimizer.keep_state_in(self._slots)

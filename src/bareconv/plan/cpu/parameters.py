"""The parameters of a model in the order in which a CPU's kernels update them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bareconv.kernels.cpu.parameters import ALIGNMENT
from bareconv.nn.model import Model
from bareconv.plan.cpu.memory import SLACK, allocate
from bareconv.plan.parameters import FlatParameters


class Parameters(FlatParameters):
    """The model's parameters, in its precision, by where their gradients come from.

    ``summed`` names come first: their gradients are sums over threads; then ``mapped`` ones, sums too, but laid out by
    their kernel; then the rest, which are updated where their gradient is made.
    """

    def __init__(self, model: Model, mapped: set[str], fused: set[str]) -> None:
        live, dtype = model.parameters(), np.dtype(model.precision)
        self.summed = [name for name in live if name not in mapped and name not in fused]
        self.mapped = [name for name in live if name in mapped]
        self.fused = [name for name in live if name in fused]

        def zeros(count: int) -> NDArray[np.generic]:
            size = count * dtype.itemsize
            return allocate(size + SLACK)[:size].view(dtype)

        # At the front are zeros, for what reads by a table of places and has none.
        names = (*self.summed, *self.mapped, *self.fused)
        super().__init__(model, names, zeros, alignment=ALIGNMENT, first=ALIGNMENT)

    def places(self, name: str) -> NDArray[np.int32]:
        """Where each element of that parameter is, in its shape."""
        start = self.start[name]
        return np.arange(start, start + self.elements(name), dtype=np.int32).reshape(self.shapes[name])

"""States of a training that it can go back to, when a loss turns out not to be finite."""

from __future__ import annotations

from dataclasses import dataclass

from bareconv.device import Array
from bareconv.nn.model import Model
from bareconv.optim import Optimizer


@dataclass
class _Snapshot:
    step: int
    updates: int  # the optimizer's own count of steps
    arrays: dict[str, Array]


class Snapshots:
    """The last ``count`` states: parameters, running statistics, the optimizer's state. Copies, on the device."""

    def __init__(self, model: Model, optimizer: Optimizer, count: int) -> None:
        self.model, self.optimizer, self.count = model, optimizer, count
        self._kept: list[_Snapshot] = []  # oldest first

    @property
    def newest(self) -> int | None:
        """Before which step the last was taken; None where there is none."""
        return self._kept[-1].step if self._kept else None

    def take(self, step: int) -> None:
        """Keep the state as it is before ``step``."""
        live = {**self.model.state(), **self.optimizer.state()}
        # The oldest gives its memory to the new one.
        arrays = self._kept.pop(0).arrays if len(self._kept) == self.count else {}
        if arrays.keys() == live.keys():
            for key, array in arrays.items():
                array[...] = live[key]
        else:
            arrays = {key: value.copy() for key, value in live.items()}
        self._kept.append(_Snapshot(step, self.optimizer.step, arrays))

    def back_to(self, step: int) -> int:
        """Load the newest state that is not of after ``step``; returns the step that it was taken before."""
        while self._kept[-1].step > step:
            self._kept.pop()
        found, names = self._kept[-1], self.model.state().keys()
        self.model.load_state({key: found.arrays[key] for key in names})
        state = {key: array for key, array in found.arrays.items() if key not in names}
        self.optimizer.load_state(state, found.updates)
        return found.step

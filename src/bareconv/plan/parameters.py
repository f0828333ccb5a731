"""All parameters of a model in one array, the gradients and the optimizer's state alike: on every device."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bareconv.device import Array
from bareconv.nn.layer import features
from bareconv.nn.model import Model
from bareconv.optim import Optimizer


class FlatParameters:
    """A model's parameters, moved into one array: its layers' arrays become views of it.

    They lie in the order of ``names``, the first from element ``first`` on, each from a multiple of ``alignment``.
    ``zeros`` makes such an array of that many elements.
    """

    def __init__(
        self, model: Model, names: Iterable[str], zeros: Callable[[int], Array], *, alignment: int, first: int = 0
    ) -> None:
        self._zeros, self._alignment = zeros, alignment
        self.shapes = {name: tuple(array.shape) for name, array in model.parameters().items()}
        self.start: dict[str, int] = {}
        end = first
        for name in names:
            self.start[name] = end
            end = self.end(name)
        self.size = max(end, alignment)
        self.weight = self._flat()
        self._gradient: Array | None = None
        self.states: list[Array] = []
        self._slots: dict[str, tuple[Array, ...]] | None = None
        self._owners = [
            (leaf.params, key, self.view(self.weight, f"{leaf.name}.{key}"))
            for leaf in model.leaves()
            for key in leaf.params
        ]
        self.take_over()

    def _flat(self) -> Array:
        return self._zeros(self.size)

    @property
    def gradient(self) -> Array:
        """The gradients, where they are kept at all."""
        if self._gradient is None:
            self._gradient = self._flat()
        return self._gradient

    def gradients(self) -> dict[str, Array]:
        """The gradients by parameter, in the model's order."""
        return {name: self.view(self.gradient, name) for name in self.shapes}

    def elements(self, name: str) -> int:
        """Of that parameter."""
        return features(self.shapes[name])

    def end(self, name: str) -> int:
        """Where the next parameter starts."""
        return self.start[name] + -(-self.elements(name) // self._alignment) * self._alignment

    def view(self, flat: Array, name: str) -> Array:
        """That parameter's part of a flat array, in its shape."""
        return flat[self.start[name] : self.start[name] + self.elements(name)].reshape(self.shapes[name])

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

"""What all update rules share: their state by parameter name, one step count, the weight decay, scratch memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np

from bareconv.device import Array, beside, namespace
from bareconv.errors import ShapeError, UsageError
from bareconv.optim.settings import config_of, number

BLOCK = 1 << 16  # elements

Arrays: TypeAlias = Sequence[Array]


class Optimizer:
    """Base of the update rules; ``bareconv.optim.rules`` has them.

    One optimizer belongs to one set of parameters. It changes them in place, and keeps per parameter the arrays that
    ``slots`` names, of the parameter's shape, dtype and device. ``step`` counts the updates done, once for all
    parameters together, as Adam's bias correction needs it.

    Attributes: ``lr``, the base rate, which a schedule scales and the loop hands to ``update``; ``weight_decay``.
    """

    slots: tuple[str, ...] = ()
    decoupled: ClassVar[bool] = False  # True: the rule shrinks the weights itself (AdamW)

    def __init__(self, lr: float, weight_decay: float = 0.0) -> None:
        self.lr = number(self, "lr", lr, low=0)
        self.weight_decay = number(self, "weight_decay", weight_decay, low=0)
        self.step = 0
        self._state: dict[str, tuple[Array, ...]] = {}
        self._scratch: dict[str, tuple[Array, Array]] = {}

    def update(self, params: dict[str, Array], grads: dict[str, Array], lr: float) -> None:
        """Change ``params`` in place by one step along ``grads``, at rate ``lr``. The gradients are left as they are.

        Weight decay is an L2 penalty, g + weight_decay * w, except where the rule decouples it.
        Raises UsageError where a parameter has no gradient, or the parameters are not those of the steps before (a
        checkpoint of another model); ShapeError where a gradient or a loaded state has not its parameter's shape.
        """
        if self._scratch.keys() != params.keys():
            self._prepare(params)
        for name, w in params.items():  # before any of them is changed
            if name not in grads:
                raise UsageError(f"{type(self).__name__}: parameter {name} has no gradient")
            if grads[name].shape != w.shape:
                raise ShapeError(f"parameter {name} has shape {w.shape}, its gradient {grads[name].shape}")
        self.step += 1
        for name, param in params.items():
            tensors = (param, grads[name], *self._state[name])
            for (w, g, *state), (scratch, decayed) in _blocks(tensors, self._scratch[name]):
                if self.weight_decay and not self.decoupled:
                    xp = namespace(w)
                    xp.multiply(w, self.weight_decay, out=decayed)
                    g = xp.add(g, decayed, out=decayed)
                self._rule(w, g, state, scratch, float(lr))

    def _rule(self, w: Array, g: Array, state: list[Array], scratch: Array, lr: float) -> None:
        """Update ``w`` and its ``state``, in the order of ``slots``, element by element: they may be parts of a tensor.

        ``scratch`` may be overwritten, ``g`` may not.
        """
        raise NotImplementedError

    def _prepare(self, params: dict[str, Array]) -> None:
        """Make the state of parameters that are new; take over what was loaded; lay out the scratch memory."""
        if not params:
            raise UsageError(f"{type(self).__name__}: there are no parameters to update")
        if self.step and self.slots and self._state.keys() != params.keys():
            wrong = sorted(self._state.keys() ^ params.keys())
            raise UsageError(
                f"{type(self).__name__}: after {self.step} steps the parameters must stay the same; "
                f"{wrong[0]} is {'new' if wrong[0] in params else 'missing'}"
            )
        states: dict[str, tuple[Array, ...]] = {}
        for name, w in params.items():
            kept = self._state.get(name)
            states[name] = (
                tuple(namespace(w).zeros_like(w) for _ in self.slots)
                if kept is None
                else tuple(_taken_over(x, w, f"{slot}/{name}") for slot, x in zip(self.slots, kept, strict=True))
            )
        # Two buffers of the largest parameter's size serve all of them, and stay in the processor's cache.
        buffers: dict[Any, Array] = {}
        for w in sorted(params.values(), key=lambda w: -w.size):
            if w.dtype not in buffers:
                buffers[w.dtype] = namespace(w).empty((2, w.size), w.dtype)
        self._scratch = {}
        for name, w in params.items():
            rows = buffers[w.dtype][:, : w.size]
            self._scratch[name] = (rows[0].reshape(w.shape), rows[1].reshape(w.shape))
        self._state = states

    def keep_state_in(self, arrays: Mapping[str, tuple[Array, ...]]) -> None:
        """Hold the state in ``arrays``, by parameter in the order of ``slots``, from now on; what was moves there."""
        if self.step and self.slots and self._state.keys() != arrays.keys():
            raise UsageError(f"{type(self).__name__}: after {self.step} steps the parameters must stay the same")
        for name, places in arrays.items():
            kept = self._state.get(name)
            if kept is places:
                continue
            for slot, place in enumerate(places):
                if kept is None:
                    place[...] = 0
                else:
                    place[...] = _taken_over(kept[slot], place, f"{self.slots[slot]}/{name}")
            self._state[name] = places

    def state(self) -> dict[str, Array]:
        """The arrays that a checkpoint needs, by "slot/parameter" ("velocity/conv1.weight"); not copies."""
        return {
            f"{slot}/{name}": array
            for name, arrays in self._state.items()
            for slot, array in zip(self.slots, arrays, strict=True)
        }

    def load_state(self, state: Mapping[str, Array], step: int) -> None:
        """Go on where the optimizer stood whose ``state()`` and ``step`` these are; the arrays are copied.

        They may be of another device: the next update moves them to its parameters'. Raises UsageError, and changes
        nothing, where ``state`` is another rule's, or incomplete.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise UsageError(f"{type(self).__name__}: step must be an integer of at least 0; got {step!r}")
        found: dict[str, dict[str, Array]] = {}
        for key, array in state.items():
            slot, _, name = key.partition("/")  # a parameter's own name may hold more of them
            if slot not in self.slots or not name:
                expected = ", ".join(f"{slot}/..." for slot in self.slots) or "no state"
                raise UsageError(f"{type(self).__name__}: expected {expected}; got {key}")
            found.setdefault(name, {})[slot] = array
        for name, arrays in found.items():
            absent = [slot for slot in self.slots if slot not in arrays]
            if absent:
                raise UsageError(f"{type(self).__name__}: the state lacks {absent[0]}/{name}")
        self._state = {name: tuple(arrays[slot].copy() for slot in self.slots) for name, arrays in found.items()}
        self._scratch = {}  # so that the next update checks what was loaded
        self.step = step

    def config(self) -> dict[str, Any]:
        """The type and every hyperparameter, JSON-able; ``from_config`` builds the same rule from it."""
        return config_of(self)

    def __repr__(self) -> str:
        config = self.config()
        return f"{config.pop('type')}({', '.join(f'{name}={value!r}' for name, value in config.items())})"


def _blocks(tensors: Arrays, scratch: Arrays) -> Iterator[tuple[Arrays, Arrays]]:
    """The tensors, all of one shape, and the scratch arrays, block by block.

    A rule passes over its arrays four to twelve times; blocks stay in a core's second-level cache from pass to pass,
    and all use the same scratch memory. GPU arrays stay whole: there, each pass is a launch.
    """
    size = tensors[0].size
    if size <= BLOCK or not all(isinstance(x, np.ndarray) and x.flags.c_contiguous for x in tensors):
        yield tensors, scratch
        return
    tensors, scratch = [x.reshape(-1) for x in tensors], [x.reshape(-1) for x in scratch]  # views
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        yield [x[start:stop] for x in tensors], [x[: stop - start] for x in scratch]


def _taken_over(array: Array, w: Array, key: str) -> Array:
    """``array`` on the device and in the dtype of its parameter ``w``; itself where it is so already."""
    if array.shape != w.shape:
        raise ShapeError(f"optimizer state {key} has shape {array.shape}, its parameter {w.shape}")
    return beside(array, w)

"""All parameters of a model in one array on the device, the optimizer's state alike, and copies that kernels read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bareconv.device import Array
from bareconv.kernels.cuda.kernel import KEPT_BYTES, Precision, padded
from bareconv.nn import layers
from bareconv.nn.layer import features
from bareconv.nn.model import Model
from bareconv.optim import Optimizer
from bareconv.plan.graph import Graph, Tensor

ALIGNMENT = 64  # elements at whose multiples parameters start

_KEEP = ("Flatten", "Dropout", "ReLU", "Add")  # what leaves an image's numbers where they are


@dataclass(frozen=True)
class Layout:
    """How a tensor's image lies in memory: ``taps`` pixels of ``channels``, each pixel padded."""

    taps: int
    channels: int

    @property
    def pitch(self) -> int:
        """Elements of an image."""
        return self.taps * padded(self.channels)


def layouts(graph: Graph) -> dict[Tensor, Layout]:
    """Of every tensor. Flattening changes nothing in memory: what follows it sees pixels of channels still."""
    found = {graph.input: _own(graph.input)}
    for node in graph.nodes:
        found[node.output] = found[node.inputs[0]] if node.kind in _KEEP else _own(node.output)
    return found


def _own(tensor: Tensor) -> Layout:
    shape = tensor.shape
    return Layout(features(shape[:-1]), shape[-1])


@dataclass(frozen=True)
class Copy:
    """The working copy of a weight: [taps][padded channels][padded filters], from ``offset`` bytes on."""

    taps: int
    channels: int
    filters: int
    offset: int


class Parameters:
    """The model's parameters, moved into one float32 array of the device: its layers' arrays become views of it.

    Every weight of a convolution or dense layer has a working copy, rounded and padded, which ``copies`` describes.
    """

    def __init__(self, model: Model, graph: Graph, precision: Precision, xp: Any) -> None:
        self.model, self.precision, self.xp = model, precision, xp
        live = model.parameters()
        self.start: dict[str, int] = {}
        at = 0
        for name, array in live.items():
            self.start[name] = at
            at += -(-int(array.size) // ALIGNMENT) * ALIGNMENT
        self.size = max(at, ALIGNMENT)
        self.shapes = {name: tuple(array.shape) for name, array in live.items()}
        self.weight = self._flat()
        self._gradient: Array | None = None
        self.states: list[Array] = []
        self._slots: dict[str, tuple[Array, ...]] | None = None
        self.copies, copied = _copies(graph, precision)
        self.copy = xp.zeros(max(copied, 256), xp.uint8)
        self._owners = [
            (leaf.params, key, self.view(self.weight, f"{leaf.name}.{key}"))
            for leaf in model.leaves()
            for key in leaf.params
        ]
        self.take_over()

    def _flat(self) -> Array:
        return self.xp.zeros(self.size, self.xp.float32)

    @property
    def gradient(self) -> Array:
        """The gradients, where they are kept at all."""
        if self._gradient is None:
            self._gradient = self._flat()
        return self._gradient

    def elements(self, name: str) -> int:
        """Of that parameter."""
        return features(self.shapes[name])

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

    @property
    def bytes(self) -> int:
        """Of what there is beside the parameters and the optimizer's state themselves."""
        return int(self.copy.nbytes) + (int(self._gradient.nbytes) if self._gradient is not None else 0)


def _copies(graph: Graph, precision: Precision) -> tuple[dict[str, Copy], int]:
    found, at = {}, 0
    lies = layouts(graph)
    for node in graph.nodes:
        layer = node.layers[0]
        if isinstance(layer, layers.Conv2d):
            R, S, C, K = layer.params["weight"].shape
            taps = R * S
        elif isinstance(layer, layers.Dense):
            layout = lies[node.inputs[0]]
            taps, C, K = layout.taps, layout.channels, layer.units
        else:
            continue
        found[f"{layer.name}.weight"] = Copy(taps, C, K, at)
        at += -(-taps * padded(C) * padded(K) * KEPT_BYTES[precision] // 256) * 256
    return found, at

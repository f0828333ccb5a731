"""The parameters of a model on a GPU, and the copies of weights that kernels read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bareconv.device import Array
from bareconv.kernels.cuda.kernel import KEPT_BYTES, Precision, padded
from bareconv.nn import layers
from bareconv.nn.layer import features
from bareconv.nn.model import Model
from bareconv.plan.graph import Graph, Tensor
from bareconv.plan.parameters import FlatParameters

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


class Parameters(FlatParameters):
    """The model's parameters, in float32, on the device.

    Every weight of a convolution or dense layer has a working copy, rounded and padded, which ``copies`` describes.
    """

    def __init__(self, model: Model, graph: Graph, precision: Precision, xp: Any) -> None:
        def zeros(count: int) -> Array:
            return xp.zeros(count, xp.float32)

        super().__init__(model, model.parameters(), zeros, alignment=ALIGNMENT)
        self.copies, copied = _copies(graph, precision)
        self.copy = xp.zeros(max(copied, 256), xp.uint8)

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

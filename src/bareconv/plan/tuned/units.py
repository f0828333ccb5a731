"""Which fused NumPy operation covers which layers, and the layers that none covers.

A ``Unit`` does the work of one or more layers of the model, forward and backward, on one slice of a batch. One thread
owns it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bareconv import nn
from bareconv.device import Array
from bareconv.kernels.tuned import ConvBlock, DenseBlock
from bareconv.nn.blocks import Add
from bareconv.nn.layer import Layer
from bareconv.ops.windows import Window

# Layers whose output for an image depends on nothing but that image. Batch normalisation takes statistics over the
# batch, dropout draws its mask by the place in it; a layer that is not known here might do either.
PER_IMAGE = frozenset(
    {
        *(nn.Conv2d, nn.Dense, nn.Flatten, nn.ReLU, nn.LeakyReLU, nn.GELU, nn.MaxPool2d, nn.AvgPool2d),
        *(nn.GlobalMaxPool, nn.GlobalAvgPool, Add),
    }
)


@dataclass(frozen=True)
class Group:
    """Layers that one unit covers, in the model's order. ``pool`` and ``relu`` are what is fused into the first."""

    layers: tuple[Layer, ...]
    relu: bool = False
    pool: Window | None = None

    @property
    def head(self) -> Layer:
        """The layer with the parameters, if there is one."""
        return self.layers[0]

    @property
    def kernel(self) -> str:
        """What covers it, in words."""
        match self.head:
            case nn.Conv2d() if _fusable(self.head):
                return "+".join(["conv", *(["bias"] if self.head.bias else []), *self._tail()])
            case nn.Dense():
                return "+".join(["dense", *(["bias"] if self.head.bias else []), *self._tail()])
            case nn.Flatten():
                return "view"
        return "layer itself"

    def _tail(self) -> list[str]:
        return [*(["relu"] if self.relu else []), *(["max pool"] if self.pool else [])]


def per_image(layers: Sequence[Layer]) -> bool:
    """Whether every layer works image by image, so that a batch may be split."""
    return all(type(leaf) in PER_IMAGE for layer in layers for leaf in layer.leaves())


def grouped(layers: Sequence[Layer]) -> list[Group]:
    """The layers in runs: a convolution with the relu and the pool behind it, a dense layer with its relu."""
    groups, rest = [], _unnested(layers)
    while rest:
        head = rest.pop(0)
        taken, relu, pool = [head], False, None
        if isinstance(head, nn.Conv2d) and _fusable(head):
            while rest and not (relu and pool):
                if isinstance(rest[0], nn.ReLU) and not relu:
                    relu = True
                elif pool is None and (window := _fused_pool(rest[0])) is not None:
                    pool = window
                else:
                    break
                taken.append(rest.pop(0))
        elif isinstance(head, nn.Dense) and rest and isinstance(rest[0], nn.ReLU):
            relu = True
            taken.append(rest.pop(0))
        groups.append(Group(tuple(taken), relu, pool))
    return groups


def _unnested(layers: Sequence[Layer]) -> list[Layer]:
    """Without the Sequentials among them: theirs come in their place."""
    found: list[Layer] = []
    for layer in layers:
        found += _unnested(layer.layers) if isinstance(layer, nn.Sequential) else [layer]
    return found


def _fusable(conv: nn.Conv2d) -> bool:
    return conv.groups == 1


def _fused_pool(layer: Layer) -> Window | None:
    """The window of a max pool whose stride is its kernel; None for all else (an average is no maximum)."""
    if type(layer) is not nn.MaxPool2d or layer.window.stride != layer.window.kernel:
        return None
    return layer.window if layer.window.padding == (0, 0) else None


class Unit(Protocol):
    """The layers of a group on one slice of a batch. Gradients of parameters go to ``grads``, by layer and name."""

    grads: dict[Layer, dict[str, Array]]

    def forward(self, x: Array, out: Array, training: bool, step: int) -> None:
        """Overwrites ``out``; x and out stay as they are until backward."""

    def backward(self, dy: Array, dx: Array | None) -> None:
        """Overwrites ``grads`` and ``dx``."""


def make_unit(group: Group, images: int, dtype: str, need_dx: bool) -> Unit | None:
    """The unit for slices of up to ``images``; None where a view of the input is all there is to do."""
    head = group.head
    if isinstance(head, nn.Conv2d) and _fusable(head):
        return ConvUnit(group, head, images, dtype, need_dx)
    if isinstance(head, nn.Dense):
        return DenseUnit(group, head, images, dtype)
    if isinstance(head, nn.Flatten):
        return None
    return LayerUnit(head)


class ConvUnit:
    """conv + bias + relu + max pool."""

    def __init__(self, group: Group, conv: nn.Conv2d, images: int, dtype: str, need_dx: bool) -> None:
        H, W, C = conv.in_shape
        self.conv = conv
        self.block = ConvBlock(
            *((H, W, C), conv.window, conv.filters),
            bias=conv.bias,
            relu=group.relu,
            pool=group.pool,
            images=images,
            need_dx=need_dx,
            dtype=dtype,
        )
        self.grads: dict[Layer, dict[str, Array]] = {
            conv: {name: np.zeros_like(value) for name, value in conv.params.items()}
        }

    def forward(self, x: Array, out: Array, training: bool, step: int) -> None:
        self.block.forward(x, self.conv.params["weight"], self.conv.params.get("bias"), out)

    def backward(self, dy: Array, dx: Array | None) -> None:
        grads = self.grads[self.conv]
        self.block.backward(dy, self.conv.params["weight"], grads["weight"], grads.get("bias"), dx)


class DenseUnit:
    """dense + bias + relu; the gradient of the weights is left to ``weight_gradient``.

    A dense layer's weights may be most of a model. Instead of a copy of their gradient for every slice, there is one
    product over the whole batch in the end, split by the rows of the weights. ``backward`` leaves dZ in ``dy`` for it.
    """

    def __init__(self, group: Group, dense: nn.Dense, images: int, dtype: str) -> None:
        self.dense = dense
        (F,) = dense.in_shape
        self.block = DenseBlock(F, dense.units, bias=dense.bias, relu=group.relu, images=images, dtype=dtype)
        self.grads: dict[Layer, dict[str, Array]] = {
            dense: {name: np.zeros_like(value) for name, value in dense.params.items() if name != "weight"}
        }

    def forward(self, x: Array, out: Array, training: bool, step: int) -> None:
        self.block.forward(x, self.dense.params["weight"], self.dense.params.get("bias"), out)

    def backward(self, dy: Array, dx: Array | None) -> None:
        dz = self.block.backward(dy, self.dense.params["weight"], None, self.grads[self.dense].get("bias"), dx)
        if dz is not dy:
            dy[...] = dz


def weight_gradient(x: Array, dz: Array, dweight: Array, part: int, parts: int) -> None:
    """One of ``parts`` runs of rows of a dense layer's dW = X^T dZ, of the whole batch."""
    F = len(dweight)
    rows = slice(F * part // parts, F * (part + 1) // parts)
    if rows.start < rows.stop:
        np.matmul(x[:, rows].T, dz, out=dweight[rows])


@dataclass
class LayerUnit:
    """A layer that no fused operation covers, run as it is: a copy of it for each slice, with the same parameters."""

    layer: Layer
    own: Layer = field(init=False)
    grads: dict[Layer, dict[str, Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shared = [a for leaf in self.layer.leaves() for a in (*leaf.params.values(), *leaf.buffers.values())]
        self.own = copy.deepcopy(self.layer, {id(array): array for array in shared})

    def forward(self, x: Array, out: Array, training: bool, step: int) -> None:
        out[...] = self.own.forward(x, training, step)

    def backward(self, dy: Array, dx: Array | None) -> None:
        result = self.own.backward(dy, need_dx=dx is not None)
        if dx is not None and result is not None:
            dx[...] = result
        pairs = zip(self.layer.leaves(), self.own.leaves(), strict=True)
        self.grads = {layer: own.grads for layer, own in pairs if own.grads}

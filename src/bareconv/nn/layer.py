"""What a layer is: parameters, a forward, a backward, and nothing hidden.

The dataclass fields of a layer are its configuration, from which a checkpoint rebuilds it. ``build`` fixes the shapes
and draws the parameters; ``forward`` in training keeps what ``backward`` will need; ``backward`` uses it up, stores the
gradients of the parameters in ``grads`` and returns the gradient of the input.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeAlias

from bareconv.device import Array, Device
from bareconv.errors import BareconvError, ShapeError

Shape: TypeAlias = tuple[int, ...]  # of one image or feature vector: without the batch axis

# Called after each operation with ("forward" or "backward", the layer, its result): for profiles, pictures and checks.
# A convolution and a dense layer also say "dW", in the midst of their backward, when their gradients are there.
Watch: TypeAlias = Callable[[str, "Layer", Array | None], None]


class Flops(NamedTuple):
    """Floating-point operations of one image; a multiply-add counts two. Elementwise work is not counted."""

    forward: int = 0
    dx: int = 0
    dw: int = 0


@dataclass
class Drawing:
    """Hands out the initial parameters: one seed, and a number for every layer that asks, in order."""

    seed: int
    layers: int = 0

    def next_layer(self) -> int:
        """The number of the next layer that draws."""
        self.layers += 1
        return self.layers - 1


@dataclass(eq=False)
class Layer:
    """The base of all layers. Shapes in ``in_shape`` and ``out_shape`` are without the batch axis."""

    kind: ClassVar[str] = "layer"  # what it is called in a model: conv1, relu1, ...
    types: ClassVar[dict[str, type[Layer]]] = {}

    name: str = field(default="", init=False, repr=False)
    in_shape: Shape = field(default=(), init=False, repr=False)
    out_shape: Shape = field(default=(), init=False, repr=False)
    params: dict[str, Array] = field(default_factory=dict, init=False, repr=False)
    grads: dict[str, Array] = field(default_factory=dict, init=False, repr=False)
    buffers: dict[str, Array] = field(default_factory=dict, init=False, repr=False)
    _saved: tuple[Any, ...] | None = field(default=None, init=False, repr=False)

    def __init_subclass__(cls) -> None:
        if not cls.__name__.startswith("_"):  # what layers are made from is none
            Layer.types[cls.__name__] = cls

    # What a layer defines

    def _build(self, drawing: Drawing) -> Shape:
        """Draw the parameters for ``self.in_shape``; return the shape of the output."""
        return self.in_shape

    def forward(self, x: Array, training: bool = False, step: int = 0, watch: Watch | None = None) -> Array:
        """The output for a batch ``x`` (N, *in_shape). ``step`` numbers the training step (dropout draws by it)."""
        raise NotImplementedError

    def backward(self, dy: Array, need_dx: bool = True, watch: Watch | None = None) -> Array | None:
        """dX from dY; None where it is not needed. Needs one ``forward(training=True)`` before it."""
        raise NotImplementedError

    def flops(self) -> Flops:
        """Work for one image."""
        return Flops()

    # What all share

    def build(self, in_shape: Shape, name: str, drawing: Drawing) -> Shape:
        """Fix the shapes, draw the parameters; returns the output's shape. ShapeError names the layer."""
        self.name, self.in_shape = name, in_shape
        try:
            self.out_shape = self._build(drawing)
        except ShapeError as error:
            if str(error).startswith("layer "):  # of a block's inner layer, which has named itself
                raise
            raise ShapeError(f"layer {name} ({self!r}) with input {_show(in_shape)}: {error}") from None
        return self.out_shape

    def config(self) -> dict[str, Any]:
        """The type and the fields, ready for JSON; ``layer_from_config`` is the inverse."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        return {"type": type(self).__name__, **{key: _to_json(value) for key, value in values.items()}}

    def leaves(self) -> Iterator[Layer]:
        """The layers that do the work, in order of execution: blocks give their inner layers."""
        yield self

    def to(self, device: Device, dtype: str) -> None:
        """Move parameters and buffers to ``device`` as ``dtype``; gradients and saved activations are dropped."""
        for arrays in (self.params, self.buffers):
            for key, value in arrays.items():
                arrays[key] = device.asarray(value, dtype=dtype)
        self.grads.clear()
        self._saved = None

    def parameter_count(self) -> int:
        """How many numbers are trained."""
        return sum(int(p.size) for leaf in self.leaves() for p in leaf.params.values())

    def saved_arrays(self) -> Iterator[Array]:
        """What a training forward has kept for backward."""
        for value in self._saved or ():
            if hasattr(value, "nbytes"):
                yield value

    def forget(self) -> None:
        """Drop what the last training forward has kept: there will be no backward."""
        self._saved = None

    def _take_saved(self) -> tuple[Any, ...]:
        if self._saved is None:
            raise BareconvError(f"layer {self.name}: backward needs one forward(training=True) before it")
        saved, self._saved = self._saved, None
        return saved

    def _expect(self, axes: int) -> None:
        if len(self.in_shape) != axes:
            wanted = {3: "an image (H, W, C)", 1: "features (F)"}[axes]
            raise ShapeError(f"expected {wanted}" + (": put Flatten before it" if axes == 1 else ""))


def layer_from_config(config: dict[str, Any]) -> Layer:
    """The layer that ``config()`` described, not yet built. UsageError for an unknown type or field."""
    values = dict(config)
    kind = values.pop("type", None)
    if kind not in Layer.types:
        raise BareconvError(f"layer type {kind!r}: expected one of {', '.join(sorted(Layer.types))}")
    try:
        return Layer.types[kind](**{key: _from_json(value) for key, value in values.items()})
    except TypeError as error:
        raise BareconvError(f"layer {kind}: {error}") from None


def features(shape: Shape) -> int:
    """How many numbers that shape holds."""
    return math.prod(shape)


def _to_json(value: Any) -> Any:
    if isinstance(value, Layer):
        return value.config()
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict) and "type" in value:
        return layer_from_config(value)
    if isinstance(value, list):
        items = [_from_json(item) for item in value]
        return items if items and isinstance(items[0], Layer) else tuple(items)
    return value


def _show(shape: Shape) -> str:
    return " x ".join(map(str, shape))

"""A model: a stack of layers with its input shape, on one device in one precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bareconv.device import Array, Device, get_device
from bareconv.errors import BareconvError, ShapeError, UsageError
from bareconv.nn.blocks import Sequential
from bareconv.nn.layer import Drawing, Layer, Shape, Watch, features, layer_from_config

PRECISIONS = ("float32", "float64")


class Model:
    """Layers built for images of ``input_shape`` (H, W, C), with parameters drawn from ``seed``.

    Pixels (uint8) become (pixel - ``mean``) / ``std`` before the first layer. A new model is on the CPU in float32;
    ``to`` moves it. Raises ShapeError, naming the layer and both shapes, where the layers do not fit.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        input_shape: Shape = (28, 28, 1),
        *,
        seed: int = 0,
        name: str = "custom",
        mean: float = 0.0,
        std: float = 255.0,
    ) -> None:
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise UsageError(f"input shape {input_shape}: expected (H, W, C), each at least 1")
        self.name, self.seed, self.mean, self.std = name, seed, mean, std
        self.body = Sequential(list(layers))
        self.input_shape: Shape = tuple(input_shape)
        self.output_shape = self.body.build(self.input_shape, "", Drawing(seed))
        self.device: Device = get_device("cpu")
        self.precision = "float32"

    def to(self, device: Device | str, precision: str | None = None) -> Model:
        """Move to ``device`` in ``precision`` ("float32", "float64"); returns itself."""
        if precision is not None and precision not in PRECISIONS:
            raise UsageError(f"precision {precision!r}: expected {' or '.join(PRECISIONS)}")
        self.device, self.precision = get_device(device), precision or self.precision
        with self.device.activate():
            for leaf in self.body.leaves():
                leaf.to(self.device, self.precision)
        return self

    def prepare(self, images: Array) -> Array:
        """uint8 (N, H, W, C) on the model's device -> (pixel - mean) / std in its precision."""
        if images.shape[1:] != self.input_shape:
            raise ShapeError(
                f"model {self.name} was built for images of {self.input_shape}; got images of {images.shape[1:]}"
            )
        x = images.astype(self.precision)
        if self.mean:
            x -= self.mean
        x *= 1.0 / self.std
        return x

    def check_pixels(self, images: Array) -> None:
        """ShapeError where these are not uint8 images (N, H, W, C) of the model's shape: kernels believe it."""
        if images.shape[1:] != self.input_shape or images.dtype != np.uint8:
            raise ShapeError(
                f"model {self.name} was built for uint8 images of {self.input_shape}; "
                f"got {images.dtype} images of {images.shape[1:]}"
            )

    def forward(self, x: Array, training: bool = False, step: int = 0, watch: Watch | None = None) -> Array:
        """Prepared images (N, H, W, C) -> logits (N, classes)."""
        return self.body.forward(x, training, step, watch)

    def backward(self, dlogits: Array, need_dx: bool = False, watch: Watch | None = None) -> Array | None:
        """Fill ``gradients``; returns the gradient of the input where it is asked for."""
        return self.body.backward(dlogits, need_dx, watch)

    def leaves(self) -> Iterator[Layer]:
        """The layers that do the work, in order of execution."""
        return self.body.leaves()

    def parameters(self) -> dict[str, Array]:
        """ "conv1.weight" -> the array itself (an optimizer updates it in place)."""
        return {f"{leaf.name}.{key}": value for leaf in self.leaves() for key, value in leaf.params.items()}

    def gradients(self) -> dict[str, Array]:
        """ "conv1.weight" -> the gradient of the last backward."""
        return {f"{leaf.name}.{key}": value for leaf in self.leaves() for key, value in leaf.grads.items()}

    def buffers(self) -> dict[str, Array]:
        """ "norm1.mean" -> running statistics."""
        return {f"{leaf.name}.{key}": value for leaf in self.leaves() for key, value in leaf.buffers.items()}

    def state(self) -> dict[str, Array]:
        """Parameters and buffers: all that a trained model is."""
        return {**self.parameters(), **self.buffers()}

    def load_state(self, state: dict[str, Array]) -> None:
        """Copy ``state`` in, in the model's precision. BareconvError names what is missing or has another shape."""
        own = self.state()
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())
            raise BareconvError(f"weights do not fit model {self.name}: {odd[0]} is in one of the two only")
        for key, value in own.items():
            if value.shape != state[key].shape:
                raise BareconvError(
                    f"weights do not fit model {self.name}: {key} is {state[key].shape}, expected {value.shape}"
                )
            value[...] = self.device.asarray(state[key], dtype=self.precision)

    def config(self) -> dict[str, Any]:
        """All that rebuilds the model but its weights, ready for JSON."""
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "seed": self.seed,
            "mean": self.mean,
            "std": self.std,
            "layers": [layer.config() for layer in self.body.layers],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Model:
        """The inverse of ``config``. BareconvError where a key is missing or a layer is unknown."""
        try:
            return cls(
                [layer_from_config(layer) for layer in config["layers"]],
                tuple(config["input_shape"]),
                seed=config["seed"],
                name=config["name"],
                mean=config["mean"],
                std=config["std"],
            )
        except KeyError as error:
            raise BareconvError(f"model configuration: {error} is missing") from None

    def flops(self) -> int:
        """Work of one training step for one image: forward, dW and dX, but no dX for the first layer with weights."""
        work = [leaf.flops() for leaf in self.leaves() if leaf.params]
        return sum(f.forward + f.dw for f in work) + sum(f.dx for f in work[1:])

    def activation_bytes(self, apart_from: Array | None = None) -> int:
        """Bytes that the last training forward has kept for backward; what layers share counts once.

        ``apart_from``: an array that counts elsewhere, though a layer may have kept it (a batch that is kept anyway).
        """
        unique = {id(owner): int(owner.nbytes) for leaf in self.leaves() for owner in map(_owner, leaf.saved_arrays())}
        if apart_from is not None:
            unique.pop(id(_owner(apart_from)), None)
        return sum(unique.values())

    def summary(self) -> Summary:
        """A row a layer: shapes, parameters, FLOPs, bytes. Print it."""
        return Summary.of(self)


def _owner(array: Array) -> Array:
    """The array whose memory this one looks at: itself, unless it is a view."""
    while array.base is not None and hasattr(array.base, "nbytes"):
        array = array.base
    return array


@dataclass(frozen=True)
class SummaryRow:
    """One layer: output shape, parameters, forward FLOPs of an image, bytes of its parameters and of its output."""

    name: str
    type: str
    out_shape: Shape
    parameters: int
    flops: int
    parameter_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class Summary:
    """What ``Model.summary`` returns; ``str()`` of it is a table."""

    title: str
    rows: tuple[SummaryRow, ...]
    training_flops: int

    @classmethod
    def of(cls, model: Model) -> Summary:
        """The summary of a built model."""
        size = {"float32": 4, "float64": 8}[model.precision]
        rows = []
        for leaf in model.leaves():
            count = leaf.parameter_count()
            output = features(leaf.out_shape) * size
            rows.append(
                SummaryRow(
                    leaf.name, type(leaf).__name__, leaf.out_shape, count, leaf.flops().forward, count * size, output
                )
            )
        shape = " x ".join(map(str, model.input_shape))
        return cls(f"{model.name}: input {shape}, {model.precision}", tuple(rows), model.flops())

    def __str__(self) -> str:
        head = ("layer", "type", "output", "parameters", "FLOPs/image", "parameter bytes", "output bytes/image")
        cells = [head] + [
            (
                row.name,
                row.type,
                " x ".join(map(str, row.out_shape)),
                *(f"{n:,}" for n in (row.parameters, row.flops, row.parameter_bytes, row.activation_bytes)),
            )
            for row in self.rows
        ]
        totals = [sum(getattr(row, name) for row in self.rows) for name in _TOTALS]
        cells.append(("total", "", "", *(f"{n:,}" for n in totals)))
        widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
        lines = ["  ".join(_justify(i, cell, widths[i]) for i, cell in enumerate(row)).rstrip() for row in cells]
        rule = "-" * max(map(len, lines))
        note = f"one training step: {self.training_flops:,} FLOPs an image (no dX for the first layer)"
        return "\n".join([self.title, rule, lines[0], rule, *lines[1:-1], rule, lines[-1], note])


_TOTALS = ("parameters", "flops", "parameter_bytes", "activation_bytes")


def _justify(column: int, cell: str, width: int) -> str:
    return cell.ljust(width) if column < 3 else cell.rjust(width)

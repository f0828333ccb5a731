"""The calls of a step as they are written down: arrays by tensor, gradients by tensor, weights in every order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv.kernels.cpu.elementwise import Elementwise
from bareconv.kernels.cpu.kernel import Kernel
from bareconv.kernels.cpu.parameters import ALIGNMENT, Pack
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.target import Target
from bareconv.nn import layers
from bareconv.nn.layer import Shape, features
from bareconv.nn.model import Model
from bareconv.ops.windows import Pair
from bareconv.optim.rule import Rule
from bareconv.plan.cpu.covers import has_kernel, is_sparse
from bareconv.plan.cpu.memory import Buffer
from bareconv.plan.cpu.parameters import Parameters
from bareconv.plan.cpu.record import Place, RecordedStage, Recorder
from bareconv.plan.graph import Graph, Node, Tensor, trained_tensors

GRAIN = 1024  # parameters dealt out together

Array = tuple[Buffer, Plane]


def plane_of(shape: Shape, border: Pair = (0, 0)) -> Plane:
    """The plane of an image, or of a vector of features: one pixel with many channels."""
    height, width, channels = shape if len(shape) == 3 else (1, 1, features(shape))
    return Plane(height, width, channels, border)


def pitch(buffer: Buffer) -> int:
    """Elements from an image's part (or a worker's) to the next's."""
    return buffer.pitch // np.dtype(buffer.dtype).itemsize


class Outside:
    """Memory that is not the record's own: whoever binds it knows where it is."""

    def __init__(self) -> None:
        self.pixels = Buffer("pixels", 0, per="outside")
        self.order = Buffer("order", 0, per="outside")
        self.labels = Buffer("labels", 0, per="outside")
        self.images = Buffer("images", 0, per="outside")
        self.workers = Buffer("workers", 0, per="outside")
        self.scalars = Buffer("scalars", 0, per="outside")
        self.weight = Buffer("weight", 0, per="outside")
        self.state1 = Buffer("state1", 0, per="outside")
        self.state2 = Buffer("state2", 0, per="outside")
        self.gradient = Buffer("gradient", 0, per="outside")
        self.partial = Buffer("partial", 0, per="outside")
        self.running: dict[str, Buffer] = {}  # statistics of batch norms, by "layer.key"


@dataclass(eq=False)
class Step:
    """What the fused operations share while they write a step down (``training``) or a prediction.

    Activations lie within a border of zeros as wide as the widest padding among their readers.
    """

    graph: Graph
    model: Model
    target: Target
    parameters: Parameters
    rule: Rule
    batch_size: int
    training: bool = True
    record: Recorder = field(default_factory=Recorder)
    outside: Outside = field(default_factory=Outside)
    buffers: list[Buffer] = field(default_factory=list)
    tables: dict[Buffer, NDArray[Any]] = field(default_factory=dict)  # what these buffers start with
    positions: dict[str, NDArray[np.int32]] = field(
        default_factory=dict
    )  # of gradients that lie in an order of their own
    updates: list[Callable[[bool], None]] = field(default_factory=list)  # written down last; told whether to wait first
    transforms: list[Callable[[Recorder, bool], None]] = field(default_factory=list)  # of packed weights
    scales: list[Callable[[Recorder], None]] = field(default_factory=list)  # from running statistics

    def __post_init__(self) -> None:
        self._arrays: dict[Tensor, Array] = {}
        self._gradients: dict[Tensor, Array] = {}
        self._written: set[Tensor] = set()
        self._packs: list[tuple[str, int, Buffer, Buffer]] = []
        self._trained = trained_tensors(self.graph)
        # The gradients that are summed over workers lie like the parameters; those in other orders follow.
        ends = [self.parameters.end(name) for name in (*self.parameters.summed, *self.parameters.mapped)]
        self.partial_size = max(ends, default=ALIGNMENT)

    def trains(self, tensor: Tensor) -> bool:
        """Whether a parameter's gradient depends on that tensor's."""
        return tensor in self._trained

    # Arrays

    def buffer(
        self, name: str, elements: int, dtype: str | None = None, per: str = "image", zeros: bool = False
    ) -> Buffer:
        """A new array; ``Buffer`` says what the fields mean."""
        made = Buffer(name, elements, dtype or self.target.dtype, per, zeros=zeros)
        self.buffers.append(made)
        return made

    def table(self, name: str, values: NDArray[Any]) -> Buffer:
        """A buffer that holds these values from the start."""
        made = self.buffer(name, int(values.size), str(values.dtype), "plan", zeros=True)
        self.tables[made] = values
        return made

    def where(self, node: Node) -> Buffer | None:
        """A byte for each output of a max pool: which pixel of its window was the maximum. For training only."""
        return self.buffer(f"{node.output.name} where", features(node.output.shape), "uint8") if self.training else None

    def tensor(self, tensor: Tensor) -> Array:
        """Where that tensor is, within the border that its readers want."""
        if tensor not in self._arrays:
            border = (0, 0)
            for node in tensor.readers:
                layer = node.layers[0]
                if isinstance(layer, layers.Conv2d) and has_kernel(node):
                    border = max(border[0], layer.window.padding[0]), max(border[1], layer.window.padding[1])
            plane = plane_of(tensor.shape, border)
            made = self.buffer(tensor.name, plane.size, zeros=border != (0, 0))
            made.rows = len(tensor.shape) == 1  # as dense kernels have them
            self._arrays[tensor] = made, plane
        return self._arrays[tensor]

    def same_array(self, tensor: Tensor, array: Array) -> None:
        """That tensor is in an array that there is already."""
        self._arrays[tensor] = array

    # Gradients

    def gradient(self, tensor: Tensor) -> Array:
        """Where the gradient of that tensor is: like the tensor where a sparse backward writes it, else borderless."""
        if tensor not in self._gradients:
            sparse = any(is_sparse(node, self.target) for node in tensor.readers)
            plane = self.tensor(tensor)[1] if sparse else plane_of(tensor.shape)
            # A sparse backward adds zeros after an image, where another worker's image must not begin.
            made = self.buffer(f"d {tensor.name}", plane.size + (self.target.lanes if sparse else 0))
            made.rows = len(tensor.shape) == 1
            self._gradients[tensor] = made, plane
        return self._gradients[tensor]

    def gradient_with_border(self, tensor: Tensor, border: Pair) -> None:
        """The gradient of that tensor, which no one has asked for yet, shall lie within zeros."""
        assert tensor not in self._gradients
        plane = plane_of(tensor.shape, border)
        self._gradients[tensor] = self.buffer(f"d {tensor.name}", plane.size, zeros=border != (0, 0)), plane

    def same_gradient(self, tensor: Tensor, array: Array) -> bool:
        """Let that tensor's gradient be what is in ``array``, where no one else writes it; False where it cannot be."""
        sparse = any(is_sparse(node, self.target) for node in tensor.readers)
        if tensor in self._gradients or sparse or array[1] != plane_of(tensor.shape) or tensor not in self._trained:
            return False
        self._gradients[tensor] = array
        self._written.add(tensor)
        return True

    def into(self, tensor: Tensor) -> tuple[Buffer, Plane, bool] | None:
        """Where dX goes, and whether it is added to what is there; None where no one needs it."""
        if tensor not in self._trained:
            return None
        add = tensor in self._written
        self._written.add(tensor)
        return *self.gradient(tensor), add

    def sum_into(self, tensor: Tensor) -> tuple[Buffer, Plane, Callable[[], None]] | None:
        """As ``into``, for a kernel that cannot add: it writes beside, and the function that is returned adds."""
        into = self.into(tensor)
        if into is None:
            return None
        buffer, plane, add = into
        if not add:
            return buffer, plane, lambda: None
        beside = self.buffer(f"{buffer.name} beside", buffer.elements)
        kernel = Elementwise(self.target, "add", plane, plane, plane)
        return beside, plane, lambda: self.record.images(kernel, a=buffer, b=beside, y=buffer)

    def pass_on(self, tensor: Tensor, dy: Buffer, plane: Plane) -> None:
        """dX = dY."""
        into = self.into(tensor)
        if into is None:
            return
        dx, dx_plane, add = into
        if add:
            self.record.images(Elementwise(self.target, "add", plane, dx_plane, dx_plane), a=dy, b=dx, y=dx)
        else:
            self.record.images(Elementwise(self.target, "copy", plane, plane, dx_plane), a=dy, y=dx)

    # Parameters

    def weight(self, name: str) -> Place:
        """That parameter."""
        return Place(self.outside.weight, self.parameters.start[name])

    def bias(self, layer: layers.Conv2d | layers.Dense) -> Place | None:
        """That layer's bias, where it has one."""
        return self.weight(f"{layer.name}.bias") if layer.bias else None

    def partial(self, name: str, *, first: bool = False) -> Place:
        """This worker's part of the gradient of that parameter; the first worker's, where ``first``."""
        return Place(self.outside.partial, self.parameters.start[name], shared=first)

    def own_gradient(self, name: str, positions: NDArray[np.int32], size: int) -> Place:
        """Room for a gradient that its kernel lays out: ``positions`` says where in it each weight's is."""
        place = Place(self.outside.partial, self.partial_size)
        self.positions[name] = self.partial_size + positions
        self.partial_size += -(-size // ALIGNMENT) * ALIGNMENT
        return place

    @property
    def partial_pitch(self) -> int:
        """Elements from a worker's gradients to the next's, when all is written down."""
        return -(-(self.partial_size + 64) // 64) * 64

    def packed(self, name: str, places: NDArray[np.int32]) -> Buffer:
        """Weights in another order, made anew at the start of every step."""
        lanes = self.target.lanes
        padded = np.zeros(-(-places.size // lanes) * lanes, np.int32)
        padded[: places.size] = places
        packed = self.buffer(f"{name} packed", padded.size, per="plan", zeros=True)
        self._packs.append((name, padded.size, self.table(f"{name} order", padded), packed))
        return packed

    def update_operands(self, start: int) -> dict[str, Any]:
        """What an update of the parameters from ``start`` on works on."""
        outside = self.outside
        arrays = {"weight": outside.weight, "gradient": outside.gradient}
        arrays |= {"state1": outside.state1, "state2": outside.state2}
        return {"scalars": outside.scalars, **{name: Place(array, start) for name, array in arrays.items()}}

    def prepare(self) -> list[RecordedStage]:
        """What a step begins with: weights in other orders, and for a prediction what running statistics come to."""
        first = Recorder()
        first.phase = "prepare"
        for name, size, table, packed in self._packs:
            first.node = name.rpartition(".")[0]
            operands = {"weight": Place(self.outside.weight), "places": table, "packed": packed}
            first.shared(Pack(self.target), size, GRAIN, wait=False, **operands)
        for number, transform in enumerate(self.transforms):
            transform(first, number == 0)
        for scale in self.scales:
            scale(first)
        return first.stages


class Fused:
    """One node of the graph, as kernels do it: writes down its forward, and later its backward."""

    def __init__(self, step: Step, node: Node) -> None:
        self.step, self.node, self.target, self.record = step, node, step.target, step.record

    def forward(self) -> None:
        """The calls that make the node's output from its inputs."""
        raise NotImplementedError

    def backward(self) -> None:
        """The calls that make the gradients of its inputs and parameters from that of its output."""
        raise NotImplementedError

    def images(self, kernel: Kernel, chunk: int = 1, **operands: Any) -> None:
        """A call over the batch's images."""
        self.record.images(kernel, chunk, **operands)

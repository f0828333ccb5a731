"""From the graph of a model to the calls of a step: which kernel does what, over which arrays.

Forward in the graph's order, backward in the reverse. Every node writes what its readers will read: activations lie within a
border of zeros as wide as the widest padding among them. What no kernel covers is done by the layer itself, on views of the
same arrays, between two programs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv import ops
from bareconv.kernels.cpu.correlate import Correlate
from bareconv.kernels.cpu.dense import ColumnSums, DenseForward, DenseInputGradient, DenseWeightUpdate
from bareconv.kernels.cpu.elementwise import Elementwise
from bareconv.kernels.cpu.ends import Normalise, SoftmaxCrossEntropy
from bareconv.kernels.cpu.kernel import Kernel
from bareconv.kernels.cpu.gradient import Spread, WeightGradient
from bareconv.kernels.cpu.norm import (
    NormApply,
    NormBackward,
    NormBackwardFinish,
    NormBackwardSums,
    NormFinish,
    NormScale,
    NormSums,
)
from bareconv.kernels.cpu.parameters import ALIGNMENT, Pack, Update
from bareconv.kernels.cpu.plane import Plane
from bareconv.kernels.cpu.pool import PoolBackward, PoolForward
from bareconv.kernels.cpu.rules import Rule
from bareconv.kernels.cpu.sparse import SparseBackward
from bareconv.kernels.cpu.target import Target
from bareconv.nn import layers
from bareconv.nn.layer import Shape, features
from bareconv.nn.model import Model
from bareconv.ops.windows import Pair
from bareconv.plan import packing
from bareconv.plan.graph import Graph, Node, Tensor
from bareconv.plan.memory import Buffer
from bareconv.plan.parameters import Parameters
from bareconv.plan.record import Place, RecordedStage, Recorder, find_lifetimes

WHOLE = Recorder.WHOLE
WHERE_CELLS = 256  # pixels of the largest window whose maximum's position fits into a byte
GRAIN = 1024  # parameters dealt out together


def plane_of(shape: Shape, border: Pair = (0, 0)) -> Plane:
    """The plane of an image, or of a vector of features: one pixel with many channels."""
    height, width, channels = shape if len(shape) == 3 else (1, 1, features(shape))
    return Plane(height, width, channels, border)


def has_kernel(node: Node) -> bool:
    """Whether kernels cover that node; the layer itself does it otherwise."""
    layer = node.layers[0]
    if type(layer) is layers.Conv2d:
        return layer.groups == 1 and (layer.window.stride == (1, 1) or layer.window.dilation == (1, 1))
    if type(layer) in (layers.MaxPool2d, layers.AvgPool2d):
        window = layer.window  # type: ignore[attr-defined]
        return window.padding == (0, 0) and features(window.kernel) <= WHERE_CELLS
    if type(layer) is layers.GlobalMaxPool:
        return features(layer.in_shape[:2]) <= WHERE_CELLS
    return node.kind in ("BatchNorm", "Dense", "GlobalAvgPool", "ReLU", "Flatten", "Dropout", "Add")


def is_sparse(node: Node, target: Target) -> bool:
    """Whether the backward of that node goes through the live gradients only: after a relu and a pool few are left.

    A run of a window, S*C numbers, should fill most of a register.
    """
    layer, pool = node.layers[0], node.pool
    if not isinstance(layer, layers.Conv2d) or pool is None or not node.relu or not has_kernel(node):
        return False
    window = layer.window
    plain = window.stride == window.dilation == (1, 1)
    return plain and features(pool.window.kernel) >= 4 and window.kernel[1] * layer.in_shape[2] * 2 > target.lanes


@dataclass
class HostWork:
    """The forward or backward of a node's layers themselves, between programs."""

    lowering: Lowering
    node: Node
    backward: bool
    x: list[tuple[Buffer, Plane]]
    y: tuple[Buffer, Plane]
    dx: list[tuple[Buffer, Plane] | None]
    add: list[bool]

    def __call__(self, views: Any, add_gradient: Any, images: int, step: int) -> None:
        if not self.backward:
            y = views(*self.x[0], images).copy()  # a layer may keep it
            for layer in self.node.layers:
                y = layer.forward(y.reshape(images, *layer.in_shape), self.lowering.training, step)
            into = views(*self.y, images)
            into[...] = y.reshape(into.shape)
            return
        dx = views(*self.y, images).copy()
        for i, layer in reversed(list(enumerate(self.node.layers))):
            dx = layer.backward(dx.reshape(images, *layer.out_shape), i > 0 or self.dx[0] is not None)
            for name, gradient in layer.grads.items():
                add_gradient(f"{layer.name}.{name}", gradient)
        if self.dx[0] is not None:
            into = views(*self.dx[0], images)
            dx = dx.reshape(into.shape)
            into[...] = into + dx if self.add[0] else dx


@dataclass
class MaskWork:
    """Draws a dropout's mask, the same as the reference's."""

    layer: layers.Dropout
    mask: Buffer
    plane: Plane

    def __call__(self, views: Any, add_gradient: Any, images: int, step: int) -> None:
        into = views(self.mask, self.plane, images)
        layer = self.layer
        like = np.empty((images, *layer.in_shape), into.dtype)
        into[...] = ops.dropout_mask(like, layer.p, layer._seed, step, layer._layer).reshape(into.shape)


@dataclass(eq=False)
class Lowering:
    """The calls of one step (``training``) or of a prediction, over buffers that have no address yet."""

    graph: Graph
    model: Model
    target: Target
    parameters: Parameters
    rule: Rule
    smoothing: float = 0.0
    training: bool = True
    record: Recorder = field(default_factory=Recorder)
    stages: list[RecordedStage] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    tables: dict[int, NDArray[Any]] = field(default_factory=dict)  # what plan buffers start with, by id
    partial_size: int = 0

    def __post_init__(self) -> None:
        self.dtype = self.target.dtype
        self._of: dict[Tensor, tuple[Buffer, Plane]] = {}
        self._gradient: dict[Tensor, tuple[Buffer, Plane]] = {}
        self._written: set[Tensor] = set()
        self._where: dict[Node, Buffer] = {}
        self._kept: dict[Node, dict[str, Any]] = {}
        self._trains: dict[Tensor, bool] = {self.graph.input: False}
        for node in self.graph.nodes:
            has = any(layer.params for layer in node.layers)
            self._trains[node.output] = has or any(self._trains[tensor] for tensor in node.inputs)
        self._updates: list[tuple[str, str, Any]] = []
        # Memory that is the plan's, not a buffer of the record: the caller binds it.
        self.pixels, self.order, self.labels = (Buffer(name, 0, per="outside") for name in ("pixels", "order", "labels"))
        self.images, self.workers = (Buffer(name, 0, per="outside") for name in ("images", "workers"))
        self.scalars, self.weight, self.state1, self.state2, self.gradient, self.partial = (
            Buffer(name, 0, per="outside")
            for name in ("scalars", "weight", "state1", "state2", "gradient", "partial")
        )
        self.running: dict[str, Buffer] = {}
        self.losses = self.buffer("losses", 1, "float64")
        self.hits = self.buffer("hits", 1, "int64")
        # The gradients that are summed over workers lie like the parameters; those of sparse kernels follow.
        ends = [self.parameters.end(name) for name in (*self.parameters.summed, *self.parameters.mapped)]
        self.partial_size = max(ends, default=ALIGNMENT)
        self._packs: list[tuple[str, int, Buffer, Buffer]] = []
        self._scales: list[tuple[str, Kernel, int, dict[str, Any]]] = []
        self.losses.kept = self.hits.kept = True
        self._lower()

    # The whole

    def _lower(self) -> None:
        self._phase("forward")
        self._node("images")
        buffer, plane = self.tensor(self.graph.input)
        self.record.images(
            Normalise(self.target, plane, self.model.mean, self.model.std),
            pixels=self.pixels,
            order=self.order,
            y=buffer,
        )
        for node in self.graph.nodes:
            self._node(node.name)
            self._forward(node)
        logits, plane = self.tensor(self.graph.output)
        self.logits = logits, plane
        if self.training:
            self._node("loss")
            dlogits, _ = self.gradient_of(self.graph.output)
            self._written.add(self.graph.output)
            self.record.images(
                SoftmaxCrossEntropy(self.target, features(self.graph.output.shape), self.smoothing),
                WHOLE,
                logits=logits,
                labels=self.labels,
                order=self.order,
                images=self.images,
                dlogits=dlogits,
                losses=self.losses,
                hits=self.hits,
            )
            self._phase("backward")
            for node in reversed(self.graph.nodes):
                if self._trains[node.output]:
                    self._node(node.name)
                    self._backward(node)
            self._phase("update")
            self._update()
        else:
            logits.kept = True
        before = self._prepare()
        self.record.stages[0].wait = bool(before)
        self.stages = before + self.record.stages
        find_lifetimes(self.stages)

    def _phase(self, name: str) -> None:
        self.record.phase = name

    def _node(self, name: str) -> None:
        self.record.node = name

    # Arrays

    def buffer(self, name: str, elements: int, dtype: str | None = None, per: str = "image", zeros: bool = False) -> Buffer:
        made = Buffer(name, elements, dtype or self.dtype, per, zeros)
        self.buffers.append(made)
        return made

    def table(self, name: str, values: NDArray[Any]) -> Buffer:
        """A buffer that holds these values from the start."""
        made = self.buffer(name, int(values.size), str(values.dtype), "plan", zeros=True)
        self.tables[id(made)] = values
        return made

    def tensor(self, tensor: Tensor) -> tuple[Buffer, Plane]:
        """Where that tensor is, within the border that its readers want."""
        if tensor not in self._of:
            border = (0, 0)
            for node in tensor.readers:
                layer = node.layers[0]
                if isinstance(layer, layers.Conv2d) and has_kernel(node):
                    border = max(border[0], layer.window.padding[0]), max(border[1], layer.window.padding[1])
            plane = plane_of(tensor.shape, border)
            made = self.buffer(tensor.name, plane.size, zeros=border != (0, 0))
            made.rows = len(tensor.shape) == 1  # as dense kernels have them
            self._of[tensor] = made, plane
        return self._of[tensor]

    def gradient_of(self, tensor: Tensor) -> tuple[Buffer, Plane]:
        """Where the gradient of that tensor is: like the tensor where a sparse backward writes it, else without border."""
        if tensor not in self._gradient:
            sparse = any(is_sparse(node, self.target) for node in tensor.readers)
            plane = self.tensor(tensor)[1] if sparse else plane_of(tensor.shape)
            made = self.buffer(f"d {tensor.name}", plane.size + self._beyond(sparse))
            made.rows = len(tensor.shape) == 1
            self._gradient[tensor] = made, plane
        return self._gradient[tensor]

    def _beyond(self, sparse: bool) -> int:
        """Elements after an image of dX: a sparse backward adds zeros there; no other thread's image may begin there."""
        return self.target.lanes if sparse else 0

    def weight_of(self, name: str) -> Place:
        return Place(self.weight, self.parameters.start[name])

    def partial_of(self, name: str, *, first: bool = False) -> Place:
        """This worker's part of the gradient of that parameter; the first worker's, where ``first``."""
        return Place(self.partial, self.parameters.start[name], shared=first)

    def _packed(self, name: str, places: NDArray[np.int32]) -> Buffer:
        """Weights in another order, made anew at the start of every step."""
        lanes = self.target.lanes
        padded = np.zeros(-(-places.size // lanes) * lanes, np.int32)
        padded[: places.size] = places
        packed = self.buffer(f"{name} packed", padded.size, per="plan", zeros=True)
        self._packs.append((name, padded.size, self.table(f"{name} order", padded), packed))
        return packed

    def _prepare(self) -> list[RecordedStage]:
        """What a step begins with: weights in other orders, and for a prediction what the running statistics come to."""
        first = Recorder()
        first.phase = "prepare"
        for name, size, table, packed in self._packs:
            first.node = name.rpartition(".")[0]
            operands = {"weight": Place(self.weight), "places": table, "packed": packed}
            first.shared(Pack(self.target), size, GRAIN, wait=False, **operands)
        for node, kernel, channels, operands in self._scales:
            first.node = node
            first.shared(kernel, channels, channels, wait=False, **operands)
        return first.stages

    # Forward

    def _forward(self, node: Node) -> None:
        if not has_kernel(node):
            self._host(node, backward=False)
            return
        getattr(self, f"_forward_{node.kind.lower()}")(node)

    def _host(self, node: Node, backward: bool) -> None:
        x = [self.tensor(tensor) for tensor in node.inputs]
        dx: list[tuple[Buffer, Plane] | None] = [None for _ in node.inputs]
        add = [False for _ in node.inputs]
        y = self.tensor(node.output)
        if backward:
            y = self.gradient_of(node.output)
            for i, tensor in enumerate(node.inputs):
                if self._trains[tensor]:
                    dx[i], add[i] = self.gradient_of(tensor), tensor in self._written
                    self._written.add(tensor)
        uses = [pair[0] for pair in (*x, y, *dx) if pair is not None]
        work = HostWork(self, node, backward, x, y, dx, add)
        self.record.host(work, f"{node.kind}: no kernel, the layer itself", uses)

    def _forward_conv2d(self, node: Node) -> None:
        layer = node.layers[0]
        assert isinstance(layer, layers.Conv2d)
        x, x_plane = self.tensor(node.inputs[0])
        y, y_plane = self.tensor(node.output)
        window, pool = layer.window, node.pool
        keep = self.training and pool is not None
        kernel = Correlate(
            self.target,
            x_plane,
            y_plane,
            layer.filters,
            window.kernel,
            (layer.out_shape[0], layer.out_shape[1]),
            window.stride,
            window.dilation,
            (-window.padding[0], -window.padding[1]),
            pool=pool.window.kernel if pool else (1, 1),
            bias=layer.bias,
            relu=node.relu,
            keep_where=keep,
        )
        name = f"{layer.name}.weight"
        packed = self._packed(name, packing.correlate_places(kernel, self.parameters.places(name)))
        where = self.buffer(f"{node.output.name} where", features(node.output.shape), "uint8") if keep else None
        if where is not None:
            self._where[node] = where
        self.record.images(
            kernel,
            x=x,
            weight=packed,
            bias=self.weight_of(f"{layer.name}.bias") if layer.bias else None,
            y=y,
            where=where,
        )

    def _forward_batchnorm(self, node: Node) -> None:
        layer = node.layers[0]
        assert isinstance(layer, layers.BatchNorm)
        x, x_plane = self.tensor(node.inputs[0])
        y, y_plane = self.tensor(node.output)
        C, pixels = x_plane.channels, x_plane.height * x_plane.width
        coefficients = self.buffer(f"{layer.name} coefficients", 4 * C, per="plan", zeros=True)
        for key in layer.buffers:
            self.running[f"{layer.name}.{key}"] = Buffer(f"{layer.name}.{key}", C, per="outside")
        mean, var = (self.running[f"{layer.name}.{key}"] for key in ("mean", "var"))
        gamma, beta = (self.weight_of(f"{layer.name}.{key}") for key in ("gamma", "beta"))
        affine = {"gamma": gamma, "beta": beta, "mean": mean, "var": var, "coefficients": coefficients}
        if self.training:
            sums = self.buffer(f"{layer.name} sums", 2 * C, "float64", "worker", zeros=True)
            self.record.images(NormSums(self.target, x_plane), x=x, pivot=mean, sums=sums)
            self.record.shared(
                NormFinish(self.target, C, pixels, self._pitch(sums), layer.momentum, layer.eps),
                C,
                C,
                sums=Place(sums, shared=True),
                workers=self.workers,
                images=self.images,
                **affine,
            )
        else:
            self._scales.append((node.name, NormScale(self.target, C, layer.eps), C, affine))
        keep = self.training and node.pool is not None
        where = self.buffer(f"{node.output.name} where", features(node.output.shape), "uint8") if keep else None
        if where is not None:
            self._where[node] = where
        self._kept[node] = {"coefficients": coefficients}
        pool = node.pool.window.kernel if node.pool else (1, 1)
        self.record.images(
            NormApply(self.target, x_plane, y_plane, pool, node.relu, keep),
            x=x,
            coefficients=coefficients,
            y=y,
            where=where,
        )

    def _forward_dense(self, node: Node) -> None:
        layer = node.layers[0]
        assert isinstance(layer, layers.Dense)
        x, x_plane = self.tensor(node.inputs[0])
        y, _ = self.tensor(node.output)
        self.record.images(
            DenseForward(self.target, x_plane.channels, layer.units, self._pitch(x), layer.bias, node.relu),
            WHOLE,
            x=x,
            weight=self.weight_of(f"{layer.name}.weight"),
            bias=self.weight_of(f"{layer.name}.bias") if layer.bias else None,
            y=y,
        )

    def _pitch(self, buffer: Buffer) -> int:
        return buffer.pitch // np.dtype(buffer.dtype).itemsize

    def _forward_flatten(self, node: Node) -> None:
        x, x_plane = self.tensor(node.inputs[0])
        if x_plane.border == (0, 0):
            self._of[node.output] = x, plane_of(node.output.shape)
            return
        y, _ = self.tensor(node.output)
        image = plane_of(node.inputs[0].shape)
        self.record.images(Elementwise(self.target, "copy", x_plane, image, image), a=x, y=y)

    def _forward_relu(self, node: Node) -> None:
        (x, x_plane), (y, y_plane) = self.tensor(node.inputs[0]), self.tensor(node.output)
        self.record.images(Elementwise(self.target, "relu", x_plane, x_plane, y_plane), a=x, y=y)

    def _forward_dropout(self, node: Node) -> None:
        layer = node.layers[0]
        assert isinstance(layer, layers.Dropout)
        (x, x_plane), (y, y_plane) = self.tensor(node.inputs[0]), self.tensor(node.output)
        flat = plane_of(node.output.shape)
        mask = self.buffer(f"{layer.name} mask", flat.size)
        self._kept[node] = {"mask": (mask, flat)}
        self.record.host(MaskWork(layer, mask, flat), "draws the mask", [mask])
        self.record.images(Elementwise(self.target, "multiply", x_plane, flat, y_plane), a=x, b=mask, y=y)

    def _forward_add(self, node: Node) -> None:
        (a, a_plane), (b, b_plane) = (self.tensor(tensor) for tensor in node.inputs)
        y, y_plane = self.tensor(node.output)
        operation = "add relu" if node.relu else "add"
        self.record.images(Elementwise(self.target, operation, a_plane, b_plane, y_plane), a=a, b=b, y=y)

    def _pool(self, node: Node) -> dict[str, Any]:
        layer: Any = node.layers[0]
        window = layer.window
        return {"window": window.kernel, "stride": window.stride, "mean": "Avg" in node.kind}

    def _forward_maxpool2d(self, node: Node) -> None:
        (x, x_plane), (y, y_plane) = self.tensor(node.inputs[0]), self.tensor(node.output)
        how = self._pool(node)
        keep = self.training and not how["mean"]
        where = self.buffer(f"{node.output.name} where", features(node.output.shape), "uint8") if keep else None
        if where is not None:
            self._where[node] = where
        kernel = PoolForward(self.target, x_plane, y_plane, **how, keep_where=keep)
        self.record.images(kernel, x=x, y=y, where=where)

    _forward_avgpool2d = _forward_globalmaxpool = _forward_globalavgpool = _forward_maxpool2d

    # Backward

    def _backward(self, node: Node) -> None:
        if not has_kernel(node):
            self._host(node, backward=True)
            return
        getattr(self, f"_backward_{node.kind.lower()}")(node)

    def _into(self, tensor: Tensor) -> tuple[Buffer, Plane, bool] | None:
        """Where dX goes, and whether it is added to what is there; None where no one needs it."""
        if not self._trains[tensor]:
            return None
        add = tensor in self._written
        self._written.add(tensor)
        return *self.gradient_of(tensor), add

    def _sum_into(self, tensor: Tensor) -> tuple[Buffer, Plane, Any] | None:
        """As ``_into``, for a kernel that cannot add: it writes beside, and what it returns adds."""
        into = self._into(tensor)
        if into is None:
            return None
        buffer, plane, add = into
        if not add:
            return buffer, plane, lambda: None
        beside = self.buffer(f"{buffer.name} beside", buffer.elements)

        def finish() -> None:
            self.record.images(Elementwise(self.target, "add", plane, plane, plane), a=buffer, b=beside, y=buffer)

        return beside, plane, finish

    def _backward_conv2d(self, node: Node) -> None:
        if is_sparse(node, self.target):
            self._backward_sparse(node)
            return
        layer = node.layers[0]
        assert isinstance(layer, layers.Conv2d)
        dy, dy_plane = self.gradient_of(node.output)
        y, y_plane = self.tensor(node.output)
        border = self._gradient_border(layer) if self._trains[node.inputs[0]] else (0, 0)
        out_plane = plane_of(layer.out_shape, border)
        out, pool = dy, node.pool.window.kernel if node.pool else (1, 1)
        sparse = any(is_sparse(reader, self.target) for reader in node.output.readers)  # leaves anything in the border
        if node.relu or node.pool or border != dy_plane.border or layer.bias or (sparse and border != (0, 0)):
            covered = out_plane.height % pool[0] == 0 and out_plane.width % pool[1] == 0
            out = self.buffer(f"d {layer.name}", out_plane.size, zeros=border != (0, 0) or not covered)
            self.record.images(
                Spread(self.target, dy_plane, y_plane, out_plane, pool, node.relu, layer.bias),
                dy=dy,
                y=y if node.relu else None,
                where=self._where.get(node),
                out=out,
                sums=self.partial_of(f"{layer.name}.bias") if layer.bias else None,
            )
        self._conv_gradients(node, layer, out, out_plane)

    def _conv_gradients(self, node: Node, layer: layers.Conv2d, dy: Buffer, dy_plane: Plane) -> None:
        """dW and dX of a convolution whose dY is there, pixel by pixel."""
        x, x_plane = self.tensor(node.inputs[0])
        window, name = layer.window, f"{layer.name}.weight"
        origin = (-window.padding[0], -window.padding[1])
        into = self._into(node.inputs[0])
        if into is not None:
            dx, dx_plane, add = into
            if not add and any(stride > size for stride, size in zip(window.stride, window.kernel, strict=True)):
                # Pixels that no window covers: zeros each time anew, for others may add to them afterwards.
                nothing = self.buffer(f"{dx.name} zeros", dx_plane.size, zeros=True)
                self.record.images(Elementwise(self.target, "copy", dx_plane, dx_plane, dx_plane), a=nothing, y=dx)
            for kernel, rows, columns in self._input_gradients(layer, dy_plane, dx_plane, add):
                places = packing.turned_round(self.parameters.places(name), rows, columns)
                packed = self._packed(name, packing.correlate_places(kernel, places))
                self.record.images(kernel, x=dy, weight=packed, y=dx)
        gradient = WeightGradient(self.target, x_plane, dy_plane, window.kernel, window.stride, window.dilation, origin)
        self.record.images(gradient, x=x, dy=dy, gradient=self.partial_of(name))

    def _input_gradients(self, layer: layers.Conv2d, dy: Plane, dx: Plane, add: bool) -> list[tuple[Correlate, slice, slice]]:
        """The correlations that make dX, each with the taps that it takes: one for each class of pixels that a stride makes."""
        found: list[tuple[Correlate, slice, slice]] = []
        down, across = (list(_classes(layer, axis)) for axis in (0, 1))
        for h0, rows, J, top in down:
            for w0, columns, L, left in across:
                (sh, sw), (dh, dw) = layer.window.stride, layer.window.dilation
                size = -(-(dx.height - h0) // sh), -(-(dx.width - w0) // sw)
                if min(size) < 1 or J == 0 or L == 0:  # no such pixels, or no tap reaches them: dX is zero there
                    continue
                found.append(
                    (
                        Correlate(
                            self.target, dy, dx, layer.in_shape[2], (J, L), size, (1, 1), (dh, dw), (top, left),
                            (sh, sw), (h0, w0), add=add,
                        ),
                        rows,
                        columns,
                    )
                )
        return found

    def _gradient_border(self, layer: layers.Conv2d) -> Pair:
        """The zeros around dY that the correlations for dX read."""
        border = [0, 0]
        for axis in (0, 1):
            length, out = layer.in_shape[axis], layer.out_shape[axis]
            stride, dilation = layer.window.stride[axis], layer.window.dilation[axis]
            for first, _, taps, origin in _classes(layer, axis):
                pixels = -(-(length - first) // stride)
                if pixels >= 1 and taps:
                    end = origin + pixels - 1 + (taps - 1) * dilation
                    border[axis] = max(border[axis], -origin, end - (out - 1))
        return border[0], border[1]

    def _backward_sparse(self, node: Node) -> None:
        layer, pool = node.layers[0], node.pool
        assert isinstance(layer, layers.Conv2d) and pool is not None
        x, x_plane = self.tensor(node.inputs[0])
        dy, dy_plane = self.gradient_of(node.output)
        y, y_plane = self.tensor(node.output)
        into = self._sum_into(node.inputs[0])
        dx_plane = into[1] if into else x_plane
        assert dx_plane == x_plane
        window, name = layer.window, f"{layer.name}.weight"
        kernel = SparseBackward(
            self.target, x_plane, dy_plane, y_plane, window.kernel, pool.window.kernel,
            (-window.padding[0], -window.padding[1]), layer.bias, into is not None,
        )
        places = self.parameters.places(name)
        positions = self.partial_size + packing.run_positions(kernel, places.shape)
        gradient = Place(self.partial, self.partial_size)
        self.partial_size += layer.filters * window.kernel[0] * kernel.run
        self._kept[node] = {"positions": positions, "name": name}
        packed = self._packed(name, packing.run_places(kernel, places)) if into else None
        scratch = kernel.list_elements
        self.record.images(
            kernel,
            x=x,
            dy=dy,
            y=y,
            where=self._where[node],
            weight=packed,
            gradient=gradient,
            sums=self.partial_of(f"{layer.name}.bias") if layer.bias else None,
            dx=into[0] if into else None,
            places=self.buffer(f"{layer.name} places", scratch, "int32", "worker"),
            values=self.buffer(f"{layer.name} values", scratch, per="worker"),
        )
        if into:
            into[2]()

    def _backward_batchnorm(self, node: Node) -> None:
        layer = node.layers[0]
        assert isinstance(layer, layers.BatchNorm)
        x, x_plane = self.tensor(node.inputs[0])
        dy, dy_plane = self.gradient_of(node.output)
        y, y_plane = self.tensor(node.output)
        C, pixels = x_plane.channels, x_plane.height * x_plane.width
        coefficients, where = self._kept[node]["coefficients"], self._where.get(node)
        sums = self.buffer(f"{layer.name} sums", 2 * C, "float64", "worker", zeros=True)
        terms = self.buffer(f"{layer.name} terms", 3 * C, per="plan", zeros=True)
        pool = node.pool.window.kernel if node.pool else (1, 1)
        given = {"x": x, "dy": dy, "y": y if node.relu else None, "where": where, "coefficients": coefficients}
        self.record.images(NormBackwardSums(self.target, x_plane, dy_plane, y_plane, pool, node.relu), **given, sums=sums)
        self.record.shared(
            NormBackwardFinish(self.target, C, pixels, self._pitch(sums)),
            C,
            C,
            sums=Place(sums, shared=True),
            workers=self.workers,
            images=self.images,
            gamma=self.weight_of(f"{layer.name}.gamma"),
            coefficients=coefficients,
            dgamma=self.partial_of(f"{layer.name}.gamma", first=True),
            dbeta=self.partial_of(f"{layer.name}.beta", first=True),
            terms=terms,
        )
        if not self._trains[node.inputs[0]]:
            return
        before = node.inputs[0].producer
        border = (0, 0)
        conv = before.layers[0] if before is not None and len(node.inputs[0].readers) == 1 else None
        direct = isinstance(conv, layers.Conv2d) and has_kernel(before) and not conv.bias and len(before.layers) == 1  # type: ignore[arg-type, union-attr]
        if direct and before is not None and self._trains[before.inputs[0]]:
            border = self._gradient_border(conv)  # type: ignore[arg-type]
        if direct:  # straight into what the convolution reads, with its border
            plane = plane_of(node.inputs[0].shape, border)
            made = self.buffer(f"d {node.inputs[0].name}", plane.size, zeros=border != (0, 0)), plane
            self._gradient[node.inputs[0]] = made
        into = self._sum_into(node.inputs[0])
        assert into is not None
        dx, dx_plane, finish = into
        self.record.images(
            NormBackward(self.target, x_plane, dy_plane, y_plane, dx_plane, pool, node.relu), **given, terms=terms, dx=dx
        )
        finish()

    def _backward_dense(self, node: Node) -> None:
        layer = node.layers[0]
        assert isinstance(layer, layers.Dense)
        x, x_plane = self.tensor(node.inputs[0])
        dy, plane = self.gradient_of(node.output)
        if node.relu:
            y, _ = self.tensor(node.output)
            self.record.images(Elementwise(self.target, "gate", plane, plane, plane), WHOLE, a=dy, b=y, y=dy)
        if layer.bias:
            sums = self.partial_of(f"{layer.name}.bias")
            self.record.images(ColumnSums(self.target, layer.units), WHOLE, y=dy, sums=sums)
        into = self._sum_into(node.inputs[0])
        weight = self.weight_of(f"{layer.name}.weight")
        if into is not None:
            dx, _, finish = into
            kernel = DenseInputGradient(self.target, x_plane.channels, layer.units, self._pitch(dx))
            scratch = self.buffer(f"{layer.name} turned", kernel.scratch_elements, per="worker")
            self.record.images(kernel, WHOLE, dy=dy, weight=weight, dx=dx, scratch=scratch)
            finish()
        update = DenseWeightUpdate(self.target, x_plane.channels, layer.units, self._pitch(x), self.rule)
        start = self.parameters.start[f"{layer.name}.weight"]
        self._updates.append((node.name, f"{layer.name}.weight", (update, x_plane.channels, x, dy, start)))

    def _backward_flatten(self, node: Node) -> None:
        tensor = node.inputs[0]
        dy, _ = self.gradient_of(node.output)
        plane = plane_of(tensor.shape)
        single = len(tensor.readers) == 1 and tensor not in self._gradient
        if single:
            self._gradient[tensor] = dy, plane
            self._written.add(tensor)
            return
        self._pass_on(tensor, dy, plane)

    def _pass_on(self, tensor: Tensor, dy: Buffer, plane: Plane) -> None:
        """dX = dY."""
        into = self._into(tensor)
        if into is None:
            return
        dx, dx_plane, add = into
        if add:
            self.record.images(Elementwise(self.target, "add", plane, dx_plane, dx_plane), a=dy, b=dx, y=dx)
        else:
            self.record.images(Elementwise(self.target, "copy", plane, plane, dx_plane), a=dy, y=dx)

    def _backward_relu(self, node: Node) -> None:
        (dy, plane), (y, y_plane) = self.gradient_of(node.output), self.tensor(node.output)
        into = self._sum_into(node.inputs[0])
        if into is not None:
            dx, dx_plane, finish = into
            self.record.images(Elementwise(self.target, "gate", plane, y_plane, dx_plane), a=dy, b=y, y=dx)
            finish()

    def _backward_dropout(self, node: Node) -> None:
        dy, plane = self.gradient_of(node.output)
        mask, flat = self._kept[node]["mask"]
        into = self._sum_into(node.inputs[0])
        if into is not None:
            dx, dx_plane, finish = into
            self.record.images(Elementwise(self.target, "multiply", plane, flat, dx_plane), a=dy, b=mask, y=dx)
            finish()

    def _backward_add(self, node: Node) -> None:
        dy, plane = self.gradient_of(node.output)
        if node.relu:
            y, y_plane = self.tensor(node.output)
            self.record.images(Elementwise(self.target, "gate", plane, y_plane, plane), a=dy, b=y, y=dy)
        body, beside = node.inputs
        # Both can be dY itself where the body's last operation only reads it, before anything is added to the other's.
        # What has only the body's gradient to wait for may do with dY what it likes.
        last = body.producer
        reads = last is not None and len(body.readers) == 1 and last.inputs[0] is not beside and has_kernel(last)
        kept = reads and last is not None and last.kind in ("Conv2d", "BatchNorm")
        shares = {body: kept, beside: body is not beside}
        for tensor in (body, beside):
            alone = tensor not in self._gradient and plane == plane_of(tensor.shape)
            sparse = any(is_sparse(reader, self.target) for reader in tensor.readers)
            if shares[tensor] and alone and not sparse and self._trains[tensor]:
                self._gradient[tensor] = dy, plane
                self._written.add(tensor)
            else:
                self._pass_on(tensor, dy, plane)

    def _backward_maxpool2d(self, node: Node) -> None:
        dy, plane = self.gradient_of(node.output)
        into = self._sum_into(node.inputs[0])
        if into is not None:
            dx, dx_plane, finish = into
            kernel = PoolBackward(self.target, dx_plane, plane, **self._pool(node))
            self.record.images(kernel, dy=dy, where=self._where.get(node), dx=dx)
            finish()

    _backward_avgpool2d = _backward_globalmaxpool = _backward_globalavgpool = _backward_maxpool2d

    # Update

    def _arrays(self, start: int) -> dict[str, Place]:
        names = ("weight", "gradient", "state1", "state2")
        return {name: Place(getattr(self, name), start) for name in names}

    def _update(self) -> None:
        """The optimizer's step: on the weights of dense layers with their gradients, on all others from the sums."""
        first = True
        for name, _, (kernel, extent, x, dy, start) in self._updates:
            self._node(name)
            grain = max(1, min(64, extent // 2))
            self.record.shared(
                kernel, extent, grain, wait=first, x=x, dy=dy, images=self.images, scalars=self.scalars, **self._arrays(start)
            )
            first = False
        mapped = {kept["name"]: kept["positions"] for kept in self._kept.values() if "positions" in kept}
        groups = [(names, False) for names in (self.parameters.summed,) if names]
        groups += [([name], True) for name in self.parameters.mapped]
        for names, is_mapped in groups:
            start, end = self.parameters.start[names[0]], self.parameters.end(names[-1])
            self._node(names[0].rpartition(".")[0] if is_mapped else "summed parameters")
            table = None
            if is_mapped:
                positions = mapped[names[0]]
                # Elements between parameters have no gradient: they read the zero at the front, of which nothing is kept.
                padded = np.zeros(end - start, np.int32)
                padded[: positions.size] = positions
                table = self.table(f"{names[0]} gradient order", padded)
            self.record.shared(
                Update(self.target, self._partial_pitch(), is_mapped, self.rule),
                end - start,
                GRAIN,
                wait=first,
                partial=Place(self.partial, 0 if is_mapped else start, shared=True),
                places=table,
                workers=self.workers,
                scalars=self.scalars,
                **self._arrays(start),
            )
            first = False

    def _partial_pitch(self) -> int:
        """Elements from a worker's gradients to the next's."""
        return -(-(self.partial_size + 64) // 64) * 64


def _classes(layer: layers.Conv2d, axis: int) -> list[tuple[int, slice, int, int]]:
    """The classes of pixels of dX that a stride makes along one axis: (first pixel, taps, how many, where dY is read).

    Pixel h takes part in tap r of output p where h + pad = p * stride + r * dilation. With a stride, dilation is 1: the
    pixels with (h + pad) % stride = a meet the taps a, a + stride, ...; tap a + j stride comes from output (h + pad - a) / stride - j.
    """
    kernel, stride = layer.window.kernel[axis], layer.window.stride[axis]
    pad, dilation = layer.window.padding[axis], layer.window.dilation[axis]
    if stride == 1:
        return [(0, slice(None), kernel, pad - (kernel - 1) * dilation)]
    found = []
    for a in range(stride):
        first = (a - pad) % stride
        taps = len(range(a, kernel, stride))
        found.append((first, slice(a, None, stride), taps, (first + pad - a) // stride - (taps - 1)))
    return found

"""The launches of a step as they are written down: buffers and gradients by tensor, partial sums by parameter."""

from __future__ import annotations

from dataclasses import dataclass, field

from bareconv.kernels.cuda.kernel import Kernel, Precision, padded
from bareconv.kernels.cuda.limits import Limits
from bareconv.kernels.cuda.pool import where_dtype
from bareconv.nn.layer import features
from bareconv.nn.model import Model
from bareconv.ops.windows import Window
from bareconv.optim.rule import Rule
from bareconv.plan.cuda.parameters import Layout, Parameters, layouts
from bareconv.plan.cuda.record import BRANCH, Buffer, Operand, Place, Recorder
from bareconv.plan.graph import Graph, Tensor, trained_tensors


class Outside:
    """Memory that is not the record's own: whoever binds it knows where it is."""

    def __init__(self) -> None:
        self.pixels = Buffer("pixels", 0, "uint8")
        self.order = Buffer("order", 0, "int32")
        self.labels = Buffer("labels", 0, "int32")
        self.control = Buffer("control", 0, "int32")
        self.scalars = Buffer("scalars", 0, "float32")
        self.losses = Buffer("losses", 0, "float32")
        self.hits = Buffer("hits", 0, "int32")
        self.weight = Buffer("weight", 0, "float32")
        self.state1 = Buffer("state1", 0, "float32")
        self.state2 = Buffer("state2", 0, "float32")
        self.gradient = Buffer("gradient", 0, "float32")
        self.copy = Buffer("copy", 0, "uint8")
        self.pieces = Buffer("pieces", 0, "uint8")  # what the update works on
        self.running: dict[str, Buffer] = {}  # statistics of batch norms, by "layer.key"

    def all(self) -> list[Buffer]:
        """Every one of them."""
        return [one for one in vars(self).values() if isinstance(one, Buffer)] + list(self.running.values())


@dataclass(eq=False)
class Summed:
    """A parameter whose gradient lies in ``parts`` partial sums, for the update to add up."""

    name: str
    partial: Buffer
    parts: int


@dataclass(eq=False)
class Step:
    """What the fused operations share while they write a step down (``training``) or a prediction."""

    graph: Graph
    model: Model
    precision: Precision
    limits: Limits
    parameters: Parameters
    rule: Rule
    batch: int
    smoothing: float = 0.0
    training: bool = True
    record: Recorder = field(default_factory=Recorder)
    outside: Outside = field(default_factory=Outside)
    summed: list[Summed] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layouts: dict[Tensor, Layout] = layouts(self.graph)
        self.image_loss = self.buffer("image loss", self.batch, "float32")
        self.image_hit = self.buffer("image hit", self.batch, "int32")
        self.position = self.buffer("position", 1, "int32")
        self._arrays: dict[Tensor, Buffer] = {}
        self._gradients: dict[Tensor, Buffer] = {}
        self._written: set[Tensor] = set()
        self._masked: set[Tensor] = set()
        self.finished: set[Tensor] = set()  # whose gradients nothing reads any more
        self._trained = trained_tensors(self.graph)

    @property
    def kept(self) -> str:
        """The dtype of activations: bf16 has none in NumPy, its bits are an uint16."""
        return "uint16" if self.precision == "bfloat16" else "float32"

    def trains(self, tensor: Tensor) -> bool:
        """Whether a parameter's gradient depends on that tensor's."""
        return tensor in self._trained

    def launch(self, kernel: Kernel, **operands: Operand) -> None:
        """A launch, as ``Recorder.launch``; the control block is given to whoever wants it."""
        if "control" in kernel.operands:
            operands["control"] = self.outside.control
        self.record.launch(kernel, operands)

    # Arrays

    def buffer(self, name: str, elements: int, dtype: str | None = None, kept: bool = False) -> Buffer:
        """A new array, of the precision's kept type unless told."""
        return Buffer(name, elements, dtype or self.kept, kept=kept)

    def like(self, tensor: Tensor, name: str, dtype: str | None = None) -> Buffer:
        """A new array with the layout of that tensor, for the whole batch."""
        return self.buffer(name, self.batch * self.layouts[tensor].pitch, dtype)

    def sums(self, units: int, splits: int, name: str) -> Buffer:
        """Room for a dense layer's products, split over its features."""
        return self.buffer(name, splits * self.batch * padded(units), "float32")

    def tensor(self, tensor: Tensor) -> Buffer:
        """Where that tensor is."""
        if tensor not in self._arrays:
            self._arrays[tensor] = self.like(tensor, tensor.name)
        return self._arrays[tensor]

    def same_array(self, tensor: Tensor, buffer: Buffer) -> None:
        """That tensor is in a buffer that there is already."""
        self._arrays[tensor] = buffer

    def where(self, tensor: Tensor, window: Window) -> Buffer | None:
        """Which pixel of its window was each maximum of a pool's output. For training only."""
        return self.like(tensor, f"{tensor.name} where", where_dtype(window)) if self.training else None

    # Gradients

    def gradient(self, tensor: Tensor) -> Buffer:
        """Where the gradient of that tensor is."""
        if tensor not in self._gradients:
            self._gradients[tensor] = self.like(tensor, f"d {tensor.name}")
        return self._gradients[tensor]

    def same_gradient(self, tensor: Tensor, buffer: Buffer, passed: Tensor) -> bool:
        """Let that tensor's gradient be what is in ``buffer``, the gradient of ``passed`` or made from it.

        What goes backward through ``passed`` has read it for the last time. So a tensor that others read, too, may have
        theirs added to it in place, if no launch to come looks for the old values there. False where that is not so,
        and where no gradient is wanted, or some of it is somewhere else already.
        """
        if tensor in self._gradients or tensor not in self._trained:
            return False
        if len(tensor.readers) > 1:
            if not self.may_overwrite(buffer, passed):
                return False
        elif any(len(other.readers) > 1 for other in self._waiting(buffer, passed)):
            return False
        self._gradients[tensor] = buffer
        self._written.add(tensor)
        return True

    def may_overwrite(self, buffer: Buffer, passed: Tensor) -> bool:
        """Whether only what goes backward through ``passed`` still needs what is in ``buffer``, its gradient."""
        beside = any(one is buffer and branch == BRANCH for _, branch, one in self.record.buffers())
        return not beside and not self._waiting(buffer, passed)

    def _waiting(self, buffer: Buffer, passed: Tensor) -> list[Tensor]:
        """The tensors, but ``passed``, whose gradient is in that buffer and will be read."""
        return [
            tensor
            for tensor, one in self._gradients.items()
            if one is buffer and tensor is not passed and tensor not in self.finished
        ]

    def into(self, tensor: Tensor) -> tuple[Buffer, bool] | None:
        """Where dX goes, and whether it is added to what is there; None where no one needs it."""
        if tensor not in self._trained:
            return None
        add = tensor in self._written
        self._written.add(tensor)
        return self.gradient(tensor), add

    def masks(self, tensor: Tensor) -> bool:
        """Whether whoever writes that tensor's gradient has to zero it where the tensor, a relu's output, is zero.

        Asked by a kernel that can, and only true where no one else writes it; the relu then need not do it.
        """
        producer = tensor.producer
        if producer is None or not producer.relu or producer.pool is not None or len(tensor.readers) != 1:
            return False
        if producer.kind == "BatchNorm":
            return False  # which finds out itself
        self._masked.add(tensor)
        return True

    def is_masked(self, tensor: Tensor) -> bool:
        """Whether that tensor's gradient has come masked already."""
        return tensor in self._masked

    # Parameters

    def master(self, name: str) -> Place:
        """That parameter, in float32."""
        return Place(self.outside.weight, 4 * self.parameters.start[name])

    def copy(self, name: str) -> Place:
        """The working copy of that weight."""
        return Place(self.outside.copy, self.parameters.copies[name].offset)

    def state(self, flat: Buffer, name: str) -> Place:
        """That parameter's part of the optimizer's state."""
        return Place(flat, 4 * self.parameters.start[name])

    def partial(self, name: str, parts: int) -> Buffer:
        """Room for partial sums of that parameter's gradient, which the update adds up."""
        buffer = self.buffer(f"{name} partial", parts * self.parameters.elements(name), "float32")
        self.summed.append(Summed(name, buffer, parts))
        return buffer

    def running(self, name: str) -> Buffer:
        """Running statistics: "norm1.mean"."""
        return self.outside.running.setdefault(name, Buffer(name, 0, "float32"))

    def pitch(self, tensor: Tensor) -> int:
        """Elements of an image of that tensor, padding included."""
        return self.layouts[tensor].pitch


def image_of(tensor: Tensor) -> tuple[int, int, int]:
    """(H, W, C) of a tensor; a vector is one pixel."""
    shape = tensor.shape
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    return 1, 1, features(shape)

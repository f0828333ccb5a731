"""The layers: each a thin owner of parameters around one operation of ``ops``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from bareconv import ops
from bareconv.device import Array, namespace
from bareconv.errors import UsageError
from bareconv.nn import init
from bareconv.nn.layer import Drawing, Flops, Layer, Shape, Watch, features
from bareconv.ops.pool import check_padding
from bareconv.ops.windows import Pair, Window

Saved: TypeAlias = tuple[Any, ...]  # what a forward keeps for its backward


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


class _Operation(Layer):
    """A layer that is one operation: ``_forward`` returns the output and what ``_backward`` needs to go back."""

    def _forward(self, x: Array, training: bool, step: int) -> tuple[Array, Saved]:
        raise NotImplementedError

    def _weight_gradient(self, dy: Array, saved: Saved) -> Array | None:
        """dW of a layer that computes it apart from dX; in ``grads`` then, with that of the bias."""
        return None

    def _backward(self, dy: Array, saved: Saved, need_dx: bool) -> Array | None:
        """dX, where it is needed; gradients of the parameters that are not there yet go to ``grads``."""
        raise NotImplementedError

    def forward(self, x: Array, training: bool = False, step: int = 0, watch: Watch | None = None) -> Array:
        y, saved = self._forward(x, training, step)
        if training:
            self._saved = saved
        if watch:
            watch("forward", self, y)
        return y

    def backward(self, dy: Array, need_dx: bool = True, watch: Watch | None = None) -> Array | None:
        saved = self._take_saved()
        dw = self._weight_gradient(dy, saved)
        if watch and dw is not None:
            watch("dW", self, dw)
        dx = self._backward(dy, saved, need_dx)
        if watch:
            watch("backward", self, dx)
        return dx


@dataclass(eq=False)
class Conv2d(_Operation):
    """conv2d with ``filters`` output channels: (N, H, W, C) -> (N, P, Q, filters).

    Parameters: ``weight`` (R, S, C/groups, filters), ``bias`` (filters). Sizes are a number or (height, width).
    """

    kind: ClassVar[str] = "conv"

    filters: int
    kernel: int | Pair = 3
    stride: int | Pair = 1
    padding: int | Pair = 0
    dilation: int | Pair = 1
    groups: int = 1
    bias: bool = True
    init: str = "he"

    @property
    def window(self) -> Window:
        return Window(_pair(self.kernel), _pair(self.stride), _pair(self.padding), _pair(self.dilation))

    def _build(self, drawing: Drawing) -> Shape:
        self._expect(3)
        H, W, C = self.in_shape
        P, Q = self.window.output_size((H, W))
        if self.groups < 1 or C % self.groups or self.filters < 1 or self.filters % self.groups:
            raise UsageError(
                f"layer {self.name} ({self!r}): {C} input channels and {self.filters} filters must both divide "
                f"into {self.groups} groups"
            )
        (R, S), layer = self.window.kernel, drawing.next_layer()
        fans = R * S * C // self.groups, R * S * self.filters // self.groups
        shape = (R, S, C // self.groups, self.filters)
        self.params["weight"] = init.draw(self.init, shape, *fans, drawing.seed, (layer, 0))
        if self.bias:
            scheme = self.init if self.init.startswith("uniform") else "zeros"
            self.params["bias"] = init.draw(scheme, (self.filters,), *fans, drawing.seed, (layer, 1))
        return P, Q, self.filters

    def _forward(self, x: Array, training: bool, step: int) -> tuple[Array, Saved]:
        y, cols = ops.conv2d_forward(x, self.params["weight"], self.params.get("bias"), self.window, self.groups)
        return y, (cols, x.shape)

    def _weight_gradient(self, dy: Array, saved: Saved) -> Array:
        self.grads["weight"], db = ops.conv2d_weight_gradient(dy, saved[0], self.params["weight"].shape, self.groups)
        if self.bias:
            self.grads["bias"] = db
        return self.grads["weight"]

    def _backward(self, dy: Array, saved: Saved, need_dx: bool) -> Array | None:
        if not need_dx:
            return None
        return ops.conv2d_input_gradient(dy, self.params["weight"], saved[1], self.window, self.groups)

    def flops(self) -> Flops:
        work = 2 * features(self.out_shape) * features(self.params["weight"].shape[:3])
        return Flops(work, work, work)


@dataclass(eq=False)
class Dense(_Operation):
    """Dense with ``units`` outputs: (N, F) -> (N, units). Parameters: ``weight`` (F, units), ``bias`` (units)."""

    kind: ClassVar[str] = "dense"

    units: int
    bias: bool = True
    init: str = "he"

    def _build(self, drawing: Drawing) -> Shape:
        self._expect(1)
        (F,), layer = self.in_shape, drawing.next_layer()
        self.params["weight"] = init.draw(self.init, (F, self.units), F, self.units, drawing.seed, (layer, 0))
        if self.bias:
            scheme = self.init if self.init.startswith("uniform") else "zeros"
            self.params["bias"] = init.draw(scheme, (self.units,), F, self.units, drawing.seed, (layer, 1))
        return (self.units,)

    def _forward(self, x: Array, training: bool, step: int) -> tuple[Array, Saved]:
        return ops.dense_forward(x, self.params["weight"], self.params.get("bias")), (x,)

    def _weight_gradient(self, dy: Array, saved: Saved) -> Array:
        self.grads["weight"], db = ops.dense_weight_gradient(dy, saved[0])
        if self.bias:
            self.grads["bias"] = db
        return self.grads["weight"]

    def _backward(self, dy: Array, saved: Saved, need_dx: bool) -> Array | None:
        return ops.dense_input_gradient(dy, self.params["weight"]) if need_dx else None

    def flops(self) -> Flops:
        work = 2 * features(self.params["weight"].shape)
        return Flops(work, work, work)


class _Simple(_Operation):
    """An operation without parameters, whose backward has nothing to make but dX."""

    def _backward(self, dy: Array, saved: Saved, need_dx: bool) -> Array | None:
        return self._dx(dy, saved) if need_dx else None

    def _dx(self, dy: Array, saved: Saved) -> Array:
        raise NotImplementedError


@dataclass(eq=False)
class Flatten(_Simple):
    """(N, H, W, C) -> (N, H*W*C), a view."""

    kind: ClassVar[str] = "flatten"

    def _build(self, drawing: Drawing) -> Shape:
        return (features(self.in_shape),)

    def _forward(self, x: Array, training: bool, step: int) -> tuple[Array, Saved]:
        return x.reshape(len(x), -1), (x.shape,)

    def _dx(self, dy: Array, saved: Saved) -> Array:
        (x_shape,) = saved
        return dy.reshape(x_shape)


@dataclass(eq=False)
class ReLU(_Simple):
    """max(x, 0); any shape."""

    kind: ClassVar[str] = "relu"

    def _forward(self, x: Array, training: bool, step: int) -> tuple[Array, Saved]:
        y = ops.relu_forward(x)
        return y, (y,)

    def _dx(self, dy: Array, saved: Saved) -> Array:
        (y,) = saved
        return ops.relu_backward(dy, y)


@dataclass(eq=False)
class LeakyReLU(_Simple):
    """x where x > 0, else slope * x; any shape."""

    kind: ClassVar[str] = "leaky_relu"
    slope: float = 0.01

    def _forward(self, x: Array, training: bool, step: int) -> tuple[Array, Saved]:
        return ops.leaky_relu_forward(x, self.slope), (x,)

    def _dx(self, dy: Array, saved: Saved) -> Array:
        (x,) = saved
        return ops.leaky_relu_backward(dy, x, self.slope)


@dataclass(eq=False)
class GELU(_Simple):
    """x times the normal distribution function of x, in its tanh form; any shape."""

    kind: ClassVar[str] = "gelu"

    def _forward(self, x: Array, training: bool, step: int) -> tuple[Array, Saved]:
        return ops.gelu_forward(x), (x,)

    def _dx(self, dy: Array, saved: Saved) -> Array:
        (x,) = saved
        return ops.gelu_backward(dy, x)


@dataclass(eq=False)
class MaxPool2d(_Simple):
    """The maximum of each window: (N, H, W, C) -> (N, P, Q, C). The stride is the kernel's size unless given."""

    kind: ClassVar[str] = "pool"

    kernel: int | Pair = 2
    stride: int | Pair | None = None
    padding: int | Pair = 0

    @property
    def window(self) -> Window:
        stride = self.kernel if self.stride is None else self.stride
        return Window(_pair(self.kernel), _pair(stride), _pair(self.padding))

    def _build(self, drawing: Drawing) -> Shape:
        self._expect(3)
        H, W, C = self.in_shape
        check_padding(self.window)
        return (*self.window.output_size((H, W)), C)

    def _forward(self, x: Array, training: bool, step: int) -> tuple[Array, Saved]:
        y, where = ops.max_pool_forward(x, self.window)
        return y, (where, x.shape)

    def _dx(self, dy: Array, saved: Saved) -> Array:
        where, x_shape = saved
        return ops.max_pool_backward(dy, where, x_shape, self.window)


@dataclass(eq=False)
class AvgPool2d(MaxPool2d):
    """The mean of each window, padding counted as zeros: (N, H, W, C) -> (N, P, Q, C)."""

    kind: ClassVar[str] = "avgpool"

    def _forward(self, x: Array, training: bool, step: int) -> tuple[Array, Saved]:
        return ops.avg_pool_forward(x, self.window), (x.shape,)

    def _dx(self, dy: Array, saved: Saved) -> Array:
        (x_shape,) = saved
        return ops.avg_pool_backward(dy, x_shape, self.window)


@dataclass(eq=False)
class GlobalMaxPool(_Simple):
    """The maximum of each channel over the whole image: (N, H, W, C) -> (N, C)."""

    kind: ClassVar[str] = "globalmax"

    @property
    def window(self) -> Window:
        return Window((self.in_shape[0], self.in_shape[1]))

    def _build(self, drawing: Drawing) -> Shape:
        self._expect(3)
        return (self.in_shape[2],)

    def _forward(self, x: Array, training: bool, step: int) -> tuple[Array, Saved]:
        y, where = ops.max_pool_forward(x, self.window)
        return y[:, 0, 0], (where, x.shape)

    def _dx(self, dy: Array, saved: Saved) -> Array:
        where, x_shape = saved
        return ops.max_pool_backward(dy[:, None, None], where, x_shape, self.window)


@dataclass(eq=False)
class GlobalAvgPool(GlobalMaxPool):
    """The mean of each channel over the whole image: (N, H, W, C) -> (N, C)."""

    kind: ClassVar[str] = "globalavg"

    def _forward(self, x: Array, training: bool, step: int) -> tuple[Array, Saved]:
        return x.mean(axis=(1, 2)), (x.shape,)

    def _dx(self, dy: Array, saved: Saved) -> Array:
        (x_shape,) = saved
        _, H, W, _ = x_shape
        return namespace(dy).broadcast_to(dy[:, None, None] * (1.0 / (H * W)), x_shape)


@dataclass(eq=False)
class BatchNorm(_Operation):
    """Batch normalisation over all axes but the last.

    Parameters: ``gamma`` and ``beta`` (C). Buffers: ``mean`` and ``var`` (C), running estimates that evaluation uses,
    moved by ``momentum`` towards the batch's at each training step (the variance's unbiased estimate, as is usual).
    """

    kind: ClassVar[str] = "norm"

    momentum: float = 0.1
    eps: float = 1e-5

    def _build(self, drawing: Drawing) -> Shape:
        C = self.in_shape[-1]
        zeros = init.draw("zeros", (C,), C, C, drawing.seed, (0, 0))
        self.params.update(gamma=zeros + 1, beta=zeros.copy())
        self.buffers.update(mean=zeros.copy(), var=zeros + 1)
        return self.in_shape

    def _forward(self, x: Array, training: bool, step: int) -> tuple[Array, Saved]:
        gamma, beta = self.params["gamma"], self.params["beta"]
        if not training:
            return ops.batch_norm_inference(x, gamma, beta, self.buffers["mean"], self.buffers["var"], self.eps), ()
        y, xhat, inv_std, mean, var = ops.batch_norm_forward(x, gamma, beta, self.eps)
        count = x.size // x.shape[-1]
        unbiased = var * (count / max(count - 1, 1))
        for key, now in (("mean", mean), ("var", unbiased)):
            self.buffers[key] *= 1.0 - self.momentum
            self.buffers[key] += self.momentum * now
        return y, (xhat, inv_std)

    def _backward(self, dy: Array, saved: Saved, need_dx: bool) -> Array | None:
        xhat, inv_std = saved
        dx, self.grads["gamma"], self.grads["beta"] = ops.batch_norm_backward(dy, xhat, inv_std, self.params["gamma"])
        return dx


@dataclass(eq=False)
class Dropout(_Simple):
    """Zeroes a share ``p`` of the numbers in training, the others grow by 1/(1-p); nothing in evaluation."""

    kind: ClassVar[str] = "dropout"

    p: float = 0.5
    _seed: int = field(default=0, init=False, repr=False)
    _layer: int = field(default=0, init=False, repr=False)

    def _build(self, drawing: Drawing) -> Shape:
        if not 0.0 <= self.p < 1.0:
            raise UsageError(f"layer {self.name}: dropout of {self.p}; expected at least 0 and less than 1")
        self._seed, self._layer = drawing.seed, drawing.next_layer()
        return self.in_shape

    def _forward(self, x: Array, training: bool, step: int) -> tuple[Array, Saved]:
        if not training:
            return x, ()
        mask = ops.dropout_mask(x, self.p, self._seed, step, self._layer)
        return ops.dropout_forward(x, mask), (mask,)

    def _dx(self, dy: Array, saved: Saved) -> Array:
        (mask,) = saved
        return ops.dropout_backward(dy, mask)

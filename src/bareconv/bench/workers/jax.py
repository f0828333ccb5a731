"""JAX: our model as a pure function with our weights, the whole training step in one ``jax.jit``, state donated.

As somebody who knows JAX writes it: images, labels, the order of the batches and the number of the step live on the
device, every step takes its batch by index and normalises it, and the old weights' memory becomes the new ones'. One
call takes one step, or several by ``lax.scan``: unrolled on a CPU, where XLA's convolutions in a loop take a hundred
times as long. A max pool whose windows tile its input is a maximum over a reshaped array, because XLA's gradient of
``reduce_window`` is slow. As JAX comes, a call takes a batch that NumPy made, nothing is donated, and the pool is
``reduce_window``.

Activations are NHWC beside HWIO weights, or NCHW beside OIHW. A flatten of NCHW runs over C, H, W, so that the rows of
the dense layer after it come in another order than ours, over H, W, C.

JAX has no call for the number of its threads on a CPU. XLA's pool is as large as the variable NPROC says when JAX is
imported, and as the cores that the process may use where it says nothing: so it is set here, from the threads that all
candidates get. float32 is strict, also on a GPU, and tf32 is JAX's own switch; bfloat16 is the usual mixture: weights
and batch norm's sums in float32, cast for everything else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv import host
from bareconv.bench.workers.lock import Alone
from bareconv.bench.workers.serving import CHUNK, Candidate, Job, UnsupportedError, in_parts, serve

GPU_CHUNK = 8192  # steps between two waits for the GPU

# (activations, weights, fresh running statistics or None outside of training) -> activations
Function = Callable[[Any, Mapping[str, Any], dict[str, Any] | None], Any]


class Jax(Candidate):
    """``options``: device ("cpu", "cuda:0"), layout ("nhwc", "nchw"), steps (of a call), xla (flags), tuned.

    tuned False: as JAX comes, in data, donation, pooling and precision; the precision of products is then XLA's choice.
    """

    users_flags = os.environ.get("XLA_FLAGS", "")

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        kind, _, index = options["device"].partition(":")
        self.on_gpu = kind == "cuda"
        os.environ["XLA_FLAGS"] = f"{self.users_flags} {options['xla']}".strip()
        os.environ["NPROC"] = str(host.blas_threads())
        os.environ["JAX_PLATFORMS"] = kind
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # three quarters of a GPU would be lost to the others
        import jax
        import jax.numpy as jnp

        self.jax, self.jnp = jax, jnp
        try:
            self.device = jax.devices()[int(index or 0)]
        except Exception as error:  # whichever of its parts is missing
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")
            raise UnsupportedError(f"JAX {jax.__version__} finds no {options['device']}: {why}") from None
        jax.config.update("jax_default_device", self.device)
        self.compiling = 0.0
        self.chunk = GPU_CHUNK if self.on_gpu else CHUNK

    def build(self, job: Job) -> None:
        jax, jnp, values, tuned = self.jax, self.jnp, job.settings, self.options["tuned"]
        self._set_precision(values["precision"])
        self.job, self.dtype = job, jnp.float64 if values["precision"] == "float64" else jnp.float32
        half = jnp.bfloat16 if values["precision"] == "bfloat16" else None
        network = Network(jax, self.options["layout"], tuned, half)
        model, self.arranged = network.sequence(values["layers"]), network.arranged
        self.restart(job)
        self.mean, self.scale = values["mean"], 1.0 / values["std"]
        lr, momentum, batch = values["lr"], values["momentum"], job.batch_size

        def logits_of(weights: Any, running: Any, x: Any, fresh: Any) -> Any:
            if self.options["layout"] == "nchw":
                x = x.transpose(0, 3, 1, 2)
            return model(x if half is None else x.astype(half), {**weights, **running}, fresh).astype(self.dtype)

        def normalised(images: Any) -> Any:
            x = images.astype(self.dtype)
            return ((x - self.mean) if self.mean else x) * self.scale

        def loss_of(weights: Any, running: Any, x: Any, labels: Any) -> Any:
            fresh: dict[str, Any] = {}
            logits = logits_of(weights, running, x, fresh)
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
            return -picked.mean(), fresh

        def step(state: Any, x: Any, labels: Any) -> Any:
            weights, velocity, running = state
            (loss, fresh), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights, running, x, labels)
            velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradients)
            weights = jax.tree.map(lambda w, v: w - lr * v, weights, velocity)
            return (weights, velocity, fresh), loss

        def step_at(state: Any, position: Any, images: Any, labels: Any, order: Any) -> Any:
            chosen = jax.lax.dynamic_slice(order, (position * batch,), (batch,))
            state, loss = step(state, normalised(images[chosen]), labels[chosen])
            return state, position + 1, loss

        def many(state: Any, position: Any, images: Any, labels: Any, order: Any) -> Any:
            def body(carried: Any, _: None) -> Any:
                state, position, loss = step_at(carried[0], carried[1], images, labels, order)
                return (state, position), loss

            carried, losses = jax.lax.scan(body, (state, position), None, self.options["steps"], unroll=not self.on_gpu)
            return (*carried, losses[-1])

        self.one = jax.jit(step_at, donate_argnums=(0, 1)) if tuned else jax.jit(step)
        self.many = jax.jit(many, donate_argnums=(0, 1))
        self.logits = jax.jit(lambda state, images: logits_of(state[0], state[2], normalised(images), None))
        if tuned:
            self.data = tuple(jnp.asarray(array) for array in (job.images, job.labels, job.order.reshape(-1)))
        with Alone():  # XLA measures what to compile a product or a convolution to
            self._compile()

    def restart(self, job: Job) -> None:
        jnp = self.jnp
        weights = {name: jnp.asarray(self.arranged[name](array), self.dtype) for name, array in job.weights.items()}
        running = {name: weights.pop(name) for name in list(weights) if name.endswith((".mean", ".var"))}
        velocity = {name: jnp.zeros_like(array) for name, array in weights.items()}
        self.state = (weights, velocity, running)
        self.position, self.next = jnp.int32(0), 0

    def _set_precision(self, name: str) -> None:
        jax = self.jax
        if not self.on_gpu and name == "tf32":
            raise UnsupportedError(f"{name} is for a GPU: on a CPU, expected float32, float64 or bfloat16")
        jax.config.update("jax_enable_x64", name == "float64")
        if self.options["tuned"] and name in ("float32", "tf32"):
            jax.config.update("jax_default_matmul_precision", {"float32": "highest", "tf32": "tensorfloat32"}[name])

    def _compile(self) -> None:
        """Take steps that are forgotten: what a first call takes longer than a second is compiling."""
        for count in sorted({1, self.options["steps"]}):
            kept = self.jax.tree.map(lambda array: array.copy(), self.state)
            times = []
            for _ in range(2):
                begun = time.perf_counter()
                self.steps(0, count)
                times.append(time.perf_counter() - begun)
            self.compiling += max(0.0, times[0] - times[1])
            self.state = kept

    def steps(self, first: int, count: int) -> float:
        if not self.options["tuned"]:
            return self._from_the_host(first, count)
        if first != self.next:
            self.position = self.jnp.int32(first)
        self.next, at_once, left = first + count, self.options["steps"], count
        while left:
            call, taken = (self.many, at_once) if 1 < at_once <= left else (self.one, 1)
            self.state, self.position, loss = call(self.state, self.position, *self.data)
            left -= taken
        return float(loss)

    def _from_the_host(self, first: int, count: int) -> float:
        for step in range(first, first + count):
            chosen = self.job.batch(step)
            x = self.job.images[chosen].astype(self.dtype)
            if self.mean:
                x -= self.mean
            x *= self.scale
            self.state, loss = self.one(self.state, x, self.job.labels[chosen])
        return float(loss)

    def accuracy(self, images: NDArray[np.uint8], labels: NDArray[np.int32]) -> float:
        predicted = [self.logits(self.state, part).argmax(axis=1) for part in in_parts(images)]
        return float((np.concatenate(predicted) == labels).mean())

    def compile_seconds(self, first_step: float, step: float) -> float:
        return self.compiling

    def flags(self) -> dict[str, str]:
        config = self.jax.config
        return {
            "device": self.device.device_kind,
            "platform": self.jax.default_backend(),
            "jax_default_matmul_precision": str(config.jax_default_matmul_precision),
            "jax_enable_x64": str(config.jax_enable_x64),
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
            **({} if self.on_gpu else {"NPROC": os.environ["NPROC"]}),
        }

    def versions(self) -> dict[str, str]:
        import jaxlib

        return {"jax": self.jax.__version__, "jaxlib": jaxlib.__version__, "numpy": np.__version__}

    def memory(self) -> int:
        return self._on_the_gpu("pool_bytes", "bytes_in_use") if self.on_gpu else super().memory()

    def peak_memory(self) -> int:
        return self._on_the_gpu("peak_pool_bytes", "peak_bytes_in_use") if self.on_gpu else super().peak_memory()

    def _on_the_gpu(self, *names: str) -> int:
        """The first of these that XLA's allocator counts, in bytes."""
        counted = self.device.memory_stats() or {}
        return int(next((counted[name] for name in names if counted.get(name)), 0))


class Network:
    """Functions for the described layers; ``arranged``: for each array of the weights, how it is laid out here."""

    def __init__(self, jax: Any, layout: str, tuned: bool, half: Any = None) -> None:
        self.jax, self.jnp, self.lax = jax, jax.numpy, jax.lax
        self.nchw, self.tuned, self.half = layout == "nchw", tuned, half
        self.arranged: dict[str, Callable[[Any], Any]] = {}
        self.flattened: list[int] | None = None  # H, W, C of what was just flattened: the next dense layer's rows

    def sequence(self, layers: list[dict[str, Any]]) -> Function:
        """One function after another."""
        functions = [self.function(layer) for layer in layers]

        def apply(x: Any, weights: Mapping[str, Any], fresh: dict[str, Any] | None) -> Any:
            for function in functions:
                x = function(x, weights, fresh)
            return x

        return apply

    def function(self, layer: dict[str, Any]) -> Function:
        """The function for one layer, blocks included."""
        kind, jnp = layer["type"], self.jnp
        pixels = (2, 3) if self.nchw else (1, 2)
        if kind == "Conv2d":
            return self._conv(layer)
        if kind == "Dense":
            return self._dense(layer)
        if kind == "BatchNorm":
            return self._norm(layer)
        if kind == "ReLU":
            return lambda x, weights, fresh: self.jax.nn.relu(x)
        if kind == "MaxPool2d":
            return self._max_pool(layer)
        if kind == "GlobalMaxPool":
            return lambda x, weights, fresh: jnp.max(x, axis=pixels)
        if kind == "GlobalAvgPool":
            return lambda x, weights, fresh: jnp.mean(x, axis=pixels)
        if kind == "Flatten":
            self.flattened = layer["in_shape"] if len(layer["in_shape"]) == 3 else None
            return lambda x, weights, fresh: x.reshape(len(x), -1)
        if kind == "Sequential":
            return self.sequence(layer["layers"])
        if kind == "Residual":
            body = self.function(layer["body"])
            if layer["shortcut"] is None:
                return lambda x, weights, fresh: body(x, weights, fresh) + x
            shortcut = self.function(layer["shortcut"])
            return lambda x, weights, fresh: body(x, weights, fresh) + shortcut(x, weights, fresh)
        raise UnsupportedError(f"layer type {kind} (layer {layer['name']}) has no counterpart here")

    def _takes(self, layer: dict[str, Any], *keys: str, change: Callable[[Any], Any] = np.asarray) -> list[str]:
        """Names of a layer's arrays, of which the first is changed to the layout here."""
        names = [f"{layer['name']}.{key}" for key in keys]
        self.arranged.update({name: change if name == names[0] else np.asarray for name in names})
        return names

    def _cast(self, *arrays: Any) -> tuple[Any, ...]:
        return arrays if self.half is None else tuple(array.astype(self.half) for array in arrays)

    def _conv(self, layer: dict[str, Any]) -> Function:
        keys = ("weight", "bias") if layer["bias"] else ("weight",)
        name, *bias = self._takes(layer, *keys, change=_to_oihw if self.nchw else np.asarray)
        padding = [(size, size) for size in _pair(layer["padding"])]
        numbers = ("NCHW", "OIHW", "NCHW") if self.nchw else ("NHWC", "HWIO", "NHWC")
        along = (-1, 1, 1) if self.nchw else (-1,)

        def conv(x: Any, weights: Mapping[str, Any], fresh: dict[str, Any] | None) -> Any:
            x, w = self._cast(x, weights[name])
            y = self.lax.conv_general_dilated(
                *(x, w, _pair(layer["stride"]), padding),
                rhs_dilation=_pair(layer["dilation"]),
                dimension_numbers=numbers,
                feature_group_count=layer["groups"],
            )
            return y + self._cast(weights[bias[0]])[0].reshape(along) if bias else y

        return conv

    def _dense(self, layer: dict[str, Any]) -> Function:
        H_W_C, self.flattened = self.flattened, None

        def change(weight: Any) -> Any:  # rows over H, W, C -> over C, H, W
            if not self.nchw or H_W_C is None:
                return weight
            return weight[np.arange(len(weight)).reshape(H_W_C).transpose(2, 0, 1).reshape(-1)]

        name, *bias = self._takes(layer, *(("weight", "bias") if layer["bias"] else ("weight",)), change=change)

        def dense(x: Any, weights: Mapping[str, Any], fresh: dict[str, Any] | None) -> Any:
            x, w = self._cast(x, weights[name])
            return x @ w + self._cast(weights[bias[0]])[0] if bias else x @ w

        return dense

    def _max_pool(self, layer: dict[str, Any]) -> Function:
        kernel, padding = _pair(layer["kernel"]), _pair(layer["padding"])
        stride = kernel if layer["stride"] is None else _pair(layer["stride"])
        H, W, C = layer["in_shape"]
        if self.tuned and stride == kernel and padding == (0, 0):
            P, Q = H // kernel[0], W // kernel[1]
            tiled = (-1, C, P, kernel[0], Q, kernel[1]) if self.nchw else (-1, P, kernel[0], Q, kernel[1], C)
            inner = (3, 5) if self.nchw else (2, 4)
            before = (slice(None),) * (2 if self.nchw else 1)
            cut = (*before, slice(P * kernel[0]), slice(Q * kernel[1]))
            return lambda x, weights, fresh: x[cut].reshape(tiled).max(axis=inner)

        def spread(pair: Any, rest: Any) -> tuple[Any, ...]:
            return (rest, rest, *pair) if self.nchw else (rest, *pair, rest)

        window, strides = spread(kernel, 1), spread(stride, 1)
        pads = spread([(size, size) for size in padding], (0, 0))
        return lambda x, weights, fresh: self.lax.reduce_window(x, -np.inf, self.lax.max, window, strides, pads)

    def _norm(self, layer: dict[str, Any]) -> Function:
        jnp, moved, eps = self.jnp, layer["momentum"], layer["eps"]
        gamma, beta, mean_name, var_name = self._takes(layer, "gamma", "beta", "mean", "var")
        flat = len(layer["in_shape"]) == 1
        axes = (0,) if flat else (0, 2, 3) if self.nchw else (0, 1, 2)
        along = (-1, 1, 1) if self.nchw and not flat else (-1,)

        def norm(x: Any, weights: Mapping[str, Any], fresh: dict[str, Any] | None) -> Any:
            given, x = x.dtype, x.astype(weights[gamma].dtype)
            mean, var = weights[mean_name], weights[var_name]
            if fresh is not None:
                old_mean, old_var = mean, var
                mean, square = jnp.mean(x, axis=axes), jnp.mean(x * x, axis=axes)  # in one pass, as Flax does
                var = jnp.maximum(square - mean * mean, 0)
                count = x.size // x.shape[0 if flat else 1 if self.nchw else -1]
                fresh[mean_name] = (1 - moved) * old_mean + moved * mean
                fresh[var_name] = (1 - moved) * old_var + moved * var * (count / max(count - 1, 1))
            scale = weights[gamma] * self.lax.rsqrt(var + eps)
            return (x * scale.reshape(along) + (weights[beta] - mean * scale).reshape(along)).astype(given)

        return norm


def _pair(value: int | list[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _to_oihw(weight: NDArray[Any]) -> NDArray[Any]:
    return weight.transpose(3, 2, 0, 1)


if __name__ == "__main__":
    serve(Jax)

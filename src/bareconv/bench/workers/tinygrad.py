"""tinygrad: our model in its tensors with our weights, the whole training step in one ``TinyJit``.

As somebody who knows tinygrad writes it: TinyJit replays the kernels of the step, searched for by their times (BEAM)
or chosen by rule. As it comes, without TinyJit, every step is scheduled anew. On a GPU images and labels live there,
and the step takes its batch by index; on a CPU NumPy takes it, in half of the time. It is normalised within the step.

Images are NCHW, conv weights (K, C, R, S), dense weights (in, out); a flatten runs over C, H, W, so that the rows of
the dense layer after it come in another order than ours, over H, W, C.

The variable NUM_CPU_THREADS, read when tinygrad is imported, is its limit on a CPU's threads, and is set here to what
all candidates get. Version 0.14 cuts its kernels into that many pieces, but runs them one after another on one thread:
it is measured as it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv import host
from bareconv.bench.workers.lock import Alone
from bareconv.bench.workers.serving import Candidate, Job, UnsupportedError, in_parts, serve

JIT_STEPS = 3  # the first runs as it is, the second is recorded, the third is replayed

Function = Callable[[Any], Any]


class Tinygrad(Candidate):
    """``options``: device ("cpu", "cuda:0"), mode ("eager", "jit", or "compile": with a search), beam (its width)."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        kind, _, index = options["device"].partition(":")
        self.on_gpu = kind == "cuda"
        os.environ["DEV"] = kind.upper()
        os.environ["NUM_CPU_THREADS"] = str(host.blas_threads())
        os.environ["BEAM"] = str(options.get("beam", 0))
        import tinygrad

        self.tinygrad, self.name = tinygrad, kind.upper() + (f":{index}" if index.strip("0") else "")
        try:
            self.device = tinygrad.Device[self.name]
            if not self.on_gpu and shutil.which(os.environ.get("CC", "clang")) is None:
                raise FileNotFoundError("there is no such program")  # what it has compiled before it would still find
            (tinygrad.Tensor([1.0], device=self.name) + 1).item()  # needs its compiler
        except Exception as error:  # whichever of its parts is missing
            needs = "CUDA's driver and nvrtc" if self.on_gpu else "clang, on the PATH or named by the variable CC,"
            raise UnsupportedError(f"tinygrad needs {needs} for {self.name}: {_why(error)}") from None
        self.compiling = 0.0

    def build(self, job: Job) -> None:
        tinygrad, values = self.tinygrad, job.settings
        self._set_precision(values["precision"])
        self.job = job
        model = Builder(tinygrad, self.name, job.weights, self.dtype, self.half)
        self.model, self.kept = model.sequence(values["layers"]), model.kept
        self.mean, self.scale = values["mean"], 1.0 / values["std"]
        self.data: list[Any] = [np.ascontiguousarray(job.images.transpose(0, 3, 1, 2)), job.labels]
        if self.on_gpu:
            self.data = [tinygrad.Tensor(array, device=self.name).realize() for array in self.data]
        self.optimizer = tinygrad.nn.optim.SGD(self.kept, values["lr"], values["momentum"])

        def step(images: Any, labels: Any) -> Any:
            loss = self._logits(images).sparse_categorical_crossentropy(labels)
            self.optimizer.zero_grad()
            loss.backward()
            return loss.realize(*self.optimizer.schedule_step())

        def step_at(chosen: Any) -> Any:
            return step(*(tensor[chosen] for tensor in self.data))

        jit = (lambda function: function) if self.options["mode"] == "eager" else tinygrad.TinyJit
        self.step = jit(step_at if self.on_gpu else step)
        with Alone() if self.options["beam"] else contextlib.nullcontext():  # a search measures its kernels
            self._compile()

    def _set_precision(self, name: str) -> None:
        from tinygrad.dtype import DEFAULT_FLOAT
        from tinygrad.helpers import ALLOW_TF32

        dtypes = self.tinygrad.dtypes
        if not self.on_gpu and name == "tf32":
            raise UnsupportedError(f"{name} is for a GPU: on a CPU, expected float32, float64 or bfloat16")
        if self.options["mode"] != "eager":
            ALLOW_TF32.value = int(name == "tf32")
        self.dtype = dtypes.float64 if name == "float64" else dtypes.float32
        self.half = dtypes.bfloat16 if name == "bfloat16" else None
        DEFAULT_FLOAT.value = os.environ["OPTIM_DTYPE"] = "float64" if name == "float64" else "float32"

    def _compile(self) -> None:
        """Take steps that are forgotten: what the first ones take longer than the last is compiling and searching."""
        state = [*self.kept, *self.optimizer.b]
        before, times = [tensor.numpy() for tensor in state], []
        for step in range(JIT_STEPS):
            begun = time.perf_counter()
            self.steps(step % self.job.total_steps, 1)
            times.append(time.perf_counter() - begun)
        self.compiling = sum(max(0.0, seconds - times[-1]) for seconds in times)
        for tensor, array in zip(state, before, strict=True):  # into the same memory, which is what is replayed on
            tensor.assign(self.tinygrad.Tensor(array, device=self.name)).realize()
        self.device.synchronize()

    def _logits(self, images: Any) -> Any:
        x = images.cast(self.dtype)
        x = (x - self.mean if self.mean else x) * self.scale
        return self.model(x if self.half is None else x.cast(self.half)).cast(self.dtype)

    def steps(self, first: int, count: int) -> float:
        with self.tinygrad.Context(TRAINING=1):
            for step in range(first, first + count):
                chosen = self.job.batch(step)
                given = [chosen.astype(np.int32)] if self.on_gpu else [array[chosen] for array in self.data]
                loss = self.step(*(self.tinygrad.Tensor(array, device=self.name).realize() for array in given))
        found = float(loss.item())
        self.device.synchronize()
        return found

    def accuracy(self, images: NDArray[np.uint8], labels: NDArray[np.int32]) -> float:
        predicted = []
        for part in in_parts(images):
            x = self.tinygrad.Tensor(np.ascontiguousarray(part.transpose(0, 3, 1, 2)), device=self.name)
            predicted.append(self._logits(x).numpy().argmax(axis=1))
        return float((np.concatenate(predicted) == labels).mean())

    def compile_seconds(self, first_step: float, step: float) -> float:
        return self.compiling

    def flags(self) -> dict[str, str]:
        from tinygrad import helpers

        names = ("BEAM", "NOOPT", "WINO", "ALLOW_TF32", "NUM_CPU_THREADS")
        return {
            "device": str(self.device.device),
            "renderer": type(self.device.renderer).__name__,
            "default_float": str(self.tinygrad.dtypes.default_float),
            **{name: str(getattr(helpers, name).value) for name in names if hasattr(helpers, name)},
        }

    def versions(self) -> dict[str, str]:
        return {"tinygrad": metadata.version("tinygrad"), "numpy": np.__version__}

    def memory(self) -> int:
        return int(self.tinygrad.GlobalCounters.mem_used) if self.on_gpu else super().memory()


class Builder:
    """tinygrad's functions for the described layers; ``kept``: weights, and the running statistics of norms."""

    def __init__(
        self, tinygrad: Any, device: str, weights: Mapping[str, NDArray[Any]], dtype: Any, half: Any = None
    ) -> None:
        self.tinygrad, self.device, self.weights, self.dtype, self.half = tinygrad, device, weights, dtype, half
        self.kept: list[Any] = []
        self.flattened: list[int] | None = None  # H, W, C of what was just flattened: the next dense layer's rows

    def sequence(self, layers: list[dict[str, Any]]) -> Function:
        """One function after another."""
        functions = [self.function(layer) for layer in layers]

        def apply(x: Any) -> Any:
            for function in functions:
                x = function(x)
            return x

        return apply

    def function(self, layer: dict[str, Any]) -> Function:
        """The function for one layer, blocks included."""
        kind = layer["type"]
        if kind == "Conv2d":
            return self._conv(layer)
        if kind == "Dense":
            return self._dense(layer)
        if kind == "BatchNorm":
            return self._norm(layer)
        if kind == "ReLU":
            return lambda x: x.relu()
        if kind == "MaxPool2d":
            kernel = _pair(layer["kernel"])
            stride, padding = kernel if layer["stride"] is None else _pair(layer["stride"]), _pair(layer["padding"])
            return lambda x: x.max_pool2d(kernel, stride, padding=padding)
        if kind == "GlobalMaxPool":
            return lambda x: x.max(axis=(2, 3))
        if kind == "GlobalAvgPool":
            return lambda x: x.mean(axis=(2, 3))
        if kind == "Flatten":
            self.flattened = layer["in_shape"] if len(layer["in_shape"]) == 3 else None
            return lambda x: x.flatten(1)
        if kind == "Sequential":
            return self.sequence(layer["layers"])
        if kind == "Residual":
            body = self.function(layer["body"])
            if layer["shortcut"] is None:
                return lambda x: body(x) + x
            shortcut = self.function(layer["shortcut"])
            return lambda x: body(x) + shortcut(x)
        raise UnsupportedError(f"layer type {kind} (layer {layer['name']}) has no counterpart here")

    def _tensor(self, array: NDArray[Any], is_weight: bool = True) -> Any:
        tensor = self.tinygrad.Tensor(np.ascontiguousarray(array), device=self.device).cast(self.dtype)
        self.kept.append(tensor.contiguous().realize().is_param_(is_weight))
        return self.kept[-1]

    def _array(self, layer: dict[str, Any], key: str) -> NDArray[Any]:
        return self.weights[f"{layer['name']}.{key}"]

    def _cast(self, tensor: Any) -> Any:
        return tensor if self.half is None or tensor is None else tensor.cast(self.half)

    def _conv(self, layer: dict[str, Any]) -> Function:
        w = self._tensor(self._array(layer, "weight").transpose(3, 2, 0, 1))
        b = self._tensor(self._array(layer, "bias")) if layer["bias"] else None
        stride, padding, dilation = (_pair(layer[key]) for key in ("stride", "padding", "dilation"))
        sides = (padding[1], padding[1], padding[0], padding[0])  # left, right, top, bottom
        groups = layer["groups"]
        return lambda x: x.conv2d(self._cast(w), self._cast(b), groups, stride, dilation, sides)

    def _dense(self, layer: dict[str, Any]) -> Function:
        weight = self._array(layer, "weight")
        if self.flattened is not None:  # rows over H, W, C -> over C, H, W
            rows = np.arange(len(weight)).reshape(self.flattened).transpose(2, 0, 1).reshape(-1)
            weight, self.flattened = weight[rows], None
        w, b = self._tensor(weight), self._tensor(self._array(layer, "bias")) if layer["bias"] else None
        return lambda x: x.linear(self._cast(w), self._cast(b))

    def _norm(self, layer: dict[str, Any]) -> Function:
        if len(layer["in_shape"]) != 3:
            raise UnsupportedError(f"batch norm of features (layer {layer['name']}) has no counterpart here")
        norm = self.tinygrad.nn.BatchNorm2d(layer["in_shape"][-1], layer["eps"], momentum=layer["momentum"])
        names = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var"}
        for theirs, ours in names.items():
            setattr(norm, theirs, self._tensor(self._array(layer, ours), is_weight=theirs in ("weight", "bias")))
        return lambda x: self._cast(norm(x.cast(self.dtype)))


def _pair(value: int | list[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _why(error: Exception) -> str:
    """What went wrong, in a line."""
    if isinstance(error, subprocess.CalledProcessError):  # its text is the whole command line
        return f"{Path(error.cmd[0]).name} failed with exit code {error.returncode}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


if __name__ == "__main__":
    serve(Tinygrad)

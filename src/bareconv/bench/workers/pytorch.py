"""PyTorch on the CPU: our model rebuilt from its description, with our weights, in a layout and a mode of its own.

Images are NCHW or NCHW in channels_last memory, conv weights (K, C, R, S), dense weights (out, in); a flatten runs over
C, H, W, so that the rows of the dense layer after it come in another order than ours, over H, W, C.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv import host
from bareconv.bench.workers.serving import Candidate, Job, UnsupportedError, in_parts, serve


class PyTorch(Candidate):
    """``options``: layout ("nchw", "channels_last"), mode ("eager", "compile"), fused (SGD), mallopt."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        if options["mallopt"]:
            host.keep_freed_memory()
        import torch

        self.torch = torch

    def build(self, job: Job) -> None:
        torch, values = self.torch, job.settings
        torch.set_num_threads(values["threads"])
        self.job, self.dtype = job, getattr(torch, values["precision"])
        self.mean, self.scale = values["mean"], 1.0 / values["std"]
        layout = torch.channels_last if self.options["layout"] == "channels_last" else torch.contiguous_format
        model = Builder(torch, job.weights).sequence(values["layers"])
        model = model.to(dtype=self.dtype, memory_format=layout).train()
        self.model, self.layout = model, layout
        images = torch.from_numpy(job.images).permute(0, 3, 1, 2)
        self.images = images.contiguous(memory_format=layout)
        self.labels = torch.from_numpy(job.labels).long()
        self.order = torch.from_numpy(job.order).reshape(-1, job.batch_size)
        fused = {"fused": True} if self.options["fused"] else {}
        self.optimizer = torch.optim.SGD(model.parameters(), values["lr"], momentum=values["momentum"], **fused)

        def loss(x: Any, labels: Any) -> Any:
            return torch.nn.functional.cross_entropy(model(x), labels)

        self.loss = torch.compile(loss) if self.options["mode"] == "compile" else loss

    def steps(self, first: int, count: int) -> float:
        for step in range(first, first + count):
            chosen = self.order[step]
            loss = self.loss(self._normalised(self.images[chosen]), self.labels[chosen])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        return float(loss.item())

    def _normalised(self, images: Any) -> Any:
        x = images.to(self.dtype)
        if self.mean:
            x -= self.mean
        x *= self.scale
        return x

    def accuracy(self, images: NDArray[np.uint8], labels: NDArray[np.int32]) -> float:
        torch, predicted = self.torch, []
        self.model.eval()
        with torch.no_grad():
            for part in in_parts(images):
                x = torch.from_numpy(part).permute(0, 3, 1, 2).contiguous(memory_format=self.layout)
                predicted.append(self.model(self._normalised(x)).argmax(1).numpy())
        self.model.train()
        return float((np.concatenate(predicted) == labels).mean())

    def compile_seconds(self, first_step: float, step: float) -> float:
        return max(0.0, first_step - step) if self.options["mode"] == "compile" else 0.0

    def flags(self) -> dict[str, str]:
        return {**effective_flags(self.torch), "mkldnn.enabled": str(self.torch.backends.mkldnn.enabled)}

    def versions(self) -> dict[str, str]:
        return {"torch": self.torch.__version__, "numpy": np.__version__}


def effective_flags(torch: Any) -> dict[str, str]:
    """What PyTorch says of threads, determinism and the precision of products, on any device."""
    return {
        "get_num_threads": str(torch.get_num_threads()),
        "get_default_dtype": str(torch.get_default_dtype()),
        "get_float32_matmul_precision": torch.get_float32_matmul_precision(),
        "are_deterministic_algorithms_enabled": str(torch.are_deterministic_algorithms_enabled()),
    }


class Builder:
    """PyTorch's modules for the described layers, with the weights in its layouts."""

    def __init__(self, torch: Any, weights: Mapping[str, Any]) -> None:
        self.torch, self.nn, self.weights = torch, torch.nn, weights
        self.flattened: list[int] | None = None  # H, W, C of what was just flattened: the next dense layer's rows

    def sequence(self, layers: list[dict[str, Any]]) -> Any:
        """One module after another."""
        return self.nn.Sequential(*(self.module(layer) for layer in layers))

    def module(self, layer: dict[str, Any]) -> Any:
        """The module for one layer, blocks included."""
        nn, kind = self.nn, layer["type"]
        if kind == "Conv2d":
            return self._conv(layer)
        if kind == "Dense":
            return self._dense(layer)
        if kind == "BatchNorm":
            return self._norm(layer)
        if kind == "ReLU":
            return nn.ReLU()
        if kind == "MaxPool2d":
            stride = layer["kernel"] if layer["stride"] is None else layer["stride"]
            return nn.MaxPool2d(layer["kernel"], stride, layer["padding"])
        if kind == "GlobalMaxPool":
            return nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
        if kind == "GlobalAvgPool":
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        if kind == "Flatten":
            self.flattened = layer["in_shape"] if len(layer["in_shape"]) == 3 else None
            return nn.Flatten()
        if kind == "Sequential":
            return self.sequence(layer["layers"])
        if kind == "Residual":
            shortcut = nn.Identity() if layer["shortcut"] is None else self.module(layer["shortcut"])
            return _residual(nn, self.module(layer["body"]), shortcut)
        raise UnsupportedError(f"layer type {kind} (layer {layer['name']}) has no counterpart here")

    def _conv(self, layer: dict[str, Any]) -> Any:
        weight = self.weights[f"{layer['name']}.weight"]
        module = self.nn.Conv2d(
            weight.shape[2] * layer["groups"],
            layer["filters"],
            weight.shape[:2],
            stride=layer["stride"],
            padding=layer["padding"],
            dilation=layer["dilation"],
            groups=layer["groups"],
            bias=layer["bias"],
        )
        return self._filled(module, layer, weight=weight.transpose(3, 2, 0, 1))

    def _dense(self, layer: dict[str, Any]) -> Any:
        weight = self.weights[f"{layer['name']}.weight"]
        if self.flattened is not None:  # rows over H, W, C -> over C, H, W
            rows = np.arange(len(weight)).reshape(self.flattened).transpose(2, 0, 1).reshape(-1)
            weight, self.flattened = weight[rows], None
        module = self.nn.Linear(*weight.shape, bias=layer["bias"])
        return self._filled(module, layer, weight=weight.T)

    def _norm(self, layer: dict[str, Any]) -> Any:
        if len(layer["in_shape"]) != 3:
            raise UnsupportedError(f"batch norm of features (layer {layer['name']}) has no counterpart here")
        module = self.nn.BatchNorm2d(layer["in_shape"][-1], eps=layer["eps"], momentum=layer["momentum"])
        names = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var"}
        arrays = {theirs: self.weights[f"{layer['name']}.{ours}"] for theirs, ours in names.items()}
        return self._filled(module, layer, **arrays)

    def _filled(self, module: Any, layer: dict[str, Any], **arrays: Any) -> Any:
        """``module`` with these arrays, and its layer's bias unless given, as its parameters."""
        if layer.get("bias"):
            arrays["bias"] = self.weights[f"{layer['name']}.bias"]
        with self.torch.no_grad():
            for name, array in arrays.items():
                target = getattr(module, name)
                target.copy_(self.torch.from_numpy(np.ascontiguousarray(array)))
        return module


def _residual(nn: Any, body: Any, shortcut: Any) -> Any:
    class Residual(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body, self.shortcut = body, shortcut

        def forward(self, x: Any) -> Any:
            return self.body(x) + self.shortcut(x)

    return Residual()


if __name__ == "__main__":
    serve(PyTorch)

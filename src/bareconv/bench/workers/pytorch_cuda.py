"""PyTorch on a GPU: our model with our weights, the whole training step in one CUDA graph, compiled or not, or eager.

Everything is on the device: images, labels, the order of the batches, and in a graph the number of the step too, so
that a step is one replay and nothing is copied. The batch is gathered by index and normalised within the step, as ours
is. float32 is strict, tf32 is PyTorch's own switch for both matrix products and convolutions, and bfloat16 is one of
the two ways that are in use:

    autocast   float32 weights, cast for every product by ``torch.autocast``
    copy       convolutions and dense layers in bfloat16, beside float32 weights that the optimizer updates and that are
               copied into them; batch norm stays in float32
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bareconv.bench.workers.lock import Alone
from bareconv.bench.workers.pytorch import Builder, effective_flags
from bareconv.bench.workers.serving import Candidate, Job, in_parts, serve

WARM_UP_STEPS = 3


class PyTorchCuda(Candidate):
    """``options``: device, layout ("nchw", "channels_last"), mode ("eager", "graph", "compile"), mixed, tuned.

    "compile" is "graph" of what torch.compile makes at its best ("max-autotune"). mixed: "autocast" or "copy", for
    bfloat16. tuned False: the switches of precision, cuDNN's choice of algorithms and the optimizer as PyTorch has
    them; then it is PyTorch's choice that convolutions of float32 are computed in tf32. On the CPU, where there are no
    graphs, a replay is the step itself: that is for tests.
    """

    chunk = 8192

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        import torch

        self.torch = torch
        self.device = torch.device(options["device"])
        self.on_gpu = self.device.type == "cuda"
        self.tuned = options.get("tuned", True)
        self.compiling = 0.0
        if self.on_gpu:
            torch.cuda.set_device(self.device)

    def build(self, job: Job) -> None:
        torch, values = self.torch, job.settings
        torch.set_num_threads(values["threads"])
        self._set_precision(values["precision"])
        channels_last = self.options["layout"] == "channels_last"
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model = Builder(torch, job.weights).sequence(values["layers"])
        self.model = model.to(device=self.device, dtype=self.dtype, memory_format=layout).train()
        images = torch.from_numpy(job.images)
        if not channels_last:
            images = images.permute(0, 3, 1, 2).contiguous()
        self.images = images.to(self.device)
        self.labels = torch.from_numpy(job.labels).long().to(self.device)
        self.order = torch.from_numpy(job.order).reshape(-1, job.batch_size).to(self.device)
        self.position = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.halves, self.masters = self._halve() if self.mixed == "copy" else ([], [])
        self.weights = list(self.model.parameters())
        updated = {id(half): master for half, master in zip(self.halves, self.masters, strict=True)}
        self.optimizer = torch.optim.SGD(
            [updated.get(id(weight), weight) for weight in self.weights],
            values["lr"],
            momentum=values["momentum"],
            **({"fused": True} if self.tuned else {}),
        )
        self.replay: Callable[[], None] = self._advance
        self.logits = self._forward(values["mean"], 1.0 / values["std"])
        self.loss = self._loss(channels_last)
        self._get_ready()

    def _set_precision(self, name: str) -> None:
        torch = self.torch
        if self.tuned:
            torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
            torch.backends.cudnn.allow_tf32 = name == "tf32"
            torch.backends.cudnn.benchmark = True
        self.dtype = torch.float64 if name == "float64" else torch.float32
        torch.set_default_dtype(self.dtype)  # bytes times a Python number are of it
        self.mixed = self.options["mixed"] if name == "bfloat16" else None

    def _halve(self) -> tuple[list[Any], list[Any]]:
        """The bfloat16 weights of the layers with products, and their float32 masters with gradients."""
        torch = self.torch
        halves: list[Any] = []
        masters: list[Any] = []
        for module in self.model.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                masters += [weight.detach().clone() for weight in module.parameters(recurse=False)]
                halves += module.to(torch.bfloat16).parameters(recurse=False)
        for master in masters:
            master.grad = torch.empty_like(master)
        return halves, masters

    def _forward(self, mean: float, scale: float) -> Callable[[Any], Any]:
        """The logits of images (N, C, H, W) in bytes: float32, or float64."""
        torch, model, device = self.torch, self.model, self.device.type
        half = torch.bfloat16 if self.mixed == "copy" else None
        autocast = self.mixed == "autocast"

        def logits(x: Any) -> Any:
            if mean:
                x = x - mean
            x = x * scale
            if half is not None:
                return model(x.to(half)).float()
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                y = model(x)
            return y.float() if autocast else y  # in which autocast takes the loss, too

        return logits

    def _loss(self, channels_last: bool) -> Callable[[Any], Any]:
        """The loss of the images that are chosen; in a graph, of those whose turn it is by ``position``."""
        logits, images, labels, order = self.logits, self.images, self.labels, self.order
        cross_entropy = self.torch.nn.functional.cross_entropy

        def loss(chosen: Any) -> Any:
            x = images[chosen]
            if channels_last:  # images are NHWC in memory; PyTorch sees NCHW
                x = x.permute(0, 3, 1, 2)
            return cross_entropy(logits(x), labels[chosen])

        def at(position: Any) -> Any:
            return loss(order[position].view(-1))

        return loss if self.options["mode"] == "eager" else at

    def _get_ready(self) -> None:
        """Choose algorithms, compile, capture; then put back what the steps for it have changed."""
        torch, mode = self.torch, self.options["mode"]
        held = [*self.model.state_dict().values(), *self.masters]
        kept = [tensor.clone() for tensor in held]
        alone = Alone()
        with alone:  # what cuDNN measures here it also uses in the graph and behind what is compiled
            self._warm_up()
        if mode == "compile":
            begun = time.perf_counter()
            if self.on_gpu:
                alone.guard_autotuning()
            self.loss = torch.compile(self.loss, mode="max-autotune-no-cudagraphs", fullgraph=True, dynamic=False)
            self._warm_up()
            self.compiling = time.perf_counter() - begun
        with torch.no_grad():
            for tensor, before in zip(held, kept, strict=True):
                tensor.copy_(before)
            for state in self.optimizer.state.values():
                state["momentum_buffer"].zero_()
        if mode != "eager" and self.on_gpu:
            self.replay = self._captured()
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _warm_up(self) -> None:
        """Some steps on another stream than the default one, as capturing asks for."""
        with self._on_a_stream():
            self._many(0, min(WARM_UP_STEPS, len(self.order)))

    @contextlib.contextmanager
    def _on_a_stream(self) -> Iterator[None]:
        if not self.on_gpu:
            yield
            return
        torch = self.torch
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()

    def _captured(self) -> Callable[[], None]:
        """``_advance`` as one graph."""
        graph = self.torch.cuda.CUDAGraph()
        for weight in self.weights:
            weight.grad = None  # so that backward writes gradients of the graph's own, and adds to none
        with self.torch.cuda.graph(graph):
            self._advance()
        return graph.replay

    def _advance(self) -> None:
        """Take the step that ``position`` names, leave its loss in ``last_loss``, and go on to the next."""
        self.last_loss = self._step(self.position)
        self.position += 1

    def _step(self, batch: Any) -> Any:
        """One whole step on what ``_loss`` takes; the loss, on the device."""
        torch = self.torch
        loss = self.loss(batch)
        for weight in self.weights:
            weight.grad = None
        loss.backward()
        with torch.no_grad():
            if self.masters:
                torch._foreach_copy_([one.grad for one in self.masters], [one.grad for one in self.halves])
            self.optimizer.step()
            if self.masters:
                torch._foreach_copy_(self.halves, self.masters)
        return loss.detach()

    def _many(self, first: int, count: int) -> Any:
        """``count`` steps from step ``first``; the last one's loss, on the device."""
        if self.options["mode"] == "eager":
            for step in range(first, first + count):
                self.last_loss = self._step(self.order[step])
        else:
            self.position.fill_(first)
            for _ in range(count):
                self.replay()
        return self.last_loss

    def timed(self, first: int, count: int) -> tuple[float, float]:
        """By CUDA's events around all of the steps."""
        if not self.on_gpu:
            return super().timed(first, count)
        begun, ended = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        loss = self._many(first, count)
        ended.record()
        self.torch.cuda.synchronize()
        return float(loss), begun.elapsed_time(ended) / 1e3  # milliseconds

    def steps(self, first: int, count: int) -> float:
        return float(self._many(first, count))

    def compile_seconds(self, first_step: float, step: float) -> float:
        return self.compiling

    def accuracy(self, images: NDArray[np.uint8], labels: NDArray[np.int32]) -> float:
        torch, predicted = self.torch, []
        self.model.eval()
        with torch.no_grad():
            for part in in_parts(images):
                x = torch.from_numpy(part).to(self.device).permute(0, 3, 1, 2)
                x = x if self.options["layout"] == "channels_last" else x.contiguous()
                predicted.append(self.logits(x).argmax(1).cpu().numpy())
        self.model.train()
        return float((np.concatenate(predicted) == labels).mean())

    def flags(self) -> dict[str, str]:
        torch, backends = self.torch, self.torch.backends
        found = {
            **effective_flags(torch),
            "backends.cuda.matmul.allow_tf32": backends.cuda.matmul.allow_tf32,
            "backends.cudnn.allow_tf32": backends.cudnn.allow_tf32,
            "backends.cudnn.benchmark": backends.cudnn.benchmark,
            "backends.cudnn.deterministic": backends.cudnn.deterministic,
            "device": torch.cuda.get_device_name(self.device) if self.on_gpu else self.device,
        }
        if self.mixed == "autocast":
            with torch.autocast(self.device.type, torch.bfloat16):
                found["get_autocast_dtype"] = torch.get_autocast_dtype(self.device.type)
        elif self.mixed == "copy":
            found["dtype of products"] = self.halves[0].dtype
        return {name: str(value) for name, value in found.items()}

    def versions(self) -> dict[str, str]:
        torch = self.torch
        cudnn = torch.backends.cudnn.version() if self.on_gpu else None
        found = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": cudnn}
        return {name: str(version) for name, version in found.items() if version is not None}

    def memory(self) -> int:
        return int(self.torch.cuda.memory_reserved()) if self.on_gpu else super().memory()

    def peak_memory(self) -> int:
        return int(self.torch.cuda.max_memory_reserved()) if self.on_gpu else super().peak_memory()


if __name__ == "__main__":
    serve(PyTorchCuda)

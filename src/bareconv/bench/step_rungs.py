"""The rungs of one training step: the reference with other convolutions in it, the engines, the reference on a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

from bareconv import ops
from bareconv.bench.problems import StepProblem, Task, gradient_of_first_step
from bareconv.bench.rungs import Rung, shifted_forward, why_no_gpu, why_no_numba, why_no_simd, winograd_flops
from bareconv.device import Array
from bareconv.nn import Conv2d
from bareconv.nn.layer import Flops, Watch
from bareconv.ops.conv import im2col
from bareconv.ops.windows import Window
from bareconv.training import ENGINES, PlanEngine, Trainer

NAIVE_RATE = 2.5e6  # multiply-adds a second of plain Python, about

ENGINE_CHANGES = {
    "reference": "the readable path, layer by layer: im2col",
    "tuned": "tuned NumPy: fused operations over slices of the batch, buffers made once",
    "plan": "SIMD: the whole step planned, only live gradients, updates in registers",
}

# How the executed operations are counted, where they are not the direct method's.
PLAN_COUNTED = (
    "what its kernels multiply, of the gradients behind a max pool half, about as many as a relu lets through"
)
WINOGRAD_COUNTED = "the products of the transformed tiles forward, not the sums of the transforms"


def engine_step(engine: str, device: str = "cpu") -> Callable[[StepProblem], Task]:
    """A training step as the engine of that name does it."""

    def prepare(problem: StepProblem) -> Task:
        return _of_trainer(problem.trainer(engine, device))

    return prepare


def plan_step(problem: StepProblem) -> Task:
    """A training step as the plan does it, with what its kernels execute."""
    trainer = problem.trainer("plan")
    task = _of_trainer(trainer)
    return dataclasses.replace(task, flops=problem.batch_size * _plan_flops(trainer), counted=PLAN_COUNTED)


def _plan_flops(trainer: Trainer) -> int:
    """Executed by a plan for one image: what its kernels say, and of layers without one what the formula needs."""
    assert isinstance(trainer.engine, PlanEngine)
    leaves = {leaf.name: leaf.flops() for leaf in trainer.model.leaves()}
    explained = trainer.engine.explain()
    work = sum(row.flops for row in explained.rows)
    for row in explained.fallbacks:
        of_layer = leaves.get(row.node, Flops())
        work += of_layer.forward if row.phase == "forward" else of_layer.dw + of_layer.dx
    return work


def winograd_step(problem: StepProblem) -> Task:
    """The reference's step with Winograd's forward convolution, of which the products count."""
    task = step_with(lambda problem: ops.conv2d_winograd)(problem)
    convs = [leaf for leaf in problem.make_model().leaves() if type(leaf) is Conv2d]
    spared = sum(leaf.flops().forward - winograd_flops(leaf.in_shape[-1], leaf.out_shape) for leaf in convs)
    flops = problem.batch_size * (problem.flops_per_image - spared)
    return dataclasses.replace(task, flops=flops, counted=WINOGRAD_COUNTED)


def _of_trainer(trainer: Trainer) -> Task:
    trainer.engine.prepare()
    state = trainer.optimizer.state
    return Task(lambda: trainer.train_step(0), lambda: gradient_of_first_step(state(), trainer.device))


Forward: TypeAlias = Callable[[Array, Array, "Array | None", Window], Array]
Backward: TypeAlias = Callable[[Array, Array, Array, Window, bool], "tuple[Array | None, Array, Array]"]


class OtherConv(Conv2d):
    """A convolution whose forward, and backward where it has one, are a rung's; else they are the reference's."""

    by: Forward
    back: Backward | None = None

    def forward(self, x: Array, training: bool = False, step: int = 0, watch: Watch | None = None) -> Array:
        y = type(self).by(x, self.params["weight"], self.params.get("bias"), self.window)
        if training:
            self._saved = (x,)
        return y

    def backward(self, dy: Array, need_dx: bool = True, watch: Watch | None = None) -> Array | None:
        (x,), weight = self._take_saved(), self.params["weight"]
        back = type(self).back
        if back is not None:
            dx, dw, db = back(dy, x, weight, self.window, need_dx)
        else:
            columns = im2col(x, self.window)
            dx, dw, db = ops.conv2d_backward(dy, columns, weight, x.shape, self.window, 1, need_dx)
        self.grads.update(weight=dw, bias=db)
        return dx


def step_with(
    forward: Callable[[StepProblem], Forward], backward: Callable[[StepProblem], Backward] | None = None
) -> Callable[[StepProblem], Task]:
    """A training step of the reference engine with other convolutions in it."""

    def prepare(problem: StepProblem) -> Task:
        by, back = staticmethod(forward(problem)), staticmethod(backward(problem)) if backward else None
        kind = type("RungConv", (OtherConv,), {"by": by, "back": back})
        trainer = problem.trainer("reference")
        for leaf in trainer.model.leaves():
            if type(leaf) is Conv2d:
                leaf.__class__ = kind
        return _of_trainer(trainer)

    return prepare


def why_not_naive(problem: StepProblem) -> str:
    """It would be there, but nobody would wait for it."""
    seconds = problem.batch_size * problem.flops_per_image / 2 / NAIVE_RATE
    return f"some {seconds / 60:,.0f} minutes a step, at the rate of the naive loops above"


def why_not_fft(problem: StepProblem) -> str:
    """Its error is as small as the others', but it is not zero where theirs is."""
    return "its rounding breaks the ties of max pools over a constant background: another gradient, no worse, no better"


def step_rungs() -> list[Rung[StepProblem]]:
    """The reference with other convolutions in it, every engine on the CPU, and the reference on a GPU."""

    def loops_forward(problem: StepProblem) -> Forward:
        from bareconv.kernels import loops

        return lambda x, w, b, window: loops.conv2d_forward(x, w, b, window, problem.threads)

    def loops_backward(problem: StepProblem) -> Backward:
        from bareconv.kernels import loops

        return lambda dy, x, w, window, need_dx: loops.conv2d_backward(dy, x, w, window, need_dx, problem.threads)

    forward_only = "the reference with this forward convolution"
    steps = {name: engine_step(name) for name in ENGINES} | {"plan": plan_step}
    engines = {name: Rung(f"{name} engine", ENGINE_CHANGES[name], steps[name]) for name in ENGINES}
    return [
        Rung("naive loops", "the definition, in Python", engine_step("reference"), why_not_naive),
        engines["reference"],
        Rung("shifted", forward_only, step_with(lambda problem: shifted_forward)),
        Rung("FFT", forward_only, step_with(lambda problem: ops.conv2d_fft), why_not_fft),
        Rung("Winograd", forward_only, winograd_step),
        engines["tuned"],
        Rung("Numba loops", "compiled loops, forward and back", step_with(loops_forward, loops_backward), why_no_numba),
        dataclasses.replace(engines["plan"], available=why_no_simd),
        Rung("reference, CuPy", ENGINE_CHANGES["reference"], engine_step("reference", "cuda:0"), why_no_gpu, "cuda:0"),
    ]

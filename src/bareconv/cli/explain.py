"""``bareconv explain``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import numpy as np
from rich.text import Text

from bareconv import optim
from bareconv.bench.workload import CLASSES, natural_shape
from bareconv.cli.options import (
    image_shape_option,
    model_option,
    number,
    precision_option,
    seed_option,
    threads_option,
)
from bareconv.cli.screen import Bar, Screen, compiled_line, on_screen
from bareconv.device import Device, get_device
from bareconv.errors import UsageError
from bareconv.host import keep_freed_memory
from bareconv.nn import models
from bareconv.nn.layer import Shape
from bareconv.plan.explain import Explanation
from bareconv.report.format import bytes_, count, counted, flops, percent, seconds
from bareconv.training import (
    Batch,
    CudaPlanEngine,
    EngineSettings,
    PlanEngine,
    check_precision,
    make_engine,
    why_no_plan,
)
from bareconv.training.precision import stored

One = Callable[[float | None], float | None]  # from a row's seconds to those of one step

WARM_UP_STEPS = 3
HOST = "Python"  # the kernel of a row that has none

EPILOG = """\b
Examples:
  bareconv explain --model basic --batch-size 64
  bareconv explain --model small --device cuda --precision bfloat16 --batch-size 256
  bareconv explain --model resnet9 --image-shape 16x16x3 --threads 1 --steps 5
"""


@click.command(epilog=EPILOG, short_help="What the plan of a training step consists of, and its time.")
@model_option
@number("--batch-size", 64, 1, "Images in a step.")
@threads_option
@precision_option(several=False)
@image_shape_option
@number("--steps", 20, 0, "Steps to time; 0: none.")
@seed_option
@click.option(
    "--device", default="cpu", show_default=True, metavar="NAME", help="Where to compute: cpu, cuda, cuda:1 or auto."
)
@on_screen
def explain(screen: Screen, **options: Any) -> int:
    """Show the calls of a planned training step, with SGD and momentum: what each is for, its kernel, its work, and its
    share of the time.

    The time is that of steps on random images, at a learning rate of 0. On a CPU it is the mean over the threads; on a
    GPU each launch is timed alone, though in a step they overlap. What no kernel covers is done by the readable
    reference, in Python, and is named at the end.
    """
    keep_freed_memory()
    device = get_device(options["device"])
    check_precision("plan", options["precision"], device)
    reason = why_no_plan(device, options["precision"])
    if reason is not None:
        raise UsageError(f"there is no plan on {device.name}: {reason}")
    shape = options["image_shape"] or natural_shape(options["model"])
    with Bar(screen) as bar:
        engine = _engine(options, shape, device)
        engine.prepare(bar.compiling)
        bar.begin("Taking steps", WARM_UP_STEPS + options["steps"])
        with device.activate():
            _take_steps(engine, options, shape, bar)
            explained: Explanation = engine.explain()
    _show(screen, engine, explained, options)
    if compiled := compiled_line(engine.compiled, engine.compile_seconds):
        screen.say(f"{compiled[:1].upper()}{compiled[1:]}")
    screen.finish(screen.result(plan=_record(engine, explained, options, shape)))
    return 0


def _engine(options: dict[str, Any], shape: Shape, device: Device) -> PlanEngine | CudaPlanEngine:
    precision = options["precision"]
    model = models.by_name(options["model"], shape, CLASSES, options["seed"]).to(device, stored(precision))
    settings = EngineSettings(options["batch_size"], threads=options["threads"], precision=precision)
    engine = make_engine("plan", model, optim.SGD(0.05, momentum=0.9), settings)
    assert isinstance(engine, PlanEngine | CudaPlanEngine)
    return engine


def _take_steps(engine: PlanEngine | CudaPlanEngine, options: dict[str, Any], shape: Shape, bar: Bar) -> None:
    rng, size, steps = np.random.default_rng(options["seed"]), options["batch_size"], options["steps"]
    images = engine.device.asarray(rng.integers(0, 256, (size, *shape)).astype(np.uint8))
    labels = engine.device.asarray(rng.integers(0, CLASSES, size).astype(np.int32))
    if not steps:
        return
    if isinstance(engine, CudaPlanEngine):
        if engine.plan.why_not_captured is None:
            engine.plan.profile(images, labels, repeats=steps)
        return
    batch = Batch(images, labels, None, 0)
    for step in range(WARM_UP_STEPS + steps):
        if step == WARM_UP_STEPS:
            engine.plan.clear_times()
        engine.train(batch, 0.0)
        bar.count(step + 1)


def _show(screen: Screen, engine: PlanEngine | CudaPlanEngine, explained: Explanation, options: dict[str, Any]) -> None:
    """The rows as a table, with seconds and rates where they are known, and what they come to."""
    rows, batch, one = explained.rows, options["batch_size"], _of_one_step(engine, options["steps"])
    waiting = one(explained.waiting) or 0.0
    total = sum(one(row.seconds) or 0.0 for row in rows) + waiting
    timed, moves = total > 0, any(row.bytes for row in rows)
    heads = ["phase", "layers", "kernel", "how", "FLOPs/image", *(["bytes/image"] if moves else [])]
    table = screen.table(*heads, *(("time", "FLOP/s", *(["bytes/s"] if moves else [])) if timed else ()))
    for column in table.columns[1:4]:
        column.justify = "left"
    for row in rows:
        cells = [row.phase, row.node, row.kernel, row.how, count(row.flops) if row.flops else ""]
        cells += [count(row.bytes) if row.bytes else ""] if moves else []
        if timed:
            spent = one(row.seconds)
            cells += ["" if spent is None else percent(spent / total, 1)]
            cells += [flops(row.flops * batch / spent) if row.flops and spent else ""]
            cells += [f"{bytes_(round(row.bytes * batch / spent))}/s" if row.bytes and spent else ""] if moves else []
        table.add_row(*cells, style="yellow" if row.kernel == HOST else None)
    if timed and engine.threads is not None:
        blank = [""] * (2 if moves else 1)
        table.add_row("", "", "waiting", "for other threads", *blank, percent(waiting / total, 1))
    screen.say(explained.title)
    screen.show(table)
    screen.say()
    if timed:
        work = sum(row.flops for row in rows)
        screen.say(
            f"{counted(options['steps'], 'step')}, {seconds(total)} each; {count(work)} FLOPs an image, "
            f"{flops(work * batch / total)}"
        )
    screen.say(f"Memory of a step: {bytes_(explained.memory_bytes)}")
    if explained.fallbacks:
        names = ", ".join(f"{row.node} ({row.phase}: {row.how})" for row in explained.fallbacks)
        screen.say(Text(f"No kernel, done by the reference, and in none of the times: {names}", "yellow"))
    else:
        screen.say("Every operation has a kernel.")


def _of_one_step(engine: PlanEngine | CudaPlanEngine, steps: int) -> One:
    """From the seconds of an explanation to those of a step: a CPU plan adds up those of all."""

    def one(total: float | None) -> float | None:
        if total is None or isinstance(engine, CudaPlanEngine):
            return total
        return total / steps if steps else None

    return one


def _record(
    engine: PlanEngine | CudaPlanEngine, explained: Explanation, options: dict[str, Any], shape: Shape
) -> dict[str, Any]:
    one = _of_one_step(engine, options["steps"])
    return {
        "title": explained.title,
        "model": options["model"],
        "image_shape": list(shape),
        "device": engine.device.name,
        "precision": engine.precision,
        "batch_size": options["batch_size"],
        "threads": engine.threads,
        "compile_seconds": engine.compile_seconds,
        "compiled": engine.compiled,
        "steps": options["steps"],
        "rows": [
            {
                "phase": row.phase,
                "layers": row.node,
                "kernel": row.kernel,
                "how": row.how,
                "flops": row.flops,
                "bytes": row.bytes,
                "seconds": one(row.seconds),
            }
            for row in explained.rows
        ],
        "waiting_seconds": one(explained.waiting) or 0.0,
        "memory_bytes": explained.memory_bytes,
    }

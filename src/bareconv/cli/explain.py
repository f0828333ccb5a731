"""``bareconv explain``."""

from __future__ import annotations

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
from bareconv.device import get_device
from bareconv.errors import UsageError
from bareconv.host import keep_freed_memory
from bareconv.nn import models
from bareconv.nn.layer import Shape
from bareconv.plan.explain import Explanation, Row
from bareconv.report.format import bytes_, count, flops, percent, seconds
from bareconv.training import Batch, EngineSettings, PlanEngine, make_engine, why_no_plan

WARM_UP_STEPS = 3
HOST = "Python"  # the kernel of a row that has none

EPILOG = """\b
Examples:
  bareconv explain --model basic --batch-size 64
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
@on_screen
def explain(screen: Screen, **options: Any) -> int:
    """Show the calls of a planned training step on the CPU, with SGD and momentum: what each is for, its kernel, its
    work, and its share of the time.

    The time is that of steps on random images, at a learning rate of 0; it is the mean over the threads. What no kernel
    covers is done by the readable reference, in Python, and is named at the end.
    """
    keep_freed_memory()
    reason = why_no_plan()
    if reason is not None:
        raise UsageError(f"there is no plan on this machine: {reason}")
    shape = options["image_shape"] or natural_shape(options["model"])
    with Bar(screen) as bar:
        engine = _engine(options, shape)
        engine.prepare(bar.compiling)
        bar.begin("Taking steps", WARM_UP_STEPS + options["steps"])
        _take_steps(engine, options, shape, bar)
    explained: Explanation = engine.explain()
    _show(screen, explained, options)
    if compiled := compiled_line(engine.compiled, engine.compile_seconds):
        screen.say(f"{compiled[:1].upper()}{compiled[1:]}")
    screen.finish(screen.result(plan=_record(engine, explained, options, shape)))
    return 0


def _engine(options: dict[str, Any], shape: Shape) -> PlanEngine:
    model = models.by_name(options["model"], shape, CLASSES, options["seed"])
    model.to(get_device("cpu"), options["precision"])
    settings = EngineSettings(options["batch_size"], threads=options["threads"])
    engine = make_engine("plan", model, optim.SGD(0.05, momentum=0.9), settings)
    assert isinstance(engine, PlanEngine)
    return engine


def _take_steps(engine: PlanEngine, options: dict[str, Any], shape: Shape, bar: Bar) -> None:
    rng, size = np.random.default_rng(options["seed"]), options["batch_size"]
    images = rng.integers(0, 256, (size, *shape)).astype(np.uint8)
    batch = Batch(images, rng.integers(0, CLASSES, size).astype(np.int32), None, 0)
    if not options["steps"]:
        return
    for step in range(WARM_UP_STEPS + options["steps"]):
        if step == WARM_UP_STEPS:
            engine.plan.clear_times()
        engine.train(batch, 0.0)
        bar.count(step + 1)


def _show(screen: Screen, explained: Explanation, options: dict[str, Any]) -> None:
    images = options["batch_size"] * options["steps"]
    total = sum(row.seconds or 0.0 for row in explained.rows) + explained.waiting
    timed = images > 0 and total > 0
    table = screen.table("phase", "layers", "kernel", "how", "FLOPs/image", *(("time", "FLOP/s") if timed else ()))
    for column in table.columns[1:4]:
        column.justify = "left"
    for row in explained.rows:
        cells = [row.phase, row.node, row.kernel, row.how, count(row.flops) if row.flops else ""]
        if timed:
            cells += ["" if row.seconds is None else percent(row.seconds / total, 1), _speed(row, images)]
        table.add_row(*cells, style="yellow" if row.kernel == HOST else None)
    if timed:
        table.add_row("", "", "waiting", "for other threads", "", percent(explained.waiting / total, 1), "")
    screen.say(explained.title)
    screen.show(table)
    screen.say()
    if timed:
        work = sum(row.flops for row in explained.rows)
        screen.say(
            f"{count(options['steps'])} steps, {seconds(total / options['steps'])} each; {count(work)} FLOPs an image, "
            f"{flops(work * images / total)}"
        )
    screen.say(f"Memory of a step: {bytes_(explained.memory_bytes)}")
    if explained.fallbacks:
        names = ", ".join(f"{row.node} ({row.phase}: {row.how})" for row in explained.fallbacks)
        screen.say(Text(f"No kernel, done by the reference, and in none of the times: {names}", "yellow"))
    else:
        screen.say("Every operation has a kernel.")


def _speed(row: Row, images: int) -> str:
    """Of all threads together."""
    return flops(row.flops * images / row.seconds) if row.flops and row.seconds else ""


def _record(engine: PlanEngine, explained: Explanation, options: dict[str, Any], shape: Shape) -> dict[str, Any]:
    steps = options["steps"]

    def one(total: float | None) -> float | None:
        return total / steps if total is not None and steps else None

    return {
        "title": explained.title,
        "model": options["model"],
        "image_shape": list(shape),
        "precision": options["precision"],
        "batch_size": options["batch_size"],
        "threads": engine.threads,
        "compile_seconds": engine.compile_seconds,
        "compiled": engine.compiled,
        "steps": steps,
        "rows": [
            {
                "phase": row.phase,
                "layers": row.node,
                "kernel": row.kernel,
                "how": row.how,
                "flops": row.flops,
                "seconds": one(row.seconds),
            }
            for row in explained.rows
        ],
        "waiting_seconds": one(explained.waiting) or 0.0,
        "memory_bytes": explained.memory_bytes,
    }

"""One whole training in a fresh process, as a user meets it, through the public trainer; its phases, timed.

    python -m bareconv.bench.workers.journey '{"model": "basic", "device": "cpu", ...}'

prints one line of JSON: ``begun`` and ``ended``, moments of ``now`` at the first line below and at the last, between
them the ``phases`` as pairs of a name and seconds, and what came of the training. Whatever else is printed goes to
standard error. All imports stand where they are timed, but for what the interpreter has loaded by itself.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING  # the package has imported it already


def now() -> float:
    """Seconds on a clock that all processes of this machine share."""
    return time.clock_gettime(time.CLOCK_MONOTONIC) if sys.platform == "linux" else time.time()


BEGUN = now()

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from bareconv.data import Dataset
    from bareconv.device import Device
    from bareconv.training import Progress, Trainer


class Phases:
    """Seconds by the phase's name: ``with phases("data"): ...``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str) -> Phases:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._begun = now()

    def __exit__(self, *exc: object) -> None:
        self.seconds[self._name] = now() - self._begun


def travel(options: Mapping[str, Any], phases: Phases) -> dict[str, Any]:
    """The whole way from imports to the trained, evaluated model; what came of it."""
    with phases("import"):
        from bareconv import host, optim
        from bareconv.device import get_device
        from bareconv.nn import models
        from bareconv.training import Settings, Trainer

        host.keep_freed_memory()
        device = get_device(options["device"])  # on a GPU: CuPy, the driver, a context
        _import_engine(options, device)
    with phases("data"):
        dataset = _data(options)
    with phases("model"):
        model = models.by_name(options["model"], dataset.image_shape, dataset.classes, options["seed"])
    with phases("transfer"):
        settings = Settings(
            epochs=options["epochs"],
            batch_size=options["batch_size"],
            schedule=optim.Constant(),
            engine=options["engine"],
            precision=options["precision"],
            seed=options["seed"],
            threads=options["threads"],
            evaluate_every=options["epochs"],
        )
        trainer = Trainer(model, dataset, optim.SGD(options["lr"], options["momentum"]), settings, device)
        device.synchronize()
    with phases("compile"):
        trainer.engine.prepare()
        device.synchronize()
    _train(trainer, phases)
    engine, evaluation = trainer.engine, trainer.evaluation
    return {
        "engine": engine.name,
        "precision": engine.precision,
        "threads": engine.threads,
        "compiled": engine.compiled,
        "iterations": trainer.step,
        "train_seconds": trainer.history.train_seconds,
        "accuracy": None if evaluation is None else evaluation.accuracy,
    }


def _import_engine(options: Mapping[str, Any], device: Device) -> None:
    """What the engine would import at its first use, in the middle of compiling."""
    import importlib

    from bareconv.device import CpuDevice
    from bareconv.training import why_no_plan

    on_cpu = isinstance(device, CpuDevice)
    if options["engine"] == "plan" and why_no_plan(device, options["precision"]) is None:
        importlib.import_module("bareconv.plan.cpu.plan" if on_cpu else "bareconv.plan.cuda.plan")
    elif options["engine"] != "reference" and on_cpu:
        importlib.import_module("bareconv.plan.tuned.step")


def _data(options: Mapping[str, Any]) -> Dataset:
    """The images of a file, or MNIST, as far as they are trained on."""
    from bareconv import data

    whole = data.mnist() if options["data"] is None else data.load(options["data"])
    return whole.take(options["train_images"])


def _train(trainer: Trainer, phases: Phases) -> None:
    """``Trainer.run``, cut into the first step, the others and the evaluation by what it tells on the way.

    The first step has what comes before it: on a GPU the rehearsal, which captures graphs and is where CuPy compiles
    its own kernels. What the engine itself compiles later, for the first step or for predictions, counts as compiling.
    """
    moments: list[float] = []
    compiling: list[float] = []

    def tick() -> None:
        moments.append(now())
        compiling.append(trainer.engine.compile_seconds)

    def after_a_step() -> bool:
        if len(moments) == 1:
            trainer.device.synchronize()
            tick()
        return False

    def on_progress(progress: Progress) -> None:
        if progress.step == progress.total_steps:  # its losses have been read: all steps are done
            tick()

    tick()
    trainer.run(on_progress, should_stop=after_a_step)
    trainer.device.synchronize()
    tick()
    for number, name in enumerate(("first step", "training", "evaluation")):
        compiled = compiling[number + 1] - compiling[number]
        phases.seconds["compile"] += compiled
        phases.seconds[name] = moments[number + 1] - moments[number] - compiled


def main() -> None:
    """The journey whose options are the first argument."""
    phases = Phases()
    with phases("import"):
        import json
        import os

        answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # libraries print too
    imported = phases.seconds["import"]
    came = travel(json.loads(sys.argv[1]), phases)
    phases.seconds["import"] += imported
    with answers:
        answers.write(json.dumps({"begun": BEGUN, "phases": list(phases.seconds.items()), **came, "ended": now()}))
        answers.write("\n")


if __name__ == "__main__":
    main()

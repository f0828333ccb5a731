"""The main job: the same network, weights and batches on every device there is, and the proof that they agree."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bareconv import optim
from bareconv.bench.parity import GENTLE, parity, side_names
from bareconv.bench.profile import memory, profile, remark
from bareconv.bench.runs import run_record
from bareconv.data import Dataset
from bareconv.device import Array, CpuDevice, Device, why_no_cuda
from bareconv.errors import NotFiniteError, UnwrittenError
from bareconv.nn import Conv2d, MaxPool2d, ReLU, models
from bareconv.nn.layer import Layer
from bareconv.report.format import counted
from bareconv.report.gallery import Gallery
from bareconv.report.runs import pairs
from bareconv.training import (
    EpochRecord,
    Evaluation,
    Progress,
    Settings,
    Trainer,
    check_precision,
    evaluate,
    why_no_plan,
)
from bareconv.training.checkpoint import save
from bareconv.training.precision import stored

WARM_UP_STEPS = 6


@dataclass(frozen=True)
class Job:
    """What to compare: a model of the zoo, how to train it, in which precisions, and how closely to look.

    A CPU has no tf32 and no bfloat16: there, float32 stands against them.
    """

    model: str
    settings: Settings
    optimizer: dict[str, Any]  # an optimizer's configuration; each run gets its own
    precisions: tuple[str, ...] = ("float32",)
    parity_steps: int = 100
    profile_steps: int = 20


class Listener:
    """Told what is going on; asked whether to stop. This one listens to nothing and never stops."""

    def stage(self, text: str) -> None:
        """Something begins."""

    def run_begins(self, trainer: Trainer) -> None:
        """A timed training begins."""

    def compiling(self, done: int, total: int) -> None:
        """So many of the kernels that have to be compiled are."""

    def progress(self, progress: Progress) -> None:
        """A training has come that far."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is done."""

    def run_ends(self, run: dict[str, Any]) -> None:
        """A run is done, with this record."""

    def count(self, done: int, total: int) -> None:
        """So many steps of what the stage counts."""

    def should_stop(self) -> bool:
        """Whether to stop after this step."""
        return False


@dataclass(frozen=True)
class Comparison:
    """``runs``, ``parity`` and ``notes`` of a result file, and pictures of the first run's model.

    ``failed``: a later run's loss turned out not to be finite; a note says where. ``unsaved``: why there is no
    checkpoint, where it could not be written.
    """

    runs: list[dict[str, Any]]
    parity: list[dict[str, Any]]
    notes: list[str]
    gallery: Gallery | None
    failed: bool = False
    unsaved: UnwrittenError | None = None


def compare(
    job: Job,
    data: Dataset,
    devices: Sequence[Device],
    listener: Listener | None = None,
    checkpoint: Path | None = None,
) -> Comparison:
    """Run ``job`` on every device in every precision, one after another, and the parity proofs.

    Each run trains a new model from the same seed: the same initial weights and the same batches. A few steps before it
    warm the device up, outside every clock. Stops early where the listener says so, with what has been done by then.
    ``checkpoint``: where the first run's model goes. Where a loss is not finite the first run raises NotFiniteError; a
    later one ends the comparison with the runs before it. UsageError where no device has a precision of the job's.
    """
    check_precisions(job.settings.engine, job.precisions, devices)
    listener = listener or Listener()
    runs: list[dict[str, Any]] = []
    remarks: list[str | None] = []
    gallery: Gallery | None = None
    unsaved: UnwrittenError | None = None
    for device, precision in sides(job, devices):
        if listener.should_stop():
            break
        warm_up, compiled = _warm_up(job, data, device, precision, listener)
        device.reset_peak_memory()
        begun = time.perf_counter()
        trainer = new_trainer(job, data, device, precision)
        listener.run_begins(trainer)
        try:
            trainer.run(listener.progress, listener.epoch, listener.should_stop, listener.compiling)
        except NotFiniteError as error:
            if not runs:
                raise
            notes = [*_notes(data, devices, listener, runs), f"{device.name} {precision}: {error}."]
            return Comparison(runs, [], notes, gallery, failed=True, unsaved=unsaved)
        total, peak = time.perf_counter() - begun, device.peak_memory()
        if not runs:
            gallery = make_gallery(trainer)
            unsaved = _try_to_save(checkpoint, trainer)
        listener.stage(f"Profiling {counted(job.profile_steps, 'step')} on {device.description}")
        record = run_record(trainer, peak_memory=peak, total_seconds=total, warm_up_seconds=warm_up)
        record["memory"] = memory(trainer, peak)
        record["compiled"] += compiled.kernels
        record["compile_seconds"] += compiled.seconds
        record["phases"], record["operations"] = profile(trainer, job.profile_steps)
        remarks.append(remark(trainer))
        runs.append(record)
        listener.run_ends(record)
        del trainer  # its arrays must not count in the next run's memory
        gc.collect()  # a plan and what it has laid out know each other
    proofs = _proofs(job, data, devices, listener)
    notes = [*_notes(data, devices, listener, runs), *dict.fromkeys(filter(None, remarks))]
    return Comparison(runs, proofs, notes, gallery, unsaved=unsaved)


def _try_to_save(path: Path | None, trainer: Trainer) -> UnwrittenError | None:
    """A full disk must not end a comparison: its figures are still to come."""
    try:
        if path is not None:
            save(path, trainer)
    except UnwrittenError as error:
        return error
    return None


def check_precisions(engine: str, precisions: Sequence[str], devices: Sequence[Device]) -> None:
    """UsageError, with what can be done, where one of them is no device's."""
    place = next((device for device in devices if not isinstance(device, CpuDevice)), devices[0])
    for precision in precisions:
        check_precision(engine, precision, place)


def sides(job: Job, devices: Sequence[Device]) -> list[tuple[Device, str]]:
    """Every run's device and precision; what a CPU has no arithmetic for runs there in float32, once."""
    wanted = [
        (device, stored(precision) if isinstance(device, CpuDevice) else precision)
        for precision in job.precisions
        for device in devices
    ]
    return list(dict.fromkeys(wanted))


def new_trainer(job: Job, data: Dataset, device: Device, precision: str, engine: str | None = None) -> Trainer:
    """A trainer of the job's model, newly drawn from its seed; ``engine``: another than the job's."""
    model = models.by_name(job.model, data.image_shape, data.classes, job.settings.seed)
    settings = dataclasses.replace(job.settings, precision=precision, engine=engine or job.settings.engine)
    return Trainer(model, data, optim.from_config(job.optimizer), settings, device)


class _Compiled(NamedTuple):
    kernels: int
    seconds: float


def _warm_up(job: Job, data: Dataset, device: Device, precision: str, listener: Listener) -> tuple[float, _Compiled]:
    """A few steps on a model of its own; returns their seconds, and apart from them what was compiled."""
    listener.stage(f"Warming up {device.description}")
    begun = time.perf_counter()
    # Two full batches and a short one, as in an epoch, and the evaluation after it.
    few = data.take(2 * job.settings.batch_size + job.settings.batch_size // 2 + 1)
    trainer = new_trainer(job, few, device, precision)
    with device.activate():
        trainer.engine.prepare(listener.compiling)
        for step in range(min(WARM_UP_STEPS, trainer.total_steps)):
            trainer.train_step(step)
        evaluate(trainer.engine, trainer.data.train.part(slice(0, 2 * trainer.engine.predict_images)))
        device.synchronize()
    compiled = _Compiled(trainer.engine.compiled, trainer.engine.compile_seconds)
    return time.perf_counter() - begun - compiled.seconds, compiled


def _proofs(job: Job, data: Dataset, devices: Sequence[Device], listener: Listener) -> list[dict[str, Any]]:
    """CPU against GPU in float32 and float64; with one device only, its float32 against its own float64.

    And, where the job's engine is not the reference, each device's engine against the reference there: on a CPU in
    both, on a GPU in float32 and in whatever else of the job's it computes in.
    """
    if job.parity_steps < 1:
        return []
    engine = job.settings.engine
    if len(devices) > 1:
        across = [((devices[0], p), (other, p)) for other in devices[1:] for p in ("float32", "float64")]
    else:
        across = [((devices[0], "float64"), (devices[0], "float32"))]
    compared = [((*a, engine), (*b, engine)) for a, b in across]
    for device in devices:
        if isinstance(device, CpuDevice):
            own = ["float64", "float32"] if engine != "reference" else []
        elif engine == "plan" and why_no_plan(device) is None:
            own = [p for p in dict.fromkeys(("float32", *job.precisions)) if p != "float64"]
        else:
            own = []
        compared += [((device, stored(p), "reference"), (device, p, engine)) for p in own]
    proofs = []
    for reference, candidate in compared:
        if listener.should_stop():
            break
        in_double = reference[1] == candidate[1] == "float64"
        trainers = [new_trainer(job if in_double else _gently(job), data, *side) for side in (reference, candidate)]
        names = side_names(trainers[0], trainers[1])
        listener.stage(f"Parity proof: {names[0]} against {names[1]}, {counted(job.parity_steps, 'step')} in lockstep")
        for trainer in trainers:
            trainer.engine.prepare(listener.compiling)
        steps = min(job.parity_steps, trainers[0].total_steps)

        def tell(done: int, steps: int = steps) -> None:
            listener.count(done, steps)

        proofs.append(parity(trainers[0], trainers[1], steps, tell, listener.should_stop))
    return proofs


def _gently(job: Job) -> Job:
    """The job at a small constant rate; ``parity`` says why."""
    settings = dataclasses.replace(job.settings, schedule=optim.Constant())
    return dataclasses.replace(job, settings=settings, optimizer={**job.optimizer, "lr": job.optimizer["lr"] * GENTLE})


def _notes(data: Dataset, devices: Sequence[Device], listener: Listener, runs: Sequence[dict[str, Any]]) -> list[str]:
    notes = _unlike(runs)
    reason = why_no_cuda()
    if len(devices) == 1 and reason is not None:
        notes.append(f"No GPU run: {reason}.")
    if data.evaluation is None:
        notes.append("No accuracy: the data have neither a test nor a validation split.")
    elif data.evaluation[0] == "validation":
        notes.append("Accuracy is that of the held-out validation split, not of test images.")
    if listener.should_stop():
        notes.append("Stopped early by request: the runs are those that were done, the last one perhaps in part.")
    return notes


def _unlike(runs: Sequence[dict[str, Any]]) -> list[str]:
    """A warning where a tuned program was compared with one that is not."""
    notes = []
    for pair in pairs(list(runs)):
        gpu, cpu = runs[pair.gpu], runs[pair.cpu]
        if (gpu["engine"] == "reference") != (cpu["engine"] == "reference"):
            tuned, plain = (gpu, cpu) if cpu["engine"] == "reference" else (cpu, gpu)
            notes.append(
                f"{tuned['device']} {tuned['precision']} ran the tuned engine {tuned['engine']}, {plain['device']} "
                f"{plain['precision']} the reference: their ratio is of two programs as much as of two processors. "
                "The engine reference runs the same program on both."
            )
    return notes


def make_gallery(trainer: Trainer) -> Gallery:
    """Pictures of a trained model: first-layer filters, what the layers see of one digit, right and wrong examples."""
    device, model = trainer.device, trainer.model
    held_out = trainer.data.evaluation
    split = held_out[1] if held_out else trainer.data.train
    evaluation = trainer.evaluation
    chosen = _examples(evaluation) if evaluation else np.empty(0, np.int64)
    maps: dict[str, np.ndarray[Any, Any]] = {}

    def watch(phase: str, layer: Layer, result: Array | None) -> None:
        if isinstance(layer, Conv2d | ReLU | MaxPool2d) and result is not None and result.ndim == 4:
            maps[layer.name] = device.to_host(result)[0]

    with device.activate():
        model.forward(model.prepare(device.asarray(split.images[:1])), watch=watch)
        first = next((leaf for leaf in model.leaves() if isinstance(leaf, Conv2d)), None)
        filters = None if first is None else device.to_host(first.params["weight"])
    empty = np.empty(0)
    return Gallery(
        filters=filters,
        digit=split.images[0] if maps else None,
        feature_maps=maps,
        images=split.images[chosen],
        labels=split.labels[chosen],
        predicted=evaluation.predicted[chosen] if evaluation else empty,
        confidence=evaluation.confidence[chosen] if evaluation else empty,
    )


def _examples(evaluation: Evaluation, each: int = 12) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Indices of images predicted right, a few of every class in turn, and of those most confidently wrong."""
    right = np.flatnonzero(evaluation.predicted == evaluation.labels)
    by_class = [
        right[evaluation.labels[right] == c][: -(-each // evaluation.classes)] for c in range(evaluation.classes)
    ]
    mixed = [part[i] for i in range(-(-each // evaluation.classes)) for part in by_class if i < len(part)]
    return np.concatenate([np.array(mixed[:each], np.int64), evaluation.most_confidently_wrong(each)])

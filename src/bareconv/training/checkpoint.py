"""Checkpoints: safetensors, with the configuration as metadata. Loading one rebuilds the model; no pickle.

A file holds the tensors ``model/conv1.weight``, ... and, where a training may go on from it, the optimizer's
``optimizer/...`` and the per-step ``history/loss`` and ``history/correct``; its metadata hold one JSON text under
``bareconv``.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bareconv
from bareconv import optim
from bareconv.errors import BareconvError, DataError
from bareconv.files import write_whole
from bareconv.nn.model import Model
from bareconv.training.history import EpochRecord, History
from bareconv.training.loop import Settings, Trainer
from bareconv.training.precision import stored

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a file held: a model on the CPU, and what is needed to go on training it."""

    path: Path
    model: Model
    settings: Settings
    optimizer: optim.Optimizer
    optimizer_state: dict[str, NDArray[Any]]
    optimizer_step: int
    history: History
    data: str  # the name of the data that it was trained on

    def resume(self, data: Any, device: Any) -> Trainer:
        """A trainer that goes on where the checkpoint ends, on ``data`` and ``device``."""
        if len(data.train) != self.history.train_images:
            raise DataError(
                f"{self.path} was trained on {self.history.train_images} images of {self.data}; to resume it, expected "
                f"the same, got {len(data.train)} images of {data.name}"
            )
        trainer = Trainer(self.model, data, self.optimizer, self.settings, device, self.history)
        with trainer.device.activate():
            state = {key: trainer.device.asarray(value) for key, value in self.optimizer_state.items()}
            self.optimizer.load_state(state, self.optimizer_step)
        return trainer


def save(path: Path, trainer: Trainer) -> None:
    """Write model, optimizer and history: to a temporary file, then renamed: ``path`` is old or new, never half.

    Raises BareconvError where it cannot be written, with the reason; an older file stays as it was.
    """
    from safetensors.numpy import save as to_bytes

    history, host = trainer.history, trainer.device.to_host
    with trainer.device.activate():
        tensors = {f"model/{key}": host(value) for key, value in trainer.model.state().items()}
        tensors |= {f"optimizer/{key}": host(value) for key, value in trainer.optimizer.state().items()}
    tensors["history/loss"] = np.array(history.loss, np.float64)
    tensors["history/correct"] = np.array(history.correct, np.int64)
    settings = dataclasses.asdict(dataclasses.replace(trainer.settings, schedule=None))  # type: ignore[arg-type]
    about = {
        "format": FORMAT,
        "bareconv": bareconv.__version__,
        "model": trainer.model.config(),
        "settings": {**settings, "schedule": trainer.settings.schedule.config()},
        "optimizer": trainer.optimizer.config(),
        "optimizer_step": trainer.optimizer.step,
        "data": trainer.data.name,
        "history": {
            "batch_size": history.batch_size,
            "train_images": history.train_images,
            "train_seconds": history.train_seconds,
            "evaluate_seconds": history.evaluate_seconds,
            "stopped": history.stopped,
            "epochs": [dataclasses.asdict(epoch) for epoch in history.epochs],
        },
    }
    contiguous = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    write_whole(path, to_bytes(contiguous, metadata={"bareconv": json.dumps(about)}))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; the model is on the CPU. DataError, in one line, where the file is not one."""
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        raise DataError(f"{path}: that is a folder; expected a checkpoint, a file")
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; expected a checkpoint that `bareconv train` wrote") from None
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a checkpoint (expected safetensors): {' '.join(str(error).split())}") from None
    if "bareconv" not in metadata:
        raise DataError(f"{path}: safetensors, but not written by bareconv: no model configuration in the metadata")
    try:
        about = json.loads(metadata["bareconv"])
        if about["format"] != FORMAT:
            raise DataError(f"{path}: checkpoint format {about['format']}; this version reads format {FORMAT}")
        model = Model.from_config(about["model"])
        settings = dict(about["settings"])
        schedule = optim.schedule_from_config(settings.pop("schedule"))
        model.to("cpu", stored(settings["precision"])).load_state(_below("model/", tensors))
        epochs = [EpochRecord(**epoch) for epoch in about["history"].pop("epochs")]
        optimizer, state = optim.from_config(about["optimizer"]), _below("optimizer/", tensors)
        _check_state(optimizer, state, model if about["optimizer_step"] else None)
        return Checkpoint(
            path=path,
            model=model,
            settings=Settings(schedule=schedule, **settings),
            optimizer=optimizer,
            optimizer_state=state,
            optimizer_step=about["optimizer_step"],
            history=History(
                loss=tensors["history/loss"].tolist(),
                correct=tensors["history/correct"].tolist(),
                epochs=epochs,
                **about["history"],
            ),
            data=about["data"],
        )
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise DataError(f"{path}: damaged checkpoint: {reason}") from None
    except BareconvError as error:
        raise error if isinstance(error, DataError) else DataError(f"{path}: {error}") from None


def _check_state(optimizer: optim.Optimizer, state: dict[str, NDArray[Any]], model: Model | None) -> None:
    """ValueError unless ``state`` is what ``optimizer`` keeps for ``model``; None: before its first step, nothing."""
    parameters = {} if model is None else model.parameters()
    expected = {f"{slot}/{name}": value.shape for slot in optimizer.slots for name, value in parameters.items()}
    for key in sorted(expected.keys() | state.keys()):
        came = state[key].shape if key in state else None
        if came != expected.get(key):
            raise ValueError(f"optimizer/{key}: expected {expected.get(key, 'none')}, got {came or 'none'}")


def _below(prefix: str, tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

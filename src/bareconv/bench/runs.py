"""A run of a result file, from a trainer that has done its work."""

from __future__ import annotations

from typing import Any

from bareconv.training import Trainer


def run_record(trainer: Trainer, *, peak_memory: int, total_seconds: float, **more: Any) -> dict[str, Any]:
    """The ``run`` object of the schema. ``more`` are further keys of it (memory, phases, checkpoint, ...).

    ``total_seconds``: as the clock says; what the trainer's engine compiled within them is taken off here.
    """
    history, settings, data, engine = trainer.history, trainer.settings, trainer.data, trainer.engine
    held_out, evaluation = data.evaluation, trainer.evaluation
    record = {
        "device": trainer.device.name,
        "device_description": trainer.device.description,
        "engine": engine.name,
        "threads": engine.threads,
        "model": trainer.model.name,
        "precision": engine.precision,
        "batch_size": history.batch_size,
        "epochs": round(history.iterations / history.steps_per_epoch, 6),
        "iterations": history.iterations,
        "parameters": trainer.model.body.parameter_count(),
        "flops_per_image": trainer.model.flops(),
        "data": data.name,
        "train_images": len(data.train),
        "seed": settings.seed,
        "optimizer": repr(trainer.optimizer),
        "schedule": repr(settings.schedule),
        "total_seconds": total_seconds - engine.compile_seconds,
        "compile_seconds": engine.compile_seconds,
        "compiled": engine.compiled,
        "train_seconds": history.train_seconds,
        "evaluate_seconds": history.evaluate_seconds,
        "seconds_per_iteration": history.train_seconds / max(history.iterations, 1),
        "images_per_second": history.images_per_second,
        "test_accuracy": evaluation.accuracy if evaluation else history.test_accuracy,
        "test_loss": evaluation.loss if evaluation else history.test_loss,
        "test_split": held_out[0] if held_out else None,
        "test_images": len(held_out[1]) if held_out else 0,
        "peak_memory_bytes": peak_memory,
        "stopped": history.stopped,
        "history": history.to_json(),
    }
    if evaluation is not None:
        record["confusion"] = evaluation.confusion.tolist()
    return {**record, **more}

"""Training: the engines of a step, the loop around them, evaluation, history, checkpoints."""

from bareconv.training.engine import Batch, Batches, Engine, EngineSettings
from bareconv.training.engines import (
    ENGINES,
    CudaPlanEngine,
    PlanEngine,
    ReferenceEngine,
    TunedEngine,
    check_precision,
    make_engine,
    why_no_plan,
)
from bareconv.training.evaluation import Evaluation, evaluate, predict
from bareconv.training.history import EpochRecord, History
from bareconv.training.loop import Progress, Settings, Trainer, train
from bareconv.training.precision import PRECISIONS

__all__ = [
    "ENGINES",
    "PRECISIONS",
    "Batch",
    "Batches",
    "CudaPlanEngine",
    "Engine",
    "EngineSettings",
    "EpochRecord",
    "Evaluation",
    "History",
    "PlanEngine",
    "Progress",
    "ReferenceEngine",
    "Settings",
    "Trainer",
    "TunedEngine",
    "check_precision",
    "evaluate",
    "make_engine",
    "predict",
    "train",
    "why_no_plan",
]

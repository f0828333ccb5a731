"""Training: the engine of one step, the loop around it, evaluation, history, checkpoints."""

from bareconv.training.engine import (
    ENGINES,
    Batch,
    Engine,
    EngineSettings,
    PlanEngine,
    ReferenceEngine,
    TunedEngine,
    make_engine,
    why_no_plan,
)
from bareconv.training.evaluation import Evaluation, evaluate, predict
from bareconv.training.history import EpochRecord, History
from bareconv.training.loop import Progress, Settings, Trainer, train

__all__ = [
    "ENGINES",
    "Batch",
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
    "evaluate",
    "make_engine",
    "predict",
    "train",
    "why_no_plan",
]

"""Training: the engine of one step, the loop around it, evaluation, history, checkpoints."""

from bareconv.training.engine import ENGINES, Engine, ReferenceEngine, make_engine
from bareconv.training.evaluation import Evaluation, evaluate, predict
from bareconv.training.history import EpochRecord, History
from bareconv.training.loop import Progress, Settings, Trainer, train

__all__ = [
    "ENGINES",
    "Engine",
    "EpochRecord",
    "Evaluation",
    "History",
    "Progress",
    "ReferenceEngine",
    "Settings",
    "Trainer",
    "evaluate",
    "make_engine",
    "predict",
    "train",
]

"""Update rules, gradient clipping and learning-rate schedules, over any array library.

optimizer = from_config({"type": "SGD", "lr": 0.1, "momentum": 0.9})
schedule = schedule_from_name("one-cycle")
norm = clip_grad_norm(grads, max_norm=1.0)
optimizer.update(params, grads, optimizer.lr * schedule.rate(step, total_steps))
"""

from bareconv.optim.clip import clip_grad_norm
from bareconv.optim.optimizer import Optimizer
from bareconv.optim.rules import OPTIMIZERS, SGD, Adam, AdamW, RMSprop, from_config
from bareconv.optim.schedules import SCHEDULES, Constant, Cosine, OneCycle, Schedule, Step
from bareconv.optim.schedules import from_config as schedule_from_config
from bareconv.optim.schedules import from_name as schedule_from_name

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "OneCycle",
    "Optimizer",
    "RMSprop",
    "Schedule",
    "Step",
    "clip_grad_norm",
    "from_config",
    "schedule_from_config",
    "schedule_from_name",
]

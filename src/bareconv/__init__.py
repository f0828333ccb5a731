"""bareconv: a convolutional network from first principles, on NumPy and CuPy, and an honest comparison of the two.

import bareconv as bc
model = bc.models.basic()
data = bc.data.mnist()
history = bc.train(model, data, optimizer=bc.optim.SGD(0.05, momentum=0.9), epochs=3, device="auto")
print(history.test_accuracy)

Nothing is imported before it is used: the command line answers ``--help`` without loading NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bareconv import data, nn, ops, optim
    from bareconv.device import Device, get_device
    from bareconv.errors import BareconvError
    from bareconv.nn import models
    from bareconv.report.show import show_predictions
    from bareconv.training import train
    from bareconv.training.checkpoint import load, save

# Name -> (module, what in it; "" for the module itself)
_WHERE = {
    "data": ("bareconv.data", ""),
    "models": ("bareconv.nn.models", ""),
    "nn": ("bareconv.nn", ""),
    "ops": ("bareconv.ops", ""),
    "optim": ("bareconv.optim", ""),
    "BareconvError": ("bareconv.errors", "BareconvError"),
    "Device": ("bareconv.device", "Device"),
    "get_device": ("bareconv.device", "get_device"),
    "load": ("bareconv.training.checkpoint", "load"),
    "save": ("bareconv.training.checkpoint", "save"),
    "show_predictions": ("bareconv.report.show", "show_predictions"),
    "train": ("bareconv.training", "train"),
}

__all__ = [
    "BareconvError",
    "Device",
    "data",
    "get_device",
    "load",
    "models",
    "nn",
    "ops",
    "optim",
    "save",
    "show_predictions",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'bareconv' has no attribute {name!r}")
    module, attribute = _WHERE[name]
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found

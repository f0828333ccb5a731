"""Figures and the page made from a result.

``write_report`` writes the page; the figures can be had one by one. The first of them imports matplotlib and Jinja,
nothing before it does: a command that draws nothing does not wait for them. All of it comes when it is asked for, since
the page uses words of ``bench``, whose modules use those of this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bareconv.report.gallery import Gallery

if TYPE_CHECKING:
    from bareconv.report.bars import memory_bars, operation_bars, speedup_bars
    from bareconv.report.canvas import NARROW, WIDE, NothingToShow, png, svg
    from bareconv.report.curves import convergence, parity_plot
    from bareconv.report.ladder import ladder_bars
    from bareconv.report.page import write_report
    from bareconv.report.pictures import (
        confusion_matrix,
        confusion_picture,
        examples,
        feature_maps,
        filters,
        mistakes_picture,
        predictions_picture,
    )

_WHERE = {
    "bars": ("memory_bars", "operation_bars", "speedup_bars"),
    "canvas": ("NARROW", "WIDE", "NothingToShow", "png", "svg"),
    "curves": ("convergence", "parity_plot"),
    "ladder": ("ladder_bars",),
    "page": ("write_report",),
    "pictures": (
        "confusion_matrix",
        "confusion_picture",
        "examples",
        "feature_maps",
        "filters",
        "mistakes_picture",
        "predictions_picture",
    ),
}

__all__ = [
    "NARROW",
    "WIDE",
    "Gallery",
    "NothingToShow",
    "confusion_matrix",
    "confusion_picture",
    "convergence",
    "examples",
    "feature_maps",
    "filters",
    "ladder_bars",
    "memory_bars",
    "mistakes_picture",
    "operation_bars",
    "parity_plot",
    "png",
    "predictions_picture",
    "speedup_bars",
    "svg",
    "write_report",
]


def __getattr__(name: str) -> Any:
    for module, names in _WHERE.items():
        if name in names:
            return getattr(importlib.import_module(f"bareconv.report.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

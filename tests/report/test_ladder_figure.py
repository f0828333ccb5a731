"""The ladder's figure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from bareconv.report import ladder_bars
from bareconv.report.canvas import NothingToShow, png
from bareconv.report.palette import LIGHT
from bareconv.report.rungs import executed, remarks


def problem(*rungs: tuple[str, str, float | None]) -> dict[str, Any]:
    entries = [
        {"name": name, "device": device, "status": "measured" if rate else "wrong", "images_per_second": rate}
        for name, device, rate in rungs
    ]
    return {"description": "a convolution", "rungs": entries}


def figure(*problems: dict[str, Any]) -> Figure:
    return ladder_bars({"ladder": {"peaks": [], "problems": list(problems)}})


def test_a_disc_for_each_rung_that_was_measured() -> None:
    drawn = figure(problem(("slow", "cpu", 0.1), ("broken", "cpu", None), ("quick", "cuda:0", 2345.0)))
    (axes,) = drawn.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["slow", "quick"]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.texts] == ["0.100/s", "2,345/s"]
    assert not axes.patches  # a bar's length would mean nothing on this axis
    assert [float(np.asarray(line.get_xdata())[0]) for line in axes.lines] == [0.1, 2345]
    assert [line.get_color() for line in axes.lines] == [LIGHT["cpu"], LIGHT["gpu"]]
    assert png(drawn).startswith(b"\x89PNG")


def test_rungs_close_together_stand_on_zero() -> None:
    drawn = figure(problem(("a", "cpu", 100.0), ("b", "cpu", 300.0)), problem(("a", "cpu", 1.0), ("b", "cpu", 21.0)))
    assert [axes.get_xscale() for axes in drawn.axes] == ["linear", "log"]
    assert drawn.axes[0].get_xlim()[0] == 0
    assert len(drawn.axes[0].patches) == 2


def test_nothing_to_show() -> None:
    nothing: dict[str, Any] = {}
    for result in (nothing, {"ladder": {"problems": [problem(("broken", "cpu", None))]}}):
        with pytest.raises(NothingToShow):
            ladder_bars(result)


def test_what_an_older_result_did_not_count_is_not_shown() -> None:
    """Of a step's plan it has the direct method's work as executed, which is above the peak."""
    plan: dict[str, Any] = {
        "name": "plan engine",
        "status": "measured",
        "executed_flops_per_second": 3e9,
        "peak_share": 1.5,
    }
    step: dict[str, Any] = {"name": "step", "rungs": [plan, {**plan, "name": "tuned engine"}]}
    assert [executed(step, rung) for rung in step["rungs"]] == [(None, None), (3e9, 1.5)]
    (said,) = remarks(step)
    assert said.startswith("What plan engine executed was not counted")
    newer = {**step, "rungs": [{**plan, "counted": "what its kernels multiply"}]}
    assert executed(newer, newer["rungs"][0]) == (3e9, 1.5)
    assert remarks(newer) == ["Executed, plan engine: what its kernels multiply."]

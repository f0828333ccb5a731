"""The parts of a step by layer and by what of it is computed."""

from __future__ import annotations

from typing import Any

import pytest

from bareconv.report.nodes import by_node, operation


def launch(node: str, phase: str, seconds: float, operation: str | None = None) -> dict[str, Any]:
    return {"node": node, "phase": phase, "seconds": seconds} | ({} if operation is None else {"operation": operation})


def test_one_that_says_not_what_it_computes_is_told_by_its_phase() -> None:
    assert operation(launch("conv1", "backward", 1.0)) == "dX + dW"
    assert operation(launch("conv1", "something", 1.0)) == "other"
    assert operation(launch("conv1", "backward", 1.0, "dW")) == "dW"
    assert operation(launch("conv1", "backward", 1.0, "of another version")) == "other"


def test_what_is_done_for_one_layer_belongs_to_its_group() -> None:
    launches = [
        launch("conv1", "prepare", 1.0, "other"),
        launch("conv1 + relu1", "forward", 2.0),
        launch("dense1", "forward", 4.0),
        launch("conv1 + relu1", "backward", 8.0, "dW"),
        launch("conv1", "update", 16.0),
        launch("dense1", "update", 32.0),
        launch("between layers", "other", 64.0),
    ]
    nodes = by_node({"launches": launches})
    assert list(nodes) == ["conv1 + relu1", "dense1", "between layers"]  # in the order of the forward pass
    assert nodes["conv1 + relu1"] == {"forward": 2.0, "other": 1.0, "dW": 8.0, "update": 16.0}
    assert nodes["dense1"] == {"forward": 4.0, "update": 32.0}


def test_of_many_the_longest_are_named() -> None:
    launches = [launch(f"conv{n}", "forward", 1.0 + n) for n in range(20)]
    nodes = by_node({"launches": launches})
    assert list(nodes) == [*(f"conv{n}" for n in range(5, 20)), "5 others"]
    assert nodes["5 others"] == {"forward": pytest.approx(1.0 + 2.0 + 3.0 + 4.0 + 5.0)}

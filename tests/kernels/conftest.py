"""A test that asks for ``target`` runs for every vector unit; those that this machine lacks are skipped."""

from __future__ import annotations

import pytest
from kernel_harness import UNITS, target_of

from bareconv.kernels.cpu.target import Target


@pytest.fixture(params=UNITS, ids=lambda unit: "-".join(unit))
def target(request: pytest.FixtureRequest) -> Target:
    return target_of(*request.param)

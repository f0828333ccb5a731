"""A test that asks for ``target`` runs for the vector units of this machine that there is code for."""

from __future__ import annotations

import pytest
from kernel_harness import UNITS

from bareconv.kernels.cpu.target import Target, host_target


@pytest.fixture(params=UNITS, ids=lambda unit: "-".join(unit))
def target(request: pytest.FixtureRequest) -> Target:
    unit, dtype = request.param
    return host_target(dtype, unit)

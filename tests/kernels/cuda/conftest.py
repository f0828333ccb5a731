"""Every test of a CUDA kernel runs on the kernel's host build, and on a GPU where there is one."""

from __future__ import annotations

import pytest
from cuda_host import needs_compiler, run_on_host


@pytest.fixture(params=[pytest.param("host", marks=needs_compiler), pytest.param("gpu", marks=pytest.mark.cuda)])
def launch(request):
    """``launch(kernel, arrays, order)``: a kernel on NumPy arrays by operand, changed in place."""
    if request.param == "host":
        return run_on_host
    from cuda_gpu import run_on_gpu

    return run_on_gpu

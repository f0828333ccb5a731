"""One fixture runs a test on every array library that is there."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from bareconv import data
from bareconv.device import Device, get_device, why_no_cuda

# The machines that run this are shared and slow at times: no deadline for an example, and the same examples every time.
settings.register_profile(
    "bareconv", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("bareconv")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_no_cuda()
    if reason is not None:
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why tests were skipped, a line a reason: there are hundreds of GPU tests, and one reason."""
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason.removeprefix('Skipped: ')}")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    """Every device there is; those that are not are skipped with the reason."""
    chosen: Device = get_device(request.param)
    with chosen.activate():
        yield chosen


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory):
    """Compiled kernels of this session: not the user's, so that tests neither depend on it nor fill it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BARECONV_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(20261122)


@pytest.fixture(scope="session")
def mnist():
    return data.mnist()


@pytest.fixture(scope="session")
def digits(mnist):
    """A few hundred digits: enough to learn something in a second."""
    return mnist.take(320, 200)

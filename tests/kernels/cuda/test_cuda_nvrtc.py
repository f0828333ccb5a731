"""Which run-time compiler is taken, where there are several."""

from types import SimpleNamespace

import pytest
from cuda_host import needs_nvrtc

from bareconv.errors import BareconvError
from bareconv.kernels.cuda import nvrtc


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """CUDA 12's and CUDA 13's, as they are installed side by side."""
    for name in ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12", "cuda_nvrtc/lib/libnvrtc.alt.so.12"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)


@pytest.mark.parametrize(("driver", "first"), [(None, "13"), ((13, 2), "13"), ((12, 4), "12")])
def test_the_newest_that_fits_the_driver(wheels, monkeypatch, driver, first):
    monkeypatch.setattr(nvrtc, "driver_cuda_version", lambda: driver)
    found = nvrtc._candidates()
    assert found[0].endswith(f"libnvrtc.so.{first}")
    assert not any(".alt." in path for path in found)
    assert {path.rpartition("/")[2] for path in found} >= {"libnvrtc.so.12", "libnvrtc.so.13"}


@needs_nvrtc
def test_what_does_not_compile_is_said_in_the_compiler_s_words():
    with pytest.raises(BareconvError, match=r"kernel it does not compile for sm_90:[\s\S]*undefined"):
        nvrtc.compile_source("__global__ void it() { undefined; }", "it", "sm_90")

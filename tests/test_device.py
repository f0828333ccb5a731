"""What the machine allows: cores, quotas and GPUs, from /proc and /sys of machines that this one is not."""

from __future__ import annotations

import contextlib
import importlib.machinery
import sys
import types

import numpy as np
import pytest

from bareconv import device


@pytest.mark.parametrize(
    ("version", "package"),
    [((12, 4), "cupy-cuda12x[ctk]"), ((13, 0), "cupy-cuda13x[ctk]"), ((14, 1), "cupy-cuda13x[ctk]")],
)
def test_the_install_command_fits_the_driver(version, package):
    assert device.cupy_install_command(version) == f'pip install "{package}"'


class FakeCupy(types.ModuleType):
    """As much of CuPy as the question "does it work?" needs; ``failure`` is raised by the first kernel."""

    def __init__(self, devices=1, failure=None, count_failure=None):
        super().__init__("cupy")
        self.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
        self.failure, self.count_failure, self.devices = failure, count_failure, devices
        self.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDeviceCount=self.count))

    def count(self):
        if self.count_failure:
            raise self.count_failure
        return self.devices

    def arange(self, _):
        if self.failure:
            raise self.failure
        return self

    def ones(self, *_, **__):
        return self

    def dot(self, _):
        return self

    def sum(self):
        return self

    def item(self):
        return 1


NO_DEVICE = RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
NO_NVRTC = RuntimeError("CuPy failed to load libnvrtc.so.12: OSError: libnvrtc.so.12: cannot open shared object file")


@pytest.mark.parametrize(
    ("cupy", "version", "variables", "expected"),
    [
        (FakeCupy(), (12, 4), {}, None),
        (None, None, {}, "no NVIDIA driver was found, so there is no GPU to use"),
        (
            None,
            (12, 4),
            {},
            'the driver is there, but CuPy is not installed: pip install "cupy-cuda12x[ctk]"',
        ),
        (
            None,
            (11, 4),
            {},
            'the NVIDIA driver stops at CUDA 11.4: install a newer driver, then pip install "cupy-cuda12x[ctk]"',
        ),
        (
            FakeCupy(count_failure=NO_DEVICE),
            None,
            {},
            "CuPy is installed, but no NVIDIA driver was found, so there is no GPU to use",
        ),
        (
            FakeCupy(count_failure=NO_DEVICE),
            (12, 4),
            {"CUDA_VISIBLE_DEVICES": "-1"},
            "CUDA_VISIBLE_DEVICES=-1 hides every GPU: unset it",
        ),
        (FakeCupy(devices=0), (12, 4), {}, "CuPy is installed, but the GPU does not work (the driver shows no GPU)"),
        (
            FakeCupy(count_failure=RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")),
            (12, 2),
            {},
            "the NVIDIA driver stops at CUDA 12.2, too old for this CuPy: install a newer one",
        ),
        (
            FakeCupy(failure=NO_NVRTC),
            (12, 4),
            {},
            f'CuPy is installed, but misses one of CUDA\'s libraries ({NO_NVRTC}): pip install "cupy-cuda12x[ctk]"',
        ),
        (
            FakeCupy(failure=RuntimeError("an illegal\nmemory access")),
            (12, 4),
            {},
            "CuPy is installed, but the GPU does not work (an illegal memory access)",
        ),
    ],
)
def test_why_no_cuda(cupy, version, variables, expected, monkeypatch):
    monkeypatch.setattr(device, "driver_cuda_version", lambda: version)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: cupy)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert device.why_no_cuda.__wrapped__() == expected


def test_a_cupy_that_cannot_be_imported_is_a_reason(monkeypatch):
    monkeypatch.setattr(device, "driver_cuda_version", lambda: (13, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "cupy", None)  # import raises ModuleNotFoundError
    reason = str(device.why_no_cuda.__wrapped__())
    assert reason.startswith("CuPy cannot be imported (")
    assert reason.endswith('): pip install "cupy-cuda13x[ctk]"')


def test_a_long_reason_is_cut():
    assert device._one_line(RuntimeError("nvcc said\n" + "x " * 4000)).endswith("…")
    assert len(device._one_line(RuntimeError("y" * 4000))) == 200
    assert device._one_line(RuntimeError()) == "RuntimeError"


@pytest.mark.parametrize("broken", [None, types.ModuleType("pynvml")])
def test_a_broken_nvml_is_no_driver(broken, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    assert device.driver_cuda_version.__wrapped__() is None


def test_the_cpu_takes_arrays_from_a_gpu(monkeypatch):
    """What lies on a GPU is fetched; a host's array stays itself."""

    class OnGpu:
        def get(self):
            return np.array([1.0, 2.0])

    cupy = types.ModuleType("cupy")
    cupy.ndarray = OnGpu  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    cpu = device.get_device("cpu")
    fetched = cpu.asarray(OnGpu(), dtype="float32")
    assert fetched.dtype == np.float32
    assert fetched.tolist() == [1.0, 2.0]
    own = np.arange(3.0)
    assert cpu.asarray(own) is own
    monkeypatch.delitem(sys.modules, "cupy")
    assert cpu.asarray([1, 2]).tolist() == [1, 2]


def _library(**names):
    """A stand-in for CuPy that has these."""
    library = types.ModuleType("library")
    vars(library).update(names)
    return library


def test_much_is_copied_to_a_gpu_in_pieces(monkeypatch):
    """Each by way of page-locked memory of its size; NumPy stands in for CuPy."""
    asked = []

    def asarray(host, dtype=None):
        asked.append(host.nbytes)
        return np.array(host, dtype=dtype)

    gpu = device.CudaDevice.__new__(device.CudaDevice)
    gpu.xp = _library(empty=np.empty, asarray=asarray)
    monkeypatch.setattr(device, "_PIECE_BYTES", 100)
    images = np.arange(70 * 3, dtype=np.uint8).reshape(70, 3)
    copy = gpu.asarray(images)
    np.testing.assert_array_equal(copy, images)
    assert copy.dtype == np.uint8
    assert asked == [99, 99, 12]
    np.testing.assert_array_equal(gpu.asarray(images, dtype=np.int32), images)
    asked.clear()
    np.testing.assert_array_equal(gpu.asarray(images[:20], dtype=np.float32), images[:20])
    assert asked == [60]


def test_a_gpus_memory_is_its_own():
    """Of the second of two GPUs, while the first is the current one; CuPy's pool answers for the current one."""
    current = [0]

    @contextlib.contextmanager
    def activated(index):
        current.append(index)
        yield
        current.pop()

    def of_current(first, second):
        return lambda: (first, second)[current[-1]]

    freed: list[int] = []
    pool = types.SimpleNamespace(
        free_bytes=of_current(1, 30),
        total_bytes=of_current(2, 40),
        free_all_blocks=lambda: freed.append(current[-1]),
    )
    gpu = device.CudaDevice.__new__(device.CudaDevice)
    gpu.index = 1
    runtime = types.SimpleNamespace(memGetInfo=of_current((3, 9), (500, 1000)))
    cuda = types.SimpleNamespace(runtime=runtime, Device=activated)
    gpu.xp = _library(get_default_memory_pool=lambda: pool, cuda=cuda)
    gpu.synchronize = lambda: None  # type: ignore[method-assign]
    assert (gpu.free_bytes(), gpu.memory(), gpu.peak_memory()) == (530, 40, 40)
    gpu.reset_peak_memory()
    assert freed == [1]
    assert device.get_device("cpu").free_bytes() is None

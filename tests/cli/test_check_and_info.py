"""``bareconv check`` and ``bareconv info``."""

from __future__ import annotations

import re

import pytest

from bareconv.bench import engines, environment, gradients
from bareconv.device import all_devices, get_device, why_no_cuda
from bareconv.training import TunedEngine, why_no_plan


@pytest.fixture(autouse=True)
def fewer_engines(monkeypatch):
    """Of the models on which engines are checked, only the one asked for."""
    monkeypatch.setattr(engines, "FURTHER", {})


def test_every_layer_and_a_model_on_every_device(run, here, listing):
    outcome = run("check", "--model", "lenet5", "--json")
    assert outcome.code == 0
    checks = outcome.result()["gradient_checks"]
    names = [*gradients.layer_cases(), "softmax cross-entropy", "softmax cross-entropy, smoothed", "model lenet5"]
    for device in all_devices():
        assert [check["name"] for check in checks if check["device"] == device.name] == names
    assert all(check["passed"] and 0 <= check["error"] <= check["tolerance"] == 1e-6 for check in checks)
    assert all(check["checked"] >= 12 for check in checks)
    assert listing() == []


def test_the_table(run, here):
    outcome = run("check", "--model", "mlp", "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert re.fullmatch(r"gradient of +device +derivatives +largest error", lines[0])
    assert all(re.fullmatch(r"\S.* +cpu +\d+ +(\d\.\d×)?10⁻[⁰¹²³⁴-⁹]+ +ok", line) for line in lines[1:28])
    assert lines[28] == "27 of 27 within the tolerance of 10⁻⁶"
    assert lines[30] == "In lockstep with the reference on cpu:"
    assert re.fullmatch(r"model +images +engine +steps +losses differ by +weights differ by", lines[31])
    wanted = engines.candidates()
    for line, (name, precision) in zip(lines[32:], wanted, strict=False):
        number = r"(0|(\d\.\d×)?10⁻[⁰¹²³⁴-⁹]+)"
        assert re.fullmatch(rf"mlp +28 x 28 x 1 +cpu {precision} {name} +6 +{number} +{number} +ok", line)
    assert lines[-1] == f"{len(wanted)} of {len(wanted)} within the tolerance of 10⁻⁹ in float64, 10⁻³ in float32"
    assert max(map(len, lines)) <= 100


def test_every_engine_is_held_against_the_reference(run, here):
    outcome = run("check", "--model", "lenet5", "--device", "cpu", "--threads", "2", "--json")
    assert outcome.code == 0
    proofs = outcome.result()["parity"]
    assert [(proof["reference"], proof["candidate"]) for proof in proofs] == [
        (f"cpu {precision} reference", f"cpu {precision} {name}") for name, precision in engines.candidates()
    ]
    assert all(proof["model"] == "lenet5" and proof["steps"] == 6 for proof in proofs)
    for proof in proofs:
        assert max(proof["max_loss_difference"], proof["final_weight_difference"]) < 1e-3
        if proof["precision"] == "float64":
            assert max(proof["max_loss_difference"], proof["final_weight_difference"]) < 1e-9


def test_further_models():
    """Of every kind that the zoo has, on images that do not take long; and the one asked for on its own size."""
    assert engines.cases("basic")[0] == ("basic", (28, 28, 1))
    assert engines.cases("resnet18") == [("resnet18", (16, 16, 3))]
    assert engines.count("mlp") == len(engines.cases("mlp")) * len(engines.candidates())


def test_an_engine_that_is_wrong(run, here, monkeypatch):
    """Exit 1: a rate that is larger by a millionth, in one engine."""
    train = TunedEngine.train
    monkeypatch.setattr(TunedEngine, "train", lambda self, batch, lr: train(self, batch, lr * (1 + 1e-6)))
    monkeypatch.setattr("bareconv.cli.check.check_all", lambda *_: [gradients.Check("conv", "cpu", 0.0, 3)])
    outcome = run("check", "--model", "mlp", "--device", "cpu", "--json")
    assert outcome.code == 1
    passed = {proof["candidate"]: proof["passed"] for proof in outcome.result()["parity"]}
    assert [name for name, right in passed.items() if not right] == ["cpu float64 tuned"]
    assert re.search(r"^mlp .* cpu float64 tuned .* WRONG$", outcome.err, re.MULTILINE)


def test_a_wrong_gradient(run, here, monkeypatch):
    """Exit 1, and the table says where. The bias of a convolution forgets half its sum."""
    from bareconv.nn import Conv2d

    original = Conv2d.backward

    def wrong(self, *arguments, **more):
        result = original(self, *arguments, **more)
        if "bias" in self.grads:
            self.grads["bias"] /= 2
        return result

    monkeypatch.setattr(Conv2d, "backward", wrong)
    outcome = run("check", "--model", "mlp", "--device", "cpu", "--json")
    assert outcome.code == 1
    wrong_ones = {check["name"] for check in outcome.result()["gradient_checks"] if not check["passed"]}
    assert {"conv", "conv, groups"} <= wrong_ones
    assert "dense" not in wrong_ones
    assert re.search(r"^conv, dilated +cpu .* WRONG$", outcome.err, re.MULTILINE)
    assert re.search(r"^\d+ of 27 within the tolerance of 10⁻⁶$", outcome.err, re.MULTILINE)


def test_a_gradient_that_is_no_number(run, here, monkeypatch):
    def no_number(*_, **__):
        yield gradients.Check("conv", "cpu", float("nan"), 3)

    monkeypatch.setattr("bareconv.cli.check.check_all", no_number)
    outcome = run("check", "--device", "cpu", "--json")
    assert outcome.code == 1
    assert outcome.result()["gradient_checks"][0]["error"] is None
    assert re.search(r"^conv +cpu +3 +not finite +WRONG$", outcome.err, re.MULTILINE)


def test_no_gpu_to_check(run, here):
    reason = why_no_cuda()
    if reason is None:
        pytest.skip("there is a GPU")
    assert f"Not checked on a GPU: {reason}." in run("check", "--model", "mlp").out


def test_info(run, here, listing):
    outcome = run("info", "--json")
    assert outcome.code == 0
    found = outcome.result()["environment"]
    said = dict(re.findall(r"^([A-Z]\w+)  +(.+)$", outcome.err, re.MULTILINE))
    assert said["CPU"] == found["cpu"]["model"]
    assert said["Cores"].startswith(f"{found['cpu']['cores_allowed']} of {found['cpu']['cores']} allowed (affinity ")
    assert found["blas"]["library"] in said["BLAS"]
    assert f"{found['blas']['architecture'] or 'unknown'} kernels" in said["BLAS"]
    assert f"{found['blas']['threads']} thread" in said["BLAS"]
    assert f"numpy {found['packages']['numpy']}" in said["Packages"]
    device = get_device("auto")
    assert f"\nWill be used: {device.name} ({device.description})\n" in outcome.err
    if why_no_plan() is None:
        assert re.search(
            r"^Engine on the CPU: plan \(\S+, \d+ numbers of float32 at a time, \d+ threads?\)$", outcome.err, re.M
        )
    if why_no_cuda() is not None:
        assert said["CUDA"] == f"not used: {why_no_cuda()}"
    assert listing() == []


def test_info_says_why_there_is_no_plan(run, here, monkeypatch):
    monkeypatch.setattr("bareconv.cli.info.why_no_plan", lambda *_: "llvmlite is not there")
    assert re.search(
        r"^Engine on the CPU: tuned \(.*\); no plan: llvmlite is not there$", run("info").out, re.MULTILINE
    )


def machine(monkeypatch, **changes):
    """Let ``info`` see another machine."""
    here = {**environment.describe(), "warnings": []}
    for name, value in changes.items():
        here[name] = {**here[name], **value} if isinstance(value, dict) else value
    monkeypatch.setattr("bareconv.cli.screen.describe", lambda: here)


def test_info_of_a_machine_with_a_gpu(run, here, monkeypatch):
    machine(
        monkeypatch,
        cpu={"cores": 64, "cores_allowed": 6, "affinity": 8, "quota": 6.5},
        gpus=[
            {
                "name": "NVIDIA H200",
                "memory_bytes": 150 << 30,
                "compute_capability": "9.0",
                "driver": "570.1",
                "driver_cuda": "12.8",
            },
            {"name": "NVIDIA T4"},
        ],
        cuda_missing='the driver is there, but CuPy is not installed: pip install "cupy-cuda12x[ctk]"',
        variables={"OMP_NUM_THREADS": "3"},
        warnings=["OPENBLAS_CORETYPE=Haswell makes NumPy use slower kernels: unset OPENBLAS_CORETYPE"],
    )
    monkeypatch.setattr(
        "bareconv.bench.environment.missing",
        lambda: [environment.Missing("CuPy", "nothing runs on the GPU", 'pip install "cupy-cuda12x[ctk]"')],
    )
    out = run("info").out
    assert re.search(r"^Cores +6 of 64 allowed \(affinity 8, container quota 6.5\)$", out, re.MULTILINE)
    assert re.search(r"^GPU +NVIDIA H200, 150 GiB, compute capability 9.0, driver 570.1 \(CUDA 12.8\)$", out, re.M)
    assert re.search(r"^GPU +NVIDIA T4$", out, re.MULTILINE)
    assert re.search(r"^Variables .*OMP_NUM_THREADS=3$", out, re.MULTILINE)
    # Square brackets are not markup: a command that lost its [ctk] would install something else.
    assert out.count('pip install "cupy-cuda12x[ctk]"') == 2
    assert "\n\nCuPy is not installed: nothing runs on the GPU. To install it:\n  pip install" in out
    assert "\nWarning: OPENBLAS_CORETYPE=Haswell makes NumPy use slower kernels: unset OPENBLAS_CORETYPE\n" in out


def test_a_slow_kernel_is_told_when_training(run, here, train_csv, monkeypatch):
    """Once; and that the machine is busy only where times are what one wants."""
    slow, busy = "OPENBLAS_CORETYPE=Haswell makes NumPy slower", "this machine is busy: 9.9 processes ran"
    machine(monkeypatch, warnings=[slow, busy])
    monkeypatch.setattr("bareconv.report.page._pictures", lambda *_: {})  # which take a while to draw
    words = ("--model", "mlp", "--data", train_csv, "--limit", "64", "--device", "cpu")
    trained = run("train", *words).out
    assert (trained.count(slow), trained.count(busy)) == (1, 0)
    compared = run("compare", *words, "--parity-steps", "1").out
    assert (compared.count(slow), compared.count(busy)) == (1, 1)

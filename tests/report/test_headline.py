"""The sentences at the top."""

from __future__ import annotations

import pytest
import report_samples as samples

from bareconv.report.headline import headline, times_faster


def test_a_comparison_says_what_the_gpu_is_worth() -> None:
    head = headline(samples.both())
    assert head.title == (
        "The NVIDIA H100 80GB HBM3 trained basic 42× faster than this CPU and reached the same accuracy"
    )
    assert "10.1 s instead of 7 min 04 s for 2,345 steps of 128 images, both in float32" in head.lead[0]
    assert any("lockstep" in sentence for sentence in head.lead)
    assert [bar.length for bar in head.bars] == [1.0, pytest.approx(1 / 42)]


def test_a_cpu_alone_says_so_and_why() -> None:
    head = headline(samples.cpu_only())
    assert head.title.startswith("Only a CPU ran: it trained basic at 707 images/s and reached 98.95%")
    assert head.lead[0] == "No GPU was compared: no NVIDIA driver was found, so there is no GPU to use."
    assert head.bars == []


def test_a_gpu_alone_says_so() -> None:
    head = headline(samples.result([samples.run("cuda:0", device_description=...)]))
    assert head.title.startswith("The NVIDIA H100 80GB HBM3 trained basic")
    assert "no CPU was run" in head.title


def test_a_slower_gpu_is_called_slower() -> None:
    head = headline(samples.result([samples.run(), samples.run("cuda:0", speed=0.5)]))
    assert "2.0× slower than this CPU" in head.title


def test_a_lower_accuracy_is_not_called_the_same() -> None:
    gpu = samples.run("cuda:0", speed=5.0, test_accuracy=0.9)
    head = headline(samples.result([samples.run(), gpu]))
    assert head.title.endswith("but reached a lower accuracy")


def test_different_work_is_compared_by_rate_and_not_by_accuracy() -> None:
    head = headline(samples.result([samples.run(epochs=1), samples.run("cuda:0", speed=8.0)]))
    assert head.title.endswith("8.0× faster than this CPU")
    assert "they trained for 2,345 and 469 steps" in head.lead[0]
    assert head.measure == "time for 1,000 images"


def test_different_precisions_are_named() -> None:
    head = headline(samples.result([samples.run(), samples.run("cuda:0", precision="tf32", speed=9.0)]))
    assert "the GPU in tf32, the CPU in float32" in head.lead[0]


def test_a_failed_parity_is_at_the_top() -> None:
    head = headline(samples.four())
    assert any(sentence.startswith("The parity test failed") for sentence in head.lead)
    assert any("GPU tf32: 71× faster than CPU float32" in sentence for sentence in head.lead)


def test_the_parity_of_two_devices_is_said_before_that_of_two_engines() -> None:
    """Though the latter came closer to its tolerance; not before one that failed."""
    engines = samples.parity() | {"candidate": "cuda:0 float32 plan", "reference": "cuda:0 float32 reference"}
    devices = samples.parity() | {"max_loss_difference": 1e-9, "tolerance": 1.0}
    said = " ".join(headline(samples.both() | {"parity": [engines, devices, engines]}).lead)
    assert "the losses of cuda:0 float32 and cpu float32 differ by at most 10⁻⁹" in said
    failed = engines | {"passed": False}
    said = " ".join(headline(samples.both() | {"parity": [engines, devices, failed]}).lead)
    assert "The parity test failed" in said
    assert "cuda:0 float32 plan and cuda:0 float32 reference" in said


def test_results_without_runs_have_a_title_too() -> None:
    checks = [{"name": "conv", "device": "cpu", "error": 1e-8, "tolerance": 1e-5, "passed": True}]
    assert headline(samples.result([], gradient_checks=checks)).title == "1 gradient check passed, none failed"
    assert headline(samples.result([])).title == "A result of bareconv"
    evaluation = samples.evaluation()
    assert headline(samples.result([], evaluation=evaluation)).title.startswith("98.95% of 10,000 images")


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(42.0, "42× faster than"), (1.04, "as fast as"), (0.96, "as fast as"), (0.5, "2.0× slower than")],
)
def test_ratios_in_words(ratio: float, words: str) -> None:
    assert times_faster(ratio) == words


def test_a_benchmark_without_a_figure_says_so() -> None:
    point = {"value": 1, "error": "not measured: the time was up before it"}
    empty = samples.result([]) | {"sweeps": [{"curves": [{"points": [point]}]}], "rooflines": [], "clocks": []}
    assert headline(empty).title == "Nothing could be measured"
    assert headline(empty | {"settings": {"budget": 1.0}}).title == "Nothing could be measured in 1.00 s"
    assert headline(empty | {"clocks": [{}]}).title == "A result of bareconv"


def test_one_is_no_plural() -> None:
    head = headline(samples.result([samples.run(iterations=1, batch_size=1)], gpu=False))
    assert any(" for 1 step of 1 image, " in sentence for sentence in head.lead)

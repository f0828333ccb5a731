"""The summary on a terminal."""

from __future__ import annotations

import io
from typing import Any

import bench_samples as bench
import pytest
import report_samples as samples
from rich.console import Console

from bareconv.cli.screen import Screen
from bareconv.report.terminal import bar, show_summary, sparkline
from bareconv.report.verdict import verdict


def shown(result: dict[str, Any], width: int = 1000, **options: Any) -> str:
    screen = Screen({}, as_json=False)
    screen.console = Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    show_summary(screen, result, **options)
    assert isinstance(screen.console.file, io.StringIO)
    return screen.console.file.getvalue()


def test_the_verdict_comes_first_and_everything_else_after_it() -> None:
    text = shown(bench.with_gpu())
    lines = text.split("\n")
    assert lines[1].startswith("On this machine the GPU trains basic 42 times as fast as two tuned CPU cores")
    assert "`" not in text
    for words in (
        "Throughput by batch size: basic",
        "GPU bareconv tf32",
        "overtakes CPU bareconv float32 at batch 4.91 (4.57 to 5.30)",
        "basic, batches of 64, float32, GPU",
        "PyTorch tuned",
        "PyTorch tuned is channels_last graph.",  # what its name leaves out
        "Time to accuracy",
        "Layers, CPU, basic, batches of 64",
        "Whole training",
        "98.93%",
        "Energy: GPU bareconv 3.10 J for 1,000 images",
        "Energy: No figure for CPU bareconv: this machine has no counter",
        "Warning: 1 of 84 figures is marked: too few blocks, or blocks that differ too much",
        "Warning: The GPU lowered its clock by 20 MHz while it was measured.",
    ):
        assert words in text, words


def test_bars_are_in_proportion() -> None:
    lines = shown(bench.with_peers()).splitlines()
    (ours,) = [line for line in lines if line.startswith("bareconv") and "8,105" in line and "█" in line]
    (theirs,) = [line for line in lines if line.startswith("DeZero") and "421" in line and "█" in line]
    assert ours.count("█") == 24
    assert theirs.count("█") == 1
    unstable = next(line for line in lines if "unstable" in line and "█" in line)
    assert unstable.startswith("PyTorch")


def test_results_without_a_benchmark_have_their_headline() -> None:
    assert shown(samples.both()).strip().startswith("The NVIDIA H100 80GB HBM3 trained basic 42× faster")
    assert "Throughput" not in shown(samples.both())


def test_in_brief_it_is_the_verdict_alone() -> None:
    found = verdict(bench.with_gpu())
    assert found is not None
    lines = shown(bench.with_gpu(), brief=True).strip().splitlines()
    assert lines == [line.replace("`", "") for line in (found.title, *found.lead)]


def test_a_narrow_terminal_breaks_nothing() -> None:
    text = shown(bench.with_gpu(), width=60)
    assert max(len(line) for line in text.splitlines()) <= 60


@pytest.mark.parametrize(
    ("values", "chart"),
    [
        ([1, 2, 4, 8, 16, 32, 64, 128, 256], "▁▂▃▄▅▆▇██"),
        ([1, None, 256], "▁ █"),
        ([0.0, 256], " █"),
        ([], ""),
    ],
)
def test_small_charts_are_logarithmic(values: list[float | None], chart: str) -> None:
    assert sparkline(values, 1, 256) == chart


def test_a_flat_chart_and_bars_of_nothing() -> None:
    assert sparkline([5, 5], 5, 5) == "▁▁"
    assert (bar(0, 10), bar(0.001, 10), bar(10, 10, 4), bar(5, 10, 4), bar(1, 0)) == ("", "█", "████", "██", "")

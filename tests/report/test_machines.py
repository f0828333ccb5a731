"""Several results in one page."""

from __future__ import annotations

from typing import Any

import bench_samples as bench
import pytest
import report_samples as samples
from test_page import Page

from bareconv.report.machines import (
    common_workload,
    curves,
    headline,
    machines_table,
    rates_table,
    sections,
    short_names,
)
from bareconv.report.page import render_machines
from bareconv.report.sections import Table


def lone(
    key: bench.Key, rate: float, *, gpu: str | None = None, cpu: str = "Some CPU", batch: int = 64
) -> dict[str, Any]:
    """A result of one run, at this rate give or take a hundredth."""
    run = bench.run(key, batch)
    run["throughput"] |= {"images_per_second": rate, "interval": {"low": 0.99 * rate, "high": 1.01 * rate}}
    made = bench.result(gpu=gpu is not None, runs=[run | {"images_per_second": rate}])
    made["environment"]["cpu"]["model"] = cpu
    if gpu is not None:
        made["environment"]["gpus"][0]["name"] = gpu
    return made


CPU, GPU, TF32 = ("plan", "", "cpu", "float32"), ("plan", "", "cuda:0", "float32"), ("plan", "", "cuda:0", "tf32")


def test_the_fastest_machine_beside_the_others() -> None:
    results = [
        ("a.json", lone(CPU, 100.0, cpu="Intel(R) Xeon(R) CPU @ 2.70GHz")),
        ("b.json", lone(GPU, 9000.0, gpu="NVIDIA H200")),
        ("c.json", lone(GPU, 3000.0, gpu="NVIDIA T4")),
    ]
    found = headline(results)
    assert found.title == "The H200 trains `basic` 3.0 times as fast as T4, at batch 64"
    # 3 with 1% on both sides of both: 2970 / 1010 ... 9090 / 2970
    assert found.lead[0].startswith("3.00 (2.94 to 3.06) times")
    assert found.lead[1] == "90 times as fast as two cores of Intel Xeon (88.2 to 91.8)."
    assert [(bar.name, bar.gpu) for bar in found.bars] == [
        ("H200", True),
        ("T4", True),
        ("two cores of Intel Xeon", False),
    ]


def test_two_times_of_one_machine() -> None:
    results = [("old/result.json", lone(CPU, 100.0)), ("new/result.json", lone(CPU, 101.0))]
    assert short_names(results) == ["result #1", "result #2"]
    assert headline(results).title == (
        "Two cores of Some (result #2) train `basic` about as fast as two cores of Some (result #1), at batch 64"
    )


def test_one_precision_where_all_have_one() -> None:
    quick = lone(TF32, 9000.0, gpu="NVIDIA H200", cpu="Other CPU")
    assert "The H200 in tf32 trains `basic` 90 times as fast as two cores of Some in float32" in (
        headline([("a.json", quick), ("b.json", lone(CPU, 100.0))]).title
    )
    quick["runs"] += lone(GPU, 5000.0, gpu="NVIDIA H200")["runs"]
    assert headline([("a.json", quick), ("b.json", lone(CPU, 100.0))]).title == (
        "The H200 trains `basic` 50 times as fast as two cores of Some, at batch 64"
    )


def test_nothing_in_common_is_said() -> None:
    results = [("a.json", lone(CPU, 100.0)), ("b.json", lone(CPU, 100.0, batch=32)), ("c.json", samples.both())]
    assert common_workload(results) is None
    assert headline(results).title == "Three results, which have no workload in common"
    page = Page(render_machines(results))
    assert page.headings == ["Side by side", "What differs", "The results"]


def test_the_common_workload_is_the_one_of_most() -> None:
    few, many = lone(CPU, 1.0, batch=512), lone(CPU, 1.0, batch=32)
    both = {**few, "runs": [*few["runs"], *many["runs"]]}
    assert common_workload([("a", both), ("b", few), ("c", many), ("d", many)]) == ("basic", 32)
    assert common_workload([("a", both), ("b", both)]) == ("basic", 512)


def test_lines_have_short_names() -> None:
    results = [("t4.json", bench.with_gpu()), ("two-cores.json", bench.with_peers())]
    assert [name for _, name, _ in curves(results, "basic")] == [
        "two cores (t4) float32",
        "T4 float32",
        "T4 tf32",
        "two cores (two-cores) float32",
    ]


def test_tables_have_a_column_for_each() -> None:
    results = [("t4.json", bench.with_gpu()), ("two-cores.json", bench.with_peers())]
    table = machines_table(results)
    assert [column.name for column in table.columns][1:] == ["t4", "two-cores"]
    assert all(len(row) == 3 for row in table.rows)
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in machines_table(results).rows}
    assert rows["GPU"] == ["NVIDIA T4", "none"]
    assert rows["Unstable, or of few blocks"] == ["1 of 84 figures", "2 of 52 figures"]
    assert rows["Energy for 1,000 images"] == ["GPU float32 3.10 J", "–"]


def test_rates_have_a_column_for_each_device_of_each_result() -> None:
    other = lone(CPU, 100.0, cpu="Other CPU")
    quick = lone(GPU, 9000.0, gpu="NVIDIA H200")
    quick["runs"] += [*lone(CPU, 300.0)["runs"], *lone(TF32, 12000.0)["runs"], *lone(CPU, 1.0, batch=512)["runs"]]
    quick["runs"][1]["throughput"]["noise"]["stable"] = False
    table = rates_table([("a.json", other), ("b.json", quick)])
    assert [column.name for column in table.columns] == [
        "Images a second",
        "two cores of Other",
        "two cores of Some",
        "H200",
    ]
    (row,) = table.rows  # of tf32, and of batches of 512, one result alone has figures
    assert [cell.text for cell in row] == ["basic, batches of 64, float32", "100/s", "300/s", "9,000/s"]
    assert [cell.mark for cell in row] == ["", "", "unstable", ""]
    assert row[1].note == "99.0 to 101"


def test_rates_in_precisions_that_are_not_shared() -> None:
    results = [("a.json", lone(CPU, 100.0)), ("b.json", lone(TF32, 9000.0, gpu="NVIDIA H200", cpu="Other CPU"))]
    table = rates_table(results)
    (row,) = table.rows
    assert [cell.text for cell in row] == ["basic, batches of 64", "100/s", "9,000/s"]
    assert [cell.note for cell in row][1:] == ["99.0 to 101, float32", "8,910 to 9,090, tf32"]


def test_what_the_headline_rests_on_says_how_many_have_it() -> None:
    results = [("a.json", lone(CPU, 100.0)), ("b.json", lone(CPU, 300.0, cpu="Other CPU"))]
    assert headline(results).basis[0].text == "what all 2 have of `basic` with batches of 64"
    results[0][1]["runs"][0]["throughput"]["noise"]["stable"] = False
    found = headline([*results, ("c.json", samples.both())])
    assert found.basis[0].text == "what 2 of the 3 results have of `basic` with batches of 64"
    assert [bar.detail for bar in found.bars] == ["297 to 303", "99.0 to 101, unstable"]


def test_every_result_says_its_own_sentence() -> None:
    """A comparison of two engines, too, which is no benchmark."""
    both = samples.both()
    said = headline([("a.json", lone(CPU, 100.0)), ("b.json", both)]).also
    assert len(said) == 2
    assert said[1].startswith("b: The ")
    assert said[1].endswith("this CPU and reached the same accuracy.")
    empty = {**both, "runs": [], "parity": []}
    assert [one.partition(":")[0] for one in headline([("a.json", lone(CPU, 100.0)), ("b.json", empty)]).also] == ["a"]


@pytest.mark.parametrize("same", [False, True])
def test_what_differs_in_the_environments(same: bool) -> None:
    other = lone(CPU, 100.0)
    if not same:
        other["environment"]["python"] = "3.13.1"
        other["settings"]["budget"] = 30.0
    results = [("a.json", lone(CPU, 100.0)), ("b.json", other)]
    (found,) = [s for s in sections(results) if s.anchor == "differences"]
    tables = [block for block in found.blocks if isinstance(block, Table)]
    rows = {row[0].text: [cell.text for cell in row[1:]] for table in tables for row in table.rows}
    assert rows == ({} if same else {"Python": ["3.11.7", "3.13.1"], "Setting budget": ["120.0", "30.0"]})


def differences(*settings: dict[str, Any]) -> dict[str, list[str]]:
    """What a page says of settings that are not the same."""
    results = [(f"{number}.json", lone(CPU, 100.0) | {"settings": one}) for number, one in enumerate(settings)]
    (found,) = [s for s in sections(results) if s.anchor == "differences"]
    (table,) = [block for block in found.blocks if isinstance(block, Table)]
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def test_settings_are_in_words() -> None:
    assert differences(
        {"part": ["peers", "sweep"], "no_compile": True, "python": None, "earlier": {"seed": 0, "size": [28, 28]}},
        {"part": ["sweep"], "no_compile": False, "python": "3.11", "earlier": {}},
    ) == {
        "Setting part": ["peers, sweep", "sweep"],
        "Setting no-compile": ["yes", "no"],
        "Setting python": ["not set", "3.11"],
        "Setting earlier": ["seed: 0, size: (28, 28)", "empty"],
    }


def test_values_that_differ_late_are_shown_where_they_do() -> None:
    long = [f"case {number}" for number in range(100)]
    (first, second) = differences({"cases": [*long, "a"]}, {"cases": [*long, "b"]})["Setting cases"]
    assert first.startswith("…")
    assert first.endswith("case 99, a")
    assert second.endswith("case 99, b")

"""A benchmark's page: whole, self-contained, every number with its uncertainty and one click away."""

from __future__ import annotations

import base64
import copy
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import bench_samples as bench
import pytest
import report_samples as samples
from test_page import Page

from bareconv.bench.estimates import FEW
from bareconv.report import format as fmt
from bareconv.report import write_report
from bareconv.report.bench import is_benchmark, sections
from bareconv.report.bench.energy import energy_table
from bareconv.report.bench.layers import nodes_table, operations_table, workloads
from bareconv.report.bench.peers import rates_table, settings_table
from bareconv.report.bench.raw import csv_of, taken
from bareconv.report.bench.roofline import ceiling_remarks
from bareconv.report.bench.sweeps import fit_table, points_table, throughput_words
from bareconv.report.candidates import device_word
from bareconv.report.consumption import energy_lines
from bareconv.report.lessons import learning_table
from bareconv.report.page import render
from bareconv.report.ratios import mark
from bareconv.report.sections import Download, Fold, Prose, Section, Table


@pytest.fixture(scope="module")
def pages(bench_folders: dict[str, Path]) -> dict[str, str]:
    return {name: (folder / "report.html").read_text(encoding="utf-8") for name, folder in bench_folders.items()}


@pytest.mark.parametrize("name", ["gpu", "peers", "machines"])
def test_the_page_is_whole_and_needs_nothing_else(pages: dict[str, str], name: str) -> None:
    text = pages[name]
    page = Page(text)
    assert len(text.encode()) < 2_000_000
    assert len(page.ids) == len(set(page.ids))
    for reference in page.references:
        assert reference.startswith(("#", "data:application/json;base64,", "data:text/csv;base64,")), reference[:80]
        if reference.startswith("#"):
            assert reference[1:] in page.ids
    assert not re.search(r"https?://", text)
    assert not re.search(r"url\((?!#)", text)
    for word in ("nan", "None", "inf", "NaN", "undefined"):
        assert not re.search(rf"\b{word}\b", page.seen), word
    assert "`" not in page.seen


def test_every_part_has_its_section(pages: dict[str, str]) -> None:
    assert Page(pages["gpu"]).headings == [
        "Throughput by batch size",
        "Beside other libraries",
        "Our engines",
        "Time to accuracy",
        "Where a step's time goes",
        "How near to what the hardware can do",
        "From the start of a process to a trained model",
        "Throughput by image size",
        "Throughput by size of the data set",
        "Memory: predicted and measured",
        "Energy",
        "How steady it was",
        "Conditions",
        "How it was measured",
        "Every number",
        "Set-up",
    ]
    assert Page(render(bench.throughput_only())).headings == [
        "Our engines",
        "How steady it was",
        "How it was measured",
        "Every number",
        "Set-up",
    ]
    assert Page(pages["machines"]).headings == [
        "Throughput by batch size",
        "Side by side",
        "What differs",
        "The results",
    ]


def test_numbers_have_units_and_intervals(pages: dict[str, str]) -> None:
    seen = Page(pages["peers"]).seen
    steady = bench.with_peers()["peers"][0]["candidates"][0]["throughput"]
    assert fmt.rate(steady["images_per_second"]) in seen
    low, high = (fmt.rate(steady["interval"][end]).removesuffix("/s") for end in ("low", "high"))
    assert f"{low} to {high}" in seen
    for text in (
        "matmul precision: highest, TF32: off, deterministic: no",
        "JAX is absent: jax is not installed for /usr/bin/python3.",
        "it computes something else",
        "No figure for bareconv: this machine has no counter of the CPU's energy (RAPL).",
        "unstable",
        "the blocks differ by more than 10%",
        "No GPU was measured: no NVIDIA driver was found",
        "Nothing was seen to disturb the measurement.",
        "98.93% accuracy",
    ):
        assert text in seen, text


def test_what_is_unstable_is_marked_beside_its_number(pages: dict[str, str]) -> None:
    marked = re.findall(r"([\d,]+/s) <strong class=\"mark\">unstable</strong>", pages["peers"])
    rate = bench.with_peers()["peers"][1]["candidates"][1]["throughput"]["images_per_second"]
    assert fmt.rate(rate) in marked
    assert '<strong class="mark">' not in render(bench.throughput_only())


def test_the_result_is_within_its_page(pages: dict[str, str]) -> None:
    found = dict(re.findall(r'<a download="([^"]+)" href="data:[^;]+;base64,([^"]+)"', pages["peers"]))
    assert set(found) == {"bench-peers.json", "bench-peers-blocks.csv"}
    assert json.loads(base64.b64decode(found["bench-peers.json"])) == json.loads(json.dumps(bench.with_peers()))
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(found["bench-peers-blocks.csv"]).decode())))
    assert len(rows) == number_of_blocks(bench.with_peers())
    first = bench.with_peers()["runs"][0]["throughput"]["samples"]
    assert (float(rows[0]["seconds"]), int(rows[0]["images"])) == (first["seconds"][0], first["images"][0])
    assert rows[0]["part"] == "runs"
    swept = [row for row in rows if row["part"] == "sweeps" and row["name"] == "dezero"]
    assert {row["value"] for row in swept} == {"1", "2", "4", "8", "16", "32", "64", "128", "256", "512"}
    assert all(row["batch_size"] == row["value"] for row in swept)


def number_of_blocks(result: dict[str, Any]) -> int:
    """Of all that is called seconds beside steps."""

    def count(value: Any) -> int:
        if isinstance(value, dict):
            if {"seconds", "steps", "images"} <= value.keys():
                return len(value["seconds"])
            return sum(map(count, value.values()))
        return sum(map(count, value)) if isinstance(value, list) else 0

    return count(result)


def test_every_block_is_in_a_table() -> None:
    (raw,) = [s for s in sections(bench.with_gpu()) if s.anchor == "raw"]
    tables = [t for fold in raw.blocks if isinstance(fold, Fold) for t in fold.blocks if isinstance(t, Table)]
    blocks = [t for t in tables if t.columns[0].name == "Block"]
    assert sum(len(t.rows) for t in blocks) == number_of_blocks(bench.with_gpu())
    assert all(fold.raw for fold in raw.blocks if isinstance(fold, Fold))


def test_a_block_without_a_wall_clock_is_a_row_too() -> None:
    result = bench.throughput_only()
    for run in result["runs"]:
        del run["throughput"]["samples"]["wall_seconds"]
    assert len(csv_of(taken(result)).splitlines()) == 1 + number_of_blocks(result)
    assert all(wall is None for one in taken(result) for _, _, wall, _, _ in one.blocks())


def table_texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_layers_of_a_step_have_their_sums_first() -> None:
    (group, *_) = workloads(bench.with_gpu()["rooflines"])
    table = nodes_table(group)
    assert [column.name for column in table.columns][:4] == ["Layer", "Device", "Together", "Of the step"]
    for found, step in group:
        times = {row[0].text: row[2].text for row in table.rows if row[1].text == device_word(found["device"])}
        seconds: dict[str, float] = {}
        for launch in step["launches"]:
            seconds[launch["node"]] = seconds.get(launch["node"], 0.0) + launch["seconds"]
        assert times == {node: fmt.seconds(total) for node, total in seconds.items()}
    assert all(row[2].strong for row in table.rows)


def test_few_blocks_are_not_called_unstable() -> None:
    sweep = bench.batch_sweep(bench.CPU_KEYS, unstable=(1, 8))
    marked = next(p for p in sweep["curves"][1]["points"] if p["value"] == 8)
    assert mark(marked) == "unstable"
    marked["samples"] = {name: values[: FEW - 1] for name, values in marked["samples"].items()}
    assert mark(marked) == "only 5 blocks"
    assert points_table(sweep).rows[3][2].mark == "only 5 blocks"
    steady = marked | {"images_per_second": 1.0, "noise": {"stable": False}, "stable": True}
    assert mark(steady) == "only 5 blocks"
    assert mark(steady | {"noise": {"stable": True}}) == ""
    assert mark({"images_per_second": 1.0}) == ""


def test_tables_say_what_the_result_says() -> None:
    sweep = bench.batch_sweep(bench.CPU_KEYS, unstable=(1, 8))
    table = points_table(sweep)
    assert [row[0] for row in table_texts(table)][-1] == "1,024"
    last = table.rows[-1][4]
    assert (last.text, last.note) == ("–", "was not ready when the time was up")
    assert table.rows[3][2].mark == "unstable"
    assert [row[2].mark for row in table.rows].count("unstable") == 1
    group = bench.with_peers()["peers"][0]
    rows = table_texts(rates_table(group))
    assert [row[0] for row in rows] == ["bareconv", "PyTorch tuned", "PyTorch default", "DeZero", "tinygrad"]
    assert rows[-1][1] == "disagrees"
    assert [column.name for column in rates_table(group).columns][3] == "bareconv over it"
    assert table_texts(settings_table(group))[1][1] == "mode: channels_last compile"
    found = bench.rooflines("cpu")
    rows = table_texts(operations_table(found, found["steps"][0]))
    assert len(rows) == len(found["steps"][0]["launches"])
    assert rows[0][:3] == ["conv1 + relu1", "forward", "correlate"]
    for table in (points_table(sweep), rates_table(group), settings_table(group)):
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_every_table_is_as_wide_as_its_heading() -> None:
    def tables(blocks: Any) -> list[Table]:
        found = []
        for block in blocks:
            found += [block] if isinstance(block, Table) else tables(block.blocks) if isinstance(block, Fold) else []
        return found

    for result in (bench.with_gpu(), bench.with_peers()):
        every = [table for section in sections(result) for table in tables(section.blocks)]
        assert len(every) > 15
        for table in every:
            assert table.rows
            assert all(len(row) == len(table.columns) for row in table.rows), table.label
            assert all(0 <= place < len(table.rows) for place in table.groups)


def section(result: dict[str, Any], anchor: str) -> Section:
    (found,) = [s for s in sections(result) if s.anchor == anchor]
    return found


def test_doubts_are_said() -> None:
    found = bench.rooflines("cpu")
    found["steps"][0]["marks_cost"] = 0.31
    said = [
        b.text for b in section(bench.result(gpu=False, rooflines=[found]), "layers").blocks if isinstance(b, Prose)
    ]
    assert any("slowed the step down by 31%" in text for text in said)
    clocks = bench.clocks("cpu")
    clocks["warm"]["unexplained"] = 0.2
    page = render(bench.result(gpu=False, clocks=[clocks]))
    assert '20.0% <strong class="mark">too much</strong>' in page
    unwarmed = bench.run(bench.CPU_KEYS[0])
    unwarmed["throughput"]["warmed_up"] = False
    assert "its steps had not become steady before the first block" in render(bench.result(gpu=False, runs=[unwarmed]))
    disturbed = bench.conditions(gpu=False, remarks=["Another program took a fifth of the cores."])
    assert '<p class="note">Another program' in render(bench.result(gpu=False, conditions=disturbed))


def test_a_step_that_takes_another_time_elsewhere_is_no_secret() -> None:
    found, run = bench.rooflines("cpu"), bench.run(bench.CPU_KEYS[0])
    step = found["steps"][0]
    for seconds, said in ((0.8, "20% less: "), (1.3, "30% more: "), (1.02, "")):
        run["throughput"]["images_per_second"] = run["batch_size"] / (seconds * step["step_seconds"])
        asides = [
            block.text
            for block in section(bench.result(gpu=False, runs=[run], rooflines=[found]), "layers").blocks
            if isinstance(block, Prose)
        ]
        assert any("By turns with others it takes" in text for text in asides) is bool(said)
        assert any(said in text for text in asides)


def test_odd_ceilings_are_remarked() -> None:
    def ceiling(name: str, threads: int, per_second: float) -> dict[str, Any]:
        return {"name": name, "unit": "byte", "per_second": per_second, "how": "copying", "threads": threads}

    def remarks(*ceilings: dict[str, Any]) -> list[str]:
        return ceiling_remarks([{"device": "cpu", "ceilings": ceilings}])

    plain = [ceiling("L3 cache", 1, 10e9), ceiling("L3 cache", 8, 50e9), ceiling("memory", 8, 40e9)]
    assert remarks(*plain) == []
    (said,) = remarks(*plain, ceiling("L3 cache", 16, 30e9))
    assert said.startswith("CPU: 16 threads reach less than fewer of them (L3 cache 60% of what 8 reach).")
    (said,) = remarks(*plain, ceiling("memory", 1, 12e9))
    assert said.startswith("CPU: memory was faster than the last cache (threads: 1).")


@pytest.mark.parametrize(("error", "mark"), [(0.1, ""), (0.35, "poor fit")])
def test_a_poor_fit_is_marked(error: float, mark: str) -> None:
    sweep = bench.with_peers()["sweeps"][0]
    sweep["curves"][0]["fit"]["largest_error"] = error
    assert fit_table(sweep).rows[0][-1].mark == mark


def test_a_result_of_the_first_kind_of_benchmark_still_has_a_page() -> None:
    """Throughput without noise, flags, wall clocks: what version 1 had."""
    run = bench.run(bench.CPU_KEYS[0])
    for key in ("noise", "flags", "stopped", "warmed_up"):
        del run["throughput"][key]
    page = Page(render(bench.result(gpu=False, runs=[run])))
    assert "Our engines" in page.headings
    assert "Whether the blocks agree was not judged when this was measured." in page.seen
    assert "stable:" not in page.seen


def test_a_training_with_a_benchmark_has_both() -> None:
    both = bench.result(
        gpu=False, runs=[samples.run(epochs=1, operations=..., confusion=...), bench.run(bench.CPU_KEYS[0])]
    )
    headings = Page(render(both)).headings
    assert "Our engines" in headings
    assert "Convergence" in headings
    assert is_benchmark(both)
    assert not is_benchmark(samples.both())
    assert sections(samples.both()) == []


def test_many_notes_and_sentences_are_folded() -> None:
    groups = [bench.peer_group(bench.CPU_KEYS[:2], size) for size in (8, 16, 32, 64, 128, 256, 512)]
    page = render(bench.result(gpu=False, peers=groups, notes=[f"Note {i}." for i in range(7)]))
    head = page.split("<main")[0]
    assert "<summary>3 more notes</summary>" in head
    assert "<summary>1 more</summary>" in head
    assert [head.count(f"Note {i}.") for i in range(7)] == [1] * 7
    assert head.count("<li>On these two cores") == 6


def test_every_figure_is_also_a_file(tmp_path: Path) -> None:
    result = bench.result(gpu=False, energy=[bench.energy(bench.GPU_KEYS[0], joules=12.0)])
    write_report(result, None, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["energy.png", "report.html"]


def test_the_same_result_gives_the_same_page() -> None:
    assert render(bench.throughput_only()) == render(bench.throughput_only())


def test_all_text_is_escaped() -> None:
    evil = "<script>alert('x')</script>\" onload=\"y`z`"
    key = bench.CPU_KEYS[0]
    sweep = bench.batch_sweep([key])
    curve = {**sweep["curves"][0], "name": evil, "variant": evil, "ours": False}
    curve["points"][0] = {"value": 1, "error": evil}
    group = bench.peer_group([key])
    ours = {**group["candidates"][0], "name": evil, "variant": evil, "options": {evil: evil}, "error": evil}
    ours["throughput"] = ours["throughput"] | {"flags": {evil: evil}, "versions": {evil: evil}}
    ours["throughput"]["noise"] = {"stable": False, "spread": 1.0, "drift": 0.0, "remarks": [evil]}
    found = bench.rooflines("cpu")
    found["ceilings"][0] |= {"name": evil, "how": evil}
    found["steps"][0]["model"] = evil
    found["steps"][0]["memory"] = {"predicted": {evil: 1}, "measured": {evil: 2}}
    for launch in found["steps"][0]["launches"]:
        launch |= {"node": evil, "phase": evil, "kernel": evil, "how": evil, "ceiling": evil}
    learned = bench.learning("cpu", [key])
    learned["candidates"][0] |= {"name": evil, "variant": evil}
    learned["candidates"][1]["error"] = evil
    clocks = bench.clocks("cpu") | {"model": evil, "engine": evil}
    energy = bench.energy(key, joules=None) | {"unavailable": evil, "name": evil}
    result = bench.result(
        gpu=False,
        command=evil,
        notes=[evil],
        runs=[bench.run(key) | {"model": evil, "engine": evil}],
        sweeps=[{**sweep, "model": evil, "curves": [curve], "crossovers": []}],
        peers=[{**group, "model": evil, "candidates": [ours], "absent": {evil: evil}}],
        rooflines=[found],
        learning=[{**learned, "model": evil}],
        clocks=[clocks],
        energy=[energy],
        conditions={"seconds": 1.0, "remarks": [evil], "gpus": [{"name": evil, "throttle_reasons": [evil]}]},
    )
    text = render(result, name=evil)
    page = Page(text)  # finds no script and no handler
    assert "<script" not in text
    assert page.seen.count("alert('x')") > 20
    (download,) = [b for b in section(result, "raw").blocks if isinstance(b, Download) and b.media_type == "text/csv"]
    rows = list(csv.reader(io.StringIO(download.content.decode())))
    assert {len(row) for row in rows} == {15}


def test_numbers_among_settings_are_numbers() -> None:
    group = copy.deepcopy(bench.with_peers()["peers"][0])
    group["candidates"][0]["options"] = {"steps": 1, "beam": 0, "graph": True, "mixed": None}
    group["candidates"] = group["candidates"][:1]
    ((_, options, *_),) = settings_table(group).rows
    assert options.text == "steps: 1, beam: 0, graph: yes, mixed: not set"


def test_a_measured_variant_is_named_in_full_where_its_figure_is() -> None:
    result = bench.with_gpu()
    (group,) = [one for one in result["peers"] if one["device"] == bench.GPU and one["precision"] == "float32"]
    heads = {row[0].text: row[0].note for row in rates_table(group).rows}
    assert heads["PyTorch tuned"] == "channels_last graph"
    assert heads["PyTorch default"] == ""
    learned = {row[0].text: row[0].note for row in learning_table(result["learning"]).rows}
    assert learned["GPU PyTorch tuned"] == "channels_last graph"
    assert "GPU PyTorch float32 is channels_last graph" in throughput_words(result["sweeps"][0]).caption
    entry = copy.deepcopy(next(one for one in result["energy"] if one["unavailable"] is None))
    theirs = entry | {"name": "pytorch", "variant": "channels_last graph copy", "ours": False}
    assert "PyTorch" in energy_table([entry, theirs]).rows[1][0].text
    assert energy_table([entry, theirs]).rows[1][0].note == "channels_last graph copy"
    assert energy_lines([entry, theirs])[1].startswith("PyTorch (channels_last graph copy) ")

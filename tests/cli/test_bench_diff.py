"""``bareconv bench diff`` and ``export``: what is printed and written, and the exit codes."""

from __future__ import annotations

import copy
import csv
import re
from pathlib import Path

import bench_samples
import numpy as np
import pytest

from bareconv.bench import results


@pytest.fixture
def files(here):
    """A result, the same once more, and one in which the larger batch became slower."""
    result = bench_samples.throughput_only()
    rng = np.random.default_rng(4)
    for name, times in (("before", (1, 1)), ("again", (1, 1)), ("slower", (1, 1.3))):
        copied = copy.deepcopy(result)
        for run, factor in zip(copied["runs"], times, strict=True):
            samples = run["throughput"]["samples"]
            wobble = factor * np.exp(0.004 * rng.normal(size=len(samples["seconds"])))
            samples["seconds"] = [float(s * w) for s, w in zip(samples["seconds"], wobble, strict=True)]
        results.write(copied, Path(f"{name}.json"))


LABEL = "basic, batch {}, float32, cpu, 2 threads: plan"


def test_the_same(run, files):
    outcome = run("bench", "diff", "before.json", "again.json")
    assert (outcome.code, outcome.err) == (0, "")
    for size in (64, 256):
        assert re.search(rf"^{LABEL.format(size)} +[\d,]+ +[\d,]+ +[\d.]+ +[\d.]+ to [\d.]+ +same$", outcome.out, re.M)
    assert re.search(r"^geometric mean +[\d.]+ +[\d.]+ to [\d.]+$", outcome.out, re.M)
    assert "before before.json (2026" in outcome.out
    assert "1% is assumed" in outcome.out


def test_a_regression(run, files):
    outcome = run("bench", "diff", "before.json", "slower.json")
    assert outcome.code == 1
    assert re.search(rf"^{LABEL.format(256)} .* slower$", outcome.out, re.M)
    assert re.search(rf"^{LABEL.format(64)} .* same$", outcome.out, re.M)
    assert run("bench", "diff", "slower.json", "before.json").code == 0  # it became faster
    assert run("bench", "diff", "before.json", "slower.json", "--margin", "0.5").code == 0


def test_several_of_each_side(run, files):
    outcome = run("bench", "diff", "--baseline", "before.json", "--baseline", "again.json", "slower.json", "--json")
    assert outcome.code == 1
    found = outcome.result()["diff"]
    assert [len(found[side]) for side in ("baseline", "results")] == [2, 1]
    assert [one["verdict"] for one in found["measurements"]] == ["same", "slower"]
    assert LABEL.format(256) in outcome.err  # the table is there, too
    assert "1% is assumed" not in outcome.err
    assert "expected BEFORE and AFTER" in run("bench", "diff", "before.json", "again.json", "slower.json").complaint()
    assert "expected BEFORE and AFTER" in run("bench", "diff", "before.json").complaint()


def test_another_machine(run, files):
    other = results.read(Path("again.json"))
    other["environment"]["cpu"]["model"] = "another CPU"
    results.write(other, Path("folder/result.json"))
    outcome = run("bench", "diff", "before.json", "folder")
    assert outcome.code == 2
    assert re.search(r"Warning: CPU: Intel.* against another CPU", outcome.out)
    assert "--force compares nevertheless" in outcome.out
    assert LABEL.format(64) not in outcome.out
    refused = run("bench", "diff", "before.json", "folder", "--json")
    assert refused.code == 2
    assert refused.result()["diff"]["differences"][0]["result"] == "another CPU"
    forced = run("bench", "diff", "before.json", "folder", "--force")
    assert forced.code == 0
    assert "against another CPU" in forced.out
    assert LABEL.format(64) in forced.out


def test_what_cannot_be_told_and_what_one_side_has(run, files):
    one = results.read(Path("again.json"))
    seconds = one["runs"][0]["throughput"]["samples"]["seconds"]
    one["runs"][0]["throughput"]["samples"]["seconds"] = [s * (1.4 if i % 2 else 0.9) for i, s in enumerate(seconds)]
    one["runs"][0]["throughput"].pop("noise")
    one["runs"] = one["runs"][:1]
    results.write(one, Path("noisy.json"))
    outcome = run("bench", "diff", "before.json", "noisy.json")
    assert outcome.code == 0
    assert re.search(rf"^{LABEL.format(64)} .* ambiguous$", outcome.out, re.M)
    assert f"To settle {LABEL.format(64)}: the blocks differ too much" in outcome.out
    assert f"Only before: {LABEL.format(256)}." in outcome.out


def test_files_that_are_none(run, files):
    assert "there is no such file" in run("bench", "diff", "before.json", "nowhere.json").complaint()
    Path("empty").mkdir()
    outcome = run("bench", "diff", "before.json", "empty")
    assert "a folder without a result.json" in outcome.complaint()
    assert outcome.code == 2
    assert run("bench", "diff", "before.json", "again.json", "--margin", "1").code == 2


def test_export(run, files, listing):
    outcome = run("bench", "export", "before.json")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("# bareconv bench run")
    assert "\n## runs\n" in outcome.out
    text = run("bench", "export", "before.json", "--format", "csv").out
    raw = run("bench", "export", "before.json", "--format", "csv", "--raw").out
    assert len(raw.splitlines()) > len(text.splitlines()) > 40
    outcome = run("bench", "export", "before.json", "--format", "csv", "--output", "out/table.csv", "--json")
    assert outcome.code == 0
    assert outcome.result()["notes"] == ["Wrote out/table.csv."]
    assert Path("out/table.csv").read_text() == text
    rows = list(csv.DictReader(text.splitlines()))
    assert {row["part"] for row in rows} >= {"result", "environment", "runs"}
    assert listing() == ["again.json", "before.json", "out", "out/table.csv", "slower.json"]


def test_export_refuses(run, files):
    assert "give --output" in run("bench", "export", "before.json", "--json").complaint()
    assert "that is the result" in run("bench", "export", "before.json", "--output", "before.json").complaint()
    assert "there is no such file" in run("bench", "export", "nowhere.json").complaint()
    assert results.read(Path("before.json"))

"""``bareconv report``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import bench_samples as bench
import pytest
import report_samples as samples


@pytest.fixture
def files(here):
    """Files of results in the working folder."""
    made = {
        "cpu.json": bench.throughput_only(),
        "gpu.json": bench.result(gpu=True, runs=[bench.run(bench.GPU_KEYS[0])]),
    }
    for name, result in made.items():
        (here / name).write_text(json.dumps(result), encoding="utf-8")
    return here


def test_one_result_gives_its_page(run, files):
    outcome = run("report", "cpu.json")
    assert outcome.code == 0
    assert "bareconv trains basic at" in outcome.out
    assert outcome.out.rstrip().endswith("Wrote report.html")
    page = (files / "report.html").read_text(encoding="utf-8")
    assert "<h1>On these two cores bareconv trains <code>basic</code> at" in page
    assert 'download="cpu.json"' in page


def test_several_results_give_one_page(run, files):
    outcome = run("report", "cpu.json", "gpu.json", "--output", "pages/both.html")
    assert outcome.code == 0
    page = (files / "pages" / "both.html").read_text(encoding="utf-8")
    assert "<h1>The T4 trains <code>basic</code> 7.6 times as fast as two cores of Intel Xeon" in page
    assert page.count("<h1>") == 1
    assert 'download="gpu.json"' in page


def test_a_folder_means_the_result_in_it(run, files):
    folder = files / "results" / "now"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(samples.cpu_only()), encoding="utf-8")
    assert run("report", "results/now").code == 0
    assert "Only a CPU ran" in (files / "report.html").read_text(encoding="utf-8")


def test_results_in_folders_go_by_their_folders(run, files):
    """Where every file is a result.json: each by its path on the terminal, by its folder on the page."""
    paths = []
    for name in ("cpu", "gpu"):
        path = files / "machines" / name / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text((files / f"{name}.json").read_text(encoding="utf-8"), encoding="utf-8")
        paths.append(path.relative_to(files))
    outcome = run("report", *paths)
    assert outcome.code == 0
    assert [line for line in outcome.out.splitlines() if line.endswith("json:")] == [f"{path}:" for path in paths]
    page = (files / "report.html").read_text(encoding="utf-8")
    assert 'download="gpu.json"' in page
    assert "result.json" not in page


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="no pipes that break here")
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_reader_that_has_gone_is_no_error(files, as_json):
    """What ``| head -1`` does: the page is written, and the exit code is that of the work."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "bareconv", "report", "cpu.json", *as_json]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert "Broken pipe" not in done.stderr
    assert "<h1>" in (files / "report.html").read_text(encoding="utf-8")


def test_json_is_a_result_and_nothing_else(run, files):
    outcome = run("report", "cpu.json", "--json")
    result = outcome.result()
    assert result["settings"]["files"] == ["cpu.json"]
    assert result["notes"] == ["Wrote report.html."]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument 'FILE...'"),
        (["nothing.json"], "nothing.json: there is no such file"),
        (["."], ".: a folder without a result.json; expected the file of a result"),
        (["cpu.json", "--output", "cpu.json"], "--output cpu.json: that is one of the results; expected another file"),
        (["cpu.json", "--output", "."], "--output"),
        (["broken.json"], "broken.json: not JSON"),
        (["other.json"], 'other.json: not a valid result: schema: expected "bareconv.result"'),
        (["gpu.json", "nothing.json"], "nothing.json: there is no such file"),
    ],
)
def test_bad_input_is_one_line(run, files, arguments, said):
    (files / "broken.json").write_text("{", encoding="utf-8")
    (files / "other.json").write_text("{}", encoding="utf-8")
    outcome = run("report", *arguments)
    assert outcome.code == 2
    assert said in outcome.complaint()
    assert not (files / "report.html").exists()
    assert json.loads((files / "cpu.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(bench.throughput_only())
    )

"""``bareconv ladder``."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from bareconv.bench import rungs
from bareconv.bench.problems import Task

SHORT = ("--budget", "0.05", "--batch-size", "4", "--image", "8x8x3", "--filters", "4", "--model", "mlp")


def test_result_plot_and_table(run, here, listing):
    outcome = run("ladder", *SHORT, "--output", "l.json", "--plot", "l.png", "--threads", "2")
    assert (outcome.code, outcome.err) == (0, "")
    assert listing() == ["l.json", "l.png"]
    result = json.loads(Path("l.json").read_text())
    assert Path("l.png").read_bytes().startswith(b"\x89PNG")
    layer, step = result["ladder"]["problems"]
    assert (layer["name"], layer["batch_size"], layer["threads"]) == ("layer", 4, 2)
    assert layer["description"] == "conv2d forward, 8 x 8 x 3 -> 4 filters 3 x 3, batches of 4"
    assert step["description"] == "training step of mlp, batches of 4"
    for problem in (layer, step):
        for rung in problem["rungs"]:
            assert rung["name"] in outcome.out
            assert rung["status"] == "measured" or f"Not run: {rung['name']}: {rung['reason']}" in outcome.out
    assert {peak["threads"] for peak in result["ladder"]["peaks"] if peak["device"] == "cpu"} == {1, 2}
    assert "naive loops: scaled up from" in outcome.out


def test_the_page_of_its_result_shows_the_ladder(run, here):
    run("ladder", *SHORT, "--output", "l.json")
    outcome = run("report", "l.json", "--output", "l.html")
    assert outcome.code == 0
    assert re.search(r"^Conv2d forward: [\d,]+ images/s by .*, [\d.,]+× as many as by naive loops$", outcome.out, re.M)
    page = Path("l.html").read_text(encoding="utf-8")
    assert '<section id="ladder"' in page
    for problem in json.loads(Path("l.json").read_text())["ladder"]["problems"]:
        for rung in problem["rungs"]:
            assert rung["name"] in page
            assert html.escape(rung.get("reason", rung["change"])) in page


def test_json(run, here, listing):
    outcome = run("ladder", *SHORT, "--part", "layer", "--padding", "1", "--stride", "2", "--kernel", "2", "--json")
    assert outcome.code == 0
    (problem,) = outcome.result()["ladder"]["problems"]
    assert problem["description"].endswith("4 filters 2 x 2, stride 2 x 2, padding 1 x 1, batches of 4")
    winograd = next(rung for rung in problem["rungs"] if rung["name"] == "Winograd")
    assert winograd["status"] == "unavailable"
    assert listing() == []


def test_a_wrong_rung(run, here, monkeypatch):
    """Exit 1, the table says which, and the result is there."""

    def forget(problem):
        return Task(lambda: None, lambda: problem.reference() / 2)

    half = rungs.Rung("half", "forgets the half", forget)
    monkeypatch.setattr("bareconv.cli.ladder.CONV_RUNGS", [half, *rungs.CONV_RUNGS[:2]])
    outcome = run("ladder", *SHORT, "--part", "layer", "--json")
    assert outcome.code == 1
    assert [rung["status"] for rung in outcome.result()["ladder"]["problems"][0]["rungs"]] == [
        *("wrong", "measured", "measured")
    ]
    assert "half" in next(line for line in outcome.err.splitlines() if "WRONG" in line)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--image", "26x26"], "expected height, width and channels"),
        (["--image", "axbxc"], "expected height, width and channels"),
        (["--image", "2x2x1"], "does not fit"),
        (["--part", "half"], "'half' is not one of"),
        (["--threads", "0"], "0 is not in the range"),
        (["--output", "."], "is a directory"),
    ],
)
def test_what_it_refuses(run, here, words, complaint):
    outcome = run("ladder", *words)
    assert outcome.code == 2
    assert complaint in outcome.complaint()

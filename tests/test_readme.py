"""The README says what the committed results say."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from bareconv.bench.results import read

ROOT = Path(__file__).resolve().parent.parent
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/ladder.md")}
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def readme_script():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PAGES)
def test_figures_are_those_of_the_results(name):
    """Run scripts/readme.py after a new result."""
    script, text = readme_script(), PAGES[name]
    assert all(f"<!-- begin {block} -->" in text for block in script.PAGES[name])
    assert script.filled(text, script.PAGES[name]) == text


def test_there_are_results():
    assert len(RESULTS) >= 4


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_results_are_valid_and_say_where_they_come_from(path):
    result = read(path)
    assert re.fullmatch("[0-9a-f]{40}", result["commit"])
    assert result["environment"]["cpu"]["model"]
    assert result["runs"] or result.get("ladder") or result.get("peers")


def test_targets():
    """What the project promises of basic, held against what was measured."""
    for name in ("one-epoch-2-cores", "one-epoch-h200"):
        (run,) = read(ROOT / "benchmarks" / "results" / f"{name}.json")["runs"]
        assert run["epochs"] == 1
        assert run["test_images"] == 10_000
        assert run["test_accuracy"] >= 0.98
    for name in ("basic-2-cores", "basic-h200", "basic-reference-2-cores", "basic-reference-h200"):
        result = read(ROOT / "benchmarks" / "results" / f"{name}.json")
        assert all(run["epochs"] == 3 and run["test_accuracy"] >= 0.988 for run in result["runs"])
        assert all(proof["steps"] == 100 and proof["passed"] for proof in result["parity"])
    proofs = {proof["precision"]: proof for proof in read(ROOT / "benchmarks/results/basic-h200.json")["parity"]}
    assert proofs["float32"]["max_loss_difference"] < 1e-3
    assert proofs["float64"]["max_loss_difference"] < 1e-9


def test_ladder():
    """Whatever a rung gains, it computes the same thing."""
    result = read(ROOT / "benchmarks" / "results" / "ladder-2-cores.json")
    layer, step = result["ladder"]["problems"]
    assert (layer["name"], step["name"]) == ("layer", "step")
    for problem in (layer, step):
        rungs = [rung for rung in problem["rungs"] if rung["device"] == "cpu"]
        measured = [rung for rung in rungs if rung["status"] == "measured"]
        assert len(measured) >= 6
        assert all(rung["error"] <= problem["tolerance"] for rung in measured)
        assert all(rung["reason"] for rung in rungs if rung["status"] == "unavailable")
        assert "wrong" not in {rung["status"] for rung in rungs}


def test_speed_targets():
    """What the plan promises, held against what was measured; the README says where it is missed."""
    folder = ROOT / "benchmarks" / "results"
    wanted = {("basic", 64): 3.0, ("small", 64): 3.5, ("small", 256): 3.5, ("lenet5", 64): 3.0, ("resnet9", 128): 1.2}
    found = {}
    for name in ("peers-2-cores", "peers-256-2-cores", "peers-resnet9-2-cores"):
        for group in read(folder / f"{name}.json")["peers"]:
            theirs = [one for one in group["candidates"] if one["name"] == "pytorch"]
            found[group["model"], group["batch_size"]] = min(one["ratio"]["value"] for one in theirs)
    assert all(found[key] >= ratio for key, ratio in wanted.items()), found
    rates = [run["images_per_second"] for run in read(folder / "batches-2-cores.json")["runs"]]
    assert len(rates) == 7
    assert min(rates) >= 0.7 * max(rates)
    (layer,) = read(folder / "ladder-1-core.json")["ladder"]["problems"]
    (simd,) = (rung for rung in layer["rungs"] if rung["name"] == "SIMD")
    assert simd["peak_share"] >= 0.85
    runs = read(folder / "original-2-cores.json")["runs"]
    (original,) = (run for run in runs if (run["engine"], run["precision"]) == ("plan", "float32"))
    assert original["train_seconds"] < 3.0


def test_peers():
    """No figure of a candidate that computes something else; what is missed is for the README to say."""
    result = read(ROOT / "benchmarks" / "results" / "peers-2-cores.json")
    measured = [one for group in result["peers"] for one in group["candidates"] if one["status"] == "measured"]
    assert {one["name"] for one in measured} >= {"plan", "pytorch"}
    for group in result["peers"]:
        theirs = [one for one in group["candidates"] if not one["ours"] and one["status"] == "measured"]
        assert all(one["loss_difference"] <= group["tolerance"] for one in theirs)
        assert all(one["throughput"]["threads"] == 2 for one in theirs)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGES[name]) if not link.startswith("http")]
    assert len(links) > {"README.md": 10, "docs/ladder.md": 5}[name]
    for link in links:
        assert ((ROOT / name).parent / link).exists(), link


def test_python_example_is_the_package_s_own():
    """The README's program, on fewer images, does what it says."""
    import bareconv as bc

    model, data = bc.models.lenet5(), bc.data.mnist().take(200, 100)
    history = bc.train(model, data, optimizer=bc.optim.SGD(0.05, momentum=0.9), epochs=3, device="cpu")
    assert len(history.epochs) == 3
    assert history.test_accuracy is not None
    assert "lenet5" in str(model.summary())
    json.dumps(history.to_json())

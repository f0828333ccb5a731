"""The README says what the committed results say."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from bareconv.bench.results import new, read, write

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/ladder.md", "docs/gpu.md", "docs/bench.md")
}
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def readme_script():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["readme"] = importlib.util.module_from_spec(spec)  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PAGES)
def test_figures_are_those_of_the_results(name):
    """Run scripts/readme.py after a new result."""
    script, text = readme_script(), PAGES[name]
    assert all(f"<!-- begin {block} -->" in text for block in script.PAGES[name])
    assert script.filled(text, script.PAGES[name]) == text


def test_the_picture_of_a_page_says_what_the_page_does():
    """Run scripts/readme.py where there is a Chromium."""
    script = readme_script()
    with Image.open(script.HEAD) as picture:
        assert picture.info["says"] == script.head_mark()
        assert picture.size == script.HEAD_SIZE


def test_there_are_results():
    assert len(RESULTS) >= 4


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_results_are_valid_and_say_where_they_come_from(path):
    result = read(path)
    assert re.fullmatch("[0-9a-f]{40}", result["commit"])
    assert result["environment"]["cpu"]["model"]
    parts = ("ladder", "peers", "rooflines", "sweeps", "clocks", "learning")
    assert result["runs"] or any(result.get(part) for part in parts)


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


GPU_GOALS = [  # model, batch, precision; microseconds of a step at most, times PyTorch's best at least
    ("basic", 64, "bfloat16", 60, None),
    ("basic", 256, "bfloat16", 105, None),
    ("basic", 1024, "bfloat16", 330, None),
    ("basic", 64, "tf32", 100, None),
    ("basic", 256, "tf32", 210, None),
    ("basic", 1024, "tf32", 700, None),
    *(("basic", size, "float32", None, 1.5) for size in (64, 256, 1024)),
    ("lenet5", 64, "bfloat16", 45, None),
    ("small", 256, "bfloat16", None, 3.0),
    ("resnet9", 512, "bfloat16", None, 1.0),
    ("resnet18", 512, "bfloat16", None, 0.8),
]


def missed(result):
    """(model, batch, precision) of the goals that were measured and not reached; of those that were not measured."""
    off, open_ = set(), set()
    for model, batch, precision, most, least in GPU_GOALS:
        candidates = [
            one
            for group in result["peers"]
            if (group["model"], group["batch_size"], group["precision"]) == (model, batch, precision)
            for one in group["candidates"]
            if "throughput" in one
        ]
        ours = [one for one in candidates if one["ours"]]
        theirs = [one for one in candidates if not one["ours"]]
        if not ours or (most is None and not theirs):
            open_.add((model, batch, precision))
        elif most is not None:
            (one,) = ours
            if 1e6 * batch / one["throughput"]["images_per_second"] > most:
                off.add((model, batch, precision))
        elif max(theirs, key=lambda one: one["throughput"]["images_per_second"])["ratio"]["value"] < least:
            off.add((model, batch, precision))
    return off, open_


def assert_names_what_is_missed(text, result):
    """The sentence on the goals in the README's part on the GPU, against the file."""
    sentence = next(line for line in text.splitlines() if line.startswith("Of the "))
    reached, _, rest = sentence.partition(". ")
    off, _, open_ = rest.partition("Not measured:")
    assert ("Missed:" in rest) == bool(off.strip())
    expected_off, expected_open = missed(result)

    def named(words):
        return {
            (model, int(size.replace(",", "")), precision)
            for model, size, precision in re.findall(r"`(\w+)`, batch ([\d,]+), (\w+) \(", words)
        }

    assert named(off) == expected_off
    assert named(open_) == expected_open
    number = len(GPU_GOALS) - len(expected_off) - len(expected_open)
    goals = f"{len(GPU_GOALS)} [goals](docs/gpu.md#goals)"
    assert reached.rstrip(".") == f"Of the {goals} that this project has set itself on this GPU it reaches {number}"


@pytest.mark.skipif(not (ROOT / "benchmarks/results/h200.json").exists(), reason="no result of the GPU yet")
def test_speed_targets_on_a_gpu():
    """A goal may be missed, but not in silence."""
    result = read(ROOT / "benchmarks" / "results" / "h200.json")
    assert_names_what_is_missed(PAGES["README.md"], result)
    for group in result["peers"]:
        theirs = [one for one in group["candidates"] if not one["ours"] and one["status"] == "measured"]
        assert all(one["loss_difference"] <= group["tolerance"] for one in theirs)


def candidate(step, *, batch, ours=False, mode=None, ratio=None, seconds=(0.1,)):
    """Made up: a candidate that takes ``step`` microseconds."""
    entry = {
        "name": "plan" if ours else "pytorch",
        "variant": "" if ours else f"channels_last {mode}",
        "ours": ours,
        "options": {} if ours else {"mode": mode, "layout": "channels_last", "mixed": None},
        "status": "measured",
        "error": None,
        "first_losses": [2.3],
        "loss_difference": None if ours else 1e-4,
        "throughput": {
            "images_per_second": 1e6 * batch / step,
            "interval": {"level": 0.95, "low": 1.0, "high": 2.0},
            "samples": {"seconds": list(seconds), "steps": [1], "images": [batch]},
            "warm_up_seconds": 1.5,
            "compile_seconds": 0.5,
            "peak_memory_bytes": 1 << 28,
            "memory_growth_bytes": 1 << 20,
            "threads": 2,
            "variables": {},
            "versions": {"bareconv": "0.1.0"} if ours else {"torch": "2.13.0"},
        },
    }
    return {**entry, "ratio": {"value": ratio, "low": ratio - 0.01, "high": ratio + 0.01}} if ratio else entry


def group(model, batch, precision, ours, eager, graph):
    """Made up: three steps in microseconds."""
    candidates = [candidate(ours, batch=batch, ours=True)]
    candidates += [
        candidate(step, batch=batch, mode=mode, ratio=step / ours)
        for mode, step in (("eager", eager), ("graph", graph))
    ]
    return {
        "model": model,
        "batch_size": batch,
        "precision": precision,
        "tolerance": 0.1,
        "ours": "plan",
        "candidates": candidates,
        "absent": {},
    }


def made_up():
    """A result with a goal reached, one missed, and the others not measured."""
    every = [
        group("basic", 64, "bfloat16", 59.0, 500.0, 120.0),
        group("basic", 256, "bfloat16", 106.0, 510.0, 200.0),
        group("basic", 64, "float32", 100.0, 500.0, 149.0),
        group("basic", 1024, "float32", 100.0, 500.0, 151.0),
    ]
    launch = {"node": "conv1", "phase": "forward", "kernel": "stem", "how": "1 x 32 threads", "beside": False}
    launch |= {
        "flops": 1e9,
        "bytes": 1e6,
        "seconds": 1e-5,
        "ceiling": "mma.sync bf16",
        "least_seconds": 4e-6,
        "share": 0.4,
    }
    rooflines = {
        "device": "cuda:0",
        "device_description": "NVIDIA H200",
        "ceilings": [{"name": "mma.sync bf16", "per_second": 6e14, "unit": "FLOP", "how": "264 blocks"}],
        "steps": [
            {
                "model": "basic",
                "batch_size": 64,
                "precision": "bfloat16",
                "step_seconds": 2e-5,
                "launches": [launch] * 2,
            }
        ],
    }
    part = {"name": "memcheck: -m pytest", "command": "it", "status": "passed", "seconds": 61.0}
    part["said"] = ["307 passed", "========= ERROR SUMMARY: 0 errors", ""]
    return new("it", {}, peers=every, parts=[part], rooflines=[rooflines], notes=["A note."])


def test_blocks_of_a_gpu_say_nothing_without_a_result(tmp_path, monkeypatch):
    script = readme_script()
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    blocks = {**script.PAGES["docs/gpu.md"], "gpu": script.gpu_section}
    assert {block(name) for name, block in blocks.items()} == {""}


def test_blocks_of_a_gpu(tmp_path, monkeypatch):
    script, result = readme_script(), made_up()
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    write(result, tmp_path / "h200.json")
    text = script.gpu_section("gpu")
    assert_names_what_is_missed(text, result)
    off, open_ = missed(result)
    assert off == {("basic", 256, "bfloat16"), ("basic", 64, "float32")}
    assert len(open_) == len(GPU_GOALS) - 4
    assert "`basic`, batch 256, bfloat16 (106 µs a step, wanted at most 105 µs a step)" in text
    assert "`basic`, batch 64, float32 (1.49× PyTorch's best, wanted at least 1.5× PyTorch's best)" in text
    assert (
        "| `basic` | 64 | bfloat16 | 59.0 µs | 1,084,746/s | channels_last graph | 120 µs | **2.03×** (2.02 to 2.04) | "
        "500 µs |" in text
    )
    assert "**torch.compile has a figure for 0 of these 4 workloads**. It takes minutes" in text
    assert "without it, and 1 of the goals below are reached against that: `basic`, batch 1,024, float32." in text
    goals = script.gpu_goals("gpu goals").splitlines()
    assert len(goals) == 2 + len(GPU_GOALS) + 1 + 2 + 3
    assert [line.rpartition(" at most ")[2] for line in goals[-3:]] == [
        f"{most} | no figure | not measured |" for most in ("6.00 s", "2.00 s", "50.0 ms")
    ]
    assert "| `basic` | 64 | bfloat16 | at most 60.0 µs a step | 59.0 µs a step | reached |" in goals
    assert "| `basic` | 64 | float32 | at least 1.5× PyTorch's best | 1.49× PyTorch's best | **missed** |" in goals
    assert "| `lenet5` | 64 | bfloat16 | at most 45.0 µs a step | no figure | not measured |" in goals
    peers = script.gpu_peers("gpu peers")
    assert peers.count("| `basic` |") == 12
    assert "- A note." in peers
    assert "its tries. Tried were eager: in float32 and tf32 `channels_last`; a CUDA graph of the whole step: " in peers
    rooflines = script.gpu_rooflines("gpu rooflines")
    assert "| forward | `stem` | 2 launches | 20.0 µs | 100% | mma.sync bf16 | 40% |" in rooflines
    assert "| memcheck: -m pytest | passed | 61.0 s | ERROR SUMMARY: 0 errors |" in script.gpu_parts("gpu parts")


def test_goals_beside_the_speed_of_steps(tmp_path, monkeypatch):
    script = readme_script()
    phases = [{"name": name, "seconds": 1.1} for name in ("start", "compile", "first step", "training")]
    clocks = [
        {"device": "cpu", "cold": {"phases": phases[2:]}, "warm": {"phases": phases[2:]}},
        {"device": "cuda:0", "cold": {"phases": phases}, "warm": {"phases": phases[1:]}},
    ]
    made = {
        "bench-h200": {"clocks": clocks},
        "original-workload-h200": {
            "runs": [{"device": "cpu", "train_seconds": 0.001}, {"device": "cuda:0", "train_seconds": 0.04}]
        },
    }
    monkeypatch.setattr(script, "gpu_result", lambda name: made.get(name))
    found = [(wanted, seconds and round(seconds, 3)) for _, wanted, seconds in script.besides()]
    assert found == [(6.0, 3.3), (2.0, 2.2), (0.05, 0.04)]
    made.clear()
    assert [seconds for _, _, seconds in script.besides()] == [None] * 3


def test_what_torch_compile_has_no_figure_for(tmp_path, monkeypatch):
    script, result = readme_script(), made_up()
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    groups = result["peers"]
    for one, step in zip(groups[:3], (100.0, 160.0, None), strict=True):
        made = candidate(step or 1.0, batch=one["batch_size"], mode="compile", ratio=2.0)
        if step is None:
            made = {**made, "status": "interrupted"}
            del made["throughput"], made["ratio"]
        one["candidates"].append(made)
    (words, _) = script.uncompiled_text(result)
    assert "2 of these 4 workloads**: `basic`, batch 64, bfloat16 (1.20× the best without it)" in words
    assert "`basic`, batch 256, bfloat16 (1.25× the best without it)" in words
    assert "and was not ready in time for 1 more." in words
    groups[:] = groups[:2]
    assert script.uncompiled_text(result) == []


def test_what_compiles_again_says_so():
    script, result = readme_script(), made_up()
    result["peers"][0]["candidates"].append(candidate(70.0, batch=64, mode="compile", ratio=1.2))
    settings = {"no_timing": False, "no_compile": False, "compile_words": ["basic:64:bfloat16"]}
    for earlier, again in (
        (None, False),
        ({**settings, "no_timing": True}, False),
        ({**settings, "no_compile": True}, False),
        ({**settings, "compile_words": ["small:64:bfloat16"]}, False),
        ({**settings, "compile_words": ["small:64:bfloat16"], "earlier": settings}, True),
    ):
        result["settings"] = {**settings, "earlier": earlier}
        text = script.start_text(result)
        assert "PyTorch's best (channels_last compile) 1.50 s, and 500 ms of compiling" in text
        assert text.endswith("with what an earlier run had left in its cache." if again else "beside them.")


def test_seeds_of_a_gpu(tmp_path, monkeypatch):
    script = readme_script()
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    (run,) = read(ROOT / "benchmarks" / "results" / "one-epoch-2-cores.json")["runs"]
    runs = [{**run, "test_accuracy": accuracy} for accuracy in (0.98, 0.99)]
    notes = ["cpu, float32: accuracy 98.5% over 2 seeds.", "cpu, float32: two runs left the same weights."]
    write(new("it", {}, runs=runs, notes=notes), tmp_path / "seeds-h200.json")
    text = script.gpu_seeds("gpu seeds")
    assert f"| cpu | float32 | {run['engine']} | 2 | 98.500% | 0.707% | 98.00% | 99.00% |" in text
    assert "- cpu, float32: two runs left the same weights." in text
    assert "over 2 seeds" not in text


def test_blocks_of_a_benchmark_say_nothing_without_a_result(tmp_path, monkeypatch):
    script = readme_script()
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    assert {block(name) for name, block in script.PAGES["docs/bench.md"].items()} == {""}
    assert list(script.bench_pictures()) == []


@pytest.mark.parametrize("kind", ["peers", "gpu"])
def test_blocks_of_a_benchmark(tmp_path, monkeypatch, kind):
    script = readme_script()
    monkeypatch.syspath_prepend(ROOT / "tests" / "report")
    samples = importlib.import_module("bench_samples")
    result = samples.with_peers() if kind == "peers" else samples.with_gpu()
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    write(result, tmp_path / "bench-2-cores.json")
    text = script.bench_machine("bench 2-cores")
    group = result["peers"][0]
    rate = group["candidates"][0]["throughput"]["images_per_second"]
    assert f"| **bareconv** | **{rate:,.0f}/s** |" in text
    assert "From [bench-2-cores.json](../benchmarks/results/bench-2-cores.json) (6b0a4761f5)" in text
    assert "### Throughput by batch size, `basic`" in text
    assert "### Where a step's time goes: basic, batches of 64, float32" in text
    assert "| **Whole** | **26.7 s** | **25.5 s** |" in text
    assert "*unstable*" in text
    widths = {
        len(re.findall(r"(?<!\\)\|", line)) for line in text.split("### Beside")[1].splitlines() if line.startswith("|")
    }
    assert len(widths) == 1
    pictures = dict(script.bench_pictures())
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())
    linked = set(re.findall(r"\]\((images/[^)]+)\)", text))
    assert linked == {f"images/{path.name}" for path in pictures}
    assert {path.parent for path in pictures} == {ROOT / "docs" / "images"}


def test_pictures_of_a_benchmark_are_there():
    """Run scripts/readme.py after a new result."""
    for name in re.findall(r"\]\((images/bench-[^)]+)\)", PAGES["docs/bench.md"]):
        assert (ROOT / "docs" / name).stat().st_size > 5_000, name


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
    assert len(links) > {"README.md": 10, "docs/ladder.md": 5, "docs/gpu.md": 5, "docs/bench.md": 3}[name]
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

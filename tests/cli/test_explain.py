"""``bareconv explain``: every call of a plan, its time, and what it says of itself in JSON."""

from __future__ import annotations

import re

import pytest

from bareconv.training import why_no_plan

pytestmark = pytest.mark.skipif(why_no_plan() is not None, reason="there is no plan on this machine")

WORDS = ("explain", "--model", "lenet5", "--batch-size", "8", "--threads", "1", "--steps", "2")


def test_the_table(run, here, listing):
    outcome = run(*WORDS)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert re.fullmatch(r"lenet5: \S+, float32, 1 threads?, batches of up to 8", lines[0])
    assert re.fullmatch(r"phase +layers +kernel +how +FLOPs/image +bytes/image +time +FLOP/s +bytes/s", lines[1])
    (conv,) = [line for line in lines if line.startswith("forward") and "conv1 + relu1 + pool1" in line]
    # 2 x 28 x 28 x 6 x 25 operations; pixels, the pooled output with a byte for each, an eighth of the weights.
    moved = 4 * 28 * 28 + 5 * 14 * 14 * 6 + 4 * (150 + 6) / 8
    assert re.search(rf" 235,200 +{moved:,.0f} +[\d.]+% +[\d.]+ [MG]FLOP/s +[\d.]+ [MG]iB/s$", conv)
    assert re.search(r"^ +waiting +for other threads +<?[\d.]+%$", outcome.out, re.MULTILINE)
    assert re.search(r"^2 steps, [\d.]+ \S+ each; [\d,]+ FLOPs an image, [\d.]+ [MG]FLOP/s$", outcome.out, re.MULTILINE)
    assert "Every operation has a kernel." in lines
    assert listing() == []


def test_json(run, here):
    plan = run(*WORDS, "--precision", "float64", "--image-shape", "12x12x2", "--json").result()["plan"]
    assert (plan["model"], plan["image_shape"], plan["precision"]) == ("lenet5", [12, 12, 2], "float64")
    assert (plan["batch_size"], plan["threads"], plan["steps"]) == (8, 1, 2)
    phases = [row["phase"] for row in plan["rows"]]
    assert list(dict.fromkeys(phases)) == ["prepare", "forward", "backward", "update"]
    assert all(row["seconds"] >= 0 for row in plan["rows"])
    assert sum(row["seconds"] for row in plan["rows"]) > 0
    assert plan["memory_bytes"] > 0


def test_no_steps_no_times(run, here):
    outcome = run(*WORDS[:-1], "0", "--json")
    assert outcome.code == 0
    assert all(row["seconds"] is None or row["seconds"] == 0 for row in outcome.result()["plan"]["rows"])
    assert "FLOP/s" not in outcome.err


def test_what_has_no_kernel_is_named(run, here, monkeypatch):
    from bareconv import nn
    from bareconv.nn import models

    def odd(shape, classes, seed):
        return nn.Model([nn.Flatten(), nn.Dense(8), nn.GELU(), nn.Dense(classes)], shape, seed=seed, name="odd")

    monkeypatch.setattr(models, "by_name", lambda name, shape, classes, seed: odd(shape, classes, seed))
    outcome = run(*WORDS)
    assert outcome.code == 0
    assert re.search(r"^No kernel, done by the reference, .*: gelu1 \(forward: .*gelu1 \(backward: ", outcome.out, re.M)
    assert "Every operation has a kernel." not in outcome.out


def test_no_plan(run, here, monkeypatch):
    monkeypatch.setattr("bareconv.cli.explain.why_no_plan", lambda *_: "llvmlite is not there")
    outcome = run(*WORDS)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.complaint() == "there is no plan on cpu: llvmlite is not there"


def test_images_that_do_not_fit(run, here):
    outcome = run(*WORDS, "--image-shape", "2x2x1")
    assert (outcome.code, outcome.out) == (2, "")
    assert "conv2" in outcome.complaint()

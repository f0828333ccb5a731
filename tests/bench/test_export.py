"""A result as tables: nothing is lost, nothing is added, and each table is one."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import bench_samples
import pytest
import report_samples

from bareconv.bench import results
from bareconv.bench.export import as_csv, as_markdown
from bareconv.bench.tidy import COLUMNS, unit

FOLDER = Path(__file__).parents[2] / "benchmarks/results"
KEPT = [
    FOLDER / f"{name}.json" for name in ("basic-2-cores", "h200", "ladder-2-cores", "original-h200", "peers-2-cores")
]
MADE = {
    "a GPU": bench_samples.with_gpu,
    "peers": bench_samples.with_peers,
    "throughput": bench_samples.throughput_only,
    "trainings": report_samples.four,
    "the least": report_samples.minimal,
}
# Numbers that say what was measured: they have a column of their own in the rows of that entry.
IDENTITY = {"batch_size", "threads", "epoch", "class"}


def table(text: str) -> list[dict[str, str]]:
    """CSV as another program reads it."""
    return list(csv.DictReader(io.StringIO(text)))


def numbers(content: Any, name: str = "", axis: bool = False) -> Iterator[float]:
    """All numbers within a result, but for those that are an entry's identity."""
    if isinstance(content, dict):
        axis = axis or "points" in content
        for key, inner in content.items():
            if key not in IDENTITY or isinstance(inner, list | dict):
                yield from numbers(inner, key, axis and key == "points")
    elif isinstance(content, list):
        for inner in content:
            # The place on the axis of a sweep's point.
            left = {k: v for k, v in inner.items() if k != "value"} if axis and isinstance(inner, dict) else inner
            yield from numbers(left, name, False)
    elif isinstance(content, bool | int | float):
        yield float(content)


@pytest.mark.parametrize("make", MADE.values(), ids=MADE.keys())
def test_every_number_of_a_result_is_in_the_csv_once_and_exact(make):
    result = make()
    found: Counter[float] = Counter()
    for row in table(as_csv(result, raw=True)):
        assert not (row["value"] and row["text"])
        for name in ("value", "low", "high"):
            if row[name]:
                found[float(row[name])] += 1
    for part in ("environment", "settings", "conditions", "schema_version"):  # in these no number is an identity
        result[part] = {f"{part} {place}": x for place, x in enumerate(_all(result.get(part)))}
    for run in result["runs"]:
        run.get("throughput", {}).update(count=run.get("throughput", {}).pop("threads", None))
    for part in result.get("peers", []):
        for one in part["candidates"]:
            one.get("throughput", {}).update(count=one.get("throughput", {}).pop("threads", None))
    assert found == Counter(numbers(result))


def _all(content: Any) -> list[float]:
    if isinstance(content, dict | list):
        return [x for inner in (content.values() if isinstance(content, dict) else content) for x in _all(inner)]
    return [float(content)] if isinstance(content, bool | int | float) else []


def test_a_row_says_what_it_is_of():
    result = bench_samples.with_gpu()
    rows = table(as_csv(result))
    assert tuple(rows[0]) == COLUMNS
    steady = next(r for r in rows if r["part"] == "runs" and r["quantity"] == "throughput.images_per_second")
    known = result["runs"][0]
    assert {name: steady[name] for name in ("device", "model", "batch_size", "precision", "candidate", "unit")} == {
        "device": "cpu",
        "model": "basic",
        "batch_size": "64",
        "precision": "float32",
        "candidate": "plan",
        "unit": "images/s",
    }
    assert [float(steady[name]) for name in ("value", "low", "high")] == [
        known["throughput"]["images_per_second"],
        known["throughput"]["interval"]["low"],
        known["throughput"]["interval"]["high"],
    ]
    assert int(steady["samples"]) == len(known["throughput"]["samples"]["seconds"])
    curve = result["sweeps"][0]["curves"][1]
    points = [r for r in rows if r["part"] == "sweeps.curves.points" and r["quantity"] == "images_per_second"]
    mine = [r for r in points if (r["axis"], r["device"], r["precision"]) == ("batch_size", "cuda:0", "float32")]
    mine = [r for r in mine if r["candidate"] == curve["name"] == "plan"]
    expected = [(p["value"], p["images_per_second"]["low"]) for p in curve["points"] if p["error"] is None]
    assert [(float(r["at"]), float(r["low"])) for r in mine] == expected
    assert all(float(r["at"]) == float(r["batch_size"]) for r in mine)
    wide = next(r for r in points if r["axis"] == "image_size")
    assert wide["batch_size"] == "64"
    ratio = next(r for r in rows if r["part"] == "peers.candidates" and r["quantity"] == "ratio")
    assert 0 < float(ratio["low"]) <= float(ratio["value"]) <= float(ratio["high"])
    ceiling = next(r for r in rows if r["part"] == "rooflines.ceilings" and r["quantity"] == "per_second")
    assert (ceiling["unit"], ceiling["device"]) == ("FLOP/s", "cpu")
    assert ceiling["detail"] == result["rooflines"][0]["ceilings"][0]["name"]
    launch = next(r for r in rows if r["part"] == "rooflines.steps.launches" and r["quantity"] == "seconds")
    assert (launch["model"], launch["unit"]) == ("basic", "s")
    assert "conv1" in launch["detail"]
    assert {r["detail"] for r in rows if r["part"] == "clocks.cold.phases"} >= {"start", "import", "training"}
    assert any(r["part"] == "energy" and r["quantity"] == "joules" and r["unit"] == "J" for r in rows)
    assert [r["text"] for r in rows if r["part"] == "notes"] == result["notes"]
    crossing = next(r for r in rows if r["part"] == "sweeps.crossovers" and r["quantity"] == "value")
    known = result["sweeps"][0]["crossovers"][0]
    assert [float(crossing[name]) for name in ("value", "low", "high")] == [known[n] for n in ("value", "low", "high")]


def test_samples_are_there_on_request():
    result = bench_samples.throughput_only()
    plain, raw = table(as_csv(result)), table(as_csv(result, raw=True))
    assert not [r for r in plain if "samples" in r["quantity"]]
    blocks = [r for r in raw if r["quantity"] == "throughput.samples.seconds" and r["batch_size"] == "256"]
    samples = result["runs"][1]["throughput"]["samples"]["seconds"]
    assert [(int(r["index"]), float(r["value"])) for r in blocks] == list(enumerate(samples))
    assert {r["unit"] for r in blocks} == {"s"}


def cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line)


def tables(text: str) -> dict[str, list[list[str]]]:
    """The cells of every table, by its heading; what is not a table is none."""
    found: dict[str, list[list[str]]] = {}
    for block in text.rstrip("\n").split("\n\n"):
        if block.startswith("#"):
            heading = block.lstrip("# ")
            assert "\n" not in block
        else:
            found[heading] = [[cell.strip() for cell in cells(line)[1:-1]] for line in block.split("\n")]
            assert all(line.startswith("| ") and line.endswith(" |") for line in block.split("\n"))
    return found


@pytest.mark.parametrize("make", MADE.values(), ids=MADE.keys())
@pytest.mark.parametrize("raw", [False, True])
def test_markdown_is_well_formed(make, raw):
    found = tables(as_markdown(make(), raw))
    assert found
    for heading, lines in found.items():
        assert {len(line) for line in lines} == {len(lines[0])}, heading
        assert set(lines[1]) == {"---"}
        assert len(lines) > 2


def test_markdown_says_what_was_measured_with_intervals_and_units():
    result = bench_samples.with_peers()
    found = tables(as_markdown(result))
    by_name = {line[0]: line[1:] for line in found["runs"]}
    steady = result["runs"][0]["throughput"]
    figures = [steady["images_per_second"], steady["interval"]["low"], steady["interval"]["high"]]
    shown = re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", by_name["throughput: images per second (images/s)"][0])
    assert shown is not None
    assert [float(x) for x in shown.groups()] == pytest.approx(figures, rel=1e-4)
    assert by_name["candidate"] == ["plan", "reference"]
    assert "OMP\\_NUM\\_THREADS" in "".join(by_name)
    heads = found["sweeps / curves / points"][0]
    assert {"images per second (images/s)", "step seconds (s)", "at"} <= set(heads)


def test_what_markdown_would_take_for_its_own():
    result = report_samples.minimal()
    result["notes"] = ["a | b\nc *d* `e` <f> [g](h) \\ i_j"]
    (line,) = tables(as_markdown(result))["notes"][2:]
    assert line[-1] == r"a \| b c \*d\* \`e\` \<f\> \[g\](h) \\ i\_j"
    (row,) = [r for r in table(as_csv(result)) if r["part"] == "notes"]
    assert row["text"] == result["notes"][0]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_results_that_were_kept_can_be_exported(path):
    """Results of the first version among them."""
    result = results.read(path)
    rows = table(as_csv(result))
    assert {row["part"].partition(".")[0] for row in rows} >= {name for name in ("runs", "peers") if result.get(name)}
    for row in rows:
        figures = [float(row[name]) for name in ("value", "low", "high") if row[name]]
        assert all(map(math.isfinite, figures))
    for lines in tables(as_markdown(result)).values():
        assert {len(line) for line in lines} == {len(lines[0])}


def test_units():
    schema = json.loads(resources.files("bareconv.bench").joinpath("result.schema.json").read_text())
    run = schema["$defs"]["run"]["properties"]
    for name, kind in run.items():
        if kind == {"$ref": "#/$defs/seconds"} or name.endswith("seconds"):
            assert unit(name) == "s", name
        if kind == {"$ref": "#/$defs/bytes"}:
            assert unit(name) == "B", name
    assert [
        unit(name) for name in ("cpu.frequency_hz", "watts", "memory.parameters", "net_joules_per_1000_images")
    ] == [*("Hz", "W", "B", "J/1000 images")]
    assert unit("throughput.noise.spread") == unit("test_accuracy") == ""

"""Sweeps in words: the points for which there was no time."""

from __future__ import annotations

from typing import Any

from bareconv.report.bench.sweeps import points_table
from bareconv.report.sweep import crossover_sentences, notes, without_time

UP = "not measured: the time was up before it"


def curve(device: str, errors: dict[int, str | None]) -> dict[str, Any]:
    rate = {"images_per_second": {"value": 10.0, "low": 9.0, "high": 11.0}}
    points = [{"value": value, "error": error, **({} if error else rate)} for value, error in errors.items()]
    return {
        "name": "plan",
        "variant": "",
        "ours": True,
        "device": device,
        "precision": "float32",
        "threads": None,
        "points": points,
    }


def test_values_without_time_are_named_and_left_out_of_the_table() -> None:
    cpu = curve("cpu", {1: None, 2: UP, 4: UP, 8: "out of memory"})
    gpu = curve("cuda:0", {1: None, 2: "was not ready after 5 s, when the time was up", 4: None, 8: "out of memory"})
    sweep = {"axis": "batch_size", "curves": [cpu, gpu], "crossovers": [], "notes": ["A note."]}
    assert without_time(sweep) == [2]  # at 4 one has a figure, and what failed at 8 is to be seen
    assert notes(sweep) == ["A note.", "There was no time for 2."]
    rows = points_table(sweep).rows
    assert [row[0].text for row in rows] == ["1", "4", "8"]
    assert rows[2][1].note == "out of memory"


def test_a_gpu_that_is_ahead_everywhere_is_said_to_be() -> None:
    def said(gpu: float) -> list[str]:
        curves = [curve("cpu", {1: None, 2: None}), curve("cuda:0", {1: None, 2: None})]
        for point in curves[1]["points"]:
            point["images_per_second"] = {"value": gpu * point["value"], "low": gpu, "high": gpu * point["value"]}
        return crossover_sentences({"axis": "threads", "curves": curves, "crossovers": []})

    (sentence,) = said(50.0)
    assert sentence == "GPU is 5.0 to 10 times as fast as CPU at every number of threads that was measured."
    (sentence,) = said(2.0)
    assert sentence == "CPU is 2.5 to 5.0 times as fast as GPU at every number of threads that was measured."
    assert said(10.0) == []


def test_nothing_is_said_where_all_were_measured() -> None:
    sweep = {"axis": "batch_size", "curves": [curve("cpu", {1: None})], "crossovers": []}
    assert (without_time(sweep), notes(sweep)) == ([], [])

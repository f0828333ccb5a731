"""The page: whole, self-contained, honest about what is missing, the same every time."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import report_samples as samples

from bareconv.report import Gallery, write_report

VOID = {"meta", "link", "br", "hr", "img", "input", "area", "base", "col", "embed", "source", "track", "wbr"}
VARIANTS: dict[str, Callable[[], dict[str, Any]]] = {
    "cpu_only": samples.cpu_only,
    "both": samples.both,
    "four": samples.four,
    "minimal": samples.minimal,
}


class Page(HTMLParser):
    """Every tag opened is closed, in order; what is seen, and what is referred to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.headings: list[str] = []
        self.seen = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert tag not in {"script", "link", "iframe", "object", "embed"}
        assert not any(name.startswith("on") for name in values)
        if tag == "img":
            assert values.get("alt")
        if tag == "svg":
            assert values.get("role") == "img"
            assert values.get("aria-label")
        if tag == "th":
            assert values.get("scope")
        if "id" in values:
            self.ids.append(values["id"] or "")
        self.references += [value or "" for name, value in attrs if name in {"href", "src", "xlink:href"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.seen += data
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of every variant's report, made once."""
    made = {}
    for name, variant in VARIANTS.items():
        made[name] = tmp_path_factory.mktemp(name)
        path = write_report(variant(), None if name == "minimal" else samples.gallery(), made[name])
        assert path == made[name] / "report.html"
    return made


@pytest.fixture(scope="module")
def pages(folders: dict[str, Path]) -> dict[str, str]:
    """The page of every variant."""
    return {name: (folder / "report.html").read_text(encoding="utf-8") for name, folder in folders.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_page_is_whole_and_needs_nothing_else(pages: dict[str, str], name: str) -> None:
    text = pages[name]
    page = Page(text)
    assert len(text.encode()) < 2_000_000
    assert len(page.ids) == len(set(page.ids))
    for reference in page.references:
        assert reference.startswith(("#", "data:image/png;base64,")), reference
        if reference.startswith("#"):
            assert reference[1:] in page.ids
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert not re.search(r"https?://", text)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_number_is_shown_that_is_none(pages: dict[str, str], name: str) -> None:
    seen = Page(pages[name]).seen
    for word in ("nan", "None", "inf", "NaN", "undefined", "Undefined"):
        assert not re.search(rf"\b{word}\b", seen), word
    assert "{{" not in seen
    assert "{%" not in seen


def test_the_key_numbers_are_there(pages: dict[str, str]) -> None:
    seen = Page(pages["both"]).seen
    for number in (
        "42× faster",
        "7 min 04 s",  # training on the CPU: 0.181 s * 2345
        "10.1 s",  # and on the GPU
        "181 ms",
        "29,702/s",  # 128 / 0.181 * 42
        "98.95%",
        "98.94%",
        "589 MiB",
        "306 MiB",
        "42.0×",
        "NVIDIA H100 80GB HBM3",
        "Intel(R) Xeon(R) Platinum 8481C",
        "OpenBLAS 0.3.30 SkylakeX, 16 threads",
        "driver 570.86.15",
        "22 November 2026, 21:04 UTC",
        "6b0a4761f5c8",
        "bareconv compare --model basic --epochs 5 --batch-size 128",
        "The CPU's frequency governor is powersave",
        "Passed",
    ):
        assert number in seen, number


def test_sections_are_left_out_where_their_data_are_missing(pages: dict[str, str]) -> None:
    full = Page(pages["both"]).headings
    assert full == [
        "The numbers",
        "Convergence",
        "Speed-up",
        "Where the time goes",
        "Memory",
        "Do they compute the same thing?",
        "Mistakes",
        "What the network sees",
        "How it was measured",
        "Set-up",
    ]
    assert Page(pages["minimal"]).headings == ["The numbers", "How it was measured", "Set-up"]
    alone = Page(pages["cpu_only"]).headings
    assert "Speed-up" not in alone
    assert "Do they compute the same thing?" not in alone
    assert "<figure>" not in pages["minimal"]


def test_a_failed_parity_is_said(pages: dict[str, str]) -> None:
    assert "Failed" in Page(pages["four"]).seen
    assert "Failed" not in Page(pages["both"]).seen


def test_a_reason_is_given_once(pages: dict[str, str]) -> None:
    reason = "no NVIDIA driver was found, so there is no GPU to use"
    lead = pages["cpu_only"].split("<main")[0]
    assert lead.count(reason) == 1


def test_the_same_result_gives_the_same_page(folders: dict[str, Path], tmp_path: Path) -> None:
    write_report(samples.both(), samples.gallery(), tmp_path)
    for path in sorted(folders["both"].iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_every_figure_is_also_a_file(folders: dict[str, Path]) -> None:
    assert sorted(path.name for path in folders["both"].iterdir()) == [
        "confusion.png",
        "convergence.png",
        "feature_maps.png",
        "filters.png",
        "memory.png",
        "operations.png",
        "parity.png",
        "report.html",
        "right.png",
        "speedup.png",
        "wrong.png",
    ]


def test_all_text_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\" onload=\"y"
    operations = [{"name": evil, "type": evil, "forward_seconds": 0.1, "backward_seconds": 0.2}]
    parity = samples.parity() | {"candidate": evil, "reference": evil, "model": evil, "worst_tensor": evil}
    run = samples.run(
        data=evil,
        model=evil,
        engine=evil,
        device_description=evil,
        optimizer=evil,
        schedule=evil,
        operations=operations,
    )
    gpu = run | {"device": "cuda:0"}
    environment = samples.environment()
    environment["platform"] = environment["python"] = environment["cpu"]["model"] = evil
    environment["packages"] = {evil: evil}
    environment["variables"] = {evil: evil}
    environment["warnings"] = [evil]
    result = samples.result(
        [run, gpu],
        parity=[parity],
        environment=environment,
        settings={evil: evil, "list": [evil], "map": {evil: None}},
        command=evil,
        commit=evil,
        bareconv=evil,
        notes=[evil],
        created=evil,
        evaluation=samples.evaluation() | {"checkpoint": evil, "data": evil, "split": evil},
        gradient_checks=[{"name": evil, "device": evil, "error": None, "tolerance": 1e-5, "passed": False}],
    )
    gallery = samples.gallery()
    named = Gallery(digit=gallery.digit, feature_maps={evil: gallery.feature_maps["conv1"]})
    text = write_report(result, named, tmp_path).read_text()
    page = Page(text)  # finds no script and no handler
    assert "<script" not in text
    assert page.seen.count("alert('x')") > 10


def test_results_of_other_verbs(tmp_path: Path) -> None:
    checks = [
        {"name": "conv", "device": "cpu", "error": 2.5e-8, "tolerance": 1e-5, "checked": 120, "passed": True},
        {"name": "pool", "device": "cpu", "error": None, "tolerance": 1e-5, "passed": False},
    ]
    result = samples.result([], evaluation=samples.evaluation(), gradient_checks=checks)
    page = Page(write_report(result, None, tmp_path).read_text())
    assert page.headings == ["Gradients against finite differences", "Mistakes", "Set-up"]
    assert "2.5×10⁻⁸" in page.seen
    assert "not finite" in page.seen
    assert "99.00%" in page.seen  # a class's recall


def test_six_runs_of_different_models_and_lengths(tmp_path: Path) -> None:
    runs = [
        samples.run(
            device, model=model, epochs=epochs, speed=speed, confusion=..., phases=..., memory=..., stopped=True
        )
        for device, model, epochs, speed in (
            ("cpu", "mlp", 1, 9.0),
            ("cuda:0", "mlp", 2, 6.0),
            ("cpu", "basic", 1, 1.0),
            ("cuda:0", "basic", 1, 30.0),
            ("cuda:1", "basic", 3, 60.0),
            ("cpu", "resnet9", 1, 0.2),
        )
    ]
    text = write_report(samples.result(runs, gpu=False), None, tmp_path).read_text()
    page = Page(text)
    assert "time for 1,000 images" in page.seen.lower()
    assert "The run CPU mlp was stopped before its last epoch." in page.seen
    assert "GPU 1 basic" in page.seen
    assert len(text.encode()) < 2_000_000

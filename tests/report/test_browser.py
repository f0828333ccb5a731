"""The pages in a real browser: something is seen, nothing is wrong, nothing is fetched, nothing is too wide."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_browser
from PIL import Image

PATH = find_browser()
pytestmark = pytest.mark.skipif(PATH is None, reason="there is no Chromium to look with")

LIGHT, DARK = (255, 255, 255), (0x14, 0x18, 0x1E)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert PATH is not None
    with Browser(PATH) as one:
        yield one


def shot(browser: Browser) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("RGB"))


@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["gpu", "peers", "machines"])
def test_a_page_is_seen_and_nothing_is_wrong_with_it(
    browser: Browser, bench_folders: dict[str, Path], name: str, dark: bool, width: int
) -> None:
    path = bench_folders[name] / "report.html"
    browser.open(path, width=width, dark=dark)
    assert browser.complaints() == []
    asked = browser.requests()
    assert asked[:1] == [path.resolve().as_uri()]
    assert all(url.startswith("data:") for url in asked[1:]), asked
    # Tables scroll within themselves; the page never does.
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.body.scrollWidth") <= width
    picture = shot(browser)
    assert picture.shape == (900, width, 3)
    assert tuple(int(c) for c in picture[0, 0]) == (DARK if dark else LIGHT)
    ink = np.abs(picture.astype(int) - picture[0, 0].astype(int)).max(axis=2) > 100
    assert 0.01 < ink.mean() < 0.6
    # Of each chart the drawing for this width is there, and takes room.
    kind, other = ("wide", "narrow") if width > 736 else ("narrow", "wide")
    drawn = f"[...document.querySelectorAll('figure .{kind} svg')]"
    seen = f"{drawn}.filter(s => s.getBoundingClientRect().height > 60).length"
    assert browser.evaluate(seen) == browser.evaluate("document.querySelectorAll('figure').length") > 0
    assert browser.evaluate(f"document.querySelector('figure .{other}').getBoundingClientRect().height") == 0


def test_links_within_a_page_lead_to_something_seen(browser: Browser, bench_folders: dict[str, Path]) -> None:
    browser.open(bench_folders["gpu"] / "report.html", width=1200)
    lost = (
        "[...document.querySelectorAll('a[href^=\"#\"]')].filter(a => !document.querySelector(a.getAttribute('href')))"
    )
    assert browser.evaluate(f"{lost}.length") == 0
    assert browser.evaluate("document.querySelectorAll('nav a').length") > 10


def test_on_paper_what_is_folded_is_open_but_for_the_raw_numbers(
    browser: Browser, bench_folders: dict[str, Path]
) -> None:
    browser.open(bench_folders["peers"] / "report.html", width=800)
    seen = "[...document.querySelectorAll('{}')].map(t => t.checkVisibility())"
    folded, raw = seen.format("details:not(.raw) table"), seen.format("details.raw table")
    assert set(browser.evaluate(folded)) == set(browser.evaluate(raw)) == {False}
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert set(browser.evaluate(folded)) == {True}
    assert set(browser.evaluate(raw)) == {False}
    browser.call("Emulation.setEmulatedMedia", media="")


PLANTED = {
    "an exception": "<script>null.x</script>",
    "a word in the console": "<script>console.error('planted')</script>",
    "a drawing that cannot be read": '<svg><path d="M nonsense"/></svg>',
}


@pytest.mark.parametrize("what", PLANTED)
def test_an_error_would_be_found(browser: Browser, tmp_path: Path, what: str) -> None:
    page = tmp_path / "wrong.html"
    page.write_text(f"<!DOCTYPE html><title>wrong</title><p>{PLANTED[what]}")
    browser.open(page, width=800)
    assert len(browser.complaints()) == 1


def test_a_request_and_a_wide_page_would_be_found(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "wrong.html"
    page.write_text(
        '<!DOCTYPE html><title>wrong</title><img src="http://127.0.0.1:9/x.png"><div style="width: 500px">x'
    )
    browser.open(page, width=400)
    assert "http://127.0.0.1:9/x.png" in browser.requests()
    assert browser.evaluate("document.documentElement.scrollWidth") > 400

"""The page: one HTML file that needs nothing else, made from a validated result and, where there is one, a gallery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bareconv.files import write_whole
from bareconv.report import captions, table
from bareconv.report import format as fmt
from bareconv.report.captions import Words
from bareconv.report.gallery import Gallery
from bareconv.report.headline import headline
from bareconv.report.palette import DARK, LIGHT, css_variables
from bareconv.report.runs import labels, pairs

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure


FIGURES = (
    "convergence",
    "speedup",
    "operations",
    "memory",
    "parity",
    "confusion",
    "filters",
    "feature_maps",
    "wrong",
    "right",
)


@dataclass(frozen=True)
class Picture:
    """A figure as it stands in the page: inline SVG for a desk and for a telephone, and its caption."""

    wide: str
    narrow: str
    caption: str


def write_report(result: dict[str, Any], gallery: Gallery | None, folder: str | Path) -> Path:
    """Write ``report.html`` into ``folder``, beside it every figure as PNG; returns the page's path.

    ``result`` has passed ``bench/result.schema.json``. What it, or the gallery, does not have is left out. The same
    result and gallery give the same bytes.
    """
    folder = Path(folder)
    pictures = _pictures(result, gallery, folder)
    page = _environment().get_template("report.html").render(_context(result, pictures))
    return write_whole(folder / "report.html", page.encode("utf-8", "replace"))


def _pictures(result: dict[str, Any], gallery: Gallery | None, folder: Path) -> dict[str, Picture]:
    """Every figure there are data for, by name; each is also written to ``folder`` as PNG."""
    from bareconv.report import bars, curves, pictures
    from bareconv.report.canvas import NARROW, WIDE, NothingToShow, png, svg

    made: dict[str, Picture] = {}

    def add(name: str, draw: Callable[[float], Figure], words: Callable[[], Words]) -> None:
        try:
            wide, narrow = draw(WIDE), draw(NARROW)
        except NothingToShow:
            return
        said = words()
        write_whole(folder / f"{name}.png", png(wide))
        made[name] = Picture(svg(wide, f"{name}-w", said.alt), svg(narrow, f"{name}-n", said.alt), said.caption)

    add("convergence", lambda w: curves.convergence(result, width=w), lambda: captions.convergence(result))
    add("speedup", lambda w: bars.speedup_bars(result, width=w), lambda: captions.speedup(result))
    add("operations", lambda w: bars.operation_bars(result, width=w), lambda: captions.operations(result))
    add("memory", lambda w: bars.memory_bars(result, width=w), lambda: captions.memory(result))
    add("parity", lambda w: curves.parity_plot(result, width=w), lambda: captions.parity(result))
    shown = captions.confusion_of(result)
    if shown is not None:
        add(
            "confusion",
            lambda w: pictures.confusion_matrix(shown.counts, width=w),
            lambda: captions.confusion(shown),
        )
    if gallery is not None:
        add("filters", lambda w: pictures.filters(gallery, width=w), lambda: captions.filters(gallery))
        add("feature_maps", lambda w: pictures.feature_maps(gallery, width=w), lambda: captions.feature_maps(gallery))
        add(
            "wrong",
            lambda w: pictures.examples(gallery, right=False, width=w),
            lambda: captions.examples(gallery, right=False),
        )
        add(
            "right",
            lambda w: pictures.examples(gallery, right=True, width=w),
            lambda: captions.examples(gallery, right=True),
        )
    return made


def _context(result: dict[str, Any], pictures: dict[str, Picture]) -> dict[str, Any]:
    """What the template is filled with."""
    runs, environment = result["runs"], result["environment"]
    return {
        "fmt": fmt,
        "light": css_variables(LIGHT),
        "dark": css_variables(DARK),
        "head": headline(result),
        "result": result,
        "created": _day(result["created"]),
        "notes": _notes(result),
        "columns": table.columns(runs),
        "common": table.common(result) if runs else [],
        "sections": [section for section in table.sections(result) if section.rows],
        "operation_rows": table.operation_rows(runs),
        "memory_rows": table.memory_rows(runs),
        "epoch_rows": table.epoch_rows(runs),
        "environment_rows": table.environment_rows(environment),
        "setting_rows": table.setting_rows(result["settings"]),
        "verdicts": [(p["passed"], captions.verdict(p)) for p in result.get("parity", [])],
        "evaluation": result.get("evaluation"),
        "gradient_checks": result.get("gradient_checks", []),
        "profiled": sorted({run["phases"]["profiled_steps"] for run in runs if "phases" in run}),
        "compared": bool(pairs(runs)),
        "pictures": {name: pictures.get(name) for name in FIGURES},
        "contents": _contents(result, pictures),
    }


def _notes(result: dict[str, Any]) -> list[str]:
    """What the reader should know before believing anything; each once, and not the reason that the headline gives."""
    environment = result["environment"]
    missing = environment.get("cuda_missing")
    said = [*result.get("notes", ()), *environment.get("warnings", ())]
    if missing:
        said = [note for note in said if missing not in note]
    names = labels(result["runs"])
    said += [
        f"The run {name} was stopped before its last epoch."
        for run, name in zip(result["runs"], names, strict=True)
        if run.get("stopped")
    ]
    return [note[:1].upper() + note[1:] for note in dict.fromkeys(said)]


def _contents(result: dict[str, Any], pictures: dict[str, Picture]) -> list[tuple[str, str]]:
    """Anchors and names of the sections that are there."""
    runs = result["runs"]
    every = [
        ("numbers", "Numbers", bool(runs)),
        ("convergence", "Convergence", "convergence" in pictures),
        ("speedup", "Speed-up", "speedup" in pictures),
        ("operations", "Operations", "operations" in pictures),
        ("memory", "Memory", "memory" in pictures),
        ("parity", "Parity", "parity" in pictures),
        ("gradients", "Gradients", bool(result.get("gradient_checks"))),
        ("mistakes", "Mistakes", bool({"confusion", "wrong"} & set(pictures)) or "evaluation" in result),
        ("sees", "What it sees", bool({"filters", "feature_maps", "right"} & set(pictures))),
        ("measured", "Method", bool(runs)),
        ("setup", "Set-up", True),
    ]
    return [(anchor, name) for anchor, name, there in every if there]


def _day(created: str) -> str:
    """An ISO date and time as a person writes it, in UTC; what cannot be read stays as it is."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC)
    month = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ]
    return f"{moment.day} {month[moment.month - 1]} {moment.year}, {moment:%H:%M} UTC"


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("bareconv.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

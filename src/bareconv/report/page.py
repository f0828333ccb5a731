"""The page: one HTML file that needs nothing else, made from a validated result and, where there is one, a gallery."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bareconv.files import Attempts, write_whole
from bareconv.report import captions, table
from bareconv.report import format as fmt
from bareconv.report.gallery import Gallery
from bareconv.report.headline import headline
from bareconv.report.palette import DARK, LIGHT, css_variables
from bareconv.report.runs import labels, pairs
from bareconv.report.sections import Chart, Download, Fold, Section, Words
from bareconv.report.verdict import verdict as verdict_of

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
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

    kind: ClassVar[str] = "picture"
    wide: str
    narrow: str
    caption: str


Keep = Callable[[str, "Figure"], None]


def write_report(
    result: dict[str, Any], gallery: Gallery | None, folder: str | Path, name: str = "result.json"
) -> Path:
    """Write ``report.html`` into ``folder``, beside it every figure as PNG; returns the page's path.

    ``result`` has passed ``bench/result.schema.json``; ``name`` is its file's. What it, or the gallery, does not have
    is left out. The same result and gallery give the same bytes. UnwrittenError where a file could not be written; the
    page, and then every figure, has been tried.
    """
    folder = Path(folder)
    figures: dict[str, bytes] = {}

    def keep(figure_name: str, figure: Figure) -> None:
        from bareconv.report.canvas import png

        figures[f"{figure_name}.png"] = png(figure)

    page = render(result, gallery, name=name, keep=keep)
    attempts = Attempts()
    for file, content in {"report.html": page.encode("utf-8", "replace"), **figures}.items():
        with attempts.one():
            write_whole(folder / file, content)
    attempts.conclude()
    return folder / "report.html"


def render(
    result: dict[str, Any], gallery: Gallery | None = None, *, name: str = "result.json", keep: Keep | None = None
) -> str:
    """The page of a result; ``keep`` is given the name of every figure and the figure, drawn for a desk."""
    from bareconv.report import bench

    shown = _drawn(bench.sections(result, name), keep)
    trained = {**result, "runs": [run for run in result["runs"] if "throughput" not in run]}
    pictures = _pictures(trained, gallery, keep)
    context = _context(result, trained, pictures, shown) | {"file": name}
    return _environment().get_template("report.html").render(context)


def render_machines(results: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """One page of several results, each with its file's name: what machines are to each other."""
    from bareconv.report import machines

    shown = _drawn(machines.sections(results), None)
    context = {
        "fmt": fmt,
        "light": css_variables(LIGHT),
        "dark": css_variables(DARK),
        "head": machines.headline(results),
        "version": results[0][1]["bareconv"],
        "made": ", ".join(name for name, _ in results),
        "created": "",
        "notes": [],
        "file": "",
        "sections": shown,
        "training": False,
        "result": None,
        "contents": [(section.anchor, section.short) for section in shown],
    }
    return _environment().get_template("report.html").render(context)


def _picture(
    name: str, draw: Callable[[float], Figure], words: Callable[[], Words], keep: Keep | None
) -> Picture | None:
    """A figure at both widths; None where there is nothing to show."""
    from bareconv.report.canvas import NARROW, WIDE, NothingToShow, svg

    try:
        wide, narrow = draw(WIDE), draw(NARROW)
    except NothingToShow:
        return None
    said = words()
    if keep is not None:
        keep(name, wide)
    return Picture(svg(wide, f"{name}-w", said.alt), svg(narrow, f"{name}-n", said.alt), said.caption)


def _drawn(sections: Sequence[Section], keep: Keep | None) -> list[Section]:
    """The sections with their charts as pictures; those with nothing to show are left out."""

    def block(one: Any) -> Any:
        if isinstance(one, Chart):
            return _picture(one.name, one.draw, one.words, keep)
        if isinstance(one, Fold):
            return replace(one, blocks=[b for b in map(block, one.blocks) if b is not None])
        return one

    return [replace(s, blocks=[b for b in map(block, s.blocks) if b is not None]) for s in sections]


def _pictures(result: dict[str, Any], gallery: Gallery | None, keep: Keep | None) -> dict[str, Picture]:
    """Every figure of trainings that there are data for, by name."""
    from bareconv.report import bars, curves, pictures

    made: dict[str, Picture] = {}

    def add(name: str, draw: Callable[[float], Figure], words: Callable[[], Words]) -> None:
        picture = _picture(name, draw, words, keep)
        if picture is not None:
            made[name] = picture

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


def _context(
    result: dict[str, Any], trained: dict[str, Any], pictures: dict[str, Picture], shown: list[Section]
) -> dict[str, Any]:
    """What the template is filled with; ``trained``: the result with the runs that learned something alone."""
    runs, environment = trained["runs"], result["environment"]
    verdict = verdict_of(result)
    return {
        "fmt": fmt,
        "light": css_variables(LIGHT),
        "dark": css_variables(DARK),
        "head": verdict or headline(trained),
        "result": result,
        "version": result["bareconv"],
        "made": result["created"],
        "created": _day(result["created"]),
        "notes": _notes(result, trained),
        "sections": shown,
        "training": True,
        "columns": table.columns(runs),
        "common": table.common(trained) if runs else [],
        "parts": [section for section in table.sections(trained) if section.rows],
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
        "contents": [(s.anchor, s.short) for s in shown] + _contents(trained, pictures),
    }


def _notes(result: dict[str, Any], trained: dict[str, Any]) -> list[str]:
    """What the reader should know before believing anything; each once, and not the reason that the headline gives."""
    warnings = result["environment"].get("warnings", ())
    said = [*(text[:1].upper() + text[1:] for text in warnings), *notes(result)]
    names = labels(trained["runs"])
    said += [
        f"The run {name} was stopped before its last epoch."
        for run, name in zip(trained["runs"], names, strict=True)
        if run.get("stopped")
    ]
    return list(dict.fromkeys(said))


def notes(result: Mapping[str, Any]) -> list[str]:
    """The notes of a result, without those that only say why there is no GPU: the headline does."""
    missing = result["environment"].get("cuda_missing")
    return [note for note in result.get("notes", ()) if not missing or missing not in note]


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


def _code(text: str) -> Markup:
    """Escaped, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _plain(text: str) -> str:
    """Without the backticks, for where there is no code."""
    return text.replace("`", "")


def _data_uri(download: Download) -> str:
    return f"data:{download.media_type};base64,{base64.b64encode(download.content).decode('ascii')}"


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("bareconv.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": _code, "plain": _plain, "data_uri": _data_uri}
    return environment

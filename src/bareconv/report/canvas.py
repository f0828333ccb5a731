"""What every figure has in common: its style, its two widths, and how it becomes PNG bytes or an inline SVG.

Figures are ``matplotlib.figure.Figure`` objects; pyplot, and with it any global state, is not used. A figure is drawn
at ``WIDE``, or at ``NARROW`` for a telephone: type keeps its size and the panels move below each other.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar
from xml.etree import ElementTree

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.style import context

from bareconv.report.palette import LIGHT, VARIABLES

WIDE, NARROW = 10.0, 4.3  # inches; at 72 points an inch, and 9.5 points of type
POINT = 1 / 72

_P = ParamSpec("_P")
_R = TypeVar("_R")

_STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": LIGHT["line"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlepad": 8,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.6,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": LIGHT["ink"],
    "text.parse_math": False,  # a layer may be called "$x": that is a name, not a formula
    "xtick.color": LIGHT["line"],
    "ytick.color": LIGHT["line"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "image.interpolation": "none",
    "image.composite_image": False,  # each picture stays in its own pixels, sharp at every size
    "svg.fonttype": "none",  # text stays text: it can be selected, read aloud and takes the page's typeface
    "svg.hashsalt": "bareconv",
    "savefig.dpi": 144,
}

_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}"


class NothingToShow(ValueError):  # noqa: N818  not a fault: a figure says that the result has no data for it
    """The result, or the gallery, has nothing that this figure could show."""


def styled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run ``function`` with the style set, whatever the user's matplotlibrc says, and set it back."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with context(_STYLE, after_reset=True):
            return function(*args, **kwargs)

    return run


def new_figure(width: float, height: float) -> Figure:
    """A figure of ``width`` x ``height`` inches that keeps its labels inside its edges."""
    engine = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.04, hspace=0.06)
    return Figure(figsize=(width, height), layout=engine)


def label(text: object, longest: int = 26) -> str:
    """A name as a figure can show it: printable, in characters of the typeface, cut in the middle where it is long."""
    name = "".join(c if c.isprintable() else " " for c in str(text)).encode("latin-1", "replace").decode("latin-1")
    if len(name) <= longest:
        return name
    tail = (longest - 1) // 2
    return f"{name[: longest - 1 - tail]}…{name[-tail:]}"


@styled
def png(figure: Figure) -> bytes:
    """The figure on white, as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=LIGHT["paper"], metadata={"Software": None})
    return buffer.getvalue()


@styled
def svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an SVG element for a page: no ids but its own (``name`` before each), no typeface, no fixed colour.

    ``description`` is what a screen reader says in its place. Nothing in it depends on when or where it was made.
    """
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    _strip(root)
    used = set(re.findall(r"(?:url\(|\")#([^)\"]+)", ElementTree.tostring(root, encoding="unicode")))
    for element in root.iter():
        _simplify(element, name, used)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    natural = f"max-width: {figure.get_figwidth() / POINT * 4 / 3:.0f}px"  # 3 points are 4 CSS pixels
    root.attrib |= {"role": "img", "aria-label": description, "class": "chart", "style": natural}
    return ElementTree.tostring(root, encoding="unicode")


def _strip(parent: ElementTree.Element) -> None:
    """Take out the metadata, and the style sheet, which would style the whole page."""
    for child in list(parent):
        _strip(child)
        if child.tag in (_SVG + "metadata", _SVG + "style") or (child.tag == _SVG + "defs" and not len(child)):
            parent.remove(child)


def _simplify(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """Namespaces off, unused ids off, coordinates to a hundredth of a point, colours to CSS variables."""
    element.tag = element.tag.removeprefix(_SVG)
    element.tail = None
    if element.tag != "text" and element.text is not None and not element.text.strip():
        element.text = None
    for key, value in list(element.attrib.items()):
        del element.attrib[key]
        key = key.replace(_XLINK, "")
        if key == "id":
            if value not in used:
                continue
            value = f"{name}-{value}"
        elif key == "href" and value.startswith("#"):
            value = f"#{name}-{value[1:]}"
        elif key in ("d", "x", "y", "width", "height"):
            value = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
            value = " ".join(value.split())
        elif key == "transform" and value.startswith("rotate(-0 "):
            continue
        elif key in ("style", "clip-path"):
            value = value.replace("url(#", f"url(#{name}-")
        if key in ("style", "fill", "stroke"):
            value = re.sub(r"#[0-9a-f]{6}", lambda colour: VARIABLES.get(colour[0], colour[0]), value)
            # The size of type is the figure's, the typeface the page's. Older versions write both as one "font".
            value = re.sub(r"font: ([^;]*?)([\d.]+)px [^;]+", _font, value)
            value = re.sub(r"font-family: [^;]+;? *", "", value)
        element.attrib[key] = value


def _font(match: re.Match[str]) -> str:
    weight = re.search(r"\b(bold|[5-9]00)\b", match[1])
    return f"font-size: {match[2]}px" + (f"; font-weight: {weight[1]}" if weight else "")

"""The colours of the figures and of the page. One device, one colour, everywhere.

Figures are drawn in the light colours. In the page they stand inline as SVG, where each of these colours is replaced by
the CSS variable of its name, so that the figures follow the reader's light or dark setting like the text does.

CPU blue and GPU vermilion are told apart with every common kind of colour blindness, and as text have a contrast of at
least 4.5 : 1 with the page, in both settings (tests/report/test_palette.py computes it).
"""

from __future__ import annotations

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1b2027",
    "muted": "#57606b",
    "line": "#d9dee5",
    "soft": "#f4f6f9",
    "cpu": "#0b66b0",
    "gpu": "#c04a00",
    "good": "#17714d",
    "bad": "#b3123c",
    "error": "#7d3fc0",
    "parameters": "#40307d",
    "gradients": "#a84c98",
    "optimizer": "#8f6b00",
    "activations": "#1f7f6d",
    "data": "#5c7f12",
    "overhead": "#525a66",
}

DARK = {
    "paper": "#14181e",
    "ink": "#e8ebef",
    "muted": "#9aa5b1",
    "line": "#313944",
    "soft": "#1d232b",
    "cpu": "#5fb2f2",
    "gpu": "#f58a4b",
    "good": "#4cc38a",
    "bad": "#ff7d95",
    "error": "#b78bf0",
    "parameters": "#9c8cf0",
    "gradients": "#e28fd3",
    "optimizer": "#d9b13c",
    "activations": "#4fc7ae",
    "data": "#a9cf5d",
    "overhead": "#8d97a3",
}

COMPONENTS = ("parameters", "gradients", "optimizer", "activations", "data", "overhead")

VARIABLES = {colour: f"var(--{name})" for name, colour in LIGHT.items()}


def css_variables(colours: dict[str, str]) -> str:
    """The colours as CSS declarations."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())

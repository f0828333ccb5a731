"""Contrast, and colours that stay apart without full colour vision; computed here from the standards' formulas."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bareconv.report.palette import COMPONENTS, DARK, LIGHT, VARIABLES, css_variables

# Machado, Oliveira, Fernandes, "A physiologically-based model for simulation of color vision deficiency", 2009:
# severity 1, on linear RGB.
DEFICIENCIES = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def linear(colour: str) -> NDArray[np.float64]:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    """WCAG 2: (lighter + 0.05) / (darker + 0.05) of the relative luminances."""
    weights = np.array([0.2126, 0.7152, 0.0722])
    low, high = sorted(float(weights @ linear(c)) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE Lab, D65, of linear sRGB."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    t = xyz / np.array([0.9505, 1.0, 1.089])
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read(colours: dict[str, str]) -> None:
    for name in ("ink", "muted", "cpu", "gpu", "good", "bad", "error"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    assert contrast(colours["ink"], colours["soft"]) >= 4.5
    assert contrast(colours["muted"], colours["soft"]) >= 4.5
    for name in COMPONENTS:  # sizes stand on them in the colour of the paper
        assert contrast(colours[name], colours["paper"]) >= 4.5, name


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_the_devices_are_told_apart(colours: dict[str, str], deficiency: str) -> None:
    matrix = DEFICIENCIES[deficiency]
    cpu, gpu = (lab(matrix @ linear(colours[name])) for name in ("cpu", "gpu"))
    assert np.linalg.norm(cpu - gpu) > 40  # a just noticeable difference is about 2.3


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_neighbouring_components_are_told_apart(colours: dict[str, str], deficiency: str) -> None:
    matrix = DEFICIENCIES[deficiency]
    seen = [lab(matrix @ linear(colours[name])) for name in COMPONENTS]
    for a, b, name in zip(seen, seen[1:], COMPONENTS, strict=False):
        assert np.linalg.norm(a - b) > 10, name


def test_every_colour_has_one_name_and_both_settings() -> None:
    assert LIGHT.keys() == DARK.keys()
    assert len(VARIABLES) == len(LIGHT)
    assert css_variables({"ink": "#000000", "cpu": "#0000ff"}) == "--ink: #000000; --cpu: #0000ff;"

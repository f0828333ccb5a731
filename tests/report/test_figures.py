"""Charts of all kinds of results; a warning of matplotlib's is an error."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import report_samples as samples
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from bareconv import report
from bareconv.report.bars import operation_bars, operations_by_run
from bareconv.report.canvas import NARROW, WIDE, NothingToShow, label, png, svg
from bareconv.report.marks import log_ticks, short, smooth, thin, tick_seconds, time_ticks
from bareconv.report.palette import LIGHT

CHARTS: list[Callable[..., Figure]] = [
    report.convergence,
    report.speedup_bars,
    report.operation_bars,
    report.memory_bars,
    report.parity_plot,
]


def texts(drawn: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(drawn).iter("text")]


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("chart", CHARTS)
def test_every_chart_of_a_full_result(chart: Callable[..., Figure], width: float) -> None:
    for result in (samples.both(), samples.four()):
        drawn = svg(chart(result, width=width), "chart", "what it shows")
        assert len(drawn) < 300_000
        assert texts(drawn)
        assert ElementTree.fromstring(drawn).attrib["aria-label"] == "what it shows"


@pytest.mark.parametrize("chart", CHARTS)
def test_without_data_there_is_nothing_to_show(chart: Callable[..., Figure]) -> None:
    with pytest.raises(NothingToShow):
        chart(samples.minimal())
    with pytest.raises(NothingToShow):
        chart(samples.result([]))


def test_values_that_a_logarithm_does_not_know() -> None:
    zero = {"name": "a", "type": "x", "forward_seconds": 0.0, "backward_seconds": 0.0}
    some = {"name": "b", "type": "x", "forward_seconds": 1e-9, "backward_seconds": 100.0}
    loss = [0.0, 1.0, math.nan, 2.0, math.inf]
    history = {"loss": loss, "epochs": []}
    runs = [
        samples.run(d, operations=[zero, some], history=history, train_seconds=t)
        for d, t in (("cpu", 1.0), ("cuda:0", 0.0))
    ]
    result = {"runs": runs, "environment": samples.environment()}
    for chart in (report.convergence, report.speedup_bars, report.operation_bars, report.memory_bars):
        png(chart(result))
    with pytest.raises(NothingToShow):
        report.operation_bars({"runs": [samples.run(operations=[zero])]})
    with pytest.raises(NothingToShow):
        report.convergence({"runs": [samples.run(history={"loss": [math.nan], "epochs": []})]})


def test_single_points() -> None:
    one = samples.run(epochs=1, steps=1)
    png(report.convergence(samples.result([one, samples.run("cuda:0", epochs=1, steps=1)])))
    equal = samples.parity(steps=1) | {"loss_difference": [0.0], "weight_difference": [0.0]}
    assert "0" in texts(svg(report.parity_plot(samples.result([one], parity=[equal])), "p", ""))


def test_a_constant_loss() -> None:
    history = {"loss": [2.3] * 10, "epochs": []}
    png(report.convergence(samples.result([samples.run(history=history)])))
    history = {"loss": [0.0] * 10, "epochs": []}
    png(report.convergence(samples.result([samples.run(history=history)])))


def test_a_long_series_stays_small() -> None:
    result = samples.result([samples.run(epochs=2, steps=50_000), samples.run("cuda:0", epochs=2, steps=50_000)])
    assert len(svg(report.convergence(result), "chart", "")) < 150_000


def test_bars_of_operations_are_as_long_as_they_took() -> None:
    result = samples.both()
    for number, run in enumerate(result["runs"]):
        for operation in run["operations"]:
            operation["forward_seconds"] *= 1000.0**number  # far apart: still no logarithm
    for width in (WIDE, NARROW):
        figure = operation_bars(result, width=width)
        for side, axes in enumerate(figure.axes):
            assert axes.get_xscale() == "linear"
            assert axes.get_xlim()[0] == 0
            lengths = sorted(bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle))
            shown, names = operations_by_run(result)
            assert lengths == pytest.approx(sorted(found[n][side] for _, found in shown for n in names if n in found))
            assert len(axes.texts) == len(lengths)  # each has its number


def test_many_operations_are_summed_up() -> None:
    operations = [
        {"name": f"layer{i}", "type": "x", "forward_seconds": 1e-3 * (i + 1), "backward_seconds": 1e-3}
        for i in range(70)
    ]
    result = samples.result([samples.run(operations=operations), samples.run("cuda:0", operations=operations)])
    shown = texts(svg(report.operation_bars(result), "chart", ""))
    assert "51 others" in shown
    assert "layer69" in shown
    assert "layer0" not in shown
    report.speedup_bars(result)


def test_the_devices_have_their_colours() -> None:
    drawn = svg(report.operation_bars(samples.both()), "chart", "")
    assert "var(--cpu)" in drawn
    assert "var(--gpu)" in drawn
    assert not re.search(r"(fill|stroke): #", drawn)  # nothing that would stay light in the dark


def test_a_bar_where_the_cpu_is_faster_is_the_cpus() -> None:
    slow = samples.result([samples.run(), samples.run("cuda:0", speed=0.5, operations=...)])
    drawn = svg(report.speedup_bars(slow), "chart", "")
    assert "fill: var(--cpu)" in drawn
    assert "fill: var(--gpu)" not in drawn


def test_names_are_text_and_neither_formulas_nor_markup() -> None:
    odd = [{"name": r"$\frac<b>&数", "type": "x", "forward_seconds": 0.1, "backward_seconds": 0.2}]
    drawn = svg(report.operation_bars(samples.result([samples.run(operations=odd)])), "chart", 'a "b" <c>')
    assert r"$\frac<b>&?" in texts(drawn)
    assert "<b>" not in drawn


def test_ids_are_the_figures_own() -> None:
    one, two = (svg(report.convergence(samples.both()), name, "") for name in ("one", "two"))
    ids = re.findall(r' id="([^"]+)"', one)
    assert ids
    assert len(ids) == len(set(ids))
    assert all(i.startswith("one-") for i in ids)
    assert set(re.findall(r"#(one-[^)\"]+)", one)) == set(ids)
    assert one.replace("one-", "two-") == two


def test_the_users_settings_do_not_matter_and_are_kept() -> None:
    import matplotlib as mpl

    result = samples.both()
    before = png(report.memory_bars(result))
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "text.usetex": True}):
        assert png(report.memory_bars(result)) == before
        assert mpl.rcParams["font.size"] == 30


def test_pngs_are_on_white_and_say_nothing_of_who_made_them() -> None:
    made = png(report.memory_bars(samples.both()))
    image = Image.open(io.BytesIO(made))
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert "Software" not in image.info


def test_importing_the_report_does_not_import_matplotlib() -> None:
    code = "import sys, bareconv.report, bareconv.report.format; assert not {'matplotlib', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in report.__all__:
        assert getattr(report, name) is not None
    missing: Any = "nonsense"
    with pytest.raises(AttributeError, match="nonsense"):
        getattr(report, missing)


def test_the_running_mean_is_that_of_the_last_values() -> None:
    values = np.random.default_rng(0).standard_normal(50)
    values[[3, 17, 18]] = np.nan
    for window in (1, 4, 100):
        naive = [
            np.nan if np.isnan(w := values[max(0, i - window + 1) : i + 1]).all() else np.nanmean(w) for i in range(50)
        ]
        np.testing.assert_allclose(np.asarray(smooth(values, window)), np.array(naive))


def test_thinning_keeps_the_peaks() -> None:
    values = np.random.default_rng(0).standard_normal(10_000)
    values[5_001], values[77] = 99.0, np.nan
    x, y = thin(values, 300)
    assert len(x) <= 300
    assert (5_001, 99.0) in zip(x, y, strict=True)
    assert float(np.nanmin(values)) in y
    assert (np.diff(x) > 0).all()
    np.testing.assert_array_equal(thin(values[:10], 300)[1], values[:10])


def test_ticks_are_round_numbers() -> None:
    assert log_ticks(0.9, 12) == [1, 2, 5, 10]
    assert log_ticks(1e-7, 1.1e-2) == pytest.approx([1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    assert len(log_ticks(1e-20, 1)) <= 7
    assert time_ticks(5, 4000) == [10, 30, 60, 180, 600, 1800, 3600] or len(time_ticks(5, 4000)) <= 6
    assert [tick_seconds(t) for t in (1e-3, 30, 60, 600, 7200, 0.5)] == [
        "1 ms",
        "30 s",
        "1 min",
        "10 min",
        "2 h",
        "500 ms",
    ]
    assert [short(text) for text in ("1.00 ms", "10.0×", "100 s", "0", "1.50 s")] == [
        "1 ms",
        "10×",
        "100 s",
        "0",
        "1.5 s",
    ]


def test_long_names_are_cut_in_the_middle() -> None:
    assert label("conv1") == "conv1"
    cut = label("stage3.block2.conv1.weight.transposed", 20)
    assert len(cut) == 20
    assert cut.startswith("stage3")
    assert cut.endswith("posed")
    assert label("a\x00b\n") == "a b "


def test_the_colours_of_figures_are_those_of_the_palette() -> None:
    used = set(re.findall(r"var\(--([a-z]+)\)", svg(report.memory_bars(samples.both()), "m", "")))
    assert used <= set(LIGHT)

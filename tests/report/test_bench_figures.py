"""The charts of a benchmark; a warning of matplotlib's is an error."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import bench_samples as bench
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from bareconv.report import format as fmt
from bareconv.report.bench import clocks, conditions, energy, layers, learning, memory, noise, peers, roofline, sweeps
from bareconv.report.bench.lines import End, candidate_looks, flags
from bareconv.report.bench.lines import _spread as spread
from bareconv.report.candidates import Who, names
from bareconv.report.canvas import NARROW, WIDE, NothingToShow, new_figure, png, svg
from bareconv.report.lessons import candidates, goal, seconds_to
from bareconv.report.machines import machines_chart
from bareconv.report.nodes import OPERATIONS
from bareconv.report.palette import LIGHT
from bareconv.report.sections import Chart, Prose
from bareconv.report.steadiness import measurements

GPU, PEERS = bench.with_gpu(), bench.with_peers()
BOTH = [("t4.json", GPU), ("two-cores.json", PEERS)]

CHARTS: dict[str, Callable[[float], Figure]] = {
    "throughput": lambda w: sweeps.throughput_chart(GPU["sweeps"][0], width=w),
    "step": lambda w: sweeps.step_chart(GPU["sweeps"][0], width=w),
    "peers": lambda w: peers.peers_chart(PEERS["peers"], width=w),
    "learning": lambda w: learning.learning_chart(GPU["learning"], width=w),
    "layers": lambda w: layers.layers_chart(layers.workloads(GPU["rooflines"])[0], width=w),
    "roofline": lambda w: roofline.roofline_chart(layers.workloads(GPU["rooflines"])[0], width=w),
    "clocks": lambda w: clocks.clocks_chart(GPU["clocks"], width=w),
    "memory": lambda w: memory.memory_chart([(f, s) for f in GPU["rooflines"] for s in f["steps"]], width=w),
    "energy": lambda w: energy.energy_chart(GPU["energy"], width=w),
    "noise": lambda w: noise.noise_chart(measurements(PEERS), width=w),
    "conditions": lambda w: conditions.conditions_chart(GPU["conditions"], width=w),
    "machines": lambda w: machines_chart(BOTH, "basic", width=w),
}


def texts(drawn: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(drawn).iter("text")]


def numbers(values: Any) -> list[float]:
    return [float(x) for x in values]


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart(name: str) -> None:
    for width in (WIDE, NARROW):
        figure = CHARTS[name](width)
        drawn = svg(figure, name, "what it shows")
        assert len(drawn) < 200_000
        assert not re.search(r"(fill|stroke): #", drawn)  # nothing that would stay light in the dark
        assert ElementTree.fromstring(drawn).attrib["aria-label"] == "what it shows"
        figure.draw_without_rendering()  # laid out for the resolution that it is measured at
        left, bottom, right, top = (float(x) for x in figure.get_tightbbox().extents)
        assert left >= -0.02
        assert bottom >= -0.02
        assert right <= figure.get_figwidth() + 0.02
        assert top <= figure.get_figheight() + 0.02


def test_names_stand_at_the_ends_and_there_is_no_legend() -> None:
    figure = CHARTS["throughput"](WIDE)
    assert figure.legends == []
    shown = texts(svg(figure, "x", ""))
    for name in ("CPU bareconv float32", "GPU bareconv tf32", "GPU PyTorch float32", "they cross at 4.91 (4.57 to 5.3"):
        assert any(name in text for text in shown), name
    (axes,) = figure.axes
    colours = {text.get_text(): text.get_color() for text in axes.texts}
    assert colours["CPU bareconv float32"] == LIGHT["cpu"]
    assert colours["GPU bareconv tf32"] == LIGHT["gpu"]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_lines_go_through_what_was_measured() -> None:
    (axes,) = CHARTS["throughput"](WIDE).axes
    curve = GPU["sweeps"][0]["curves"][0]
    wanted = [p["images_per_second"]["value"] for p in curve["points"]]
    assert any(numbers(line.get_ydata()) == wanted for line in axes.lines)


def test_the_ring_is_where_the_curves_cross() -> None:
    (axes,) = CHARTS["throughput"](WIDE).axes
    at = bench.crossing(bench.CPU_KEYS[0], bench.GPU_KEYS[0])
    fixed, each = bench.COSTS[bench.CPU_KEYS[0]]
    (ring,) = [line for line in axes.lines if line.get_markersize() == 11]
    assert numbers(ring.get_xdata()) == [at]
    assert numbers(ring.get_ydata())[0] == pytest.approx(at / (fixed + each * at), rel=0.02)


def test_an_unstable_point_is_hollow() -> None:
    def hollow(sweep: dict[str, Any]) -> int:
        (axes,) = sweeps.throughput_chart(sweep).axes
        paper = [line for line in axes.lines if line.get_markerfacecolor() == LIGHT["paper"]]
        return sum(len(numbers(line.get_xdata())) for line in paper)

    keys = bench.CPU_KEYS[:2]
    assert hollow(bench.batch_sweep(keys)) == 0
    assert hollow(bench.batch_sweep(keys, unstable=(1, 8))) == 1


def test_bars_of_peers_are_as_long_as_they_are_fast() -> None:
    axes = CHARTS["peers"](WIDE).axes[0]
    widths = [patch.get_width() for patch in axes.patches if isinstance(patch, Rectangle)]
    rates = [c["throughput"]["images_per_second"] for c in PEERS["peers"][0]["candidates"] if "throughput" in c]
    assert widths == pytest.approx(sorted(rates, reverse=True))


def test_stacks_of_layers_add_up() -> None:
    for axes, found in zip(CHARTS["layers"](WIDE).axes, GPU["rooflines"], strict=True):
        total = math.fsum(patch.get_width() for patch in axes.patches if isinstance(patch, Rectangle))
        assert total == pytest.approx(math.fsum(launch["seconds"] for launch in found["steps"][0]["launches"]))


@pytest.mark.parametrize(("width", "lines"), [(WIDE, [9]), (NARROW, [3, 3, 3])])
def test_the_legend_of_layers_is_read_line_by_line(width: float, lines: list[int]) -> None:
    group = copy.deepcopy(layers.workloads(GPU["rooflines"])[0])
    launches = group[0][1]["launches"]
    for launch, operation in zip(launches, OPERATIONS, strict=False):
        launch["operation"] = operation
    figure = layers.layers_chart(group, width=width)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    rows: dict[int, list[tuple[float, str]]] = {}
    for text in legend.get_texts():
        box = text.get_window_extent()
        assert box.x1 <= figure.bbox.x1
        rows.setdefault(-round(box.y0 + box.y1), []).append((box.x0, text.get_text()))
    assert [name for row in sorted(rows) for _, name in sorted(rows[row])] == list(OPERATIONS)
    assert [len(rows[row]) for row in sorted(rows)] == lines


def test_discs_of_the_roofline_are_below_it() -> None:
    for axes, found in zip(CHARTS["roofline"](WIDE).axes, GPU["rooflines"], strict=True):
        peak = found["ceilings"][0]["per_second"]
        memory_ = next(c["per_second"] for c in found["ceilings"] if c["name"] == "memory")
        discs = [c for c in axes.collections if isinstance(c, PathCollection)]
        computing = {(x["node"], x["operation"]) for x in found["steps"][0]["launches"] if x["flops"]}
        assert len(discs) == len(computing)
        for disc in discs:
            x, y = np.asarray(disc.get_offsets())[0]
            assert y <= 1.001 * min(peak, memory_ * x)


def written(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text that can be read in a figure, and where it stands."""
    figure.draw_without_rendering()
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in found]  # without an arrow
    page = figure.bbox
    return [(text, box) for text, box in boxes if box.x1 > 0 and box.x0 < page.x1 and box.y1 > 0 and box.y0 < page.y1]


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """The pairs of texts that lie on each other."""
    return [
        (one, other)
        for (one, a), (other, b) in itertools.combinations(written(figure), 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


def crowded(seed: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """A step whose operations lie close together, on a device whose ceilings do."""
    rng = np.random.default_rng(seed)
    found = bench.rooflines("cuda:0")
    (step,) = found["steps"]
    model = next(launch for launch in step["launches"] if launch["flops"])
    step["launches"] = [
        model | {"node": f"conv{i}", "seconds": 1e-5 * x, "flops": 1e8 * y, "bytes": 1e6 * z}
        for i, (x, y, z) in enumerate(rng.lognormal(0, 0.4, (28, 3)))
    ]
    peak, memory_ = 6e13, 3e11
    near = [("FMA", "FLOP", peak), ("SGEMM", "FLOP", 0.9 * peak), ("tensor", "FLOP", 0.85 * peak)]
    near += [("memory", "byte", memory_), ("L3 cache", "byte", 1.1 * memory_), ("L2 cache", "byte", 1.3 * memory_)]
    found["ceilings"] = [{"name": name, "unit": unit, "per_second": speed, "how": "so"} for name, unit, speed in near]
    return [(found, step)]


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_every_disc_of_the_roofline_has_a_letter_and_no_name_lies_on_another(width: float, seed: int | None) -> None:
    group = layers.workloads(GPU["rooflines"])[0] if seed is None else crowded(seed)
    figure = roofline.roofline_chart(group, width=width)
    assert overlaps(figure) == []
    for axes, (_, step) in zip(figure.axes, group, strict=True):
        points = roofline.operations(step)
        wanted = roofline.letters(len(points))
        legend = axes.get_legend()
        assert legend is not None
        key = [text.get_text() for text in legend.get_texts()]
        assert [line.split()[0] for line in key] == wanted
        for line, (name, _, _, _) in zip(key, points, strict=True):
            assert name in line
        assert sorted(text.get_text() for text in axes.texts if text.get_text() in wanted) == sorted(wanted)


@pytest.mark.parametrize("places", [[0.02, 0.05, 0.1], [0.8, 0.9, 0.95], [0.1, 0.1, 0.9], [0.02, 0.5, 0.55]])
def test_names_of_flags_lie_on_no_line_where_all_fit_to_one_side(places: list[float]) -> None:
    figure = new_figure(WIDE, 3.0)
    axes = figure.subplots()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    (look, *_) = candidate_looks([who("plan")])
    flags(axes, [End(x, 0.5, look, f"somebody {i}") for i, x in enumerate(places)], WIDE - 0.7, 2.2)
    assert overlaps(figure) == []
    named = [text for text in axes.texts if text.get_text()]
    arrows = [
        text.arrow_patch.get_window_extent() for text in axes.texts if isinstance(text, Annotation) and text.arrow_patch
    ]
    assert len(arrows) == len(named) == len(places)
    for text in named:
        box = Text.get_window_extent(text)
        assert not any(box.x0 + 1 < line.x0 < box.x1 - 1 and line.y1 > box.y0 + 1 for line in arrows)


def test_letters_go_on_after_the_last() -> None:
    assert roofline.letters(28)[-3:] == ["Z", "A2", "B2"]


def test_bars_of_trainings_add_up_to_the_whole() -> None:
    for one in GPU["clocks"]:
        (cold, warm, steady) = [math.fsum(seconds for _, seconds in segments) for _, segments in clocks.bars(one)]
        assert cold == pytest.approx(one["cold"]["whole_seconds"])
        assert warm == pytest.approx(one["warm"]["whole_seconds"])
        assert steady == one["steady_seconds"]


def test_accuracy_has_more_room_where_errors_are_few() -> None:
    (axes,) = CHARTS["learning"](WIDE).axes
    ticks = dict(zip((t.get_text() for t in axes.get_yticklabels()), axes.get_yticks(), strict=True))
    assert ticks["90%"] - ticks["80%"] == pytest.approx(math.log10(2))
    assert ticks["98%"] - ticks["95%"] == pytest.approx(math.log10(2.5))
    perfect = bench.learning("cpu", bench.CPU_KEYS[:1])
    perfect["candidates"][0]["accuracy"][-1] = 1.0
    png(learning.learning_chart([perfect]))


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_dot_on_the_goal_is_the_moment_it_was_reached(width: float) -> None:
    entries = copy.deepcopy(GPU["learning"])
    slow = entries[0]["candidates"][0]
    slow |= {key: slow[key][:3] for key in ("steps", "seconds", "accuracy")}
    figure = learning.learning_chart(entries, width=width)
    assert overlaps(figure) == []
    (axes,) = figure.axes
    target = goal(entries)
    assert target is not None
    learned = [(name, seconds_to(r, target)) for _, name, r in candidates(entries) if r["accuracy"]]
    moments = {f"{name}, {fmt.seconds(x)}": x for name, x in learned if x is not None}
    assert len(moments) > 1
    dots = [line for line in axes.lines if line.get_markersize() == 9]
    assert sorted(numbers(dot.get_xdata())[0] for dot in dots) == sorted(moments.values())
    assert all(numbers(dot.get_ydata()) == [pytest.approx(-math.log10(1 - target))] for dot in dots)
    at = {text.get_text(): text.xy[0] for text in axes.texts if isinstance(text, Annotation)}
    assert {name: at[name] for name in moments} == moments
    late = [name for name, moment in learned if moment is None]
    assert late
    assert all(name in at for name in late)  # below the lines, without a time


def test_the_words_say_who_reached_the_goal_first() -> None:
    entries = bench.learning("cpu", bench.CPU_KEYS[:2])
    ours, theirs = (one for one in entries["candidates"][:2])
    ours["seconds"], theirs["seconds"] = ([x * factor for x in ours["seconds"]] for factor in (1.0, 3.0))
    theirs["accuracy"] = ours["accuracy"]
    caption = learning.learning_words([entries]).caption
    first, second = (fmt.seconds(seconds_to(one, goal([entries]))) for one in (ours, theirs))
    assert f"First bareconv after {first}, then PyTorch after {second}." in caption


def test_without_data_there_is_nothing_to_show() -> None:
    empty = {**GPU["sweeps"][0], "curves": [{**GPU["sweeps"][0]["curves"][0], "points": []}], "crossovers": []}
    silent = {**GPU["learning"][0], "candidates": GPU["learning"][0]["candidates"][-1:]}
    nothing: list[Callable[[], Figure]] = [
        lambda: sweeps.throughput_chart(empty),
        lambda: sweeps.step_chart(empty),
        lambda: peers.peers_chart([]),
        lambda: learning.learning_chart([silent]),
        lambda: layers.layers_chart([]),
        lambda: roofline.roofline_chart([]),
        lambda: clocks.clocks_chart([]),
        lambda: memory.memory_chart([]),
        lambda: energy.energy_chart(GPU["energy"][:1]),
        lambda: noise.noise_chart([]),
        lambda: conditions.conditions_chart({"seconds": 1.0, "remarks": []}),
        lambda: machines_chart(BOTH, "nobody's"),
    ]
    for draw in nothing:
        with pytest.raises(NothingToShow):
            draw()


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("value", [8, 512])
def test_a_point_alone_is_a_marker_with_its_name_beside_it(value: int, width: float) -> None:
    sweep = bench.batch_sweep(bench.CPU_KEYS[:2])
    (lonely,) = [c for c in sweep["curves"] if not c["ours"]]
    lonely |= {"points": [p for p in lonely["points"] if p["value"] == value], "fit": None}
    figure = sweeps.throughput_chart(sweep, width=width)
    assert overlaps(figure) == []
    (axes,) = figure.axes
    (marker,) = [line for line in axes.lines if numbers(line.get_xdata()) == [value]]
    assert (marker.get_linestyle(), marker.get_markersize()) == ("None", 7.4)
    assert marker.get_marker() not in ("", "None")
    (name,) = [text for text in axes.texts if isinstance(text, Annotation) and text.get_text() == "PyTorch"]
    place = Text.get_window_extent(name)
    at = axes.transData.transform((value, 1.0))[0]
    assert min(abs(place.x0 - at), abs(place.x1 - at)) < 0.06 * figure.bbox.width  # no line through the whole chart


def test_one_point_of_each_is_said_in_words() -> None:
    sweep = bench.other_sweep("width", bench.CPU_KEYS[:2])
    for one in sweep["curves"]:
        one |= {"points": one["points"][:1], "fit": None}
    (section,) = sweeps.sweep_sections({"sweeps": [sweep]})
    assert not any(isinstance(block, Chart) for block in section.blocks)
    rates = [fmt.rate(one["points"][0]["images_per_second"]["value"]).removesuffix("/s") for one in sweep["curves"]]
    (said,) = [block.text for block in section.blocks if isinstance(block, Prose)]
    assert said.startswith(f"One point was measured of each, which makes no curve: bareconv {rates[0]} (")
    assert f"; PyTorch {rates[1]} (" in said
    assert "images/s at width " in said


def test_one_point_and_one_block() -> None:
    key = bench.CPU_KEYS[0]
    one = {**bench.batch_sweep([key]), "crossovers": []}
    one["curves"] = [bench.curve(key, [bench.point(64, 0.01, 64)], fit=None)]
    png(sweeps.throughput_chart(one))
    png(sweeps.step_chart(one))
    run = bench.run(key)
    run["throughput"] = bench.throughput(key, 64, number=1)
    png(noise.noise_chart(measurements({"runs": [run]})))


def test_devices_stand_side_by_side_where_they_did_the_same() -> None:
    groups = layers.workloads(GPU["rooflines"])
    assert [[found["device"] for found, _ in group] for group in groups] == [["cpu", "cuda:0"]]
    quick = bench.rooflines("cuda:0")
    quick["steps"][0]["precision"] = "bfloat16"
    groups = layers.workloads([*GPU["rooflines"], quick])
    assert [[step["precision"] for _, step in group] for group in groups] == [
        ["float32", "float32"],
        ["float32", "bfloat16"],
    ]
    assert [len(group) for group in layers.workloads(GPU["rooflines"][:1])] == [1]


@pytest.mark.parametrize(
    "wanted", [[0.1, 0.9], [0.5, 0.5], [0.5, 0.51, 0.52, 0.9], [0.9, 0.1, 0.12], [0.3], [], [0.0, 0.1, 0.2, 0.15, 0.16]]
)
def test_names_are_moved_apart_and_no_further(wanted: list[float]) -> None:
    gap = 0.1
    places = spread(wanted, gap)
    ranked = sorted(range(len(wanted)), key=lambda i: wanted[i])
    for a, b in itertools.pairwise(ranked):
        assert places[b] - places[a] >= gap - 1e-9
    if all(abs(x - y) >= gap for i, x in enumerate(wanted) for y in wanted[:i]):
        assert places == wanted
    assert sum(places) == pytest.approx(sum(wanted))


def who(name: str, device: str = "cpu", precision: str = "float32", variant: str = "") -> Who:
    return Who(name, variant, name in ("plan", "reference"), device, precision)


@pytest.mark.parametrize(
    ("everyone", "called"),
    [
        ([who("plan")], ["bareconv"]),
        ([who("plan"), who("plan", "cuda:0")], ["CPU", "GPU"]),
        ([who("plan"), who("reference")], ["bareconv plan", "bareconv reference"]),
        ([who("plan"), who("pytorch", variant="nchw eager")], ["bareconv", "PyTorch"]),
        (
            [who("plan"), who("pytorch", variant="nchw eager"), who("pytorch", variant="default")],
            ["bareconv", "PyTorch tuned", "PyTorch default"],
        ),
        (
            [who("plan"), *(who("pytorch", variant=f"nchw {mode} copy") for mode in ("eager", "graph")), who("x")],
            ["bareconv", "PyTorch eager", "PyTorch graph", "x"],
        ),
        (
            [who("plan"), who("plan", "cuda:0"), who("plan", "cuda:0", "tf32")],
            ["CPU float32", "GPU float32", "GPU tf32"],
        ),
        ([who("plan", "cuda:0"), who("plan", "cuda:1"), who("plan")], ["GPU 0", "GPU 1", "CPU"]),
        ([who("plan"), who("plan")], ["bareconv #1", "bareconv #2"]),
    ],
)
def test_names_say_what_tells_candidates_apart(everyone: list[Who], called: list[str]) -> None:
    assert names(everyone) == called

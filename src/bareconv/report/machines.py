"""Several results in one page: what machines, or two times of one machine, are to each other.

They were not measured by turns: a ratio's interval divides the ends of both intervals, which is wider than it need be.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from matplotlib.figure import Figure

from bareconv.report import format as fmt
from bareconv.report.bench.lines import End, candidate_looks, draw_line, end_labels, set_ticks
from bareconv.report.bench.sweeps import axis_count
from bareconv.report.candidates import Who, colour, device_word, who, who_ran
from bareconv.report.canvas import NARROW, WIDE, NothingToShow, new_figure, styled
from bareconv.report.headline import NOTHING_SAID, Bar, Basis, Headline
from bareconv.report.headline import headline as headline_of
from bareconv.report.marks import set_log, titles
from bareconv.report.ratios import Measured, Ratio, measured, times, with_mark
from bareconv.report.sections import (
    Block,
    Cell,
    Chart,
    Column,
    Download,
    Fold,
    Heading,
    Prose,
    Section,
    Table,
    Words,
    cells,
    figures,
)
from bareconv.report.steadiness import figures as figures_of
from bareconv.report.sweep import points
from bareconv.report.table import environment_rows, setting_rows
from bareconv.report.verdict import batch_sweeps, verdict
from bareconv.training.precision import PRECISIONS

Result = Mapping[str, Any]
Named = tuple[str, Result]  # a file's name with its result
Workload = tuple[str, int]  # model, batch size


@dataclass(frozen=True)
class Side:
    """One device of one machine: its place among the results, who ran on it, how fast."""

    place: int
    one: Who
    rate: Measured


def short_names(results: Sequence[Named]) -> list[str]:
    """The files' names without what they have in common, distinct: two of one name have a number."""
    stems = [PurePath(name).stem for name, _ in results]
    number, seen = Counter(stems), Counter[str]()
    names = []
    for stem in stems:
        seen[stem] += 1
        names.append(f"{stem} #{seen[stem]}" if number[stem] > 1 else stem)
    return names


def side_name(results: Sequence[Named], place: int, one: Who) -> str:
    """What a person calls a device of a machine: "T4", "two cores of Intel Xeon"; with the file where two are alike."""
    name = _device_name(results[place][1], one)
    alike = [i for i, (_, result) in enumerate(results) if i != place and _has(result, name, one)]
    return f"{name} ({short_names(results)[place]})" if alike else name


def _device_name(result: Result, one: Who) -> str:
    if one.gpu:
        gpus, index = result["environment"]["gpus"], int(one.device.partition(":")[2] or 0)
        return _brief(gpus[index]["name"]) if index < len(gpus) else "GPU"
    cpu = result["environment"]["cpu"]
    number = one.threads or cpu["cores_allowed"]
    return f"{fmt.number_word(number)} core{'s' if number != 1 else ''} of {_brief(cpu['model'])}"


def _brief(name: str) -> str:
    """A processor's name without trade marks, clock and the words that all have."""
    name = name.partition(" @ ")[0]
    for word in ("(R)", "(TM)", "NVIDIA ", "GeForce ", " Processor", " CPU"):
        name = name.replace(word, "")
    return name.strip() or "unknown"


def _has(result: Result, name: str, one: Who) -> bool:
    if one.gpu:
        return name in {_brief(gpu["name"]) for gpu in result["environment"]["gpus"]}
    return _device_name(result, one) == name


def rates(result: Result) -> dict[Workload, list[tuple[Who, Measured]]]:
    """Images a second of our engines by workload: from runs, peers' groups and sweeps over the batch size."""
    found: dict[Workload, list[tuple[Who, Measured]]] = {}

    def add(model: str, batch: float, one: Who, rate: Measured | None) -> None:
        if rate is not None and one.ours:
            found.setdefault((model, int(batch)), []).append((one, rate))

    for run in result["runs"]:
        if "throughput" in run:
            threads = run["throughput"]["threads"]
            add(run["model"], run["batch_size"], who_ran({**run, "threads": threads}), measured(run["throughput"]))
    for group in result.get("peers", ()):
        for candidate in group["candidates"]:
            steady = measured(candidate.get("throughput", {}))
            add(group["model"], group["batch_size"], who(candidate, group), steady)
    for _, sweep in batch_sweeps(result):
        for curve in sweep["curves"]:
            for point in points(curve):
                add(sweep["model"], point["value"], who(curve), measured(point))
    return found


def common_workload(results: Sequence[Named]) -> Workload | None:
    """The workload that most of the results have; of those the one with the largest batch."""
    number = Counter(workload for _, result in results for workload in rates(result))
    shared = [workload for workload, times_ in number.items() if times_ > 1]
    return max(shared, key=lambda w: (number[w], w[1]), default=None)


def fastest(results: Sequence[Named], workload: Workload) -> list[Side]:
    """Of each result that has the workload its fastest side, the fastest first; in one precision where all have one."""
    having = [(place, found) for place, (_, r) in enumerate(results) if (found := rates(r).get(workload))]
    precisions = [{one.precision for one, _ in found} for _, found in having]
    shared = set.intersection(*precisions) if precisions else set()
    sides = []
    for place, found in having:
        allowed = [side for side in found if not shared or side[0].precision in shared]
        one, rate = max(allowed, key=lambda side: side[1].value)
        sides.append(Side(place, one, rate))
    return sorted(sides, key=lambda side: -side.rate.value)


def apart(above: Measured, below: Measured) -> Ratio:
    """Of two rates that were not measured by turns."""
    stable = above.stable and below.stable
    return Ratio(above.value / below.value, above.low / below.high, above.high / below.low, stable)


def headline(results: Sequence[Named]) -> Headline:
    """The fastest machine beside the next, then beside the others."""
    workload = common_workload(results)
    if workload is None:
        title = f"{fmt.number_word(len(results)).capitalize()} results, which have no workload in common"
        return Headline(title, ["Each stands below with its own verdict."], also=own_verdicts(results))
    model, batch = workload
    first, *others = fastest(results, workload)
    mixed = len({side.one.precision for side in (first, *others)}) > 1

    def called(side: Side) -> str:
        name = side_name(results, side.place, side.one)
        return f"{name} in {side.one.precision}" if mixed else name

    ratios = [apart(first.rate, side.rate) for side in others]
    subject = called(first)
    verb = "train" if not first.one.gpu and not subject.startswith("one ") else "trains"
    subject = f"The {subject}" if first.one.gpu else subject[:1].upper() + subject[1:]
    title = f"{subject} {verb} `{model}` {times(ratios[0])} {called(others[0])}, at batch {fmt.count(batch)}"
    lead = [
        f"{ratios[0]} times, from intervals of 95% each. They were not measured by turns, and the interval is wider "
        "for it" + (f"; all in {first.one.precision}." if not mixed else ".")
    ]
    lead += [
        f"{times(ratio).capitalize()} {called(side)} ({ratio.interval()})."
        for ratio, side in zip(ratios[1:], others[1:], strict=True)
    ]
    if not all(ratio.stable for ratio in ratios):
        lead.append("Some of these figures are marked: their blocks are too few, or differ too much, to be trusted.")
    bars = [
        Bar(
            called(side),
            side.one.gpu,
            fmt.rate(side.rate.value),
            side.rate.value / first.rate.value,
            with_mark(
                fmt.between(side.rate.low, side.rate.high, lambda x: fmt.rate(x).removesuffix("/s")), side.rate.mark
            ),
        )
        for side in (first, *others)
    ]
    having = len(others) + 1
    which = f"what all {having}" if having == len(results) else f"what {having} of the {len(results)} results"
    basis = [Basis(f"{which} have of `{model}` with batches of {fmt.count(batch)}", "machines")]
    measure = f"Images a second, batches of {fmt.count(batch)}"
    return Headline(title, lead, measure, bars, own_verdicts(results), basis)


def own_verdicts(results: Sequence[Named]) -> list[str]:
    """Each result's own sentence."""
    both = [(name, own_verdict(result)) for name, (_, result) in zip(short_names(results), results, strict=True)]
    return [f"{name}: {title}." for name, title in both if title]


def own_verdict(result: Result) -> str:
    """What a result says by itself; empty where that is nothing."""
    found = verdict(result) or headline_of({**result, "runs": [r for r in result["runs"] if "throughput" not in r]})
    return found.title if found.title != NOTHING_SAID else ""


def sections(results: Sequence[Named]) -> list[Section]:
    """Curves of all machines, what they are side by side, what differs, and the results themselves."""
    models = dict.fromkeys(sweep["model"] for _, result in results for _, sweep in batch_sweeps(result))
    blocks: list[Block] = []
    for place, model in enumerate(models):
        blocks.append(
            Chart(
                f"machines-{place}",
                lambda w, model=model: machines_chart(results, model, width=w),  # type: ignore[misc]
                lambda model=model: machines_words(results, model),  # type: ignore[misc]
            )
        )
    found = [Section("curves", "Throughput by batch size", "Batch size", blocks)] if blocks else []
    shared = rates_table(results)
    beside = shared if shared.rows else Prose("No two of these results have a figure of the same workload.")
    found.append(Section("machines", "Side by side", "Side by side", [beside, machines_table(results)]))
    found.append(Section("differences", "What differs", "Differences", _differences(results)))
    found.append(Section("raw", "The results", "Results", _downloads(results)))
    return found


def curves(results: Sequence[Named], model: str) -> list[tuple[Who, str, Mapping[str, Any]]]:
    """Our engines' curves over the batch size, of all results, with names."""
    sides = [
        (place, who(curve), curve)
        for place, (_, result) in enumerate(results)
        for _, sweep in batch_sweeps(result)
        if sweep["model"] == model
        for curve in sweep["curves"]
        if curve["ours"] and points(curve)
    ]
    # Where the file says which machine it is, its processor need not: a line's end has little room.
    named = [re.sub(r" of .* \(", " (", side_name(results, place, one)) for place, one, _ in sides]
    several = len({one.precision for _, one, _ in sides}) > 1
    engines = len({one.name for _, one, _ in sides}) > 1
    return [
        (
            one,
            " ".join(filter(None, (name, one.precision if several else "", one.name if engines else ""))),
            curve,
        )
        for (_, one, curve), name in zip(sides, named, strict=True)
    ]


@styled
def machines_chart(results: Sequence[Named], model: str, *, width: float = WIDE) -> Figure:
    """Images a second over the batch size of every machine, both logarithmic."""
    shown = curves(results, model)
    if not shown:
        raise NothingToShow("no result has a sweep over the batch size of this model")
    looks = candidate_looks([one for one, _, _ in shown], [name for _, name, _ in shown])
    height = 3.6 if width <= NARROW else 4.4
    figure = new_figure(width, height)
    axes = figure.subplots()
    every = [p for _, _, curve in shown for p in points(curve)]
    values = sorted({p["value"] for p in every})
    room = (values[-1] / values[0]) ** 0.03 if len(values) > 1 else 2.0
    axes.set_xscale("log")
    axes.set_xlim(values[0] / room, values[-1] * room)
    set_ticks(axes, "x", values, axis_count, 6 if width <= NARROW else 12)
    low = min(p["images_per_second"]["low"] for p in every)
    high = max(p["images_per_second"]["high"] for p in every)
    set_log(axes, "y", low / 1.35, high * 1.45, axis_count, 6)
    ends = []
    for (_, _, curve), look in zip(shown, looks, strict=True):
        found = points(curve)
        estimates = [p["images_per_second"] for p in found]
        draw_line(
            axes,
            look,
            [p["value"] for p in found],
            [e["value"] for e in estimates],
            bounds=([e["low"] for e in estimates], [e["high"] for e in estimates]),
            stable=[p.get("stable", True) for p in found],
        )
        ends.append(End(found[-1]["value"], estimates[-1]["value"], look, alone=len(found) == 1))
    end_labels(axes, ends, width, height)
    titles(axes, f"Images a second, {model}", "images in a batch, logarithmic")
    return figure


def machines_words(results: Sequence[Named], model: str) -> Words:
    """Each curve's last point."""
    said = []
    for _, name, curve in curves(results, model):
        last = points(curve)[-1]
        rate = fmt.rate(last["images_per_second"]["value"], "images")
        said.append(f"{name} {rate} at {fmt.count(last['value'])}")
    caption = f"{model}, our engines. The band around a line is its 95% interval."
    return Words(f"Line chart of images a second by images in a batch. {'; '.join(said)}.", caption)


def rates_table(results: Sequence[Named]) -> Table:
    """A row for each workload and precision that two results or more have; a column for each device of each result.

    Where no precision is shared, a workload has one row, of each result's fastest.
    """
    every = [rates(result) for _, result in results]
    known = {
        (place, one.device): one
        for place, found in enumerate(every)
        for sides in found.values()
        for one, _ in reversed(sides)
    }
    rows: list[tuple[str, dict[tuple[int, str], Side]]] = []
    for workload in sorted({workload for found in every for workload in found}):
        sides = [Side(place, one, rate) for place, found in enumerate(every) for one, rate in found.get(workload, ())]
        places = {precision: {s.place for s in sides if s.one.precision == precision} for precision in PRECISIONS}
        title = f"{workload[0]}, batches of {fmt.count(workload[1])}"
        shared = [precision for precision in PRECISIONS if len(places[precision]) > 1]
        for precision in shared:
            rows.append((f"{title}, {precision}", _by_device([s for s in sides if s.one.precision == precision])))
        if not shared and len({side.place for side in sides}) > 1:
            rows.append((title, _by_device(sides)))
    columns = [key for key in sorted(known) if any(key in found for _, found in rows)]
    return Table(
        "Images a second of all machines",
        [Column("Images a second"), *figures(*(side_name(results, place, known[place, on]) for place, on in columns))],
        [
            [
                Cell(title),
                *(
                    _rate_cell(found.get(key), len({side.one.precision for side in found.values()}) > 1)
                    for key in columns
                ),
            ]
            for title, found in rows
        ],
    )


def _by_device(sides: Sequence[Side]) -> dict[tuple[int, str], Side]:
    """The fastest of each device of each result."""
    return {(side.place, side.one.device): side for side in sorted(sides, key=lambda side: side.rate.value)}


def _rate_cell(side: Side | None, mixed: bool) -> Cell:
    """Of a row, that is ``mixed`` where its sides are in several precisions."""
    if side is None:
        return Cell(fmt.MISSING)
    rate, engine = side.rate, side.one.name
    interval = fmt.between(rate.low, rate.high, lambda x: fmt.rate(x).removesuffix("/s"))
    return Cell(
        fmt.rate(rate.value),
        note=", ".join([interval, *([side.one.precision] if mixed else []), *([engine] if engine != "plan" else [])]),
        device=colour(side.one),
        mark=rate.mark,
    )


def machines_table(results: Sequence[Named]) -> Table:
    """What each machine is, and what its result holds: a column for each."""

    def row(name: str, texts: Sequence[str]) -> list[Cell]:
        return cells(name, *(text or fmt.MISSING for text in texts))

    every = [result for _, result in results]
    environments = [result["environment"] for result in every]
    rows = [
        row("CPU", [e["cpu"]["model"] for e in environments]),
        row("Cores to be used", [fmt.count(e["cpu"]["cores_allowed"]) for e in environments]),
        row("GPU", [", ".join(gpu["name"] for gpu in e["gpus"]) or "none" for e in environments]),
        row("Whole training, warm", [_clocks(result) for result in every]),
        row("Energy for 1,000 images", [_energy(result) for result in every]),
        row("Unstable, or of few blocks", [_unstable(result) for result in every]),
        row("Disturbed by", ["; ".join(r.get("conditions", {}).get("remarks", ())) for r in every]),
        row("Measured", [result["created"] for result in every]),
        row("bareconv", [f"{r['bareconv']} {str(r.get('commit') or '')[:10]}".strip() for r in every]),
    ]
    return Table("The machines", [Column(""), *(Column(name, long=True) for name in short_names(results))], rows)


def _clocks(result: Result) -> str:
    entries = result.get("clocks", ())
    return "; ".join(
        f"{device_word(one['device'])} {one['model']} {fmt.seconds(one['warm']['whole_seconds'])}" for one in entries
    )


def _energy(result: Result) -> str:
    known = [one for one in result.get("energy", ()) if one.get("joules_per_1000_images") is not None]
    ours = [one for one in known if who(one).ours]
    return "; ".join(
        f"{device_word(one['device'])} {one['precision']} {fmt.metric(one['joules_per_1000_images'], 'J')}"
        for one in ours
    )


def _unstable(result: Result) -> str:
    number, whole = figures_of(result)
    return f"{fmt.count(number)} of {fmt.counted(whole, 'figure')}" if whole else ""


def _differences(results: Sequence[Named]) -> list[Block]:
    """Everything of the environments and settings that is not the same, and folded what is."""
    rows: dict[str, list[str]] = {}
    for place, (_, result) in enumerate(results):
        for name, value in _environment(result):
            rows.setdefault(name, [""] * len(results))[place] = value
    other = {name: values for name, values in rows.items() if len(set(values)) > 1}
    same = {name: values for name, values in rows.items() if name not in other}
    columns = [Column(""), *(Column(name, long=True) for name in short_names(results))]
    blocks: list[Block] = []
    if other:
        table = [cells(name, *(value or fmt.MISSING for value in _shortened(values))) for name, values in other.items()]
        blocks.append(Table("What differs in the environments", columns, table))
    else:
        blocks.append(Prose("The environments and settings are the same in all that was recorded."))
    if same:
        table = [cells(name, *_shortened(values[:1])) for name, values in same.items()]
        blocks.append(Fold("What is the same", [Table("What is the same", [Column(""), Column("All")], table)]))
    return blocks


def _environment(result: Result) -> list[tuple[str, str]]:
    """Names and values, packages and settings one by one."""
    environment = dict(result["environment"])
    packages = environment.pop("packages")
    rows = environment_rows({**environment, "packages": {}})
    rows += [(f"Package {name}", version or "absent") for name, version in packages.items()]
    rows += [("bareconv", result["bareconv"]), ("Commit", str(result.get("commit") or "unknown")[:10])]
    rows += [(f"Setting {name}", value) for name, value in setting_rows(result["settings"])]
    merged: dict[str, list[str]] = {}
    for name, value in rows:
        merged.setdefault(name, []).append(value)
    return [(name, "; ".join(values)) for name, values in merged.items()]


def _shortened(texts: Sequence[str], longest: int = 160) -> list[str]:
    """Texts that fit a cell; of those that begin alike for longer, what is from shortly before they differ."""
    begin = 0
    if len(texts) > 1 and len({text[: longest - 1] for text in texts}) == 1:
        apart = (i for i, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1)
        begin = max(0, next(apart, min(map(len, texts))) - longest // 4)
    cut = [f"…{text[begin:]}" if begin else text for text in texts]
    return [text if len(text) <= longest else text[: longest - 1] + "…" for text in cut]


def _downloads(results: Sequence[Named]) -> list[Block]:
    blocks: list[Block] = []
    for called, (name, result) in zip(short_names(results), results, strict=True):
        found = own_verdict(result)
        content = json.dumps(result, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
        blocks += [
            Heading(called),
            *([Prose(f"{found}.")] if found else []),
            Prose(result["command"], "aside"),
            Download(
                PurePath(name).name, "application/json", content.encode("utf-8", "replace"), "The whole result, JSON"
            ),
        ]
    return blocks

"""The answer of a benchmark in a sentence, the uncertainty of it in the next, and what both rest on.

The sentence is about the best that the result holds: the GPU beside the CPU where both were measured; else our engine
beside the fastest other library; else how fast our engine is. It says "about as fast as" where an interval holds 1, and
"roughly" where blocks differed too much.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bareconv.bench.axes import AXES, Axis
from bareconv.report import format as fmt
from bareconv.report.candidates import Who, everyone, names, pretty, who, who_ran
from bareconv.report.headline import Bar, Basis, Headline
from bareconv.report.lessons import goal, seconds_to, workloads
from bareconv.report.ratios import Along, Measured, Ratio, along, amount, mark, measured, over, times, with_mark

DOUBTS = "Some of the blocks that it rests on are too few, or differ too much, to be trusted: they are marked below."

# What a library's variants in the mode "compile" are made by, which there is not always time for.
COMPILERS = {"pytorch": "torch.compile", "tinygrad": "a search"}

Part = Mapping[str, Any]


def verdict(result: Mapping[str, Any]) -> Headline | None:
    """Of a result of the benchmark; None where nothing in it says how fast anything is.

    The first sentences of its ``lead`` say how uncertain the title is, and of what it was measured.
    """
    found = _devices(result) or _devices_at_once(result)
    if found is not None:
        return _with(found, _other_peers(result), _learning(result), _other_axes(result))
    if (found := _peers(result)) is not None:
        return _with(_without_gpu(result, found), _other_peers(result)[1:], _learning(result), _other_axes(result))
    if (found := _devices_along(result)) is not None:
        return _with(found, _learning(result), _other_axes(result)[1:])
    found = _alone(result)
    return _with(_without_gpu(result, found), _learning(result)) if found else None


def _with(found: Headline, *others: list[str]) -> Headline:
    return dataclasses.replace(found, also=[*found.also, *(sentence for some in others for sentence in some)])


def _without_gpu(result: Mapping[str, Any], found: Headline) -> Headline:
    """With the reason why there is no GPU in it, where one is known."""
    missing = result["environment"].get("cuda_missing")
    return dataclasses.replace(found, lead=[*found.lead, f"No GPU was measured: {missing}."]) if missing else found


# The GPU beside the CPU, by a sweep over the batch size


def batch_sweeps(result: Mapping[str, Any]) -> list[tuple[int, Part]]:
    """The sweeps over the batch size, with their places among all sweeps."""
    return [(i, sweep) for i, sweep in enumerate(result.get("sweeps", ())) if sweep["axis"] == "batch_size"]


def best_pair(sweep: Part) -> tuple[int, int, Along] | None:
    """Our curves on a GPU and on the CPU that a verdict speaks of, by their places, and their ratio along the sweep.

    Of each device the fastest, and of all those in one precision where there are any: like is compared with like.
    """
    curves = sweep["curves"]
    found = []
    for g, gpu in enumerate(curves):
        for c, cpu in enumerate(curves):
            if not (gpu["ours"] and cpu["ours"]) or gpu["device"] == "cpu" or cpu["device"] != "cpu":
                continue
            ratio = along(gpu, cpu)
            if ratio is not None:
                key = (gpu["precision"] == cpu["precision"], _top(gpu) * _top(cpu))
                found.append((key, (g, c, ratio)))
    return max(found, key=lambda one: one[0])[1] if found else None


def _top(curve: Part) -> float:
    return max((m.value for point in curve["points"] if (m := measured(point)) is not None), default=0.0)


def _devices(result: Mapping[str, Any]) -> Headline | None:
    for place, sweep in batch_sweeps(result):
        pair = best_pair(sweep)
        if pair is not None:
            g, c, ratio = pair
            gpu, cpu = who(sweep["curves"][g]), who(sweep["curves"][c])
            title = _devices_sentence(result, sweep["model"], gpu, cpu, ratio, _crossing(sweep, g, c))
            return _of_sweep(result, place, sweep, pair, title, f"batches of {fmt.count(ratio.values[-1])}")
    return None


def _of_sweep(
    result: Mapping[str, Any], place: int, sweep: Part, pair: tuple[int, int, Along], title: str, last: str
) -> Headline:
    """What a sweep, the ``place``-th of the result, says below a title; ``last``: the largest value, for the bars."""
    g, c, ratio = pair
    gpu, cpu = sweep["curves"][g], sweep["curves"][c]
    bars = [
        (who(one), found)
        for one in (cpu, gpu)
        if (found := next((measured(p) for p in one["points"] if p["value"] == ratio.values[-1]), None))
    ]
    return Headline(
        title,
        [
            _uncertainty(sweep, ratio, _crossing(sweep, g, c)),
            _sides(result, who(gpu), who(cpu)),
            *([DOUBTS] if not all(r.stable for r in ratio.ratios) else []),
        ],
        f"Images a second, {last}",
        _bars(bars),
        _other_precisions(sweep, g, c),
        [Basis(_sweep_text(sweep), f"sweep-{place}")],
    )


def _devices_sentence(
    result: Mapping[str, Any], model: str, gpu: Who, cpu: Who, ratio: Along, crossing: Part | None
) -> str:
    begin, settled = ratio.settled()
    high = max(settled, key=lambda r: r.value)
    cores = _cores(result, cpu)
    named = f"the GPU{_in(gpu, cpu)}"
    if high.ahead <= 0:  # nowhere faster for sure: said of where it is nearest to it
        r, where = ratio.last, f", at batch {fmt.count(ratio.values[-1])}"
        if r.ahead < 0:
            return f"On this machine {cores} train `{model}` {times(r.inverted())} {named}{where}"
        return f"On this machine {named} trains `{model}` {times(r)} {cores}{where}"
    much = amount(settled)
    if begin == ratio.values[-1]:
        where = f", at batch {fmt.count(begin)}"
    elif ratio.falls:
        much, where = f"up to {much}", f", at batch {fmt.count(begin)}"
    elif begin == ratio.values[0]:
        where = f" at every batch size from {fmt.count(begin)} to {fmt.count(ratio.values[-1])}"
    else:
        where = f" from batch {fmt.count(begin)} on"
    sentence = f"On this machine {named} trains `{model}` {much} {cores}{where}"
    behind = [x for x, r in zip(ratio.values, ratio.ratios, strict=True) if r.ahead < 0]
    if not behind:
        return sentence
    if crossing is not None and crossing["value"] is not None:
        size = max(1, math.floor(crossing["value"]))
        if behind[-1] < crossing["value"]:
            return f"{sentence}; up to batch {fmt.count(size)} the CPU wins"
        return f"{sentence}; above batch {fmt.count(size)} the CPU wins"
    return f"{sentence}; at batch {fmt.listed([fmt.count(x) for x in behind])} the CPU wins"


def _in(gpu: Who, cpu: Who) -> str:
    """The precision, where the two do not compute in the same."""
    return f" in {gpu.precision}" if gpu.precision != cpu.precision else ""


def _at(sweep: Part, value: float) -> str:
    """A value in a sentence: "batch 4,096", "a width of 0.25"."""
    axis = AXES[sweep["axis"]]
    if axis.name == "batch_size":  # a crossing is between two of them
        return f"batch {fmt.count(value) if value == int(value) else fmt.significant(value)}"
    return axis.in_a_sentence(axis.said(value))


def _uncertainty(sweep: Part, ratio: Along, crossing: Part | None) -> str:
    text = f"At {_at(sweep, ratio.values[-1])} {_who_is_ahead(ratio.last)}"
    if len(ratio.values) > 1:
        text += f", at {_at(sweep, ratio.values[0])} {_who_is_ahead(ratio.ratios[0])}"
    text += "; in brackets 95% intervals."
    if crossing is not None and crossing["value"] is not None:
        text += f" The two are {_even(sweep, crossing)}."
    elif len(ratio.values) > 1 and ratio.is_ahead:
        text += f" The GPU is ahead at every {AXES[sweep['axis']].noun} that was measured."
    return text


def _even(sweep: Part, crossing: Part) -> str:
    low, high = (fmt.significant(crossing[end]) for end in ("low", "high"))
    return f"as fast as each other at {_at(sweep, crossing['value'])} ({low} to {high})"


def _who_is_ahead(r: Ratio) -> str:
    return f"the GPU is {r} times as fast" if r.value >= 1 else f"the CPU is {r.inverted()} times as fast"


def _crossing(sweep: Part, one: int, other: int) -> Part | None:
    for crossing in sweep["crossovers"]:
        if {crossing["ahead_below"], crossing["ahead_above"]} == {one, other} and None not in (
            crossing["low"],
            crossing["high"],
        ):
            return crossing
    return None


def _sides(result: Mapping[str, Any], gpu: Who, cpu: Who) -> str:
    gpus = result["environment"]["gpus"]
    index = int(gpu.device.partition(":")[2] or 0)
    name = gpus[index]["name"] if index < len(gpus) else "GPU"
    engines = "both by the engine" if gpu.name == cpu.name else f"by the engine {gpu.name}, the CPU by"
    model = result["environment"]["cpu"]["model"]
    kind = f"both in {gpu.precision}" if gpu.precision == cpu.precision else f"in {gpu.precision} and {cpu.precision}"
    return f"The GPU is one {name}, the CPU {_cores(result, cpu, of=model)}; {kind}, {engines} {cpu.name}."


def _cores(result: Mapping[str, Any], cpu: Who, of: str = "") -> str:
    number = cpu.threads or result["environment"]["cpu"]["cores_allowed"]
    if of:
        return f"{fmt.number_word(number)} core{'s' if number != 1 else ''} of {of}"
    tuned = "tuned " if cpu.tuned else ""
    return f"{fmt.number_word(number)} {tuned}CPU core{'s' if number != 1 else ''}"


def _other_precisions(sweep: Part, g: int, c: int) -> list[str]:
    """The same of our other curves on a GPU, at the largest value."""
    said = []
    for i, curve in enumerate(sweep["curves"]):
        if i == g or not curve["ours"] or curve["device"] == "cpu":
            continue
        ratio = along(curve, sweep["curves"][c])
        if ratio is not None:
            name = " ".join(filter(None, (curve["precision"], curve["name"] if curve["name"] != "plan" else "")))
            said.append(f"In {name} the GPU is {ratio.last} times as fast, at {_at(sweep, ratio.values[-1])}.")
    return said


def _sweep_text(sweep: Part) -> str:
    points = [point for curve in sweep["curves"] for point in curve["points"] if measured(point) is not None]
    taken = sum(len(point.get("samples", {}).get("seconds", ())) for point in points)
    return (
        f"the sweep over the {AXES[sweep['axis']].noun} of `{sweep['model']}`: {len(sweep['curves'])} curves, "
        f"{len(points)} points, {fmt.count(taken)} blocks by turns"
    )


# The GPU beside the CPU, by a sweep along another axis


def _other_sweeps(result: Mapping[str, Any]) -> Iterator[tuple[int, Part, tuple[int, int, Along]]]:
    """The sweeps along other axes than the batch size, with their places, that have a GPU beside the CPU."""
    for place, sweep in enumerate(result.get("sweeps", ())):
        pair = best_pair(sweep)
        if pair is not None and sweep["axis"] != "batch_size":
            yield place, sweep, pair


def _devices_along(result: Mapping[str, Any]) -> Headline | None:
    for place, sweep, pair in _other_sweeps(result):
        g, c, ratio = pair
        gpu, cpu = who(sweep["curves"][g]), who(sweep["curves"][c])
        cores = "the CPU" if sweep["axis"] == "threads" else _cores(result, cpu)
        ahead, behind, ratios = ratio.ahead_first(f"the GPU{_in(gpu, cpu)}", cores)
        verb = "trains" if ahead.startswith(("the ", "one ")) else "train"
        title = f"On this machine {ahead} {verb} `{sweep['model']}` {amount(ratios)} {behind}"
        where = f"at {_range(AXES[sweep['axis']], ratio.values)}"
        return _of_sweep(result, place, sweep, pair, f"{title}, {where}", f"at {_at(sweep, ratio.values[-1])}")
    return None


def _other_axes(result: Mapping[str, Any]) -> list[str]:
    """What the GPU is worth along every other axis than the batch size."""
    said = []
    for _, sweep, (g, c, ratio) in _other_sweeps(result):
        crossing = _crossing(sweep, g, c)
        gpu, cpu = who(sweep["curves"][g]), who(sweep["curves"][c])
        ahead, behind, ratios = ratio.ahead_first(f"the GPU{_in(gpu, cpu)}", "the CPU")
        text = f"At {_range(AXES[sweep['axis']], ratio.values)} {ahead} is {amount(ratios)} {behind}"
        if crossing is not None and crossing["value"] is not None:
            text += f"; the two are {_even(sweep, crossing)}"
        said.append(f"{text} (`{sweep['model']}`, {gpu.precision}).")
    return said


def _range(axis: Axis, values: Sequence[float]) -> str:
    """ "an image size of 12 to 96"."""
    return axis.in_a_sentence(" to ".join(dict.fromkeys(axis.said(x) for x in (values[0], values[-1]))))


# The GPU beside the CPU, where only single batch sizes were measured


def _devices_at_once(result: Mapping[str, Any]) -> Headline | None:
    runs = [run for run in result["runs"] if "throughput" in run]
    found = []
    for gpu in runs:
        for cpu in runs:
            sides = measured(gpu["throughput"]), measured(cpu["throughput"])
            if gpu["device"] == "cpu" or cpu["device"] != "cpu" or None in sides:
                continue
            if (gpu["model"], gpu["batch_size"]) == (cpu["model"], cpu["batch_size"]):
                key = (gpu["precision"] == cpu["precision"], gpu["images_per_second"] * cpu["images_per_second"])
                found.append((key, gpu, cpu, sides))
    if not found:
        return None
    _, gpu, cpu, (fast, slow) = max(found, key=lambda one: one[0])
    assert fast is not None
    assert slow is not None
    ratio = Along([gpu["batch_size"]], [over(fast, slow)])
    here, there = who_ran(gpu), who_ran(cpu | {"threads": cpu["throughput"]["threads"]})
    return Headline(
        _devices_sentence(result, gpu["model"], here, there, ratio, None),
        [
            f"{ratio.last} times, with a 95% interval.",
            _sides(result, here, there),
            *([DOUBTS] if not ratio.last.stable else []),
        ],
        f"Images a second, batches of {fmt.count(gpu['batch_size'])}",
        _bars([(there, slow), (here, fast)]),
        basis=[Basis(f"{len(fast.rates)} and {len(slow.rates)} blocks by turns", "throughput")],
    )


# Ours beside other libraries


def fastest_peer(group: Part) -> tuple[Part, Ratio] | None:
    """The fastest candidate of a group that is not ours, and how many times as fast ours is."""
    found = [
        (one, Ratio(r["value"], r["low"], r["high"], _stable(one) and _stable(_ours(group))))
        for one in group["candidates"]
        if not one["ours"] and "throughput" in one and (r := one.get("ratio"))
    ]
    return min(found, key=lambda one: one[1].value) if found else None


def _ours(group: Part) -> Part | None:
    mine = (one for one in group["candidates"] if one["ours"] and one["name"] == group.get("ours"))
    return next((one for one in mine if "throughput" in one), None)


def _stable(candidate: Part | None) -> bool:
    return candidate is None or not mark(candidate["throughput"])


def _peers(result: Mapping[str, Any]) -> Headline | None:
    for place, group in enumerate(result.get("peers", ())):
        found, ours = fastest_peer(group), _ours(group)
        if found is None or ours is None:
            continue
        peer, ratio = found
        mine = measured(ours["throughput"])
        assert mine is not None
        one = who(ours, group)
        sides = [(one, m) for one, _, c in everyone(group) if (m := measured(c.get("throughput", {})))]
        text = f"{_beside(result, one, group, peer, ratio)} ({_faster(ratio).interval()})"
        at = f"Batches of {fmt.count(group['batch_size'])}, {group['precision']}: "
        missing = not_measured(group)
        more = [
            at + f"{fmt.rate(mine.value, 'images')} ({fmt.between(mine.low, mine.high, _plain)}), beside "
            f"{fmt.rate(peer['throughput']['images_per_second'], 'images')}; in brackets 95% intervals.",
            *([f"{missing}."] if missing else []),
            *([DOUBTS] if not ratio.stable else []),
        ]
        blocks = sum(len(m.rates) for _, m in sides)
        basis = Basis(f"{len(sides)} candidates, {fmt.count(blocks)} blocks by turns", f"peers-{place}")
        measure = f"Images a second, batches of {fmt.count(group['batch_size'])}"
        return Headline(text, more, measure, _bars(sides), basis=[basis])
    return None


def _other_peers(result: Mapping[str, Any]) -> list[str]:
    """A sentence for each group: how many times as fast ours is as the fastest of the others."""
    said = []
    for group in result.get("peers", ()):
        found, ours = fastest_peer(group), _ours(group)
        if found is None or ours is None:
            continue
        peer, ratio = found
        at = "; ".join(
            filter(None, (f"batch {fmt.count(group['batch_size'])}, {group['precision']}", not_measured(group)))
        )
        text = _beside(result, who(ours, group), group, peer, ratio)
        said.append(f"{text} ({_faster(ratio).interval()}; {at}).")
    return said


def not_measured(group: Part) -> str:
    """Which libraries have no figure at their best for want of time: "JAX at its best was not measured"."""
    late = [
        pretty(one["name"])
        for one in group["candidates"]
        if not one["ours"]
        and one["variant"] != "default"
        and one["status"] == "interrupted"
        and "throughput" not in one
    ]
    if not late:
        return ""
    several = len(late) > 1
    return f"{fmt.listed(late)} at {'their' if several else 'its'} best {'were' if several else 'was'} not measured"


def _beside(result: Mapping[str, Any], ours: Who, group: Part, peer: Part, ratio: Ratio) -> str:
    """The faster of the two comes first."""
    other, model = f"{pretty(peer['name'])} {_at_its(peer)}", f"`{group['model']}`"
    if ratio.ahead < 0:
        return f"{_here(result, ours)} {other} trains {model} {times(ratio.inverted())} bareconv"
    return f"{_here(result, ours)} bareconv trains {model} {times(ratio)} {other}"


def _faster(ratio: Ratio) -> Ratio:
    return ratio.inverted() if ratio.ahead < 0 else ratio


def _at_its(peer: Part) -> str:
    if peer["variant"] == "default":
        return "as it comes"
    tried = peer.get("tries", ())
    compiled = any(one["options"].get("mode") == "compile" and one["status"] == "measured" for one in tried)
    if not tried or compiled or peer["name"] not in COMPILERS:
        return "at its best"
    return f"at its best without {COMPILERS[peer['name']]}"


def _here(result: Mapping[str, Any], one: Who) -> str:
    if one.gpu:
        return "On the GPU"
    number = one.threads or result["environment"]["cpu"]["cores_allowed"]
    return f"On {'this' if number == 1 else 'these'} {fmt.number_word(number)} core{'s' if number != 1 else ''}"


def _plain(x: float) -> str:
    return fmt.rate(x).removesuffix("/s")


# Ours alone


def _alone(result: Mapping[str, Any]) -> Headline | None:
    runs = [(run, m) for run in result["runs"] if (m := measured(run.get("throughput", {}))) is not None]
    if runs:
        run, fastest = max(runs, key=lambda one: one[1].value)
        one = who_ran(run | {"threads": run["throughput"]["threads"]})
        return Headline(
            f"{_here(result, one)} bareconv trains `{run['model']}` at {_roughly(fastest)}",
            [
                f"{fmt.between(fastest.low, fastest.high, _plain)} images/s with a 95% interval; batches of "
                f"{fmt.count(run['batch_size'])}, {run['precision']}.",
                *([] if fastest.stable else [DOUBTS]),
            ],
            basis=[Basis(f"{len(fastest.rates)} blocks", "throughput")],
        )
    for place, sweep in enumerate(result.get("sweeps", ())):
        points = [
            (who(curve), point, m)
            for curve in sweep["curves"]
            if curve["ours"]
            for point in curve["points"]
            if (m := measured(point)) is not None
        ]
        if points:
            one, point, fastest = max(points, key=lambda found: found[2].value)
            at = f"{fmt.between(fastest.low, fastest.high, _plain)} images/s with a 95% interval, at "
            at += f"{sweep['axis'].replace('_', ' ')} {fmt.count(point['value'])}, {one.precision}."
            return Headline(
                f"{_here(result, one)} bareconv trains `{sweep['model']}` at {_roughly(fastest)}",
                [at, *([] if fastest.stable else [DOUBTS])],
                basis=[Basis(f"the sweep over {sweep['axis'].replace('_', ' ')}", f"sweep-{place}")],
            )
    return None


def _roughly(found: Measured) -> str:
    return ("" if found.stable else "roughly ") + fmt.rate(found.value, "images")


def _learning(result: Mapping[str, Any]) -> list[str]:
    """How long our engine and the best of the others took to an accuracy that most reached, on each device."""
    said = []
    for entries in workloads(result.get("learning", ())):
        target = goal(entries)
        for entry in entries:
            reached = [(one, t) for one in entry["candidates"] if (t := seconds_to(one, target)) is not None]
            mine = min((t for one, t in reached if one["ours"]), default=None)
            theirs = min(((t, one["name"]) for one, t in reached if not one["ours"]), default=None)
            if target is None or mine is None:
                continue
            where = f"On the {'GPU' if entry['device'] != 'cpu' else 'CPU'} bareconv"
            beside = f", {pretty(theirs[1])} after {fmt.seconds(theirs[0])}" if theirs else ""
            named = f"`{entry['model']}` to {fmt.percent(target, 1)} accuracy"
            said.append(f"{where} trains {named} in {fmt.seconds(mine)} of steps{beside}.")
    return said


def _bars(sides: list[tuple[Who, Measured]]) -> list[Bar]:
    if len(sides) < 2:
        return []
    most = max(found.value for _, found in sides)
    called = names([one for one, _ in sides])
    return [
        Bar(
            name,
            one.gpu,
            fmt.rate(found.value),
            found.value / most,
            with_mark(fmt.between(found.low, found.high, _plain), found.mark),
        )
        for name, (one, found) in zip(called, sides, strict=True)
    ]

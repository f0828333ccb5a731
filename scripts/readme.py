"""Write the figures of the README and of docs/ from the committed results, between their markers.

The head of a page is drawn by Chromium; where there is none, that picture stays as it is. ``--check`` only compares.

.venv/bin/python scripts/readme.py
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bareconv.bench import roofline
from bareconv.bench.results import read
from bareconv.report import ladder_bars, markdown, png
from bareconv.report.candidates import pretty
from bareconv.report.format import bytes_, flops, percent, rate, ratio, scientific, seconds
from bareconv.report.page import render
from bareconv.report.rungs import executed, remarks
from bareconv.report.verdict import verdict
from bareconv.training import ENGINES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
GPU = "h200"  # whose results stand in the README

Blocks = dict[str, Callable[[str], str]]


def filled(text: str, blocks: Blocks) -> str:
    """``text`` with every marked block made anew."""
    for name, block in blocks.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        before, _, rest = text.partition(begin)
        text = before + begin + block(name) + end + rest.partition(end)[2]
    return text


def main_table(name: str) -> str:
    """basic, three epochs, on two machines by both engines; and the parity proofs of the one with a GPU."""
    files = ("basic-reference-2-cores", "basic-2-cores", "basic-reference-h200", "basic-h200")
    found = {file: read(RESULTS / f"{file}.json") for file in files}
    # Where the GPU ran the same engine for both of its files, the newer counts.
    newer = {(run["engine"], run["precision"]) for run in found["basic-h200"]["runs"] if run["device"] != "cpu"}
    runs = [
        (machine(result, run), run)
        for file, result in found.items()
        for run in result["runs"]
        if run["device"] == "cpu" or file == "basic-h200" or (run["engine"], run["precision"]) not in newer
    ]
    rows: list[tuple[str, Any]] = [
        ("engine", lambda run: engine(run, runs[0][1])),
        ("training time", lambda run: seconds(run["train_seconds"])),
        ("total time", lambda run: seconds(run["total_seconds"])),
        ("one step (forward, backward, update)", step),
        ("images/s", lambda run: rate(run["images_per_second"])),
        ("accuracy on the 10,000 test images", lambda run: percent(run["test_accuracy"])),
        ("peak memory", lambda run: bytes_(run["peak_memory_bytes"])),
    ]
    first = runs[0][1]
    lines = [
        f"`{first['model']}` ({first['parameters']:,} parameters, {first['flops_per_image'] / 1e6:.1f} MFLOP an image "
        f"and step), {first['epochs']:g} epochs of {first['train_images']:,} images, batches of {first['batch_size']}, "
        f"{first['precision']}:",
        "",
        "| | " + " | ".join(name for name, _ in runs) + " |",
        "| --- |" + " ---: |" * len(runs),
        *(f"| {label} | " + " | ".join(cell(run) for _, run in runs) + " |" for label, cell in rows),
        "| accuracy when trained for one epoch | " + " | ".join(one_epoch(*run) for run in runs) + " |",
        "",
        parts_text(runs),
        "",
        parity_text(found["basic-h200"], found["basic-reference-h200"]),
        "",
        plan_on_a_gpu("one-epoch-plan-h200"),
        "",
        "From "
        + ", ".join(f"[{file}.json](benchmarks/results/{file}.json) ({found[file]['commit'][:10]})" for file in files)
        + ", all written by `bareconv compare`; the one epoch from one-epoch-2-cores.json and one-epoch-h200.json "
        "beside them, by `bareconv train`.",
    ]
    return "\n".join(lines) + "\n"


def peers_table(name: str) -> str:
    """Our plan beside other libraries, by turns, on the machine with two cores: a row for each workload."""
    files = [RESULTS / "bench-2-cores.json", *sorted(RESULTS.glob("peers*-2-cores.json"))]
    results = [read(file) for file in files]
    lines = [
        "| model | batch | rate | bareconv `plan`, images/s | PyTorch at its best, images/s | plan is faster by | than "
        "PyTorch as it comes | than others | peak memory, PyTorch's |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    versions: dict[str, str] = {}
    seen: set[tuple[str, int, float]] = set()
    for settings, group in [(result["settings"], group) for result in results for group in result["peers"]]:
        key = (group["model"], group["batch_size"], settings["lr"])
        if key in seen:  # the newest of a workload comes first
            continue
        seen.add(key)
        sides = {(one["name"], one["variant"] == "default"): one for one in group["candidates"]}
        ours, best, plain = (sides.get(key) for key in ((group["ours"], False), ("pytorch", False), ("pytorch", True)))
        assert ours is not None
        assert best is not None
        others = [
            f"{pretty(one['name']) if not one['ours'] else 'our reference'} {ratio(one['ratio']['value'])}"
            for (library, default), one in sides.items()
            if "ratio" in one and library != "pytorch" and not default
        ]
        for one in sides.values():
            versions |= one.get("throughput", {}).get("versions", {})
        mine, theirs, times = ours["throughput"], best["throughput"], best["ratio"]
        lines.append(
            f"| `{group['model']}` | {group['batch_size']} | {settings['lr']:g} | {rate(mine['images_per_second'])} | "
            f"{rate(theirs['images_per_second'])} ({best['variant']}) | **{times['value']:.2f}×** "
            f"({times['low']:.2f} to {times['high']:.2f}) | "
            f"{ratio(plain['ratio']['value']) if plain is not None and 'ratio' in plain else '–'} | "
            f"{', '.join(others) or '–'} | "
            f"{bytes_(mine['peak_memory_bytes'])}, {bytes_(theirs['peak_memory_bytes'])} |"
        )
    cpu = results[0]["environment"]["cpu"]
    made = ", ".join(f"{library} {version}" for library, version in sorted(versions.items()))
    lines += [
        "",
        f"Training steps on {cpu['cores_allowed']} cores of {cpu['model']}, float32, all candidates of a row by turns "
        "in one go, each in a process of its own with the same weights and batches, their first losses compared; "
        f"median of the blocks, in brackets the 95% interval. {made}. PyTorch at its best is the fastest of its "
        "layouts and modes there (eager and compiled, fused SGD, memory kept). From "
        + ", ".join(
            f"[{file.name}](benchmarks/results/{file.name}) ({result['commit'][:10]})"
            for file, result in zip(files, results, strict=True)
        )
        + ", by `bareconv bench run` and `bareconv bench peers`; [docs/bench.md](docs/bench.md) has all of the first.",
    ]
    return "\n".join(lines) + "\n"


def batches_table(name: str) -> str:
    """Throughput over batch sizes."""
    result = read(RESULTS / "batches-2-cores.json")
    runs = sorted(result["runs"], key=lambda run: run["batch_size"])
    best = max(run["images_per_second"] for run in runs)
    lines = [
        "| batch | " + " | ".join(f"{run['batch_size']:,}" for run in runs) + " |",
        "| --- |" + " ---: |" * len(runs),
        "| images/s | " + " | ".join(rate(run["images_per_second"]).removesuffix("/s") for run in runs) + " |",
        "| of the best | " + " | ".join(percent(run["images_per_second"] / best, 0) for run in runs) + " |",
        "",
        f"`{runs[0]['model']}`, {runs[0]['precision']}, engine {runs[0]['engine']}, {runs[0]['optimizer']}: "
        f"[batches-2-cores.json](benchmarks/results/batches-2-cores.json) ({str(result.get('commit'))[:10]}), by "
        "`bareconv bench run`. At so small a rate relus stay open whatever the batch; at a larger one those that have "
        "closed by then, the more the more steps there were, are part of the speed ([docs/bench.md](docs/bench.md)).",
    ]
    return "\n".join(lines) + "\n"


def engine(run: dict[str, Any], first: dict[str, Any]) -> str:
    """The engine, and the precision where it is not that of the first column."""
    return f"`{run['engine']}`" + (f", {run['precision']}" if run["precision"] != first["precision"] else "")


def one_epoch(name: str, like: dict[str, Any]) -> str:
    """The accuracy of ``bareconv train`` as it is set, on that machine by that engine; a dash where it was not run."""
    for file in ("one-epoch-2-cores", "one-epoch-h200"):
        result = read(RESULTS / f"{file}.json")
        (run,) = result["runs"]
        if machine(result, run) == name and run["engine"] == like["engine"]:
            return percent(run["test_accuracy"])
    return "–"


def parity_text(result: dict[str, Any], reference: dict[str, Any]) -> str:
    """The speed-ups, and the proofs in a sentence each."""
    cpu = next(run for run in result["runs"] if run["device"] == "cpu")
    gpu = next(run for run in result["runs"] if run["device"] != "cpu")
    plain = next(run for run in reference["runs"] if run["device"] == "cpu")
    text = (
        f"On the machine with the H200 the GPU, which runs the {gpu['engine']}, trains "
        f"{ratio(plain['train_seconds'] / gpu['train_seconds'])} as fast as the reference on its "
        f"{result['environment']['cpu']['cores_allowed']} CPU cores, and "
        f"{ratio(cpu['train_seconds'] / gpu['train_seconds'])} as fast as the {cpu['engine']} engine on them. Parity"
    )
    proofs = [
        f"{proof['candidate']} against {proof['reference']}, over {proof['steps']} steps: losses differ by at most "
        f"{scientific(proof['max_loss_difference'])} (tolerance {scientific(proof['tolerance'])}), the final weights "
        f"by {scientific(proof['final_weight_difference'])}"
        for proof in result["parity"]
    ]
    return f"{text}: {'; '.join(proofs)}."


def plan_on_a_gpu(file: str) -> str:
    """The plan on both devices of one machine, each in the precision that it is fast in."""
    result = read(RESULTS / f"{file}.json")
    cpu, gpu = sorted(result["runs"], key=lambda run: run["device"] != "cpu")
    proof = next(one for one in result["parity"] if one["candidate"] == f"{gpu['device']} float32 plan")
    return (
        f"By the plan, in {gpu['precision']}, the {gpu['device_description']} trains an epoch in "
        f"{seconds(gpu['train_seconds'])} ({rate(gpu['images_per_second'], 'images')}) to "
        f"{percent(gpu['test_accuracy'])}; the {result['environment']['cpu']['cores_allowed']} cores beside it, in "
        f"{cpu['precision']}, in {seconds(cpu['train_seconds'])} to {percent(cpu['test_accuracy'])}: "
        f"{ratio(cpu['train_seconds'] / gpu['train_seconds'])}. In float32 the losses of the two differ by at most "
        f"{scientific(proof['max_loss_difference'])} over {proof['steps']} steps "
        f"([{file}.json](benchmarks/results/{file}.json), {result['commit'][:10]})."
    )


def original_table(name: str) -> str:
    """Whole processes, ours beside the plain program."""
    lines = [
        "| machine | program | precision | whole process | training loop | accuracy |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    names = {"write-up": "plain, as the write-up describes it", **{one: f"`bareconv train`, {one}" for one in ENGINES}}
    for file in ("original-2-cores", "original-h200"):
        result = read(RESULTS / f"{file}.json")
        for run in result["runs"]:
            lines.append(
                f"| {machine(result, run)} | {names[run['engine']]} | {run['precision']} | "
                f"{seconds(run['total_seconds'])} | {seconds(run['train_seconds'])} | {percent(run['test_accuracy'])} |"
            )
    inside = "original-workload-h200"
    result = read(RESULTS / f"{inside}.json")
    for run in result["runs"]:
        lines.append(
            f"| {machine(result, run)} | `bareconv compare`, {run['engine']} | {run['precision']} | – | "
            f"{seconds(run['train_seconds'])} | {percent(run['test_accuracy'])} |"
        )
    lines += [
        "",
        "Whole processes from start to end with the reading of the CSV, medians of turns "
        "([original-2-cores.json](benchmarks/results/original-2-cores.json), "
        "[original-h200.json](benchmarks/results/original-h200.json), by `benchmarks/original.py`); the last two rows "
        f"by `{result['command']}`, within one process ([{inside}.json](benchmarks/results/{inside}.json)). Where the "
        "plain program is the faster one, it makes fewer passes over its arrays: it computes no loss, counts no hits, "
        "checks nothing for NaN and evaluates once, at the end. Its accuracy is that of its own draw of weights.",
    ]
    return "\n".join(lines) + "\n"


def printed(name: str) -> str:
    """What a command printed, as it was kept."""
    return f"```text\n{(RESULTS / f'{name}-2-cores.txt').read_text(encoding='utf-8').strip()}\n```\n"


def machine(result: dict[str, Any], run: dict[str, Any]) -> str:
    """A column's head: the device, and of a CPU its cores."""
    cpu = result["environment"]["cpu"]
    return f"{cpu['cores_allowed']} cores of {cpu['model']}" if run["device"] == "cpu" else run["device_description"]


def step(run: dict[str, Any]) -> str:
    """The median step and its parts."""
    parts = ", ".join(seconds(run["phases"][phase]) for phase in ("forward", "backward", "update"))
    return f"{seconds(run['seconds_per_iteration'])} ({parts})"


def parts_text(runs: Sequence[tuple[str, Any]]) -> str:
    """Why the parts of a step do not add up to it, and whose are more than that."""
    parts = ("forward", "backward", "update")
    more = [
        f"the {run['engine']} on the {name}"
        for name, run in runs
        if sum(run["phases"][part] for part in parts) > run["seconds_per_iteration"]
    ]
    said = (
        "A step is the training time over the number of steps; its parts are medians of separate, profiled steps, "
        "for the marks between operations cost a little themselves. What the parts lack of a step is the gathering of "
        "the batch, and waiting."
    )
    if more:
        said += f" Profiled, they add up to more than a step of the training took with: {', '.join(more)}."
    return said


def ladder_machine(name: str) -> str:
    """What the ladder was measured on, and what that could do at best."""
    result = read(RESULTS / "ladder-2-cores.json")
    cpu, blas = result["environment"]["cpu"], result["environment"]["blas"]
    peaks = ", ".join(
        f"{flops(peak['flops_per_second'])} on {peak['threads']} thread{'s' if peak['threads'] > 1 else ''}"
        for peak in result["ladder"]["peaks"]
        if peak["device"] == "cpu"
    )
    return (
        f"Measured on {cpu['cores_allowed']} cores of {cpu['model']} ({blas['library']} {blas['version']}, "
        f"{blas['architecture']} kernels), by `{result['command']}` at commit {result['commit'][:10]}. At best, in "
        f"{result['ladder']['peaks'][0]['how']}, they do {peaks}. All of it is in "
        "[ladder-2-cores.json](../benchmarks/results/ladder-2-cores.json).\n"
    )


def ladder_table(name: str) -> str:
    """The rungs of one problem of the ladder."""
    result = read(RESULTS / "ladder-2-cores.json")
    (problem,) = [p for p in result["ladder"]["problems"] if p["name"] == name.removeprefix("ladder ")]
    text = problem["description"]
    lines = [
        f"{text[:1].upper()}{text[1:]}, {problem['precision']}, {problem['threads']} threads, "
        f"{problem['flops_per_image'] / 1e6:.1f} MFLOP an image; an error of at most "
        f"{scientific(problem['tolerance'])} is allowed:",
        "",
        "| rung | what it changes | images/s | FLOP/s, effective | executed | of peak | error |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for rung in problem["rungs"]:
        head = f"| {rung['name']} | {rung['change']} |"
        if rung["status"] == "measured":
            done, of_peak = executed(problem, rung)
            lines.append(
                f"{head} {rate(rung['images_per_second']).removesuffix('/s')} | "
                f"{flops(rung['effective_flops_per_second'])} | {flops(done)} | {percent(of_peak, 1)} | "
                f"{scientific(rung['error'])} |"
            )
        else:
            lines.append(f"{head} {rung.get('reason', 'wrong')} | | | | |")
    for remark in remarks(problem):
        lines += ["", remark]
    return "\n".join(lines) + "\n"


# A GPU


@dataclass(frozen=True)
class Goal:
    """What the plan is to reach on ``GPU``: ``seconds`` of a step at most, or ``times`` PyTorch's best at least."""

    model: str
    batch_size: int
    precision: str
    seconds: float | None = None
    times: float | None = None

    @property
    def key(self) -> tuple[str, int, str]:
        return self.model, self.batch_size, self.precision


GOALS = (
    *(Goal("basic", size, "bfloat16", seconds=s) for size, s in ((64, 60e-6), (256, 105e-6), (1024, 330e-6))),
    *(Goal("basic", size, "tf32", seconds=s) for size, s in ((64, 100e-6), (256, 210e-6), (1024, 700e-6))),
    *(Goal("basic", size, "float32", times=1.5) for size in (64, 256, 1024)),
    Goal("lenet5", 64, "bfloat16", seconds=45e-6),
    Goal("small", 256, "bfloat16", times=3.0),
    Goal("resnet9", 512, "bfloat16", times=1.0),
    Goal("resnet18", 512, "bfloat16", times=0.8),
)


def gpu_result(name: str = GPU) -> dict[str, Any] | None:
    """A result of the GPU, where it was measured."""
    path = RESULTS / f"{name}.json"
    return read(path) if path.exists() else None


@dataclass(frozen=True)
class Side:
    """One candidate of a group, as a table needs it."""

    group: dict[str, Any]
    entry: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.group["batch_size"] / self.images

    @property
    def images(self) -> float:
        """A second."""
        return float(self.entry["throughput"]["images_per_second"])

    @property
    def times(self) -> float | None:
        """How many times as fast our plan is."""
        return self.entry["ratio"]["value"] if "ratio" in self.entry else None

    @property
    def faster(self) -> str:
        """The same with its interval."""
        if "ratio" not in self.entry:
            return "–"
        ratio = self.entry["ratio"]
        return f"**{ratio['value']:.2f}×** ({ratio['low']:.2f} to {ratio['high']:.2f})"


def measured(group: dict[str, Any], *, ours: bool) -> list[Side]:
    """Our plan, or PyTorch's variants, that have figures, the fastest first."""
    sides = [Side(group, one) for one in group["candidates"] if one["ours"] == ours and "throughput" in one]
    sides = [side for side in sides if not ours or side.entry["name"] == group["ours"]]
    return sorted(sides, key=lambda side: side.seconds)


def group_key(group: dict[str, Any]) -> tuple[str, int, str]:
    """What a goal is of."""
    return group["model"], group["batch_size"], group["precision"]


def gpu_section(name: str) -> str:
    """The README's part on the GPU: nothing until there is a result."""
    result = gpu_result()
    if result is None:
        return ""
    lines = [
        "### On a GPU",
        "",
        "| model | batch | precision | bareconv `plan`, a step | images/s | PyTorch's best | a step | "
        "plan is faster by | PyTorch eager, a step |",
        "| --- | ---: | --- | ---: | ---: | --- | ---: | ---: | ---: |",
        *(gpu_row(group) for group in result["peers"]),
        "",
        f"Training steps on one {gpu_name(result)}, all candidates by turns in one go, each in a process of its own "
        "with the same weights and batches, their first losses compared; median of the blocks, in brackets the 95% "
        f"interval. {versions(result)}. PyTorch's best is the fastest of eager, CUDA graphs of the whole step and "
        "torch.compile (max-autotune, and a CUDA graph), by the variants that "
        f"[docs/gpu.md](docs/gpu.md#all-candidates) names. From [{GPU}.json](benchmarks/results/{GPU}.json) "
        f"({str(result.get('commit'))[:10]}), "
        "by `benchmarks/gpu.py`; [docs/gpu.md](docs/gpu.md) has the rest, and how near each kernel comes to what the "
        "GPU can do.",
        "",
        *uncompiled_text(result),
        goals_text(result),
    ]
    start = start_text(result)
    return "\n".join([*lines, *(["", start] if start else [])]) + "\n"


def is_compiled(side: Side) -> bool:
    """Whether torch.compile made it."""
    return bool(side.entry["options"].get("mode") == "compile")


def has_compiled(group: dict[str, Any]) -> bool:
    """Whether torch.compile has a figure there."""
    return any(is_compiled(side) for side in measured(group, ours=False))


MODES = {
    "eager": "eager",
    "graph": "a CUDA graph of the whole step",
    "compile": "torch.compile (max-autotune, and a CUDA graph)",
}
MIXED = {
    None: "in float32 and tf32",
    "autocast": "in bfloat16 with autocast",
    "copy": "in bfloat16 with a copy of the weights",
}


def tried_words(result: dict[str, Any]) -> str:
    """Which of PyTorch's variants were tried, by mode."""
    tries = [one["options"] for group in result["peers"] for one in group["candidates"] if not one["ours"]]
    tries += [
        one["options"] for group in result["peers"] for side in group["candidates"] for one in side.get("tries", [])
    ]
    words = []
    for mode, name in MODES.items():
        kinds = []
        for mixed, how in MIXED.items():
            layouts = {one["layout"] for one in tries if (one["mode"], one["mixed"]) == (mode, mixed)}
            if layouts:
                kinds.append(f"{how} {' and '.join(f'`{layout}`' for layout in sorted(layouts))}")
        if kinds:
            words.append(f"{name}: {', '.join(kinds)}")
    return "; ".join(words)


def uncompiled_text(result: dict[str, Any]) -> list[str]:
    """A paragraph where torch.compile has no figures: PyTorch's best is then the best without it."""
    groups = result["peers"]
    having = [group for group in groups if has_compiled(group)]
    if len(having) == len(groups):
        return []
    late = [
        group
        for group in groups
        if group not in having
        and any(is_compiled(Side(group, one)) and one["status"] == "interrupted" for one in group["candidates"])
    ]
    gains = []
    for group in having:
        theirs = measured(group, ours=False)
        best = min(side.seconds for side in theirs if is_compiled(side))
        others = [side.seconds for side in theirs if not is_compiled(side)]
        gain = f" ({min(others) / best:.2f}× the best without it)" if others else ""
        gains.append(workload_words(group_key(group)) + gain)
    words = f"**torch.compile has a figure for {len(having)} of these {len(groups)} workloads**"
    words += f": {', '.join(gains)}. " if gains else ". "
    words += "It takes minutes for each, on a GPU that must do nothing else meanwhile"
    words += f", and was not ready in time for {len(late)} more" if late else ""
    words += ". Elsewhere PyTorch's best is the best without it"
    compiled = [group_key(group) for group in having]
    without = [
        workload_words(goal.key)
        for goal, reached, _ in judged(result)
        if reached and goal.times is not None and goal.key not in compiled
    ]
    words += (
        f", and {len(without)} of the goals below are reached against that: {'; '.join(without)}" if without else ""
    )
    return [f"{words}.", ""]


def workload_words(key: tuple[str, int, str]) -> str:
    """A workload by its name."""
    model, batch_size, precision = key
    return f"`{model}`, batch {batch_size:,}, {precision}"


def gpu_name(result: dict[str, Any]) -> str:
    """The first GPU of the machine."""
    names = [gpu["name"] for gpu in result["environment"]["gpus"]]
    return names[0] if names else "unknown GPU"


def versions(result: dict[str, Any]) -> str:
    """Of all that was measured."""
    found: dict[str, str] = {}
    for group in result["peers"]:
        for one in group["candidates"]:
            found |= one.get("throughput", {}).get("versions", {})
    return ", ".join(f"{library} {version}" for library, version in sorted(found.items()))


def gpu_row(group: dict[str, Any]) -> str:
    """One workload: our plan, PyTorch's best, PyTorch eager."""
    cells = [f"`{group['model']}`", f"{group['batch_size']:,}", group["precision"]]
    ours, theirs = measured(group, ours=True), measured(group, ours=False)
    eager = [side for side in theirs if side.entry["options"].get("mode") == "eager"]
    cells += [seconds(ours[0].seconds), rate(ours[0].images)] if ours else ["no figures", ""]
    cells += [theirs[0].entry["variant"], seconds(theirs[0].seconds), theirs[0].faster] if theirs else ["–", "", ""]
    cells.append(seconds(eager[0].seconds) if eager else "–")
    return f"| {' | '.join(cells)} |"


def judged(result: dict[str, Any]) -> Iterator[tuple[Goal, bool | None, str]]:
    """Each goal, whether it is reached (None: it was not measured), and what was measured, in words."""
    groups = {group_key(group): group for group in result["peers"]}
    for goal in GOALS:
        group = groups.get(goal.key)
        ours = measured(group, ours=True) if group is not None else []
        theirs = measured(group, ours=False) if group is not None else []
        times = theirs[0].times if theirs else None
        if goal.seconds is not None and ours:
            yield goal, ours[0].seconds <= goal.seconds, f"{seconds(ours[0].seconds)} a step"
        elif goal.times is not None and ours and times is not None:
            yield goal, times >= goal.times, f"{times:.2f}× PyTorch's best"
        else:
            yield goal, None, "no figure"


def goals_text(result: dict[str, Any]) -> str:
    """What this project asks of itself on this GPU, and where it misses that."""
    verdicts = list(judged(result))
    text = f"Of the {len(GOALS)} [goals](docs/gpu.md#goals) that this project has set itself on this GPU it reaches "
    text += f"{sum(reached is True for _, reached, _ in verdicts)}."
    for word, wanted in (("Missed", False), ("Not measured", None)):
        some = [goal_words(goal, found) for goal, reached, found in verdicts if reached is wanted]
        text += f" {word}: {'; '.join(some)}." if some else ""
    return text


REACHED = {True: "reached", False: "**missed**", None: "not measured"}


def gpu_goals(name: str) -> str:
    """A row a goal."""
    result = gpu_result()
    if result is None:
        return ""
    lines = ["| model | batch | precision | wanted | measured | |", "| --- | ---: | --- | --- | --- | --- |"]
    for goal, reached, found in judged(result):
        cells = [f"`{goal.model}`", f"{goal.batch_size:,}", goal.precision, goal_wanted(goal), found]
        cells.append(REACHED[reached])
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| besides | wanted | measured | |", "| --- | --- | --- | --- |"]
    for what, wanted, taken in besides():
        reached = None if taken is None else taken <= wanted
        shown = "no figure" if taken is None else seconds(taken)
        lines.append(f"| {what} | at most {seconds(wanted)} | {shown} | {REACHED[reached]} |")
    return "\n".join(lines) + "\n"


def besides() -> Iterator[tuple[str, float, float | None]]:
    """What is asked beside the speed of steps, in seconds: how much at most, and what was measured."""
    bench, workload = gpu_result(f"bench-{GPU}"), gpu_result(f"original-workload-{GPU}")
    journeys = [one for one in (bench or {}).get("clocks", ()) if one["device"] != "cpu"]
    started = "`basic`, float32: from the start of the process to the end of its first step"
    for kind, wanted, words in (
        ("cold", 6.0, "an empty cache of kernels"),
        ("warm", 2.0, "the kernels of an earlier process"),
    ):
        taken = [until_first_step(one[kind]["phases"]) for one in journeys]
        yield f"{started}, with {words}", wanted, min(taken, default=None)
    loops = [run["train_seconds"] for run in (workload or {"runs": ()})["runs"] if run["device"] != "cpu"]
    yield "the 500 steps of the original write-up's workload, 41,000 images each", 0.05, min(loops, default=None)


def until_first_step(phases: Sequence[dict[str, Any]]) -> float:
    """Seconds of all phases until that one is over."""
    last = [one["name"] for one in phases].index("first step")
    return math.fsum(one["seconds"] for one in phases[: last + 1])


def goal_wanted(goal: Goal) -> str:
    """What a goal asks for."""
    if goal.seconds is not None:
        return f"at most {seconds(goal.seconds)} a step"
    return f"at least {goal.times:g}× PyTorch's best"


def goal_words(goal: Goal, found: str) -> str:
    """A goal, and what was measured instead."""
    return f"{workload_words(goal.key)} ({found}, wanted {goal_wanted(goal)})"


def start_text(result: dict[str, Any]) -> str:
    """How long the first workload's processes took to their first block."""
    for group in result["peers"]:
        ours, theirs = measured(group, ours=True), measured(group, ours=False)
        if ours and theirs:
            words = [
                f"{name} {seconds(side['warm_up_seconds'])}, and {seconds(side['compile_seconds'])} of compiling"
                for name, side in (
                    ("bareconv", ours[0].entry["throughput"]),
                    (f"PyTorch's best ({theirs[0].entry['variant']})", theirs[0].entry["throughput"]),
                )
            ]
            again = is_compiled(theirs[0]) and compiled_before(result, f"{group['model']}:")
            return (
                f"From the start of its process to its first measured step, on `{group['model']}` with batches of "
                f"{group['batch_size']:,}: {'; '.join(words)}, while others got ready beside them"
                f"{', with what an earlier run had left in its cache' if again else ''}."
            )
    return ""


def compiled_before(result: dict[str, Any], model: str) -> bool:
    """Whether an earlier run, whose result this one was added to, had that model compiled on the same machine, too."""
    runs = 0
    settings = result["settings"]
    while settings is not None:
        timed = not (settings["no_timing"] or settings["no_compile"])
        runs += timed and any(case.startswith(model) for case in settings["compile_words"])
        settings = settings.get("earlier")
    return runs > 1


def gpu_peers(name: str) -> str:
    """Every candidate that stayed, with its tries."""
    result = gpu_result()
    if result is None:
        return ""
    lines = [
        "| model | batch | precision | candidate | a step | images/s | plan is faster by | peak memory | "
        "first losses differ by |",
        "| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for group in result["peers"]:
        head = f"| `{group['model']}` | {group['batch_size']:,} | {group['precision']} |"
        for one in group["candidates"]:
            label = " ".join(filter(None, (one["name"], one["variant"])))
            if "throughput" not in one:
                lines.append(f"{head} {label} | {one['status']} | | | | |")
                continue
            side = Side(group, one)
            faster = "" if one["name"] == group["ours"] and one["ours"] else side.faster
            lines.append(
                f"{head} {label} | {seconds(side.seconds)} | {rate(side.images)} | {faster} | "
                f"{bytes_(one['throughput']['peak_memory_bytes'])} | "
                f"{'' if one['ours'] else scientific(one.get('loss_difference'))} |"
            )
    lines += ["", f"{gpu_name(result)}, {versions(result)}: {gpu_link(result)}. Of each of PyTorch's modes the fastest"]
    lines[-1] += " variant is shown; the others' figures are in the file, beside it as its tries. Tried were "
    lines[-1] += f"{tried_words(result)}."
    if result.get("notes"):
        lines += ["", *(f"- {note}" for note in result["notes"])]
    return "\n".join(lines) + "\n"


def gpu_link(result: dict[str, Any], file: str = GPU) -> str:
    """From docs/ to the file, with its commit."""
    return f"[{file}.json](../benchmarks/results/{file}.json) ({str(result.get('commit'))[:10]})"


def gpu_rooflines(name: str) -> str:
    """Every kernel of the steps that one was drawn of, as a share of what the GPU can do."""
    result = gpu_result()
    if result is None or "rooflines" not in result:
        return ""
    (found,) = result["rooflines"]
    lines = [
        f"On the {found['device_description']}, measured in the same process: "
        + "; ".join(f"{roofline.in_words(ceiling)} ({ceiling['how']})" for ceiling in found["ceilings"])
        + "."
    ]
    for step in found["steps"]:
        every = step["launches"]
        alone = math.fsum(one["seconds"] for one in every)
        least = math.fsum(one["least_seconds"] for one in every)
        lines += [
            "",
            f"**{roofline.step_title(step)}**: {seconds(step['step_seconds'])} a step; its {len(every)} launches one "
            f"by one {seconds(alone)}, which is {percent(least / alone, 0)} of the roofline.",
            "",
            "| phase | kernel | for | time | of all launches | ceiling | of the roofline |",
            "| --- | --- | --- | ---: | ---: | --- | ---: |",
        ]
        for group in roofline.groups(step):
            lines.append(
                f"| {group.phase} | `{group.kernel}` | {group.node} | {seconds(group.seconds)} | "
                f"{percent(group.seconds / alone, 1)} | {group.ceiling} | {percent(group.share, 0)} |"
            )
    return "\n".join(lines) + "\n"


def gpu_parts(name: str) -> str:
    """What was run beside the measurement: how it ended, and its last words."""
    result = gpu_result()
    if result is None or not result.get("parts"):
        return ""
    lines = ["| what | ended | after | last words |", "| --- | --- | ---: | --- |"]
    for part in result["parts"]:
        words = last_words(part["said"]).replace("|", "/")
        lines.append(f"| {part['name']} | {part['status']} | {seconds(part['seconds'])} | {words} |")
    return "\n".join(lines) + "\n"


def last_words(said: list[str]) -> str:
    """The last line that says something; of several programs side by side how many passed, and which did not."""
    several = [re.fullmatch(r"(.+?): (passed|failed|timed out|missing) after \d+ s: (.*)", line) for line in said]
    if said and all(several):
        others = [f"{one[1]}: {one[3]}" for one in several if one is not None and one[2] != "passed"]
        return "; ".join([f"{len(said) - len(others)} of {len(said)} programs passed", *others])
    return next((line for line in reversed(said) if line.strip()), "").strip(" =|")


def gpu_seeds(name: str) -> str:
    """Whether every precision learns as well."""
    file = f"seeds-{GPU}"
    result = gpu_result(file)
    if result is None:
        return ""
    sides: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for run in result["runs"]:
        sides.setdefault((run["device"], run["precision"], run["engine"]), []).append(run)
    first = result["runs"][0]
    lines = [
        f"`{first['model']}`, {first['epochs']:g} epoch{'s' if first['epochs'] != 1 else ''} of "
        f"{first['train_images']:,} images, batches of {first['batch_size']}:",
        "",
        "| device | precision | engine | seeds | mean accuracy | standard deviation | least | most |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (device, precision, engine), runs in sides.items():
        found = [run["test_accuracy"] for run in runs]
        spread = percent(statistics.stdev(found), 3) if len(found) > 1 else "–"
        lines.append(
            f"| {device} | {precision} | {engine} | {len(found)} | {percent(statistics.mean(found), 3)} | {spread} | "
            f"{percent(min(found))} | {percent(max(found))} |"
        )
    said = [note for note in result.get("notes", []) if ": accuracy " not in note]
    lines += ["", *(f"- {note}" for note in said), "", f"From {gpu_link(result, file)}, by `benchmarks/seeds.py`."]
    return "\n".join(lines) + "\n"


# The benchmark

ALSO = 6  # sentences beside a verdict, in the README
BENCHES = ("2-cores", "2-cores-amd", "h200")  # machines whose bench-NAME.json is committed, or will be


def bench_machine(name: str) -> str:
    """Everything that the benchmark says of one machine, and its other sweeps; nothing until there is a result."""
    file = name.replace(" ", "-")
    result = gpu_result(file)
    if result is None:
        return ""
    text = markdown.benchmark(result, gpu_link(result, file), f"images/{file}-")
    file = file.replace("bench", "sweeps")
    result = gpu_result(file)
    if result is None:
        return text
    lines = markdown.sweeps(result, f"images/{file}-")
    return "\n".join([text, *lines, f"From {gpu_link(result, file)}, by `{result['command']}`."]) + "\n"


def bench_pictures() -> Iterator[tuple[Path, bytes]]:
    """The files of the figures in docs/bench.md."""
    for file in (f"{kind}-{machine_name}" for machine_name in BENCHES for kind in ("bench", "sweeps")):
        result = gpu_result(file)
        for name, picture in markdown.pictures(result) if result is not None else ():
            yield ROOT / "docs" / "images" / f"{file}-{name}.png", picture


HEAD = ROOT / "docs" / "images" / "report.png"  # of the page of this result:
HEAD_OF = RESULTS / f"bench-{GPU}.json"
HEAD_SIZE = (1120, 870)  # of the window


def head_mark() -> str:
    """What the picture of the head carries, to tell what it says."""
    return hashlib.sha256(repr(verdict(read(HEAD_OF))).encode()).hexdigest()


def draw_head() -> None:
    """The picture of the page's head; as it is, where it says this already or there is no browser."""
    if HEAD.exists():
        with Image.open(HEAD) as drawn:
            if drawn.info.get("says") == head_mark():
                return
    sys.path.append(str(ROOT / "tests" / "harness"))  # where the tests have theirs
    from browser import Browser, find_browser

    path = find_browser()
    if path is None:
        print(f"{HEAD.name} is out of date: there is no Chromium to draw it anew with.", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as name:
        page = Path(name) / "report.html"
        page.write_text(render(read(HEAD_OF), name=HEAD_OF.name), encoding="utf-8")
        with Browser(path) as browser:
            width, height = HEAD_SIZE
            browser.call("Emulation.setScrollbarsHidden", hidden=True)
            browser.open(page, width=width, height=height)
            picture = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
    mark = PngInfo()
    mark.add_text("says", head_mark())
    picture.save(HEAD, optimize=True, pnginfo=mark)


def verdicts(name: str) -> str:
    """What the benchmark says of each machine in a few sentences."""
    lines = []
    for machine_name in BENCHES:
        file = f"bench-{machine_name}"
        result = gpu_result(file)
        found = verdict(result) if result is not None else None
        if result is not None and found is not None:
            link = f"[{file}.json](benchmarks/results/{file}.json)"
            head = f"{markdown.machine(result)} ({link})"
            lines += [f"- {head}: **{found.title}.** {' '.join(found.also[:ALSO])}"]
    return "\n".join(lines) + "\n"


PAGES: dict[str, Blocks] = {
    "README.md": {
        "verdicts": verdicts,
        "main": main_table,
        "gpu": gpu_section,
        "peers": peers_table,
        "batches": batches_table,
        "original": original_table,
        "quick": printed,
        "test": printed,
    },
    "docs/ladder.md": {"ladder machine": ladder_machine, "ladder layer": ladder_table, "ladder step": ladder_table},
    "docs/gpu.md": {
        "gpu goals": gpu_goals,
        "gpu peers": gpu_peers,
        "gpu rooflines": gpu_rooflines,
        "gpu parts": gpu_parts,
        "gpu seeds": gpu_seeds,
    },
    "docs/bench.md": {f"bench {name}": bench_machine for name in BENCHES},
}


def main() -> int:
    """Rewrite the pages and their pictures, or say that the pages are not what the results say."""
    stale = 0
    for name, blocks in PAGES.items():
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = filled(before, blocks)
        stale |= int(before != after)
        if "--check" not in sys.argv:
            path.write_text(after, encoding="utf-8")
    if "--check" in sys.argv:
        return stale
    (ROOT / "docs/images/ladder.png").write_bytes(png(ladder_bars(read(RESULTS / "ladder-2-cores.json"))))
    for path, picture in bench_pictures():
        path.write_bytes(picture)
    draw_head()
    return 0


if __name__ == "__main__":
    sys.exit(main())

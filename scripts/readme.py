"""Write the figures of the README and of docs/ladder.md from the committed results, between their markers.

``--check`` only compares.

.venv/bin/python scripts/readme.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bareconv.bench.results import read
from bareconv.report import ladder_bars, png
from bareconv.report.format import bytes_, flops, percent, rate, ratio, scientific, seconds
from bareconv.training import ENGINES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

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
    # Of the machine with the GPU the reference on the GPU is in both of its files: the newer counts.
    runs = [
        (machine(result, run), run)
        for file, result in found.items()
        for run in result["runs"]
        if run["device"] == "cpu" or file == "basic-h200"
    ]
    rows: list[tuple[str, Any]] = [
        ("engine", lambda run: f"`{run['engine']}`"),
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
        parity_text(found["basic-h200"], found["basic-reference-h200"]),
        "",
        "From "
        + ", ".join(f"[{file}.json](benchmarks/results/{file}.json) ({found[file]['commit'][:10]})" for file in files)
        + ", all written by `bareconv compare`; the one epoch from one-epoch-2-cores.json and one-epoch-h200.json "
        "beside them, by `bareconv train`.",
    ]
    return "\n".join(lines) + "\n"


def peers_table(name: str) -> str:
    """Our plan beside other libraries, by turns, on the machine with two cores."""
    files = sorted(RESULTS.glob("peers*-2-cores.json"))
    results = [read(file) for file in files]
    lines = [
        "| model | batch | rate | bareconv `plan`, images/s | candidate | images/s | plan is faster by | peak memory |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    versions: dict[str, str] = {}
    seen: set[tuple[str, int]] = set()
    for settings, group in [(result["settings"], group) for result in results for group in result["peers"]]:
        lr = settings["lr"]
        ours = next(one for one in group["candidates"] if one["name"] == group["ours"])
        mine = ours["throughput"]
        again = (group["model"], group["batch_size"]) in seen  # at another rate: beside PyTorch at its best is enough
        seen.add((group["model"], group["batch_size"]))
        for other in group["candidates"]:
            if other is ours or (again and (other["name"] != "pytorch" or other["variant"] == "default")):
                continue
            label = " ".join(filter(None, ("our" if other["ours"] else "", other["name"], other["variant"])))
            head = f"| `{group['model']}` | {group['batch_size']} | {lr:g} | {rate(mine['images_per_second'])} | "
            head += f"{label} | "
            if other["status"] != "measured":
                lines.append(f"{head}{other['status']} | | |")
                continue
            theirs, times = other["throughput"], other["ratio"]
            versions |= theirs["versions"]
            lines.append(
                f"{head}{rate(theirs['images_per_second'])} | **{times['value']:.2f}×** ({times['low']:.2f} to "
                f"{times['high']:.2f}) | {bytes_(mine['peak_memory_bytes'])} against "
                f"{bytes_(theirs['peak_memory_bytes'])} |"
            )
    cpu = results[0]["environment"]["cpu"]
    made = ", ".join(f"{library} {version}" for library, version in sorted(versions.items()))
    lines += [
        "",
        f"Training steps on {cpu['cores_allowed']} cores of {cpu['model']}, float32, all candidates by turns in "
        "one go, each in a process of its own with the same weights and batches, their first losses compared; median "
        f"of the blocks, in brackets the 95% interval. {made}. PyTorch's tuned row is the fastest of its layouts and "
        "modes there (eager and compiled, fused SGD, memory kept); its default row is as it comes. From "
        + ", ".join(
            f"[{file.name}](benchmarks/results/{file.name}) ({result['commit'][:10]})"
            for file, result in zip(files, results, strict=True)
        )
        + ", by `bareconv bench peers`.",
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
        f"`{runs[0]['model']}`, {runs[0]['precision']}, engine {runs[0]['engine']}: "
        "[batches-2-cores.json](benchmarks/results/batches-2-cores.json), by `bareconv bench run`.",
    ]
    return "\n".join(lines) + "\n"


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
    cpu, gpu = result["runs"]
    plain = next(run for run in reference["runs"] if run["device"] == "cpu")
    text = (
        f"On the machine with the H200 the GPU, which runs the reference, trains "
        f"{ratio(plain['train_seconds'] / gpu['train_seconds'])} as fast as the same program on its "
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
    lines += [
        "",
        "Whole processes from start to end with the reading of the CSV, medians of turns "
        "([original-2-cores.json](benchmarks/results/original-2-cores.json), "
        "[original-h200.json](benchmarks/results/original-h200.json), by `benchmarks/original.py`). Where the plain "
        "program is the faster one, it makes fewer passes over its arrays: it computes no loss, counts no hits, checks "
        "nothing for NaN and evaluates once, at the end. Its accuracy is that of its own draw of weights.",
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
            lines.append(
                f"{head} {rate(rung['images_per_second']).removesuffix('/s')} | "
                f"{flops(rung['effective_flops_per_second'])} | {flops(rung['executed_flops_per_second'])} | "
                f"{percent(rung['peak_share'], 1)} | {scientific(rung['error'])} |"
            )
        else:
            lines.append(f"{head} {rung.get('reason', 'wrong')} | | | | |")
    return "\n".join(lines) + "\n"


PAGES: dict[str, Blocks] = {
    "README.md": {
        "main": main_table,
        "peers": peers_table,
        "batches": batches_table,
        "original": original_table,
        "quick": printed,
        "test": printed,
    },
    "docs/ladder.md": {"ladder machine": ladder_machine, "ladder layer": ladder_table, "ladder step": ladder_table},
}


def main() -> int:
    """Rewrite the pages and the ladder's picture, or say that they are not what the results say."""
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
    return 0


if __name__ == "__main__":
    sys.exit(main())

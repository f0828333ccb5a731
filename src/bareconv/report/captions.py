"""What stands with each figure: ``alt``, what a screen reader says in its place, and ``caption``, what to see in it.

Sentences only say what the numbers say; where a figure's data are missing the functions are not called.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bareconv.report import format as fmt
from bareconv.report.gallery import Gallery, is_signed
from bareconv.report.runs import Run, engines_differ, labels, main_pair, operation_seconds, pairs, speedups
from bareconv.report.sections import Words


@dataclass(frozen=True)
class Confusion:
    """The matrix that is shown, and whose it is; ``remark`` compares it with the other runs'."""

    counts: list[list[int]]
    whose: str
    remark: str = ""


def convergence(result: dict[str, Any]) -> Words:
    """Where each run's loss began and ended."""
    said = []
    for run, name in zip(result["runs"], labels(result["runs"]), strict=True):
        loss = [x for x in run["history"]["loss"] if x is not None and math.isfinite(x)]
        if loss:
            last = float(np.mean(loss[-max(1, len(loss) // 50) :]))
            said.append(
                f"{name} from {fmt.significant(loss[0])} to {fmt.significant(last)} in {fmt.counted(len(loss), 'step')}"
            )
    alt = f"Line charts. Training loss: {'; '.join(said)}."
    if len(said) > 1:
        return Words(
            alt,
            "By step, runs that compute the same thing lie on each other. By time they lie apart, and because time is "
            "logarithmic the distance between them is the speed-up.",
        )
    return Words(alt, "The loss of every step (pale) and its running mean (bold).")


def speedup(result: dict[str, Any]) -> Words:
    """The speed-ups, and which operations gain the most and the least."""
    runs = result["runs"]
    names = labels(runs)
    alt = "Bar chart of speed-ups, GPU over CPU. " + " ".join(
        f"{names[pair.gpu]} over {names[pair.cpu]}: "
        + ", ".join(f"{s.name} {fmt.ratio(s.ratio)}" for s in speedups(runs, pair))
        + "."
        for pair in pairs(runs)
    )
    caption = "A bar to the right of 1 is the GPU's advantage, to the left of it the CPU's."
    pair = main_pair(runs)
    if pair and engines_differ([runs[pair.gpu], runs[pair.cpu]]):
        caption += (
            f" The GPU ran the engine {runs[pair.gpu]['engine']}, the CPU the engine {runs[pair.cpu]['engine']}; what "
            "one of them runs as one operation is added up for the other."
        )
    operations = [s for s in speedups(runs, pair) if s.group == "operation"] if pair else []
    if len(operations) > 1:
        most = max(operations, key=lambda s: s.ratio)
        least = min(operations, key=lambda s: s.ratio)
        whose = f" {names[pair.gpu]} over {names[pair.cpu]}:" if pair and len(pairs(runs)) > 1 else ""
        caption += (
            f" Operations are taken forward and backward together.{whose} {most.name} gains the most, "
            f"{fmt.ratio(most.ratio)}; {least.name} the least, {fmt.ratio(least.ratio)}."
        )
    return Words(alt, caption)


def operations(result: dict[str, Any]) -> Words:
    """Which operation takes the most of each run's step."""
    said, told = [], []
    for run, name in zip(result["runs"], labels(result["runs"]), strict=True):
        seconds = {operation: sum(times) for operation, times in operation_seconds(run).items()}
        total = sum(seconds.values())
        if not total:
            continue
        top = max(seconds, key=lambda operation: seconds[operation])
        said.append(f"{name}: {top}, {fmt.percent(seconds[top] / total, 0)}")
        told.append(f"{name}: " + ", ".join(f"{o} {fmt.seconds(s)}" for o, s in seconds.items()))
    alt = f"Bar charts of each operation's time in one step. {'. '.join(told)}."
    return Words(alt, f"Most of a step's time goes to: {'; '.join(said)}. Medians of separate, profiled steps.")


def memory(result: dict[str, Any]) -> Words:
    """The peaks, and what is counted."""
    names = labels(result["runs"])
    peaks = [f"{n} {fmt.bytes_(run['peak_memory_bytes'])}" for run, n in zip(result["runs"], names, strict=True)]
    caption = "The CPU's figure is the resident memory of the process, the GPU's the memory reserved on the device."
    if any(run.get("memory") for run in result["runs"]):
        caption += " Overhead is the peak less all the rest: interpreter, libraries, temporaries."
    return Words(f"Bar chart of peak memory: {', '.join(peaks)}.", caption)


def parity(result: dict[str, Any]) -> Words:
    """A verdict for each lockstep test is in the page; here is what the chart is."""
    said = [
        f"{p['candidate']} against {p['reference']}: largest relative difference of the losses "
        f"{fmt.scientific(p['max_loss_difference'])}, tolerance {fmt.scientific(p['tolerance'])}"
        for p in result["parity"]
    ]
    return Words(
        f"Line charts of relative differences by step. {'. '.join(said)}.",
        "Two sides start from the same weights and take the same batches. Rounding differs, so small differences grow "
        "with every step; a wrong formula would put them at the top from the first step on. Below float64 the steps "
        "are small ones, at a constant rate, so that a relu that rounding tips over zero is not amplified.",
    )


def verdict(tested: dict[str, Any]) -> str:
    """One lockstep test as a sentence."""
    worst = f", most in {tested['worst_tensor']}" if tested.get("worst_tensor") else ""
    return (
        f"{tested['candidate']} against {tested['reference']}, {tested['model']}, "
        f"{fmt.counted(tested['steps'], 'step')}: the losses differ by at most "
        f"{fmt.scientific(tested['max_loss_difference'])} ({fmt.scientific(tested['tolerance'])} allowed), "
        f"the weights in the end by {fmt.scientific(tested['final_weight_difference'])}{worst}."
    )


def confusion_of(result: dict[str, Any]) -> Confusion | None:
    """The matrix to show: the headline's GPU run's, else the first run's that has one, else the evaluation's."""
    runs: list[Run] = result["runs"]
    names = labels(runs)
    pair = main_pair(runs)
    order = ([pair.gpu, pair.cpu] if pair else []) + list(range(len(runs)))
    having = [i for i in dict.fromkeys(order) if runs[i].get("confusion")]
    if having:
        first, *others = having
        mine = runs[first]["confusion"]
        remarks = []
        for i in others:
            theirs = runs[i]["confusion"]
            if len(theirs) != len(mine):
                continue
            moved = int(np.abs(np.array(theirs) - np.array(mine)).sum()) // 2
            differs = f"{fmt.counted(errors(theirs), 'error')}, at least {fmt.counted(moved, 'image')} read otherwise"
            remarks.append(f"{names[i]}: {differs if moved else 'the same matrix'}")
        remark = f"Compared with it, {'; '.join(remarks)}." if remarks else ""
        return Confusion(mine, names[first], remark)
    evaluation = result.get("evaluation")
    if evaluation and evaluation["confusion"]:
        return Confusion(evaluation["confusion"], evaluation["checkpoint"])
    return None


def errors(counts: list[list[int]]) -> int:
    """How many images are off the diagonal."""
    return sum(map(sum, counts)) - sum(row[i] for i, row in enumerate(counts))


def confusion(shown: Confusion) -> Words:
    """How many errors, and which is the most frequent."""
    total, wrong = sum(map(sum, shown.counts)), errors(shown.counts)
    text = f"{shown.whose}: {fmt.count(wrong)} of {fmt.counted(total, 'image')} misread."
    if wrong:
        size = range(len(shown.counts))
        i, j = max(((i, j) for i in size for j in size if i != j), key=lambda at: shown.counts[at[0]][at[1]])
        number = shown.counts[i][j]
        text += f" Most often a {i} was taken for a {j}, {fmt.counted(number, 'time')}."
    return Words(
        f"Confusion matrix, true class by predicted class. {text}",
        f"{text} {shown.remark} At the right edge: the share of each class that was found.".replace("  ", " "),
    )


def filters(gallery: Gallery) -> Words:
    """How many filters, of what size."""
    assert gallery.filters is not None
    R, S, C, K = gallery.filters.shape
    what = (
        f"{fmt.counted(K, 'filter')} of {R} × {S}"
        + (f" × {C} channels" if C > 1 else "")
        + (", averaged over these" if C not in (1, 3) else "")
    )
    how = (
        "in their own colours"
        if C == 3
        else "green where a filter wants light, pink where it wants dark, white where it does not care"
    )
    return Words(f"Pictures of the first layer's {what}.", f"The first layer's {what}: {how}.")


def feature_maps(gallery: Gallery) -> Words:
    """Which layers are shown, and what their colours mean."""
    layers = gallery.layers()
    signs = {is_signed(maps) for maps in layers.values()}
    caption = "What each layer makes of one image."
    if False in signs:
        caption += " Bright: where a channel answers."
    if True in signs:
        caption += " Where answers have a sign: green above zero, pink below, white at zero."
    return Words(f"An image and its feature maps after the layers {', '.join(layers)}.", caption)


def examples(gallery: Gallery, *, right: bool) -> Words:
    """How many of the gallery's images these are."""
    correct = gallery.labels == gallery.predicted
    number = int((correct if right else ~correct).sum())
    if right:
        return Words(
            f"Examples of {fmt.counted(number, 'rightly read image')}.", "Read rightly, with the model's confidence."
        )
    return Words(
        f"Examples of {fmt.counted(number, 'misread image')}.",
        "Misread: true class → predicted class, with the model's confidence; the most confident first.",
    )

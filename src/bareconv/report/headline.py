"""The sentences a reader sees first: what the GPU was worth for this model, or what a run without one achieved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bareconv.report import format as fmt
from bareconv.report.measured import is_empty, is_of_benchmark
from bareconv.report.rungs import slowest_and_fastest
from bareconv.report.runs import (
    Pair,
    Run,
    engines_differ,
    images_tested,
    is_gpu,
    labels,
    main_pair,
    main_ratio,
    over,
    pairs,
    per_iteration,
    same_accuracy,
)

NOTHING_SAID = "A result of bareconv"  # the title of what has no figures


@dataclass(frozen=True)
class Bar:
    """One bar below the headline: a side's figure, with its length as a fraction of the longest."""

    name: str
    gpu: bool
    text: str
    length: float
    detail: str


@dataclass(frozen=True)
class Basis:
    """A part of the result that the title rests on, and its address within the page."""

    text: str
    anchor: str


@dataclass(frozen=True)
class Headline:
    """The title, the sentences below it, and the sides' figures as bars, of what ``measure`` says.

    ``also``: what else the result says, ``basis``: what the title rests on. Names between backticks are code.
    """

    title: str
    lead: list[str] = field(default_factory=list)
    measure: str = ""
    bars: list[Bar] = field(default_factory=list)
    also: list[str] = field(default_factory=list)
    basis: list[Basis] = field(default_factory=list)


def headline(result: dict[str, Any]) -> Headline:
    """The answer in one sentence, and what supports it. The result has passed the schema."""
    runs = result["runs"]
    pair = main_pair(runs)
    measure, bars = _bars(runs) if len(runs) > 1 else ("", [])  # one bar alone says nothing
    if pair is not None:
        title = _compared(result, runs, pair)
        lead = [_how(runs, pair), *_others(runs, pair), *_parity(result)]
    elif runs:
        title = _alone(result, runs)
        lead = [_why(result, runs), *(_work(runs[0]) if len(runs) == 1 else []), *_parity(result)]
    elif "evaluation" in result:
        evaluation = result["evaluation"]
        title = (
            f"{fmt.percent(evaluation['accuracy'])} of {fmt.count(evaluation['images'])} images are classified rightly"
        )
        lead = [f"Checkpoint {evaluation['checkpoint']} on the {evaluation['split']} split of {evaluation['data']}."]
    elif result.get("gradient_checks"):
        checks = result["gradient_checks"]
        failed = sum(not check["passed"] for check in checks)
        checked = fmt.counted(len(checks), "gradient check")
        title = f"{failed} of {checked} failed" if failed else f"{checked} passed, none failed"
        lead = []
    elif fastest := _ladder(result):
        title, *lead = fastest
    elif is_of_benchmark(result) and is_empty(result):
        budget = result["settings"].get("budget")
        title = "Nothing could be measured" + (f" in {fmt.seconds(budget)}" if budget else "")
        lead = ["With more time (--budget) there are figures."] if budget else []
    else:
        title, lead = NOTHING_SAID, _parity(result)
    return Headline(title, [sentence for sentence in lead if sentence], measure, bars)


def gpu_name(result: dict[str, Any], run: Run) -> str:
    """What a person calls the GPU of a run."""
    gpus = result["environment"]["gpus"]
    index = int(str(run["device"]).partition(":")[2] or 0)
    named = gpus[index]["name"] if index < len(gpus) else "GPU"
    return str(run.get("device_description") or named)


def cpu_name(result: dict[str, Any], run: Run) -> str:
    """What a person calls the CPU of a run."""
    return str(run.get("device_description") or result["environment"]["cpu"]["model"])


def times_faster(r: float) -> str:
    """A ratio of speeds in words: "23× faster than", "as fast as", "2.1× slower than"."""
    if r >= 1.05:
        return f"{fmt.ratio(r, 2)} faster than"
    return f"{fmt.ratio(1 / r, 2)} slower than" if r <= 1 / 1.05 else "as fast as"


def _compared(result: dict[str, Any], runs: list[Run], pair: Pair) -> str:
    gpu, cpu = runs[pair.gpu], runs[pair.cpu]
    r = main_ratio(runs, pair)
    name = gpu_name(result, gpu)
    subject = f"The {name}" if not name.lower().startswith("the ") else name
    if r is None:
        return f"{subject} and this CPU both trained {gpu['model']}"
    title = f"{subject} trained {gpu['model']} {times_faster(r)} this CPU"
    same = same_accuracy(gpu, cpu)
    if same is None or gpu["iterations"] != cpu["iterations"]:
        return title
    if same:
        return f"{title} and reached the same accuracy"
    lower = (gpu["test_accuracy"] or 0.0) < (cpu["test_accuracy"] or 0.0)
    return f"{title}, but reached a lower accuracy" if lower else f"{title} and reached a higher accuracy"


def _how(runs: list[Run], pair: Pair) -> str:
    """The figures behind the title."""
    gpu, cpu = runs[pair.gpu], runs[pair.cpu]
    if gpu["iterations"] == cpu["iterations"]:
        text = (
            f"{fmt.seconds(gpu['train_seconds'])} instead of {fmt.seconds(cpu['train_seconds'])} for "
            f"{fmt.counted(gpu['iterations'], 'step')} of {fmt.counted(gpu['batch_size'], 'image')}"
        )
    else:
        rates = [fmt.rate(run["images_per_second"], "images") for run in (gpu, cpu)]
        steps = [fmt.count(run["iterations"]) for run in (gpu, cpu)]
        text = f"{rates[0]} instead of {rates[1]}; they trained for {steps[0]} and {steps[1]} steps"
    if gpu["precision"] != cpu["precision"]:
        text += f", the GPU in {gpu['precision']}, the CPU in {cpu['precision']}"
    else:
        text += f", both in {gpu['precision']}"
    if gpu["test_accuracy"] is not None and cpu["test_accuracy"] is not None:
        text += f"; {fmt.percent(gpu['test_accuracy'])} and {fmt.percent(cpu['test_accuracy'])} of {_tested(gpu)} right"
    if engines_differ([gpu, cpu]):
        text += f". The GPU ran the engine {gpu['engine']}, the CPU the engine {cpu['engine']}"
        if "reference" in (gpu["engine"], cpu["engine"]):
            text += ": a tuned program beside one that is not, so that the ratio is not of the processors alone"
    else:
        text += f". Both ran the engine {gpu['engine']}"
    return text + "."


def _others(runs: list[Run], shown: Pair) -> list[str]:
    """One sentence for the other comparisons, where there are any."""
    names = labels(runs)
    said = []
    for pair in pairs(runs):
        r = main_ratio(runs, pair)
        if pair != shown and r is not None:
            said.append(f"{names[pair.gpu]}: {times_faster(r)} {names[pair.cpu]}")
    return ["; ".join(said) + "."] if said else []


def _alone(result: dict[str, Any], runs: list[Run]) -> str:
    """The title where there is nothing to compare with."""
    best = max(runs, key=lambda run: run["images_per_second"])
    gpu = is_gpu(best)
    both = len({is_gpu(run) for run in runs}) == 2
    accuracy = best["test_accuracy"]
    reached = f" and reached {fmt.percent(accuracy)} accuracy" if accuracy is not None else ""
    trained = f"trained {best['model']} at {fmt.rate(best['images_per_second'], 'images')}{reached}"
    if not best["images_per_second"]:
        trained = f"trained {best['model']} for no time at all"
    if both:
        return f"The {'GPU' if gpu else 'CPU'} {trained}; no two runs can be compared"
    if gpu:
        return f"The {gpu_name(result, best)} {trained}; no CPU was run to compare it with"
    return f"Only a CPU ran: it {trained}"


def _why(result: dict[str, Any], runs: list[Run]) -> str:
    """Why there is no GPU, where there is none and the reason is known."""
    missing = result["environment"].get("cuda_missing")
    return f"No GPU was compared: {missing}." if missing and not any(map(is_gpu, runs)) else ""


def _work(run: Run) -> list[str]:
    """What a single run did."""
    if not run["iterations"]:
        return []
    right = f"; {fmt.percent(run['test_accuracy'])} of {_tested(run)} right" if run["test_accuracy"] is not None else ""
    steps = f"{fmt.counted(run['iterations'], 'step')} of {fmt.counted(run['batch_size'], 'image')}"
    return [f"{fmt.seconds(run['train_seconds'])} for {steps}, in {run['precision']}{right}."]


def _tested(run: Run) -> str:
    number = images_tested(run)
    split = run.get("test_split") or "test"
    return fmt.counted(number, f"{split} image") if number else f"the {split} images"


def _ladder(result: dict[str, Any]) -> list[str]:
    """Of each problem of a ladder its fastest rung, beside the slowest; the first sentence is a title."""
    said = []
    for problem in result.get("ladder", {"problems": []})["problems"]:
        if ends := slowest_and_fastest(problem):
            slow, fast = ends
            work = problem["description"].partition(",")[0]
            times = fast["images_per_second"] / slow["images_per_second"]
            said.append(
                f"{work[:1].upper()}{work[1:]}: {fmt.rate(fast['images_per_second'], 'images')} by {fast['name']}, "
                f"{fmt.ratio(times)} as many as by {slow['name']}"
            )
    return [*said[:1], *(f"{sentence}." for sentence in said[1:])]


def _parity(result: dict[str, Any]) -> list[str]:
    """In one sentence the lockstep test that matters most: of those that failed, if any, then of two devices.

    Among such, that which came closest to its tolerance.
    """
    tested = result.get("parity", [])
    if not tested:
        return []
    p = max(tested, key=lambda p: (not p["passed"], _is_of_two(p), p["max_loss_difference"] / p["tolerance"]))
    text = (
        f"in {fmt.counted(p['steps'], 'step')} of lockstep the losses of {p['candidate']} and {p['reference']} "
        f"differ by at most {fmt.scientific(p['max_loss_difference'])}, relatively"
    )
    if p["passed"]:
        return [f"The same computation: {text}."]
    return [
        f"The parity test failed: {text}, and not the {fmt.scientific(p['tolerance'])} allowed. "
        f"Until that is explained, do not take the two for the same computation."
    ]


def _is_of_two(parity: dict[str, Any]) -> bool:
    """Whether its sides computed on two devices: "cuda:0 float32 plan", "cpu float32 plan"."""
    return parity["candidate"].split()[0] != parity["reference"].split()[0]


def _bars(runs: list[Run]) -> tuple[str, list[Bar]]:
    """Training times where all runs did the same work, else times of one image."""
    if not runs:
        return "", []
    same = len({(run["iterations"], run["batch_size"]) for run in runs}) == 1
    if same:
        measure, times = "training time", [run["train_seconds"] for run in runs]
    else:
        measure, times = "time for 1,000 images", [over(1000, run["images_per_second"]) or 0.0 for run in runs]
    longest = max(times) or 1.0
    return measure, [
        Bar(
            name,
            is_gpu(run),
            fmt.seconds(seconds),
            seconds / longest,
            f"{fmt.seconds(per_iteration(run))} a step, {fmt.rate(run['images_per_second'], 'images')}"
            if run["iterations"]
            else "no step",
        )
        for run, name, seconds in zip(runs, labels(runs), times, strict=True)
    ]

"""The table of a result: a column for each run, a row for each thing that was measured; and the smaller tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bareconv.report import format as fmt
from bareconv.report.headline import cpu_name, gpu_name
from bareconv.report.palette import COMPONENTS
from bareconv.report.runs import (
    JOIN,
    Run,
    images_tested,
    is_gpu,
    labels,
    main_ratio,
    operations,
    over,
    pairs,
    per_iteration,
    phase,
)


@dataclass(frozen=True)
class Cell:
    """A value, and beside it how many times faster than the CPU it is, where it says that."""

    text: str
    ratio: str = ""


@dataclass(frozen=True)
class Row:
    """One thing measured. ``best``: the index of the best run's cell, where there is one best."""

    name: str
    cells: list[Cell]
    note: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Section:
    """Rows under one heading."""

    name: str
    rows: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Column:
    """A run: its name and whether it is a GPU's."""

    name: str
    gpu: bool


Value = Callable[[Run], float | None]


def columns(runs: list[Run]) -> list[Column]:
    """The table's columns."""
    return [Column(name, is_gpu(run)) for run, name in zip(runs, labels(runs), strict=True)]


def common(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What is the same for every run, as name and value; the table then need not say it in each column."""
    return [(row.name, row.cells[0].text) for row in _settings(result["runs"]) if _agree(row) and _known(row)]


def sections(result: dict[str, Any]) -> list[Section]:
    """The whole table, but for what is ``common``. Rows of which no run knows anything are left out."""
    runs = result["runs"]
    device = [gpu_name(result, run) if is_gpu(run) else cpu_name(result, run) for run in runs]
    what = [
        Row("Device", [Cell(name) for name in device]),
        Row("Engine", [Cell(run["engine"]) for run in runs]),
        Row("Threads", [Cell(fmt.count(run["threads"]) if run.get("threads") else fmt.MISSING) for run in runs]),
        Row("Precision", [Cell(run["precision"]) for run in runs]),
        *(row for row in _settings(runs) if not _agree(row)),
    ]
    found = [
        Section("What ran", what),
        Section("Time", _times(runs)),
        Section("Outcome", _outcome(runs)),
    ]
    return [Section(section.name, [row for row in section.rows if _known(row)]) for section in found]


def _known(row: Row) -> bool:
    return any(cell.text != fmt.MISSING for cell in row.cells)


def _agree(row: Row) -> bool:
    return len({cell.text for cell in row.cells}) == 1


def _settings(runs: list[Run]) -> list[Row]:
    def text(name: str, value: Callable[[Run], object], note: str = "") -> Row:
        values = [value(run) for run in runs]
        return Row(name, [Cell(fmt.MISSING if v in (None, "") else str(v)) for v in values], note)

    def known(key: str) -> Callable[[Run], str | None]:
        return lambda run: fmt.count(run[key]) if key in run else None

    return [
        text("Model", lambda run: run["model"]),
        text("Parameters", known("parameters")),
        text("Data", lambda run: run.get("data")),
        text("Training images", known("train_images")),
        text("Batch size", lambda run: fmt.count(run["batch_size"])),
        text("Epochs", lambda run: fmt.count(run["epochs"])),
        text("Steps", lambda run: fmt.count(run["iterations"])),
        text("Seed", lambda run: run.get("seed")),
        text("Optimizer", lambda run: run.get("optimizer")),
        text("Schedule", lambda run: run.get("schedule")),
    ]


def _times(runs: list[Run]) -> list[Row]:
    partner = {pair.gpu: pair.cpu for pair in pairs(runs)}

    def times(name: str, value: Value, note: str = "", *, whole: bool = False) -> Row:
        """``whole``: of the whole run, comparable only where both did the same steps."""
        cells = []
        for i, run in enumerate(runs):
            cpu = runs[partner[i]] if i in partner else None
            fair = cpu is not None and not (whole and cpu["iterations"] != run["iterations"])
            r = over(value(cpu), value(run)) if cpu is not None and fair else None
            cells.append(Cell(fmt.seconds(value(run)), fmt.ratio(r) if r is not None else ""))
        return Row(name, cells, note)

    speed = {pair.gpu: main_ratio(runs, pair) for pair in pairs(runs)}
    rows = [
        times("Total", lambda run: run.get("total_seconds"), "set-up, transfer, training, evaluation", whole=True),
        times("Training", lambda run: run["train_seconds"], "the steps alone", whole=True),
        times("One iteration", per_iteration),
        times("Batch", lambda run: phase(run, "batch"), "gathered and normalised"),
        times("Forward", lambda run: phase(run, "forward"), "with the loss"),
        times("Backward", lambda run: phase(run, "backward")),
        times("Forward and backward", lambda run: phase(run, "forward_backward"), "which this engine does not part"),
        times("Update", lambda run: phase(run, "update")),
        times("Other", lambda run: phase(run, "other"), "waiting for other threads, starting a step"),
        times("Warm-up", lambda run: run.get("warm_up_seconds"), "before the clock starts, in no other figure"),
        times("Compiling", lambda run: run.get("compile_seconds"), "once, in no other figure"),
        times("Evaluation", lambda run: run.get("evaluate_seconds")),
        Row("Images a second", [Cell(fmt.rate(run["images_per_second"])) for run in runs]),
        Row("Arithmetic", [Cell(fmt.flops(_flops(run))) for run in runs], "the layers' work, counted directly"),
    ]
    if any(r is not None for r in speed.values()):
        cells = [Cell(fmt.ratio(speed.get(i))) for i in range(len(runs))]
        rows.append(Row("Speed-up", cells, "GPU over CPU, training", strong=True))
    return rows


def _outcome(runs: list[Run]) -> list[Row]:
    return [
        Row(
            "Accuracy",
            [Cell(fmt.percent(run["test_accuracy"])) for run in runs],
            _split(runs),
            strong=True,
        ),
        Row(
            "Loss",
            [Cell(fmt.significant(x) if (x := run.get("test_loss")) is not None else fmt.MISSING) for run in runs],
        ),
        Row(
            "Peak memory",
            [Cell(fmt.bytes_(run["peak_memory_bytes"] or None)) for run in runs],
            "process (CPU), device (GPU)",
        ),
    ]


def _split(runs: list[Run]) -> str:
    """What the accuracies were measured on, where it is the same for all."""
    splits = {run.get("test_split") for run in runs if run["test_accuracy"] is not None}
    numbers = {images_tested(run) for run in runs if run["test_accuracy"] is not None}
    if len(splits) != 1 or len(numbers) != 1 or None in splits | numbers:
        return ""
    return f"of {fmt.counted(numbers.pop() or 0, f'{splits.pop()} image')}"


def _flops(run: Run) -> float | None:
    return run["flops_per_image"] * run["images_per_second"] if run.get("flops_per_image") else None


def memory_rows(runs: list[Run]) -> list[Row]:
    """Memory by component; empty where no run knows its components."""
    if not any(run.get("memory") for run in runs):
        return []
    return [
        Row(part.capitalize(), [Cell(fmt.bytes_(run.get("memory", {}).get(part))) for run in runs])
        for part in COMPONENTS
    ] + [Row("Peak", [Cell(fmt.bytes_(run["peak_memory_bytes"])) for run in runs], strong=True)]


def operation_rows(runs: list[Run]) -> list[Row]:
    """Forward and backward seconds of every operation of every run that was profiled."""
    every = [o for run in runs for o in run.get("operations", ())]
    shapes = {o["name"].split(JOIN)[-1]: o.get("output_shape", ()) for o in reversed(every)}  # by the last layer
    return [
        Row(
            name,
            [Cell(f"{fmt.seconds(t[0])} + {fmt.seconds(t[1])}" if t else fmt.MISSING) for t in times],
            " × ".join(map(str, shapes.get(name.split(JOIN)[-1], ()))),
        )
        for name, times in operations(runs).items()
    ]


def epoch_rows(runs: list[Run]) -> list[Row]:
    """Training loss and test accuracy after each epoch."""
    epochs = sorted({e["epoch"] for run in runs for e in run["history"]["epochs"]})
    rows = []
    for number in epochs:
        cells = []
        for run in runs:
            found = next((e for e in run["history"]["epochs"] if e["epoch"] == number), None)
            if found is None:
                cells.append(Cell(fmt.MISSING))
                continue
            accuracy = found.get("test_accuracy")
            right = f", {fmt.percent(accuracy)}" if accuracy is not None else ""
            cells.append(Cell(f"{fmt.significant(found['train_loss'])}{right}, {fmt.seconds(found['train_seconds'])}"))
        rows.append(Row(f"Epoch {number}", cells))
    return rows


def environment_rows(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """The machine, as name and value."""
    cpu, blas = environment["cpu"], environment["blas"]
    cores = f"{cpu['cores_allowed']} of {cpu['cores']} logical cores"
    if cpu.get("quota") is not None:
        cores += f" (container quota {fmt.count(cpu['quota'])})"
    threads = blas.get("threads")
    library = " ".join(filter(None, (blas["library"], blas.get("version"), blas.get("architecture"))))
    rows = [
        ("CPU", f"{cpu['model']}, {cores}"),
        ("SIMD", ", ".join(cpu.get("simd", ()))),
        ("Memory", fmt.bytes_(cpu["memory_bytes"]) if cpu.get("memory_bytes") else ""),
        ("BLAS", f"{library}, {fmt.counted(threads, 'thread')}" if threads else library),
    ]
    for gpu in environment["gpus"]:
        facts = [gpu["name"]]
        if gpu.get("memory_bytes"):
            facts.append(fmt.bytes_(gpu["memory_bytes"]))
        for key, name in (
            ("compute_capability", "compute capability"),
            ("driver", "driver"),
            ("driver_cuda", "CUDA up to"),
        ):
            if gpu.get(key):
                facts.append(f"{name} {gpu[key]}")
        if gpu.get("sm_clock_max_hz"):
            facts.append(f"up to {fmt.metric(gpu['sm_clock_max_hz'], 'Hz')}")
        if gpu.get("power_limit_watts"):
            facts.append(f"up to {fmt.metric(gpu['power_limit_watts'], 'W')}")
        if "ecc" in gpu:
            facts.append(f"ECC {'on' if gpu['ecc'] else 'off'}")
        if "persistence" in gpu:
            facts.append(f"persistence {'on' if gpu['persistence'] else 'off'}")
        rows.append(("GPU", ", ".join(facts)))
    if environment.get("cuda_missing"):
        rows.append(("No GPU used", environment["cuda_missing"]))
    rows += [("System", environment["platform"]), ("Python", environment["python"])]
    packages = [f"{name} {version}" for name, version in environment["packages"].items() if version]
    rows.append(("Packages", ", ".join(packages)))
    rows += [("Variables", f"{name}={value}") for name, value in environment.get("variables", {}).items()]
    return [(name, value) for name, value in rows if value]


def setting_rows(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Every option, as name and value."""
    return [(name.replace("_", "-"), in_words(value)) for name, value in settings.items()]


def in_words(value: object) -> str:
    """A value of a result file as a person writes it: "yes", "1, 2", "seed: 0, size: (28, 28)"."""
    if value is None or value == "":
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_within(v)}" for k, v in value.items()) or "empty"
    if isinstance(value, list | tuple):
        return ", ".join(map(_within, value)) or "empty"
    return str(value)


def _within(value: object) -> str:
    """A part of a value: where it has commas of its own they are its alone."""
    text = in_words(value)
    return f"({text})" if isinstance(value, dict | list | tuple) and len(value) > 1 else text

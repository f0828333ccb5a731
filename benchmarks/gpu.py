"""Everything that a GPU has to say, in one go: the tests, the sanitizers, a roofline, and our plan beside PyTorch.

    python benchmarks/gpu.py --tests --budget 420
    python benchmarks/gpu.py --case basic:64,256:bfloat16 --variant "* graph *" --no-compile --budget 60

    python benchmarks/gpu.py --add --no-timing --tests

A run with --add keeps what the file has, but for what it measures anew.

A case is MODEL:BATCHES:PRECISIONS. Each candidate is a process of its own; they get ready side by side and are tried
briefly, and the fastest of each of PyTorch's modes are then measured by turns with ours, one at a time
(``bareconv.bench.contests``). The result is written after every part and every case, so that a run that is cut short
keeps what it has done.
"""

from __future__ import annotations

import functools
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bareconv import host
from bareconv.bench import results, roofline
from bareconv.bench.contests import Contest, Times, compete, contest
from bareconv.bench.environment import describe, git_commit
from bareconv.bench.parts import (
    FOUND_EXIT_CODE,
    SANITIZED,
    SANITIZERS,
    pytest_command,
    run_part,
    sanitized_command,
    sanitizer_command,
    side_by_side,
)
from bareconv.bench.peers import find, record
from bareconv.bench.steady import run_record
from bareconv.bench.workload import LR, Workload, cases, natural_shape
from bareconv.device import Device, get_device
from bareconv.errors import BareconvError, UsageError
from bareconv.training import ENGINES
from bareconv.training.precision import ON_GPU_ONLY

ROOT = Path(__file__).resolve().parent.parent
SMALLEST_FIRST = ("basic:64,256,1024:bfloat16,tf32,float32", "lenet5:64:bfloat16", "small:256:bfloat16")
CASES = (*SMALLEST_FIRST, "resnet9:512:bfloat16", "resnet18:512:bfloat16")
VARIANTS = (
    "* eager",
    "* eager autocast",
    "* graph",
    "* graph *",
    "channels_last compile",
    "channels_last compile *",
)
# torch.compile times hundreds of kernels for each of them, one at a time on the GPU, whoever asks: all cases' together
# take longer than all else. What was not ready in time lies in its cache, for a run with --add.
COMPILED = ("basic:256:bfloat16", "resnet9:512:bfloat16")
# What a sanitizer has to report of tests/harness/planted.py.
PLANTED = {
    "memcheck": {"a fault on purpose is found": "beyond"},
    "racecheck": {"a fault on purpose is found": "race", "its known false alarm": "teams"},
}


def kernel_tests() -> tuple[str, ...]:
    """The files with tests that launch kernels."""
    files = sorted((ROOT / "tests" / "kernels" / "cuda").glob("test_*.py"))
    return tuple(file.relative_to(ROOT).as_posix() for file in files if "(launch" in file.read_text(encoding="utf-8"))


NAMED = ("model", "batch_size", "precision")  # what a workload is called by


class Report:
    """What there is so far; writes it when told."""

    def __init__(self, settings: dict[str, Any], device: Device, output: Path, commit: str | None) -> None:
        self.settings, self.device, self.output, self.commit = settings, device, output, commit
        self.environment = describe()
        self.parts: list[dict[str, Any]] = []
        self.contests: list[Contest] = []
        self.measured: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {}
        self.notes: dict[str, list[str]] = {}
        self.absent: dict[str, str] = {}
        self.rooflines: list[dict[str, Any]] | None = None

    def take_over(self, earlier: dict[str, Any]) -> None:
        """What an earlier run has measured. UsageError where that was of another commit, or on another GPU."""
        for name, was, now in (
            ("commit", earlier.get("commit"), self.commit or git_commit()),
            ("GPUs", earlier["environment"]["gpus"], self.environment["gpus"]),
        ):
            if was != now:
                raise UsageError(f"{self.output}: its {name}: {was}; of this run: {now}: they are no one result")
        self.settings = {**self.settings, "earlier": earlier["settings"]}
        self.parts, self.rooflines = earlier.get("parts", []), earlier.get("rooflines")
        for entry in earlier.get("peers", []):
            same = [run for run in earlier["runs"] if all(run[name] == entry[name] for name in NAMED)]
            key = f"{entry['model']}, batch {entry['batch_size']}, {entry['precision']}"
            self.measured[key] = same, entry
            self.notes[key] = [note for note in earlier.get("notes", []) if note.startswith(key)]
        known = tuple(self.measured)
        self.notes["earlier"] = [note for note in earlier.get("notes", []) if not note.startswith(known)]

    def part(self, part: dict[str, Any]) -> None:
        """One more part, which is written and said."""
        self.parts = [*(one for one in self.parts if one["name"] != part["name"]), part]
        say(f"{part['name']}: {part['status']} after {part['seconds']:.0f} s")
        for line in part["said"] if part["status"] != "passed" else part["said"][-1:]:
            print(f"    {line}", flush=True)
        self.write()

    def contest(self, one: Contest) -> None:
        """A contest as far as it is."""
        key = f"{one.workload.title}, {one.workload.precision}"
        runs = [run_record(one, side) for side in one.engines]
        self.measured[key] = [run for run in runs if run is not None], record(one, self.absent)
        notes = [f"{key}, {side.candidate.label}: {side.error}." for side in one.everyone if side.error is not None]
        others = [side for side in one.engines if side.engine != side.candidate.name]
        notes += [f"{key}: {side.engine} ran instead of {side.candidate.name}." for side in others]
        if one.late and not any(side in one.late for side in one.sides):
            notes.append(f"{key}: what torch.compile makes was not measured yet.")
        self.notes[key] = notes
        self.write()

    def write(self) -> None:
        """The whole file, anew."""
        result = results.new(
            "benchmarks/gpu.py",
            self.settings,
            runs=[run for runs, _ in self.measured.values() for run in runs],
            peers=[entry for _, entry in self.measured.values()],
            parts=self.parts,
            rooflines=self.rooflines,
            notes=[note for notes in self.notes.values() for note in notes],
            environment=self.environment,
        )
        if self.commit is not None:
            result["commit"] = self.commit
        try:
            results.write(result, self.output)
        except BareconvError as error:  # what comes later may still be written
            say(str(error))

    def table(self) -> str:
        """A line a case: microseconds of a step."""
        head = ("case", "ours", "eager", "graph", "compile", "best of PyTorch", "ratio")
        rows = [head, *(_row(key, entry) for key, (_, entry) in self.measured.items())]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _row(key: str, entry: dict[str, Any]) -> tuple[str, ...]:
    def step(candidate: dict[str, Any] | None) -> str:
        if candidate is None:
            return ""
        if "throughput" not in candidate:
            return str(candidate["status"])
        return f"{1e6 * entry['batch_size'] / candidate['throughput']['images_per_second']:,.1f}"

    theirs = [one for one in entry["candidates"] if not one["ours"]]
    by_mode = {one["options"].get("mode"): one for one in theirs}
    measured = [one for one in theirs if "throughput" in one]
    best = max(measured, key=lambda one: one["throughput"]["images_per_second"], default=None)
    ours = next((one for one in entry["candidates"] if one["ours"]), None)
    modes = [step(by_mode.get(mode)) for mode in ("eager", "graph", "compile")]
    ratio = f"{best['ratio']['value']:.2f}" if best is not None and "ratio" in best else ""
    return (key, step(ours), *modes, "" if best is None else best["variant"], ratio)


STARTED = time.monotonic()


def say(text: str) -> None:
    """A line of how it goes on."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", flush=True)


def short_name(device: Device) -> str:
    """A file's name for it: "h200" for "NVIDIA H200"."""
    return re.sub(r"\W+", "-", device.description.lower().removeprefix("nvidia ")).strip("-")


@click.command()
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="[default: benchmarks/results/GPU.json]"
)
@click.option("--add", is_flag=True, help="Keep what the file has of the same commit and GPU, and add to it.")
@click.option("--device", "device_name", default="cuda", show_default=True)
@click.option("--case", "case_words", multiple=True, default=CASES, show_default=True, help="MODEL:BATCHES:PRECISIONS")
@click.option(
    "--compile", "compile_words", multiple=True, default=COMPILED, show_default=True, help="Cases with torch.compile."
)
@click.option("--no-compile", is_flag=True, help="torch.compile takes no part.")
@click.option(
    "--variant", "variants", multiple=True, default=VARIANTS, show_default=True, help="Patterns of PyTorch's."
)
@click.option("--engine", "engines", multiple=True, type=click.Choice(ENGINES), default=("plan",), show_default=True)
@click.option("--python", help="A Python that has PyTorch. [default: this one]")
@click.option("--budget", default=420.0, show_default=True, help="Seconds of timing, all in all.")
@click.option("--first", default=4.0, show_default=True, help="Seconds of measuring a case that is measured again.")
@click.option("--second", default=6.0, show_default=True, help="The same of any other, and with what was compiled.")
@click.option("--parallel", type=int, help="Candidates that get ready at once. [default: the cores]")
@click.option("--threads", default=2, show_default=True, help="CPU threads of a candidate.")
@click.option("--lr", default=LR, show_default=True)
@click.option("--tests", is_flag=True, help="Run the tests that need a GPU, first.")
@click.option("--sanitize", "sanitized", multiple=True, default=kernel_tests(), help="Tests to run under sanitizers.")
@click.option(
    "--roofline", "rooflines", multiple=True, default=roofline.CASES, show_default=True, help="Cases for one."
)
@click.option("--no-roofline", is_flag=True, help="No roofline.")
@click.option("--no-sanitize", is_flag=True, help="No sanitizer.")
@click.option("--part-seconds", default=180.0, show_default=True, help="The longest that a part may take.")
@click.option("--sanitizer-seconds", default=300.0, show_default=True, help="The longest that a sanitizer may take.")
@click.option("--commit", help="Of this checkout, where git is not there to say it.")
@click.option("--no-timing", is_flag=True, help="Only the tests and the sanitizers.")
def main(**options: Any) -> None:
    """Test, sanitize, measure; write the result and print a table."""
    try:
        run(options)
    except BareconvError as error:
        raise click.ClickException(str(error)) from None


def run(options: dict[str, Any]) -> None:
    """What the options say."""
    device = get_device(options["device_name"])
    chosen = cases(options["case_words"])
    if device.name == "cpu" and any(precision in ON_GPU_ONLY for _, _, precision in chosen):
        raise UsageError(f"--device cpu: {' and '.join(ON_GPU_ONLY)} need a GPU; name other cases")
    output = options["output"] or ROOT / "benchmarks" / "results" / f"{short_name(device)}.json"
    kept = {name: value for name, value in options.items() if name not in ("output", "python", "commit")}
    report = Report(kept, device, output, options["commit"])
    if options["add"] and output.exists():
        report.take_over(results.read(output))
    report.write()  # at once, so that what keeps it from being written is known at the beginning
    if options["tests"]:
        report.part(run_part("tests", pytest_command(), options["part_seconds"], ROOT))
    for tool in () if options["no_sanitize"] else SANITIZERS:
        report.part(sanitize(tool, options["sanitized"], options["sanitizer_seconds"], options["parallel"]))
    if options["rooflines"] and not options["no_roofline"] and device.name != "cpu":
        draw_rooflines(report, options)
    if not options["no_timing"]:
        time_cases(report, chosen, options)
    report.write()
    print(f"\nMicroseconds of a step, and PyTorch's best over ours:\n{report.table()}\nWrote {output}")


def sanitize(tool: str, tests: Sequence[str], seconds: float, parallel: int | None) -> dict[str, Any]:
    """All tests under a sanitizer, file by file side by side; and what it has to report."""
    runs = [
        functools.partial(
            run_part, test, sanitizer_command(tool, sanitized_command(test)), seconds, ROOT, SANITIZED[tool]
        )
        for test in tests
    ]
    for name, planted in PLANTED[tool].items():
        command = sanitizer_command(tool, ["tests/harness/planted.py", planted])
        runs.append(functools.partial(run_part, name, command, seconds, ROOT, wanted=FOUND_EXIT_CODE))
    return side_by_side(tool, runs, parallel or host.allowed_cores())


def draw_rooflines(report: Report, options: dict[str, Any]) -> None:
    """In a process of its own: what it holds of the GPU is free again, and what fails there ends nothing here."""
    with tempfile.TemporaryDirectory(prefix="bareconv-") as name:
        file = Path(name) / "roofline.json"
        command = ["python", "benchmarks/roofline.py", "--output", str(file), "--device", options["device_name"]]
        command += [word for case in options["rooflines"] for word in ("--case", case)]
        part = run_part("roofline", command, options["part_seconds"], ROOT)
        if file.exists():  # whatever came after
            report.rooflines = results.read(file)["rooflines"]
            for one in report.rooflines or []:
                print(roofline.table(one), flush=True)
    report.part(part)


def time_cases(report: Report, chosen: list[tuple[str, int, str]], options: dict[str, Any]) -> None:
    """Our engines and PyTorch on every case."""
    device, parallel = report.device, options["parallel"] or host.allowed_cores()
    compiled = [] if options["no_compile"] else cases(options["compile_words"])
    share = max(2, 2 * host.allowed_cores() // max(1, min(parallel, len(compiled))))
    times = Times(options["budget"], options["first"], options["second"])
    peers = find(["pytorch"], options["python"], device.name)
    report.absent = peers.absent
    with tempfile.TemporaryDirectory(prefix="bareconv-") as name:
        contests = []
        for model, batch_size, precision in chosen:
            try:
                workload = Workload(
                    *(model, natural_shape(model), batch_size, precision, options["lr"]), threads=options["threads"]
                )
                contests.append(
                    contest(
                        *(workload, device.name, options["engines"], peers),
                        Path(name) / f"{model}-{batch_size}-{precision}",
                        options["variants"],
                        compiled=(model, batch_size, precision) in compiled,
                        compile_threads=share,
                    )
                )
            except BareconvError as error:
                report.notes[f"{model} {batch_size} {precision}"] = [f"{model}, batch {batch_size}: {error}."]
        compete(contests, times, parallel, report.contest, say)


if __name__ == "__main__":
    main()

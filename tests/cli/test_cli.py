"""The command line as a whole: help, exit codes, errors in one line, pipes, other encodings."""

from __future__ import annotations

import importlib
import io
import math
import os
import re
import subprocess
import sys
import time

import pytest

import bareconv
from bareconv.cli import VERBS
from bareconv.cli.bench import VERBS as BENCH_VERBS
from bareconv.cli.legible import make_legible
from bareconv.device import why_no_cuda
from bareconv.errors import BareconvError

LEAVES = [*(verb for verb in VERBS if verb != "bench"), *(f"bench {verb}" for verb in BENCH_VERBS)]

BAD_USAGE = [
    (["trian"], "there is no verb 'trian'; expected one of train, evaluate, predict, "),
    (["train", "--epohcs", "2"], "'--epohcs'.*--epochs.*see bareconv train --help"),
    (["--model", "mlp"], "--model.*see bareconv --help"),
    (["train", "--epochs"], "--epochs.*requires an argument"),
    (["train", "--epochs", "0"], "'--epochs': 0 is not in the range"),
    (["train", "--epochs", "two"], "'--epochs': 'two' is not a valid integer"),
    (["train", "--model", "gpt"], "'--model'.*mlp.*resnet18"),
    (["train", "--optimizer", "lion"], "'--optimizer'.*sgd.*adamw"),
    (["train", "--schedule", "stairs"], "'--schedule'.*constant.*one-cycle"),
    (["train", "--precision", "float16"], "'--precision'.*float32.*float64"),
    (["train", "--engine", "steam"], "'--engine'.*reference"),
    (["train", "--seed", "-1"], "'--seed'.*-1 is not in the range"),
    (["train", "--limit", "0"], "'--limit'.*0 is not in the range"),
    (["train", "extra"], "unexpected extra argument.*extra"),
    (["train", "--device", "tpu"], "device 'tpu': expected cpu, cuda, cuda:1"),
    (["train", "--device", "cuda:x"], "device 'cuda:x': expected cpu, cuda, cuda:1"),
    (["train", "--device", "cuda:99"], "device cuda:99: "),
    (["compare", "--device", "tpu"], "device 'tpu': expected"),
    (["check", "--device", "tpu"], "device 'tpu': expected"),
    (["train", "--optimizer", "adam", "--momentum", "0.5"], "--momentum goes with sgd and rmsprop; adam has none"),
    (["train", "--optimizer", "rmsprop", "--nesterov"], "--nesterov goes with sgd; rmsprop has none"),
    (["train", "--nesterov", "--momentum", "0"], "(?i)nesterov"),
    (["train", "--lr", "-1"], "SGD: lr must be a number, at least 0; got -1.0"),
    (["train", "--lr", "nan"], "lr must be a number, at least 0; got nan"),
    (["train", "--momentum", "1"], "momentum must be a number.*got 1.0"),
    (["train", "--weight-decay", "-1"], "weight_decay must be a number.*got -1.0"),
    (["train", "--warmup", "1"], "warmup must be a number.*got 1.0"),
    (["train", "--limit", "100", "--label-smoothing", "1"], "label smoothing 1.0: expected at least 0 and less than 1"),
    (["train", "--limit", "100", "--clip-norm", "0"], "clip at, 0.0: expected more than 0"),
    (["train", "--validation", "many"], "--validation 'many': expected a number of images, or a share"),
    (["train", "--validation", "1.5"], "hold out 1.5: expected a share between 0 and 1"),
    (["train", "--validation", "-3"], "hold out -3: expected from 1 to 59999"),
    (["train", "--validation", "60000"], "hold out 60000: expected from 1 to 59999"),
    (["train", "--data", "nowhere.csv"], "nowhere.csv: no such file or directory"),
    (["compare", "--data", "nowhere"], "nowhere: no such file or directory"),
    (["evaluate"], "(?i)missing argument 'checkpoint'.*see bareconv evaluate --help"),
    (["evaluate", "nothing"], "nothing: there is no such file; expected a checkpoint that `bareconv train` wrote"),
    (["predict", "nothing"], "(?i)missing argument 'inputs"),
    (["predict", "nothing", "test.csv"], "nothing: there is no such file"),
    (["predict", "nothing", "a.csv", "b.png"], "expected one CSV, or images; got a.csv among 2 inputs"),
    (["compare", "--preset", "original", "--model", "basic"], "--model is set by --preset original; leave one"),
    (["compare", "--preset", "original", "--batch-size", "3"], "--batch-size is set by --preset original"),
    (["compare", "--preset", "modern"], "'--preset'.*original"),
    (["compare", "--parity-steps", "-1"], "'--parity-steps': -1 is not in the range"),
    (["info", "--verbose"], "--verbose"),
    (["bench", "jump"], "there is no verb 'jump'; expected one of run, peers.*sweep.*see bareconv bench --help"),
    (["bench", "run", "--model", "gpt"], "'--model'.*mlp.*resnet18.*see bareconv bench run --help"),
    (["bench", "run", "--engine", "steam"], "'--engine'.*reference"),
    (["bench", "run", "--budget", "0"], "'--budget': 0.0 is not in the range"),
    (["bench", "run", "--image-shape", "28x28"], "'28x28': expected height x width x channels, such as 28x28x1"),
    (["bench", "run", "--image-shape", "3x3x1", "--model", "lenet5"], "layer conv"),
    (["bench", "run", "--device", "tpu"], "device 'tpu': expected cpu, cuda"),
    (["bench", "peers", "--output", "."], "--output .: that is a folder|'--output'.*directory"),
    (["bench", "sweep", "--axis", "height"], "'--axis'.*batch-size.*image-size.*width.*images.*threads"),
    (["bench", "sweep", "--values", "1,two"], "batch size 'two': expected numbers with commas between them"),
    (["bench", "sweep", "--values", "0,4"], "batch size 0: expected a whole number of at least 1"),
    (["bench", "sweep", "--axis", "threads", "--values", "1,99999"], "--values 99999: this process may use .* cores"),
    (
        ["bench", "sweep", "--engine", "reference", "--precision", "tf32", "--device", "tpu"],
        "device 'tpu': expected cpu",
    ),
    (["bench", "sweep", "--folder", "nowhere"], "'--folder'.*'nowhere' does not exist"),
    (["bench", "peers", "--peer", "abacus"], "'--peer'.*pytorch.*dezero"),
    (["bench", "peers", "--python", "nowhere"], "--python nowhere: there is no program of that name"),
]


@pytest.mark.parametrize(("words", "message"), BAD_USAGE, ids=[" ".join(words) for words, _ in BAD_USAGE])
def test_bad_usage_is_one_line_and_leaves_nothing(words, message, run, here, listing):
    little = ["--model", "mlp", "--limit", "100"] if words[0] == "train" else []  # should it be taken after all
    outcome = run(words[0], *little, *words[1:])
    assert outcome.code == 2
    assert outcome.out == ""
    assert re.search(message, outcome.complaint()), outcome.err
    assert listing() == []


def test_no_gpu_is_said_with_the_reason(run, here, listing):
    if why_no_cuda() is None:
        pytest.skip("there is a GPU")
    outcome = run("train", "--device", "cuda", "--limit", "100")
    assert (outcome.code, outcome.complaint()) == (2, f"device cuda: {why_no_cuda()}")
    assert listing() == []


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]], ids=" ".join)
def test_help_names_every_verb(words, run):
    outcome = run(*words)
    assert (outcome.code, outcome.err) == (0, "")
    for verb, text in VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(text)}$", outcome.out, re.MULTILINE)
    assert "  bareconv compare --quick\n" in outcome.out


def test_help_of_the_verbs_of_bench(run):
    for words in (["bench"], ["bench", "--help"]):
        outcome = run(*words)
        assert (outcome.code, outcome.err) == (0, "")
        for verb, text in BENCH_VERBS.items():
            assert re.search(rf"^  {verb} +{re.escape(text)}$", outcome.out, re.MULTILINE)
        assert "Examples:\n    bareconv bench run" in outcome.out


@pytest.mark.parametrize("verb", LEAVES)
def test_help_of_a_verb(verb, run):
    """An example, --json, and something to say about every option."""
    outcome = run(*verb.split(), "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"Examples:\n    bareconv {verb}" in outcome.out
    options = re.split(r"\n  (?=-)", outcome.out.split("Options:")[1].split("Examples:")[0])[1:]
    names = {option.split()[0] for option in options}
    assert {"--json", "-h,"} <= names
    for option in options:
        head, _, text = option.partition("  ")
        assert len(" ".join(text.split())) > 10, head


def test_options_that_the_requirement_names():
    command = importlib.import_module("bareconv.cli.train").train
    names = {name for param in command.params for name in param.opts}
    assert names >= {
        *("--model", "--data", "--epochs", "--batch-size", "--optimizer", "--lr", "--schedule", "--seed", "--device"),
        *("--precision", "--validation", "--checkpoint", "--engine", "--json"),
    }


def test_version(run):
    outcome = run("--version")
    assert (outcome.code, outcome.out) == (0, f"bareconv, version {bareconv.__version__}\n")


def python(code, *words, **variables):
    """Another Python, which has imported nothing yet."""
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        encoding=variables.get("PYTHONIOENCODING", "utf-8"),
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **variables},
        timeout=60,
        check=False,
    )


HEAVY = ("numpy", "rich", "matplotlib", "jinja2", "jsonschema", "PIL", "safetensors", "cupy", "bareconv.device")


def test_help_imports_next_to_nothing():
    code = "import sys; from bareconv.cli import run; code = run(['--help']); print('IMPORTED', *sys.modules)"
    done = python(code)
    imported = done.stdout.split("IMPORTED")[1].split()
    assert "click" in imported
    assert not set(HEAVY) & set(imported)


def test_help_is_quick():
    """Under 0.3 s on a quiet machine; this one may be shared, so that the best of some counts."""
    best = math.inf
    for _ in range(5):
        begun = time.perf_counter()
        done = python("from bareconv.cli import main; main(['--help'])")
        best = min(best, time.perf_counter() - begun)
        assert done.returncode == 0
    assert best < 0.6


@pytest.mark.parametrize("verb", LEAVES)
def test_verbs_wait_for_no_figures(verb):
    """Until a figure is drawn or a result written, what does that is not imported: the first step comes soon."""
    done = python(f"import sys, bareconv.cli.{verb.replace(' ', '.')}; print(*sys.modules)")
    assert not {"matplotlib", "jinja2", "jsonschema", "PIL", "cupy"} & set(done.stdout.split())


@pytest.mark.parametrize("words", [["--help"], ["info"], ["info", "--json"], ["check", "--model", "mlp"]], ids=" ".join)
@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_a_pipe_that_closes_early(words, here):
    done = subprocess.run(
        [
            "sh",
            "-c",
            'first=$("$0" -m bareconv "$@" | { read line; echo "$line"; }); echo "$first"',
            sys.executable,
            *words,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr


def test_standard_error_that_closes_early(here):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "bareconv", "fly"], stderr=writer, timeout=60, check=False)
    os.close(writer)
    assert done.returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_other_encodings(encoding, here, trained):
    """What an encoding lacks is written otherwise; a file name may be no text at all."""
    name = os.fsdecode(b"seven-\xff.png")
    code = "import sys; from bareconv.cli import main; main(sys.argv[1:])"
    variables = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    told = python("from bareconv.cli import main; main(['fly \\u4e03 \\xb5'])", **variables)
    assert told.returncode == 2
    written = {"ascii": "fly \\u4e03 u", "latin-1": "fly \\u4e03 µ", "utf-8": "fly \u4e03 µ"}[encoding]
    assert f"'{written}'" in told.stderr
    missing = python(code, "predict", str(trained), name, **variables)
    assert missing.returncode == 2
    assert missing.stderr.startswith("bareconv: seven-\\udcff.png: no such file")


@pytest.mark.parametrize(
    ("text", "ascii_", "latin"),
    [
        ("9.3×10⁻¹²", b"9.3x10^-12", b"9.3\xd710^-12"),
        ("12 µs · – …", b"12 us . - ...", b"12 \xb5s \xb7 - ..."),
        ("digit 七", b"digit \\u4e03", b"digit \\u4e03"),
    ],
)
def test_legible(text, ascii_, latin):
    for encoding, expected in (("ascii", ascii_), ("latin-1", latin)):
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        make_legible(stream)
        stream.write(text)
        stream.flush()
        assert stream.buffer.getvalue() == expected


def test_module_and_script_are_the_same(here):
    done = subprocess.run([sys.executable, "-m", "bareconv", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"bareconv, version {bareconv.__version__}\n"


@pytest.mark.parametrize("verb", LEAVES)
@pytest.mark.parametrize(
    ("error", "code", "note", "complaint"),
    [
        (KeyboardInterrupt(), 130, "Interrupted.", "interrupted"),
        (BareconvError("it did not work"), 1, "it did not work", "it did not work"),
        (OSError(28, "No space left on device", "a/file"), 1, *["a/file: No space left on device"] * 2),
    ],
    ids=["interrupted", "failed", "full"],
)
def test_json_also_where_there_is_nothing_to_report(
    verb, error, code, note, complaint, run, here, listing, trained, monkeypatch
):
    """Exit 1 and 130: one line on standard error, and with --json a result that fits the schema and says why."""

    def fail(*_, **__):
        raise error

    first = {"train": "load_data", "evaluate": "load", "predict": "load", "compare": "load_data", "check": "check_all"}
    first |= {"bench run": "all_devices", "bench sweep": "_devices"}
    first |= dict.fromkeys(["bench peers", "bench clocks", "bench layers"], "chosen_device")
    first |= {"report": "check_writable", "bench diff": "find_result", "bench export": "find_result"}
    monkeypatch.setattr(f"bareconv.cli.{verb.replace(' ', '.')}.{first.get(verb, 'get_device')}", fail)
    more = {"evaluate": [trained], "predict": [trained, "test.csv"], "train": ["--device", "cpu"]}.get(verb, [])
    more = ["result.json"] if verb == "report" else more
    more = {"bench diff": ["a.json", "b.json"], "bench export": ["a.json", "--output", "b.md"]}.get(verb, more)
    outcome = run(*verb.split(), *more)
    assert (outcome.code, outcome.err.strip()) == (code, f"bareconv: {complaint}")
    outcome = run(*verb.split(), *more, "--json")
    assert outcome.code == code
    result = outcome.result()
    assert (result["notes"], result["runs"]) == ([note], [])
    assert result["command"].startswith(f"bareconv {verb}")
    assert listing() == []


def test_the_first_step_comes_soon(here):
    """Under a second from the command to the first training step, on a quiet machine; the best of some counts."""
    code = """
import os, bareconv.training.loop
bareconv.training.loop.Trainer.train_step = lambda *_: os._exit(7)
from bareconv.cli import main
main(["compare", "--quick", "--device", "cpu"])
"""
    best = math.inf
    for _ in range(3):
        begun = time.perf_counter()
        assert python(code).returncode == 7
        best = min(best, time.perf_counter() - begun)
    assert best < (2.5 if why_no_cuda() is not None else 6)  # where there is CuPy, it is imported to be described


def test_out_of_memory(run, here, listing, monkeypatch):
    def fail(*_):
        raise MemoryError("Unable to allocate 9.9 TiB")

    monkeypatch.setattr("bareconv.training.Trainer.train_step", fail)
    outcome = run("train", "--model", "mlp", "--limit", "100", "--json")
    assert outcome.code == 1
    assert outcome.result()["notes"] == ["out of memory (Unable to allocate 9.9 TiB): try a smaller batch"]
    assert outcome.err.endswith("bareconv: out of memory (Unable to allocate 9.9 TiB): try a smaller batch\n")
    assert listing() == []

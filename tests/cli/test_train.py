"""``bareconv train``: what it prints and writes, Ctrl-C and how to go on, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from bareconv import host
from bareconv.device import get_device
from bareconv.report.format import percent
from bareconv.training import Trainer, why_no_plan

MLP = ("train", "--model", "mlp", "--limit", "200", "--device", "cpu")


def about(checkpoint):
    """The configuration in a checkpoint."""
    with safe_open(checkpoint, "numpy") as file:
        return json.loads(file.metadata()["bareconv"])


def test_it_says_what_it_does(run, here, listing):
    outcome = run(*MLP, "--epochs", "2")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    cpu = get_device("cpu")
    assert lines[0] == f"Device: cpu ({cpu.description})"
    assert re.search(r"\d+ threads?\)$", lines[0])
    assert "Data: MNIST (embedded), 200 training images, 10,000 test images" in lines
    engine = r"plan \(\S+, \d+ threads?\)" if why_no_plan() is None else r"tuned \(NumPy, \d+ threads?\)"
    assert re.search(rf"^Model: mlp, 7,960 parameters; float32, engine {engine}$", outcome.out, re.MULTILINE)
    number = r"\d+\.\d{4}"
    for epoch in (1, 2):
        pattern = rf"Epoch {epoch}/2, .*s: loss {number}, accuracy [\d.]+%; held out: {number}, [\d.]+%"
        assert sum(bool(re.fullmatch(pattern, line)) for line in lines) == 1
    assert re.search(r"^8 steps in .*s, [\d,]+ images/s; saved mlp.safetensors$", outcome.out, re.MULTILINE)
    assert lines[-1].startswith("Accuracy on the 10,000 test images: ")
    assert listing() == ["mlp.safetensors"]


def test_more_threads_than_cores(run, here):
    cores = host.allowed_cores()
    outcome = run("train", "--limit", "10", "--model", "mlp", "--threads", str(cores + 1))
    assert outcome.code == 2
    assert f"'--threads': {cores + 1}: this process may use {cores} core" in outcome.err


@pytest.mark.skipif(why_no_plan() is not None, reason="there is no plan on this machine")
def test_compiling_is_told_apart(run, here, tmp_path, monkeypatch):
    """In a cache that is empty everything is compiled, with images that no other test has; then nothing is."""
    monkeypatch.setenv("BARECONV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("bareconv.kernels.cpu.jit._loaded", {})
    outcome = run(*MLP, "--json")
    (record,) = outcome.result()["runs"]
    assert record["compiled"] >= 5
    assert record["compile_seconds"] > 0.01
    said = re.search(
        r"^Before it, and in no other figure: compiled (\d+) kernels in \S+ \S+$", outcome.err, re.MULTILINE
    )
    assert said is not None
    assert int(said[1]) == record["compiled"]
    again = run(*MLP, "--json")
    assert again.result()["runs"][0]["compiled"] == 0
    assert "compiled" not in again.err


def test_no_plan_is_said_with_the_reason(run, here, monkeypatch):
    """The tuned engine takes its place, and the result says so."""
    for place in ("engines", ""):
        module = f"bareconv.training{'.' * bool(place)}{place}"
        monkeypatch.setattr(f"{module}.why_no_plan", lambda *_: "llvmlite is not there")
    outcome = run(*MLP, "--json")
    assert outcome.code == 0
    assert outcome.result()["runs"][0]["engine"] == "tuned"
    assert re.search(r"^Warning: no plan on cpu \(llvmlite is not there\): the engine is tuned \(", outcome.err, re.M)


def test_json_of_the_requirement(run, here, listing, train_csv):
    """The command that the requirement gives, word for word but for the model and the path."""
    outcome = run(
        *("train", "--model", "lenet5", "--data", train_csv, "--epochs", "1", "--batch-size", "64", "--device", "cpu"),
        *("--engine", "reference", "--precision", "float32", "--seed", "0", "--checkpoint", "m.safetensors", "--json"),
    )
    assert outcome.code == 0
    result = outcome.result()
    (record,) = result["runs"]
    assert "Device: cpu" in outcome.err
    expected = {
        "device": "cpu",
        "engine": "reference",
        "model": "lenet5",
        "precision": "float32",
        "batch_size": 64,
        "epochs": 1,
        "iterations": 5,
        "seed": 0,
        "train_images": 270,
        "test_split": "validation",
        "test_images": 30,
        "checkpoint": "m.safetensors",
        "data": "digits.csv",
        "stopped": False,
    }
    assert {key: record[key] for key in expected} == expected
    assert len(record["history"]["loss"]) == 5
    assert record["total_seconds"] >= record["train_seconds"] > 0
    assert result["settings"]["data"] == "digits.csv"
    assert result["settings"]["batch_size"] == 64
    assert result["command"].startswith("bareconv train --model lenet5 --data digits.csv")
    assert listing() == ["digits.csv", "m.safetensors"]


def test_every_option_arrives(run, here):
    """What is asked for is in the checkpoint and in the result."""
    outcome = run(
        *("train", "--model", "mlp", "--limit", "90", "--validation", "0.5", "--epochs", "3", "--batch-size", "30"),
        *("--optimizer", "adamw", "--lr", "0.002", "--weight-decay", "0.01", "--schedule", "cosine", "--warmup", "0.2"),
        *("--clip-norm", "1.5", "--label-smoothing", "0.1", "--seed", "7", "--precision", "float64", "--json"),
        *("--device", "cpu", "--threads", "1", "--engine", "tuned", "--checkpoint", "new/folder/x.safetensors"),
    )
    (record,) = outcome.result()["runs"]
    kept = about("new/folder/x.safetensors")
    settings, optimizer, schedule = kept["settings"], kept["optimizer"], kept["settings"]["schedule"]
    assert (settings["epochs"], settings["batch_size"], settings["seed"]) == (3, 30, 7)
    assert (settings["clip_norm"], settings["label_smoothing"], settings["precision"]) == (1.5, 0.1, "float64")
    assert (settings["threads"], settings["engine"]) == (1, "tuned")
    assert (record["threads"], record["engine"], record["compile_seconds"]) == (1, "tuned", 0)
    assert (optimizer["type"], optimizer["lr"], optimizer["weight_decay"]) == ("AdamW", 0.002, 0.01)
    assert (schedule["type"], schedule["warmup"]) == ("Cosine", 0.2)
    assert (record["precision"], record["iterations"], record["train_images"]) == ("float64", 9, 90)
    assert (record["test_split"], record["test_images"]) == ("validation", 30_000)
    assert load_file("new/folder/x.safetensors")["model/dense1.weight"].dtype == np.float64


@pytest.mark.parametrize(
    ("words", "optimizer"),
    [
        ([], {"type": "SGD", "lr": 0.05, "momentum": 0.9, "nesterov": False}),
        (["--nesterov", "--momentum", "0.5"], {"type": "SGD", "momentum": 0.5, "nesterov": True}),
        (["--optimizer", "rmsprop"], {"type": "RMSprop", "lr": 0.001, "momentum": 0.0}),
        (["--optimizer", "adam"], {"type": "Adam", "lr": 0.001}),
    ],
    ids=["sgd", "nesterov", "rmsprop", "adam"],
)
def test_optimizers_and_their_defaults(words, optimizer, run, here, train_csv):
    assert run("train", "--model", "mlp", "--data", train_csv, "--limit", "64", *words).code == 0
    kept = about("mlp.safetensors")["optimizer"]
    assert {key: kept[key] for key in optimizer} == optimizer


def test_the_same_twice(run, here, train_csv):
    words = ("train", "--model", "lenet5", "--data", train_csv, "--limit", "100", "--device", "cpu")
    for name in ("a", "b"):
        assert run(*words, "--checkpoint", name).code == 0
    assert run(*words, "--seed", "1", "--checkpoint", "c").code == 0
    a, b, c = (load_file(name) for name in "abc")
    assert all((a[key] == b[key]).all() for key in a)
    assert (a["model/conv1.weight"] != c["model/conv1.weight"]).all()


# Ctrl-C

LENET = ("--model", "lenet5", "--batch-size", "20", "--epochs", "12", "--device", "cpu")


def equal(a, b):
    """Whether two checkpoints hold the same tensors, bit for bit."""
    a, b = load_file(a), load_file(b)
    return a.keys() == b.keys() and all(a[key].tobytes() == b[key].tobytes() for key in a)


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_interrupted_and_resumed_is_the_unbroken_run(run, here, listing, train_csv):
    """SIGINT in the middle: exit 130, a result, and a command that, as it is printed, ends in the same bits."""
    words = ("--data", str(train_csv), "--validation", "100", "--limit", "200", *LENET)
    process = subprocess.Popen(
        [sys.executable, "-m", "bareconv", "train", *words, "--checkpoint", "my model.safetensors", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    while "Epoch 2/12" not in said:
        said += process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=60)
    said += rest
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "Interrupted: finishing this step, then saving. Ctrl-C again ends at once.\n" in said
    result = json.loads(out)
    (record,) = result["runs"]
    assert record["stopped"]
    assert 20 <= record["iterations"] < 120
    assert f"Stopped at step {record['iterations']} of 120. To go on:\n" in said
    finished = record["history"]["epochs"][-1]["epoch"]
    assert f"Accuracy after epoch {finished} on the 100 validation images: " in said

    (command,) = re.findall(r"^  (.* train --resume .*)$", said, re.MULTILINE)
    assert result["notes"] == [f"Stopped at step {record['iterations']} of 120. To go on: {command}"]
    assert listing() == ["digits.csv", "my model.safetensors"]
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert f"Resuming after step {record['iterations']} of 120\n" in done.stdout
    assert "120 steps in " in done.stdout

    assert run("train", *words, "--checkpoint", "unbroken").code == 0
    assert equal("my model.safetensors", "unbroken")

    outcome = run("train", "--resume", "unbroken", "--data", train_csv, "--validation", "100", "--limit", "200")
    assert (outcome.code, outcome.complaint()) == (2, "unbroken: this training is done (12 epochs); nothing to resume")


class Terminal:
    """A program on a terminal of 80 columns."""

    def __init__(self, *words):
        variables = {**os.environ, "COLUMNS": "80", "LINES": "30", "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            variables.pop(name, None)
        self.mine, theirs = pty.openpty()
        self.process = subprocess.Popen(
            words, stdin=theirs, stdout=theirs, stderr=theirs, env=variables, start_new_session=True
        )
        os.close(theirs)
        self.seen = ""

    def wait_for(self, pattern, timeout=60.0):
        end = time.monotonic() + timeout
        while not re.search(pattern, self.seen) and self.read(end):
            pass
        assert re.search(pattern, self.seen), self.seen

    def read(self, end):
        if not select.select([self.mine], [], [], max(0, end - time.monotonic()))[0]:
            return False
        try:
            piece = os.read(self.mine, 10_000)
        except OSError:  # Linux's end of file
            return False
        self.seen += piece.decode(errors="replace")
        return bool(piece)

    def finish(self, timeout=60.0):
        end = time.monotonic() + timeout
        while self.read(end):
            pass
        code = self.process.wait(timeout)
        os.close(self.mine)
        return code


@pytest.mark.skipif(os.name == "nt", reason="a terminal of Unix")
def test_on_a_terminal(here, train_csv):
    """A bar with all that one wants to know, on one line; Ctrl-C is answered, and nothing of the bar is left."""
    terminal = Terminal(
        *(sys.executable, "-m", "bareconv", "train", "--data", str(train_csv), "--model", "small"),
        *("--epochs", "1000", "--checkpoint", "m"),
    )
    terminal.wait_for(r"Epoch 2/1000")
    terminal.wait_for(r"Epoch \d+/1000 .*━.* \d+% loss .*, accuracy .*%, .* images/s, \d+:\d\d left")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.seen)
    bars = [line for line in re.split(r"[\r\n]+", plain) if "━" in line]
    assert bars
    assert max(map(len, bars)) < 80
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("Interrupted: finishing this step, then saving")
    assert terminal.finish() == 130
    assert re.search(
        r"Stopped at step \d+ of \d+. To go on:\r\n  .* train --resume m --data digits.csv\r\n", terminal.seen
    )
    assert "Traceback" not in terminal.seen
    assert terminal.seen.rindex("\x1b[?25h") > terminal.seen.rindex("\x1b[?25l")  # the cursor is shown again


@pytest.mark.skipif(os.name == "nt", reason="a terminal of Unix")
def test_the_second_ctrl_c_ends(here, listing, train_csv):
    """One step of it takes seconds; nobody waits for it who presses Ctrl-C twice."""
    words = ("--model", "resnet9", "--validation", "0", "--batch-size", "300", "--checkpoint", "m")
    terminal = Terminal(sys.executable, "-m", "bareconv", "train", "--data", str(train_csv), *words)
    terminal.wait_for(r"Training .*━")
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("Interrupted: ")
    time.sleep(0.5)
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.finish() == 130
    assert "bareconv: interrupted" in terminal.seen
    assert "Traceback" not in terminal.seen
    assert listing() == ["digits.csv"]


def test_stopped_after_some_steps(run, here, train_csv, monkeypatch):
    """The same within this process: what ``should_stop`` is asked comes from the signal."""

    original = Trainer.train_step

    def interrupt(self, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, step)

    monkeypatch.setattr(Trainer, "train_step", interrupt)
    monkeypatch.setattr("sys.argv", ["bareconv"])  # the name under which the program was started
    before = signal.getsignal(signal.SIGINT)
    outcome = run("train", "--data", train_csv, "--model", "mlp", "--batch-size", "20")
    assert signal.getsignal(signal.SIGINT) is before
    assert outcome.code == 130
    assert outcome.out.count("Interrupted: ") == 1
    assert outcome.out.endswith(
        "Stopped at step 4 of 14. To go on:\n  bareconv train --resume mlp.safetensors --data digits.csv\n"
    )
    assert len(load_file("mlp.safetensors")["history/loss"]) == 4


def test_settings_of_a_resumed_training(run, here, train_csv):
    """The result names what was given; what the checkpoint's settings were, the run says, and not the defaults."""
    words = ("--data", str(train_csv), "--limit", "64")
    assert run("train", "--model", "mlp", "--epochs", "2", "--seed", "3", *words, "--checkpoint", "m").code == 0
    shorten("m")
    result = run("train", "--resume", "m", *words, "--json").result()
    (record,) = result["runs"]
    assert (record["model"], record["seed"], record["epochs"]) == ("mlp", 3, 2)
    assert result["settings"] == {
        "data": "digits.csv",
        "limit": 64,
        "validation": None,
        "device": "auto",
        "checkpoint": None,
        "resume": "m",
    }


def shorten(path):
    """Let a checkpoint of two steps be one of the first of them."""
    kept, tensors = about(path), load_file(path)
    kept["history"]["epochs"] = kept["history"]["epochs"][:1]
    tensors = {key: value[:1] if key.startswith("history/") else value for key, value in tensors.items()}
    save_file(tensors, path, {"bareconv": json.dumps(kept)})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "5"], "--epochs cannot change with --resume: the checkpoint's settings hold"),
        (["--batch-size", "5"], "--batch-size cannot change with --resume"),
        (["--data", "digits.csv"], "was trained on 500 images of MNIST.*got 270 images of digits.csv"),
    ],
)
def test_resume_refuses_other_settings(words, message, run, here, listing, train_csv, trained, monkeypatch):
    monkeypatch.setattr("bareconv.training.History.iterations", 3)  # as if it had been interrupted
    outcome = run("train", "--resume", trained, "--checkpoint", "new", *words)
    assert outcome.code == 2
    assert re.search(message, outcome.complaint()), outcome.err
    assert listing() == ["digits.csv"]


# What can go wrong


def test_a_loss_that_explodes(run, here, listing, train_csv):
    words = ("train", "--data", train_csv, "--model", "lenet5", "--lr", "1e6", "--epochs", "3")
    outcome = run(*words)
    assert outcome.code == 1
    pattern = r"the loss .*became (nan|inf) .*step \d+ \(epoch \d\): the first output .* is that of layer \w+\d; .*"
    assert re.fullmatch(pattern, outcome.complaint())
    assert "smaller learning rate" in outcome.complaint()
    with_json = run(*words, "--json")
    assert with_json.code == 1
    assert with_json.result()["runs"] == []
    assert with_json.result()["notes"] == [outcome.complaint()]
    assert listing() == ["digits.csv"]


@pytest.mark.parametrize("path", ["digits.csv/m.safetensors", "/proc/nowhere/m.safetensors", "folder"])
def test_a_checkpoint_that_cannot_be(path, run, here, listing, train_csv):
    Path("folder").mkdir()
    outcome = run("train", "--data", train_csv, "--model", "mlp", "--checkpoint", path)
    assert (outcome.code, outcome.out) == (2, "")
    assert path in outcome.complaint()
    assert listing() == ["digits.csv", "folder"]


def full_disk(monkeypatch):
    """From now on nothing can be written: fsync says so, as it does on many file systems."""

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)


def test_a_full_disk_while_training(run, here, listing, train_csv, monkeypatch):
    """It goes on, says so every time, and ends with 1; an older checkpoint stays, and no half of a new one."""
    assert run("train", "--data", train_csv, "--model", "mlp", "--checkpoint", "m").code == 0
    before = Path("m").read_bytes()
    full_disk(monkeypatch)
    monkeypatch.setattr("bareconv.cli.train.SAVE_SECONDS", 0)
    outcome = run("train", "--data", train_csv, "--model", "mlp", "--epochs", "3", "--checkpoint", "m")
    assert outcome.code == 1
    assert outcome.complaint() == "m: could not be written: No space left on device"
    assert outcome.out.count("Warning: the checkpoint was not saved: m: could not be written: No space left") == 3
    assert outcome.out.count("held out") == 3
    assert Path("m").read_bytes() == before
    assert listing() == ["digits.csv", "m"]


def test_images_held_out_beside_test_images(run, here):
    """By epoch the accuracy is on the first, at the end also on the second."""
    words = ("--limit", "300", "--validation", "40", "--epochs", "2", "--engine", "reference", "--device", "cpu")
    outcome = run("train", "--model", "mlp", *words, "--json")
    assert outcome.code == 0
    result = outcome.result()
    (record,) = result["runs"]
    assert (record["test_split"], record["test_images"]) == ("validation", 40)
    assert ", 300 training images, 40 validation images, 10,000 test images for the end\n" in outcome.err
    assert re.search(r"^Accuracy on the 40 validation images: \d", outcome.err, re.MULTILINE)
    found = run("evaluate", "mlp.safetensors", "--split", "test", "--device", "cpu", "--json").result()["evaluation"]
    assert result["notes"] == [f"Accuracy on the 10,000 test images: {percent(found['accuracy'])}"]
    assert result["notes"][0] in outcome.err


def test_a_comparison_on_held_out_images(run, here):
    words = ("--limit", "128", "--validation", "40", "--epochs", "1", "--parity-steps", "0", "--engine", "reference")
    outcome = run("compare", "--model", "mlp", *words, "--device", "cpu", "--output", "out", "--json")
    (record,) = outcome.result()["runs"]
    assert (record["test_split"], record["test_images"]) == ("validation", 40)
    assert "tested on 40 that were held out" in outcome.err


@pytest.mark.parametrize("verb", [("train", "--device", "cpu"), ("compare", "--device", "cpu", "--parity-steps", "0")])
def test_a_batch_larger_than_the_data_is_said(verb, run, here):
    outcome = run(*verb, "--model", "mlp", "--limit", "90", "--batch-size", "1000", "--engine", "reference")
    assert outcome.code == 0
    said = "Warning: --batch-size 1,000: there are only 90 training images, so every step takes all\n"
    assert outcome.out.count(said) == 1


def test_one_is_no_plural(run, here):
    outcome = run("train", "--model", "mlp", "--limit", "1", "--engine", "reference", "--device", "cpu")
    assert outcome.code == 0
    assert ", 1 training image, " in outcome.out
    assert "Training: 1 epoch of " in outcome.out
    assert re.search(r"^1 step in ", outcome.out, re.MULTILINE)
    assert not re.search(r"\b1 \w+s\b", outcome.out.replace("1 µs", "").replace("1 ms", ""))

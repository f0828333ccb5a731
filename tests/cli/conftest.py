"""What the tests of the verbs share: an empty folder to be in, a way to run, files to read, a trained model."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file

from bareconv.cli import run as run_command_line


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code, and what it wrote on standard output and standard error."""

    code: int
    out: str
    err: str

    def result(self) -> dict[str, Any]:
        """The one JSON document that is all of standard output, which fits the schema."""
        document = json.loads(self.out)
        schema = json.loads(resources.files("bareconv.bench").joinpath("result.schema.json").read_text())
        jsonschema.Draft202012Validator(schema).validate(document)
        return document

    def complaint(self) -> str:
        """The one line on standard error, without the program's name."""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("bareconv: ")
        return self.err.removeprefix("bareconv: ").rstrip("\n")


@pytest.fixture
def run(capsys):
    """Run a verb in this process."""

    def run(*words):
        capsys.readouterr()
        code = run_command_line([str(word) for word in words])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, which is the current one. Its name is one to trip over. No temporary file may be left behind."""
    folder, temporary = tmp_path / "a [bold] folder :x:", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    yield folder
    assert not list(temporary.iterdir())


@pytest.fixture
def listing(here):
    """All paths below the current folder, but for what changes with the time of day."""

    def listing():
        return sorted(str(path.relative_to(here)) for path in here.rglob("*"))

    return listing


def _csv_text(images, labels=None):
    pixels = images.reshape(len(images), -1)
    head = [*(["label"] if labels is not None else []), *(f"pixel{i}" for i in range(pixels.shape[1]))]
    rows = [[*([] if labels is None else [labels[i]]), *row] for i, row in enumerate(pixels)]
    return "\n".join(",".join(map(str, row)) for row in [head, *rows]) + "\n"


@pytest.fixture
def csv_text():
    """Writes Kaggle's train.csv, or test.csv without labels, as text."""
    return _csv_text


@pytest.fixture(scope="session")
def texts(digits):
    """Kaggle's two files, of 300 and of 40 digits."""
    train, test = digits.train, digits.test
    return _csv_text(train.images[:300], train.labels[:300]), _csv_text(test.images[:40])


@pytest.fixture
def train_csv(here, texts):
    Path("digits.csv").write_text(texts[0])
    return Path("digits.csv")


@pytest.fixture
def test_csv(here, texts):
    Path("test.csv").write_text(texts[1])
    return Path("test.csv")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A checkpoint of the mlp after two epochs on 500 digits."""
    path = tmp_path_factory.mktemp("trained") / "mlp.safetensors"
    words = ["train", "--model", "mlp", "--limit", "500", "--epochs", "2", "--device", "cpu"]
    assert run_command_line([*words, "--lr", "0.1", "--batch-size", "20", "--checkpoint", str(path)]) == 0
    return path


@pytest.fixture
def probabilities():
    """What the mlp of a checkpoint says of images, computed from the file's weights alone."""

    def probabilities(checkpoint, images):
        w = {key: value.astype(np.float64) for key, value in load_file(checkpoint).items()}
        x = images.reshape(len(images), -1) / 255
        hidden = np.maximum(x @ w["model/dense1.weight"] + w["model/dense1.bias"], 0)
        z = hidden @ w["model/dense2.weight"] + w["model/dense2.bias"]
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    return probabilities

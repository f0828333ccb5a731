"""``bareconv evaluate``: its numbers against ones computed from the weights alone; its tables; what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from bareconv import data, nn, optim
from bareconv.cli.evaluate import _show
from bareconv.cli.screen import Screen
from bareconv.training import Evaluation, Settings, Trainer
from bareconv.training.checkpoint import save


def test_numbers(run, here, listing, trained, mnist, probabilities):
    outcome = run("evaluate", trained, "--json", "--output", "out", "--mistakes", "5")
    assert outcome.code == 0
    assert listing() == ["out", "out/confusion.png", "out/mistakes.png", "out/result.json"]
    found = outcome.result()["evaluation"]
    p, labels = probabilities(trained, mnist.test.images), mnist.test.labels
    predicted = p.argmax(axis=1)
    confusion = [[int(((labels == i) & (predicted == j)).sum()) for j in range(10)] for i in range(10)]
    assert (found["split"], found["images"], found["data"]) == ("test", 10_000, "MNIST (embedded)")
    assert np.abs(np.array(found["confusion"]) - confusion).sum() <= 4  # float32 may decide a tie otherwise
    assert found["accuracy"] == pytest.approx((predicted == labels).mean(), abs=2e-4)
    assert found["loss"] == pytest.approx(-np.log(p[np.arange(len(p)), labels]).mean(), rel=1e-4)
    for c, row in enumerate(found["classes"]):
        assert (row["class"], row["images"]) == (c, (labels == c).sum())
        assert row["recall"] == pytest.approx((predicted[labels == c] == c).mean(), abs=2e-3)
        if row["precision"] is not None:
            assert row["precision"] == pytest.approx((labels[predicted == c] == c).mean(), abs=2e-3)
    confidence = p.max(axis=1)
    sure = np.sort(confidence[predicted != labels])[::-1]
    assert len(found["worst"]) == 5
    for rank, mistake in enumerate(found["worst"]):
        index = mistake["index"]
        assert mistake["label"] == labels[index] != mistake["predicted"] == predicted[index]
        assert mistake["confidence"] == pytest.approx(sure[rank], abs=1e-5)


def test_what_a_person_sees(run, here, listing, trained, train_csv):
    outcome = run("evaluate", trained, "--data", train_csv, "--split", "train", "--validation", "0")
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(rf"^{re.escape(str(trained))}: mlp on 300 train images of digits.csv$", outcome.out, re.MULTILINE)
    assert re.search(r"^Accuracy [\d.]+% \(\d+ mistakes\), loss \d\.\d{4}; [\d,]+ images/s$", outcome.out, re.MULTILINE)
    assert re.search(r"^true +0 +1 +2 .* 9 +precision +recall$", outcome.out, re.MULTILINE)
    rows = re.findall(r"^(\d) ((?: +(?:\d+|·)){10}) +([\d.]+%|–) +([\d.]+%|–)$", outcome.out, re.MULTILINE)
    assert [row[0] for row in rows] == [str(c) for c in range(10)]
    counts = np.array([[0 if n == "·" else int(n) for n in row[1].split()] for row in rows])
    assert counts.sum() == 300
    for c, row in enumerate(rows):
        assert row[3] in (f"{100 * counts[c, c] / counts[c].sum():.2f}%", "0%", "100%")
    assert max(map(len, outcome.out.splitlines()[4:15])) <= 80
    pictures = [path for path in listing() if path.endswith(".png")]
    assert len(pictures) == 2
    folder = str(Path(pictures[0]).parent)
    assert outcome.out.endswith(f"\nWrote confusion.png, mistakes.png and result.json in {folder}\n")
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 200
    assert not Path("results/latest").exists()


def test_the_held_out_images_are_the_same(run, here, trained, train_csv):
    """What a training held out is what evaluate looks at, by the checkpoint's seed."""
    words = ("train", "--model", "mlp", "--data", train_csv, "--validation", "60", "--seed", "5", "--json")
    (record,) = run(*words).result()["runs"]
    found = run("evaluate", "mlp.safetensors", "--data", train_csv, "--validation", "60", "--json").result()
    assert found["evaluation"]["split"] == record["test_split"] == "validation"
    assert found["evaluation"]["confusion"] == record["confusion"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "validation"], r"MNIST \(embedded\) has no validation split; expected one of test, train"),
        (["--split", "all"], "'--split'.*test.*validation.*train"),
        (["--mistakes", "0"], "'--mistakes'"),
        (["--output", "file"], "'--output'.*'file' is a file"),
        (["--output", "file/below"], "--output file/below: cannot write there: Not a directory"),
        (["--data", "nowhere"], "nowhere: no such file"),
        (["--device", "tpu"], "device 'tpu'"),
    ],
)
def test_refusals(words, message, run, here, listing, trained):
    Path("file").write_text("")
    outcome = run("evaluate", trained, *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert re.search(message, outcome.complaint()), outcome.err
    assert listing() == ["file"]


def test_what_is_no_checkpoint(run, here, listing, trained, train_csv):
    Path("empty").write_bytes(b"")
    Path("cut").write_bytes(trained.read_bytes()[:1000])
    save_file({"weights": np.zeros(3, np.float32)}, "foreign")
    Path("folder").mkdir()
    files = listing()
    for path, message in (
        ("empty", "not a checkpoint"),
        ("cut", "not a checkpoint"),
        ("digits.csv", "not a checkpoint"),
        ("foreign", "not written by bareconv"),
        ("folder", "folder"),
    ):
        for words in (["evaluate", path], ["predict", path, "digits.csv"], ["train", "--resume", path]):
            outcome = run(*words)
            assert (outcome.code, outcome.out) == (2, "")
            assert outcome.complaint().startswith(f"{path}: ")
            assert message in outcome.complaint()
    assert listing() == files


@pytest.fixture
def tiny(here):
    """A checkpoint for images of 6 x 6 and three classes, and data of another size and with more classes."""
    rng = np.random.default_rng(0)

    def split(n, side, classes):
        return data.Split(
            rng.integers(0, 256, (n, side, side, 1)).astype(np.uint8), (np.arange(n) % classes).astype(np.int32)
        )

    model = nn.Model([nn.Flatten(), nn.Dense(3)], (6, 6, 1), name="tiny")
    trainer = Trainer(model, data.Dataset("tiny", split(9, 6, 3), None, None, 3), optim.SGD(0.1), Settings(), "cpu")
    trainer.run()
    save(Path("tiny.safetensors"), trainer)
    for name, side, classes in (("larger", 7, 3), ("more", 6, 5)):
        part = split(20, side, classes)
        np.savez(f"{name}.npz", x_train=part.images, y_train=part.labels)


def test_data_that_do_not_fit(run, listing, tiny, texts):
    Path("test.csv").write_text(texts[1])
    files = listing()
    for words, message in (
        (["evaluate", "tiny.safetensors", "--data", "larger.npz"], "larger.npz.*7, 7, 1.*trained on.*6, 6, 1"),
        (["evaluate", "tiny.safetensors", "--data", "more.npz"], "more.npz has labels up to 4.*classes 0 to 2"),
        (["predict", "tiny.safetensors", "test.csv"], "test.csv: images of .*28, 28, 1.*trained on.*6, 6, 1"),
    ):
        outcome = run(*words)
        assert (outcome.code, outcome.out) == (2, "")
        assert re.search(message, outcome.complaint()), outcome.err
    assert listing() == files


def test_a_full_disk(run, here, listing, trained, train_csv, monkeypatch):
    """Neither a picture nor the result can be written: exit 1, one line, no folder left."""
    for what in ("bareconv.report.pictures.write_whole", "os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(what, _full)
            outcome = run("evaluate", trained, "--data", train_csv)
        assert outcome.code == 1
        assert re.search(r"results/.*: .*No space left on device", outcome.complaint())
        assert listing() == ["digits.csv"]


def _full(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("classes", "width", "matrix"), [(10, 80, True), (47, 80, False), (47, 300, True)])
def test_the_matrix_is_shown_where_it_fits(classes, width, matrix, capsys):
    labels = np.repeat(np.arange(classes), 100).astype(np.int32)
    evaluation = Evaluation(0.1, labels.astype(np.int64), np.ones(len(labels)), labels, classes)
    screen = Screen({}, False)
    screen.console.width = width
    _show(screen, evaluation)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == classes + 1 + matrix
    assert max(map(len, lines)) <= width
    assert ("columns the predicted" in lines[0]) is matrix

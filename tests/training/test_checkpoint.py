"""Checkpoints: what is saved comes back, a resumed run equals the unbroken one, and no file is half written."""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import errno
import json
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bareconv
from bareconv import nn
from bareconv.data import Dataset, Split
from bareconv.errors import BareconvError, DataError
from bareconv.files import check_writable
from bareconv.nn import models
from bareconv.optim import SGD, Adam, AdamW, Cosine, RMSprop
from bareconv.training import Settings, Trainer
from bareconv.training.checkpoint import load, save

RULES = {
    "SGD": lambda: SGD(0.05),
    "momentum": lambda: SGD(0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "RMSprop": lambda: RMSprop(0.003, momentum=0.5),
    "Adam": lambda: Adam(0.01),
    "AdamW": lambda: AdamW(0.01),
}


def trainer_of(model, data, optimizer=None, device="cpu", **settings):
    wanted = Settings(**{"batch_size": 16, "seed": 3, "epochs": 3, "engine": "reference", **settings})
    return Trainer(model, data, optimizer or SGD(0.05, momentum=0.9), wanted, device)


def run_to(trainer, step):
    trainer.engine.many_steps = False  # so that it can be stopped after any of them
    trainer.run(should_stop=lambda: trainer.step + pending(trainer) >= step)
    assert trainer.step == step


def pending(trainer):
    """Steps taken whose losses are not in the history yet: what the optimizer has done beyond it."""
    return trainer.optimizer.step - trainer.step


def assert_same_training(ours, theirs):
    """Weights, running statistics, losses and epochs, bit for bit; the clock's figures aside."""
    assert ours.history.loss == theirs.history.loss
    assert ours.history.correct == theirs.history.correct
    for one, other in zip(ours.history.epochs, theirs.history.epochs, strict=True):
        assert dataclasses.replace(one, train_seconds=0) == dataclasses.replace(other, train_seconds=0)
    for part in ("model", "optimizer"):
        state, expected = getattr(ours, part).state(), getattr(theirs, part).state()
        assert state.keys() == expected.keys()
        for key, value in state.items():
            np.testing.assert_array_equal(value, expected[key], key)


@pytest.fixture
def saved(make_model, squares, tmp_path):
    """A checkpoint after ten steps, in the second epoch."""
    trainer = trainer_of(make_model(), squares)
    run_to(trainer, 10)
    save(tmp_path / "ten.safetensors", trainer)
    return tmp_path / "ten.safetensors"


# --- There and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.ZOO)
def test_every_model_comes_back(name, rng, tmp_path):
    """Weights and running statistics of every kind, here random numbers, before the first step."""
    images = rng.integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    data = Dataset("noise", Split(images, np.arange(3, dtype=np.int32)), None, None, 5)
    trainer = trainer_of(models.by_name(name, (16, 16, 3), 5, seed=9), data)
    trainer.model.load_state({key: rng.uniform(0.1, 1, value.shape) for key, value in trainer.model.state().items()})
    save(tmp_path / "model.safetensors", trainer)
    kept = load(tmp_path / "model.safetensors")
    assert kept.model.config() == trainer.model.config()
    state = trainer.model.state()
    assert kept.model.state().keys() == state.keys()
    for key, value in kept.model.state().items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, state[key], key)
    assert kept.optimizer_state == {}
    assert kept.history == trainer.history


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("clip_norm", [None, 2.0])
def test_everything_comes_back(make_model, squares, rule, precision, clip_norm, tmp_path, device, engine):
    settings = {"label_smoothing": 0.1, "clip_norm": clip_norm, "evaluate_every": 2, "precision": precision}
    settings |= {"engine": engine, "threads": 2}
    trainer = trainer_of(make_model(), squares, rule(), device, schedule=Cosine(final=0.1, warmup=0.2), **settings)
    run_to(trainer, 10)
    save(tmp_path / "new" / "folder" / "a.safetensors", trainer)
    kept = load(tmp_path / "new" / "folder" / "a.safetensors")
    assert kept.data == "squares"
    assert repr(kept.optimizer) == repr(trainer.optimizer)
    assert repr(kept.settings) == repr(trainer.settings)
    assert kept.history == trainer.history
    assert kept.history.stopped
    assert kept.optimizer_step == 10
    for ours, theirs in (
        (kept.model.state(), trainer.model.state()),
        (kept.optimizer_state, trainer.optimizer.state()),
    ):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert value.dtype == precision
            np.testing.assert_array_equal(value, device.to_host(theirs[key]), key)


def test_saving_changes_nothing(make_model, squares, tmp_path, engine):
    """A training that saves after every epoch is the one that does not."""
    quiet, saving = (trainer_of(make_model(), squares, Adam(0.01), engine=engine) for _ in range(2))
    quiet.run()
    saving.run(on_epoch=lambda record: save(tmp_path / "a.safetensors", saving))
    assert_same_training(saving, quiet)
    kept = load(tmp_path / "a.safetensors")
    assert kept.history == saving.history
    assert not kept.history.stopped


@pytest.mark.parametrize("stops", [(1,), (6,), (7,), (8,), (10,), (14,), (20,), (2, 7, 8, 19)])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_resumed_run_equals_the_unbroken_one(make_model, squares, rule, stops, tmp_path, engine):
    """Stopped within an epoch, at its end, several times; with running statistics, dropout and a schedule."""
    unbroken = trainer_of(make_model(), squares, rule(), engine=engine)
    unbroken.run()
    trainer = trainer_of(make_model(), squares, rule(), engine=engine)
    for stop in stops:
        run_to(trainer, stop)
        assert trainer.history.stopped
        save(tmp_path / "a.safetensors", trainer)
        trainer = load(tmp_path / "a.safetensors").resume(squares, "cpu")
    assert trainer.step == stops[-1]
    trainer.run()
    assert not trainer.history.stopped
    assert_same_training(trainer, unbroken)
    seconds = [epoch.train_seconds for epoch in trainer.history.epochs]
    assert sum(seconds) == pytest.approx(trainer.history.train_seconds, rel=1e-9)
    assert trainer.evaluation.accuracy == unbroken.evaluation.accuracy


def test_a_real_network_resumed(digits, tmp_path, engine):
    data = digits.take(70, 30)
    unbroken, trainer = (trainer_of(models.lenet5(), data, batch_size=30, epochs=2, engine=engine) for _ in range(2))
    unbroken.run()
    run_to(trainer, 2)
    save(tmp_path / "a.safetensors", trainer)
    resumed = load(tmp_path / "a.safetensors").resume(data, "cpu")
    resumed.run()
    assert_same_training(resumed, unbroken)


@pytest.mark.cuda
def test_resumed_on_the_other_device(make_model, squares, tmp_path):
    """Begun on the GPU, finished on the CPU, and the other way round: the same but for rounding."""
    unbroken = trainer_of(make_model(), squares, precision="float64")
    unbroken.run()
    for first, second in (("cuda", "cpu"), ("cpu", "cuda")):
        trainer = trainer_of(make_model(), squares, device=first, precision="float64")
        run_to(trainer, 10)
        save(tmp_path / "a.safetensors", trainer)
        resumed = load(tmp_path / "a.safetensors").resume(squares, second)
        resumed.run()
        np.testing.assert_allclose(resumed.history.loss, unbroken.history.loss, rtol=1e-9)


def test_an_optimizer_that_has_steps_behind_it(make_model, squares, tmp_path, engine):
    """Adam counts its own steps: those of an earlier training of the same model are not lost."""

    def second_training():
        model, optimizer = make_model(), Adam(0.01)
        trainer_of(model, squares, optimizer, epochs=1, engine=engine).run()
        return trainer_of(model, squares, optimizer, engine=engine)

    unbroken, trainer = second_training(), second_training()
    unbroken.run()
    trainer.run(should_stop=lambda: trainer.optimizer.step >= 7 + 9)
    save(tmp_path / "a.safetensors", trainer)
    resumed = load(tmp_path / "a.safetensors").resume(squares, "cpu")
    assert (resumed.step, resumed.optimizer.step) == (9, 16)
    resumed.run()
    assert_same_training(resumed, unbroken)


def test_done_is_done(make_model, squares, tmp_path):
    trainer = trainer_of(make_model(), squares)
    trainer.run()
    save(tmp_path / "a.safetensors", trainer)
    resumed = load(tmp_path / "a.safetensors").resume(squares, "cpu")
    resumed.run()
    assert_same_training(resumed, trainer)


def test_resume_with_other_data(saved, squares, digits):
    fewer = squares.take(102)
    message = "was trained on 103 images of squares; to resume it, expected the same, got 102 images of squares"
    with pytest.raises(DataError, match=f"^{saved} {message}$"):
        load(saved).resume(fewer, "cpu")
    with pytest.raises(BareconvError, match="got 320 images of"):
        load(saved).resume(digits, "cpu")
    with pytest.raises(BareconvError, match=r"has images of \(28, 28, 1\); model tiny was built for \(8, 8, 1\)"):
        load(saved).resume(digits.take(103), "cpu")


# --- Files that are no checkpoints -----------------------------------------------------------------------------------


def refused(path, *words):
    with pytest.raises(DataError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600
    for word in words:
        assert word in message, message


def test_missing_file(tmp_path):
    refused(tmp_path / "none.safetensors", "there is no such file")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "below.safetensors")


def test_a_folder(tmp_path):
    refused(tmp_path, "folder", "expected a checkpoint")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"pixel0,pixel1\n0,1\n", bytes(1000), b"\xff" * 1000, b"\x1f\x8b" + bytes(50)]
)
def test_something_else(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    refused(tmp_path / "a.safetensors", "not a checkpoint")


def test_truncated(saved):
    whole = saved.read_bytes()
    for length in [*range(10), 100, 1000, len(whole) // 2, len(whole) - 4, len(whole) - 1]:
        saved.write_bytes(whole[:length])
        refused(saved, "not a checkpoint")
    saved.write_bytes(whole + b"\0")
    refused(saved, "not a checkpoint")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_others(tmp_path, metadata):
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "a.safetensors", metadata)
    refused(tmp_path / "a.safetensors", "not written by bareconv")


def rewrite(path, change):
    """Change the metadata, a dict, or the tensors, with ``change(about, tensors)``."""
    tensors = load_file(path)
    header = path.read_bytes()[8:]
    about = json.loads(json.JSONDecoder().raw_decode(header.decode(errors="ignore"))[0]["__metadata__"]["bareconv"])
    changed = change(about, tensors)
    about = about if changed is None else changed
    save_file(tensors, path, {"bareconv": about if isinstance(about, str) else json.dumps(about)})


def test_rewriting_itself_is_harmless(saved, squares):
    """The tests below change one thing; without it the file is a checkpoint."""
    rewrite(saved, lambda about, tensors: None)
    assert load(saved).resume(squares, "cpu").step == 10


def test_of_the_future(saved):
    rewrite(saved, lambda about, tensors: {"format": 2, "all": "different"})
    refused(saved, "checkpoint format 2; this version reads format 1")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"format"', "{}", "[" * 100_000, '{"format": 1}'])
def test_damaged_metadata(saved, text):
    rewrite(saved, lambda about, tensors: text)
    refused(saved, "damaged checkpoint")


def places(value, path=()):
    """Every place in a JSON value."""
    if path:
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


WRONG: tuple[Any, ...] = (None, "x", [], {}, -1, [[None]], "gone")


def test_any_damage_to_the_metadata(saved):
    """Whatever is put in whatever place, or taken away: a DataError, or a checkpoint, but no crash."""
    original = {}
    rewrite(saved, lambda about, tensors: original.update(copy.deepcopy(about)))
    tensors, refusals = load_file(saved), []
    for path in places(original):
        for wrong in WRONG:
            about = copy.deepcopy(original)
            inner = about
            for part in path[:-1]:
                inner = inner[part]
            if wrong == "gone":
                del inner[path[-1]]
            else:
                inner[path[-1]] = wrong
            save_file(tensors, saved, {"bareconv": json.dumps(about)})
            try:
                load(saved)
            except DataError as error:
                refusals.append(str(error))
    assert len(refusals) > 200
    for message in refusals:
        assert message.startswith(f"{saved}: ")
        assert "\n" not in message


@pytest.mark.parametrize(
    "key",
    [
        "model/conv1.weight",
        "model/norm1.var",
        "model/dense2.bias",
        "history/loss",
        "history/correct",
        "optimizer/velocity/conv1.weight",
        "optimizer/velocity/dense2.bias",
    ],
)
def test_missing_tensor(saved, key):
    rewrite(saved, lambda about, tensors: tensors.__delitem__(key))
    refused(saved, key.removeprefix("model/"))


def test_missing_optimizer_state(saved):
    """Without it Adam and momentum would begin anew, silently."""

    def strip(about, tensors):
        for key in [key for key in tensors if key.startswith("optimizer/")]:
            del tensors[key]

    rewrite(saved, strip)
    refused(saved, "optimizer/velocity/")


@pytest.mark.parametrize("key", ["model/dense1.weight", "optimizer/velocity/dense1.weight"])
def test_tensor_of_another_shape(saved, key):
    def cut(about, tensors):
        tensors[key] = tensors[key][:-1].copy()

    rewrite(saved, cut)
    refused(saved, key.removeprefix("model/"), "(36, 12)", "(35, 12)")


def test_unknown_tensor(saved):
    rewrite(saved, lambda about, tensors: tensors.update({"model/conv9.weight": np.zeros(3)}))
    refused(saved, "conv9.weight")


# --- Writing ---------------------------------------------------------------------------------------------------------


def fails(error):
    def failing(*args, **kwargs):
        raise error

    return failing


@contextlib.contextmanager
def files_of_at_most(size):
    """A disk that is full after so many bytes of a file: the kernel's own limit, for this process."""
    resource = pytest.importorskip("resource", reason="no limits on file sizes here")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def fuller(make_model, squares):
    """A trainer whose checkpoint would replace an older one."""
    trainer = trainer_of(make_model(), squares)
    trainer.run()
    return trainer


def test_disk_full_at_the_end(saved, fuller, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", fails(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(BareconvError, match=f"^{saved}: could not be written: No space left on device$"):
        save(saved, fuller)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.parametrize("size", [0, 1000])
def test_disk_full_in_the_middle(saved, fuller, size):
    before = saved.read_bytes()
    with files_of_at_most(size), pytest.raises(BareconvError, match=f"^{saved}: could not be written: ") as caught:
        save(saved, fuller)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]
    save(saved, fuller)
    assert load(saved).history.iterations == 21


def test_interrupted_in_the_middle(saved, fuller, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", fails(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save(saved, fuller)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_the_new_one_is_whole_before_it_replaces_the_old(saved, fuller, monkeypatch):
    seen, replace = [], Path.replace

    def watched(self, target):
        seen.append((load(self).history.iterations, load(target).history.iterations))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    save(saved, fuller)
    assert seen == [(21, 10)]
    assert os.listdir(saved.parent) == [saved.name]


def test_no_folder_can_be_there(fuller, tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "a.safetensors"
    with pytest.raises(BareconvError, match=f"^{path}: could not be written: "):
        save(path, fuller)
    with pytest.raises(DataError, match=f"^checkpoint {path}: cannot write there: "):
        check_writable(path, "checkpoint")


def test_a_folder_that_may_not_be_written_to(fuller, saved, monkeypatch):
    """Faked: the superuser, who runs the tests in containers, may write anywhere."""
    before = saved.read_bytes()
    for name in ("NamedTemporaryFile", "TemporaryFile"):
        monkeypatch.setattr(tempfile, name, fails(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(BareconvError, match=f"^{saved}: could not be written: Permission denied$"):
        save(saved, fuller)
    with pytest.raises(DataError, match=f"^checkpoint {saved}: cannot write there: Permission denied$"):
        check_writable(saved, "checkpoint")
    assert saved.read_bytes() == before


def test_the_name_of_a_folder(fuller, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="that is a folder; expected a file name"):
        check_writable(tmp_path / "folder", "checkpoint")
    with pytest.raises(BareconvError, match="folder: could not be written: "):
        save(tmp_path / "folder", fuller)
    assert os.listdir(tmp_path) == ["folder"]


def test_check_writable_leaves_nothing_but_the_folder(tmp_path):
    check_writable(tmp_path / "a" / "b" / "c.safetensors", "checkpoint")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions there")
def test_readable_as_any_other_file(fuller, tmp_path):
    """Temporary files are for their owner alone; a checkpoint has what the process gives new files."""
    before = os.umask(0o027)
    try:
        save(tmp_path / "a.safetensors", fuller)
        assert os.umask(0o027) == 0o027  # as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o640


def test_no_pickle_anywhere():
    """Reading a file must not run what is in it."""
    sources = sorted(Path(bareconv.__file__).parent.rglob("*.py"))
    assert len(sources) > 50
    executing = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not executing & {alias.name.split(".")[0] for alias in node.names}, source
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in executing, source
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), source
                assert node.value.value is False, source
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, source


def test_a_checkpoint_holds_numbers_and_text_alone(saved):
    tensors = load_file(saved)
    assert {key.partition("/")[0] for key in tensors} == {"model", "optimizer", "history"}
    assert tensors["history/loss"].shape == (10,)
    length = int.from_bytes(saved.read_bytes()[:8], "little")
    header = json.loads(saved.read_bytes()[8 : 8 + length])
    about = json.loads(header["__metadata__"]["bareconv"])
    assert about["model"]["layers"][0]["type"] == "Conv2d"
    assert about["settings"]["schedule"]["type"]
    assert isinstance(nn.Model.from_config(about["model"]), nn.Model)

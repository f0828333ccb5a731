"""Result files: valid or refused with the place, whole or not at all, and "latest" only after them."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bareconv import __version__
from bareconv.bench import results
from bareconv.errors import BareconvError, DataError

ENVIRONMENT = {
    "platform": "Linux",
    "python": "CPython 3.11",
    "cpu": {"model": "a CPU", "cores": 2, "cores_allowed": 2},
    "blas": {"library": "OpenBLAS"},
    "gpus": [],
    "packages": {"numpy": "2.0", "cupy": None},
}
RUN: dict[str, Any] = {
    "device": "cpu",
    "engine": "numpy",
    "model": "classic",
    "precision": "float32",
    "batch_size": 64,
    "epochs": 1,
    "iterations": 3,
    "train_seconds": 1.5,
    "images_per_second": 128.0,
    "test_accuracy": 0.98,
    "peak_memory_bytes": 1 << 28,
    "history": {"loss": [2.3, 1.7, 0.9], "epochs": []},
}


@pytest.fixture
def result():
    return copy.deepcopy(results.new("compare --epochs 1", {"epochs": 1}, runs=[RUN], environment=ENVIRONMENT))


def put(result, path, value):
    """Set the value at ``path``, a tuple of keys and indices."""
    for part in path[:-1]:
        result = result[part]
    result[path[-1]] = value


def test_new_fills_in_the_head_and_is_valid(result):
    results.validate(result)
    assert result["schema"] == "bareconv.result"
    assert result["schema_version"] == results.SCHEMA_VERSION
    assert result["bareconv"] == __version__
    assert result["runs"] == [RUN]
    assert "parity" not in result
    created = datetime.fromisoformat(result["created"])
    assert created.tzinfo == UTC
    assert abs(datetime.now().timestamp() - created.timestamp()) < 60
    assert result["commit"] is None or len(result["commit"].removesuffix("+changes")) >= 40


def test_new_describes_the_machine_where_nobody_did():
    made = results.new("check", {}, notes=["no GPU"])
    results.validate(made)
    assert made["environment"]["cpu"]["model"]
    assert made["runs"] == []
    assert made["notes"] == ["no GPU"]


def test_new_makes_plain_json():
    settings = {
        "data": Path("a/b.csv"),
        "models": ("classic", "deep"),
        "lr": np.float32(0.5),
        "classes": np.arange(3),
        "on": np.bool_(True),
    }
    made = results.new("x", settings, notes=iter(["a", "b"]), environment=ENVIRONMENT)
    assert made["settings"] == {
        "data": str(Path("a/b.csv")),
        "models": ["classic", "deep"],
        "lr": 0.5,
        "classes": [0, 1, 2],
        "on": True,
    }
    assert type(made["settings"]["on"]) is bool
    assert made["notes"] == ["a", "b"]
    results.validate(made)


def test_new_does_not_share_what_it_was_given():
    run = copy.deepcopy(RUN)
    made = results.new("x", {}, runs=[run], environment=ENVIRONMENT)
    run["history"]["loss"].append(0.1)
    assert made["runs"][0]["history"]["loss"] == [2.3, 1.7, 0.9]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("runs", 0, "test_accuracy"), 1.5, "runs[0].test_accuracy: expected at most 1; got 1.5"),
        (("runs", 0, "test_accuracy"), "good", 'runs[0].test_accuracy: expected a number or null; got "good"'),
        (("runs", 0, "test_accuracy"), math.nan, "runs[0].test_accuracy: expected a finite number; got nan"),
        (("runs", 0, "history", "loss", 1), math.inf, "runs[0].history.loss[1]: expected a finite number; got inf"),
        (
            ("runs", 0, "device"),
            "gpu",
            'runs[0].device: expected text of the form ^(cpu|cuda:[0-9]+)$; got "gpu"',
        ),
        (
            ("runs", 0, "precision"),
            "half",
            'runs[0].precision: expected one of "float64", "float32", "tf32", "bfloat16"; got "half"',
        ),
        (("runs", 0, "train_seconds"), -1, "runs[0].train_seconds: expected at least 0; got -1"),
        (("runs", 0, "iterations"), True, "runs[0].iterations: expected an integer; got true"),
        (("runs", 0, "history"), None, "runs[0].history: expected an object; got null"),
        (
            ("runs", 0, "train_seconds"),
            np.float32(1),
            "runs[0].train_seconds: expected a JSON value; got numpy.float32",
        ),
        (("settings", "data"), Path("x"), "settings.data: expected a JSON value; got pathlib."),
        (("settings", "sizes"), (1, 2), "settings.sizes: expected a JSON value; got tuple"),
        (("settings", 3), "x", "settings: expected text as a key; got 3"),
        (("runs",), {}, "runs: expected an array; got an object of 0"),
        (("notes",), ["fine", 3], "notes[1]: expected text; got 3"),
        (("created",), "yesterday", "created: expected a time with its zone, such as 2026-01-31T12:00:00+00:00; got "),
        (("created",), "2026-01-31T12:00:00", "created: expected a time with its zone"),
        (("environment", "blas"), {}, "environment.blas: expected library in it; got an empty object"),
        (("surprise",), 1, "the result: expected schema, schema_version, created, bareconv, "),
        (("schema",), "other", 'schema: expected "bareconv.result"; got "other"'),
        (("schema_version",), 3, f"schema_version: this bareconv ({__version__}) reads versions 1 to 2; got 3"),
    ],
)
def test_what_is_not_valid_is_named_in_one_line(path, value, message, result):
    put(result, path, value)
    with pytest.raises(BareconvError) as caught:
        results.validate(result)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(result):
    del result["runs"][0]["device"]
    with pytest.raises(BareconvError, match=r"^runs\[0\]: expected device in it; got engine, model"):
        results.validate(result)


@pytest.mark.parametrize(("value", "shown"), [(None, "null"), ([], "an array of 0"), (1.5, "1.5"), ("x", '"x"')])
def test_a_result_is_an_object(value, shown):
    with pytest.raises(BareconvError) as caught:
        results.validate(value)
    assert str(caught.value) == f"the result: expected an object; got {shown}"


def test_every_rule_of_the_schema_has_words():
    # _explained knows these rules; one that joins the schema must join it there.
    rules: set[str] = set()

    def collect(schema):
        if isinstance(schema, dict):
            rules.update(schema)
            for key, part in schema.items():
                for sub in part.values() if key in ("properties", "$defs") else [part]:
                    collect(sub)
        elif isinstance(schema, list):
            for part in schema:
                collect(part)

    collect(results._validator().schema)
    structure = {"$schema", "$ref", "$defs", "title", "description", "properties", "items"}
    assert rules - structure == {
        "additionalProperties",
        "const",
        "enum",
        "exclusiveMinimum",
        "format",
        "maximum",
        "minimum",
        "oneOf",
        "pattern",
        "required",
        "type",
    }


def test_the_schema_itself_is_valid():
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(results._validator().schema)


def test_write_and_read(result, tmp_path):
    path = tmp_path / "deep/er/result.json"
    results.write(result, path)
    assert results.read(path) == result
    assert os.listdir(path.parent) == ["result.json"]
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == result
    assert '"loss": [2.3, 1.7, 0.9]' in text  # numbers on one line
    assert text.endswith("}\n")
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_reader_of_the_old_file_sees_it_whole(result, tmp_path):
    path = tmp_path / "result.json"
    results.write(result, path)
    with path.open() as reader:
        results.write({**result, "notes": ["new"]}, path)
        assert json.load(reader) == result
    assert results.read(path)["notes"] == ["new"]


def test_any_text_survives(result, tmp_path):
    result["notes"] = ["ß", 'quotes " and \\', "a line\nand another", "\udce4 from a path that is not UTF-8"]
    results.write(result, tmp_path / "r.json")
    assert results.read(tmp_path / "r.json") == result


def test_what_is_not_valid_is_not_written(result, tmp_path):
    path = tmp_path / "result.json"
    path.write_text("the one before")
    result["runs"][0]["history"]["loss"][2] = math.nan
    with pytest.raises(BareconvError) as caught:
        results.write(result, path)
    problem = "runs[0].history.loss[2]: expected a finite number; got nan"
    assert str(caught.value) == f"{path}: not written, as it is not a valid result: {problem}"
    assert path.read_text() == "the one before"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits a file's size as Linux does")
def test_a_full_disk_leaves_the_old_file_and_nothing_else(result, tmp_path):
    path = tmp_path / "result.json"
    results.write(result, path)
    result["notes"] = ["x" * 100_000]
    (tmp_path / "input").write_text(json.dumps(result))
    program = (
        "import json, resource, sys; from pathlib import Path\n"
        "from bareconv.bench import results; from bareconv.errors import BareconvError\n"
        "result = json.loads(Path(sys.argv[1]).read_text())\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"  # the disk ends after one page
        "try: results.write(result, Path(sys.argv[2]))\n"
        "except BareconvError as error: print(error)\n"
    )
    command = [sys.executable, "-B", "-c", program, str(tmp_path / "input"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: could not be written: File too large\n"
    assert sorted(os.listdir(tmp_path)) == ["input", "result.json"]
    assert "notes" not in results.read(path)


def test_an_interruption_leaves_the_old_file_and_nothing_else(result, tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    path.write_text("the one before")

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        results.write(result, path)
    assert os.listdir(tmp_path) == ["result.json"]
    assert path.read_text() == "the one before"


def test_a_path_that_cannot_be_written_is_named(result, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BareconvError) as caught:
        results.write(result, tmp_path / "file/result.json")
    assert str(caught.value).startswith(f"{tmp_path / 'file/result.json'}: could not be written: ")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BareconvError, match="folder: could not be written: Is a directory"):
        results.write(result, tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "not JSON: Expecting value in line 1, column 1"),
        (b"{\n  nonsense", "not JSON: Expecting property name enclosed in double quotes in line 2, column 3"),
        (b"\xff\xfe", "not a result: byte 0 is not UTF-8 text"),
        pytest.param(b"[" * 200_000, "not a result: nested too deeply", id="deep"),
        (b"[1]", "not a valid result: the result: expected an object; got an array of 1"),
        (b"{}", 'not a valid result: schema: expected "bareconv.result"; got null'),
        (
            b'{"schema": "bareconv.result", "schema_version": 9}',
            f"not a valid result: schema_version: this bareconv ({__version__}) reads versions 1 to 2; got 9",
        ),
        (b'{"schema": NaN}', "not a valid result: schema: expected a finite number; got nan"),
        (b'{"schema": 1e999}', "not a valid result: schema: expected a finite number; got inf"),
    ],
)
def test_read_says_in_one_line_what_is_wrong(content, message, tmp_path):
    path = tmp_path / "result.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        results.read(path)
    assert str(caught.value) == f"{path}: {message}"


def test_reading_a_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read: "):
        results.read(tmp_path)


def test_folders_have_the_time_as_name_and_are_never_shared(tmp_path):
    now = datetime(2026, 1, 31, 23, 59, 59)
    made = [results.results_folder(tmp_path / "results", now) for _ in range(3)]
    assert [folder.name for folder in made] == [
        "2026-01-31_23-59-59",
        "2026-01-31_23-59-59-2",
        "2026-01-31_23-59-59-3",
    ]
    assert all(folder.is_dir() and folder.parent == tmp_path / "results" for folder in made)
    assert datetime.strptime(results.results_folder(tmp_path).name, "%Y-%m-%d_%H-%M-%S")


def test_a_root_that_is_a_file_is_named(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(BareconvError, match="results: no folder for results can be made there: "):
        results.results_folder(tmp_path / "results")


@pytest.fixture
def folders(result, tmp_path):
    """Two folders with a result each, of one second."""
    made = [results.results_folder(tmp_path / "results", datetime(2026, 1, 1)) for _ in range(2)]
    for number, folder in enumerate(made):
        results.write({**result, "command": f"run {number}"}, folder / "result.json")
    return made


@pytest.fixture(params=["links", "copies"])
def linking(request, monkeypatch):
    """Both ways to a "latest": where links can be made, and where not."""
    if request.param == "copies":

        def refused(*_, **__):
            raise OSError("A required privilege is not held by the client")

        monkeypatch.setattr(Path, "symlink_to", refused)
    return request.param


def test_latest_goes_from_one_to_the_next(folders, linking):
    for number, folder in [(0, folders[0]), (1, folders[1]), (0, folders[0])]:
        latest = results.point_latest(folder)
        assert latest == folder.parent / "latest"
        assert latest.is_symlink() == (linking == "links")
        assert results.read(latest / "result.json")["command"] == f"run {number}"
    assert sorted(os.listdir(folder.parent)) == ["2026-01-01_00-00-00", "2026-01-01_00-00-00-2", "latest"]


def test_latest_is_relative(folders, tmp_path):
    results.point_latest(folders[1])
    assert os.readlink(folders[1].parent / "latest") == folders[1].name
    shutil.move(tmp_path / "results", tmp_path / "moved")
    assert results.read(tmp_path / "moved/latest/result.json")["command"] == "run 1"


def test_a_link_becomes_a_copy_and_a_copy_a_link(folders, monkeypatch):
    link = results.point_latest(folders[0])
    assert link.is_symlink()
    with monkeypatch.context() as patch:
        patch.delattr(os, "symlink")  # pathlib then raises NotImplementedError or AttributeError by version
        patch.setattr(Path, "symlink_to", lambda *_, **__: (_ for _ in ()).throw(NotImplementedError()))
        copied = results.point_latest(folders[1])
        assert copied.is_dir()
        assert not copied.is_symlink()
    assert results.point_latest(folders[0]).is_symlink()
    assert folders[1].is_dir()


def test_a_dangling_latest_is_replaced(folders):
    (folders[0].parent / "latest").symlink_to("gone")
    results.point_latest(folders[0])
    assert results.read(folders[0].parent / "latest/result.json")["command"] == "run 0"


def test_latest_waits_for_the_result(folders, linking):
    results.point_latest(folders[0])
    empty = results.results_folder(folders[0].parent, datetime(2026, 1, 2))
    with pytest.raises(BareconvError, match=r"holds no result yet, so that .*latest stays as it is"):
        results.point_latest(empty)
    assert results.read(folders[0].parent / "latest/result.json")["command"] == "run 0"


def test_somebody_elses_latest_is_left_alone(folders, linking):
    mine = folders[0].parent / "latest"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    with pytest.raises(BareconvError, match="latest: not made by bareconv"):
        results.point_latest(folders[0])
    assert (mine / "thesis.txt").read_text() == "precious"


def test_a_latest_that_cannot_be_replaced_stays(folders, linking, monkeypatch):
    results.point_latest(folders[0])

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(BareconvError, match=r"latest: cannot be pointed to .*: Permission denied"):
        results.point_latest(folders[1])
    assert results.read(folders[0].parent / "latest/result.json")["command"] == "run 0"
    assert len(os.listdir(folders[0].parent)) == 3


COMMITTED = sorted((Path(__file__).parents[2] / "benchmarks/results").glob("*.json"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_what_was_ever_written_can_be_read(path):
    result = results.read(path)
    assert result["schema_version"] == results.SCHEMA_VERSION
    assert result["created"] == json.loads(path.read_text())["created"]


def test_an_older_result_is_brought_up_to_date(result, tmp_path):
    roofline = {"device": "cuda:0", "device_description": "a GPU", "ceilings": [], "steps": []}
    path = tmp_path / "old.json"
    path.write_text(json.dumps({**result, "schema_version": 1, "rooflines": roofline}))
    assert results.read(path) == {**result, "schema_version": 2, "rooflines": [roofline]}

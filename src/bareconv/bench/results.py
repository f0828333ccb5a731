"""The result file: made, validated, written whole or not at all, and read.

A result is plain JSON of the form that ``result.schema.json`` describes; all that is reported derives from it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from bareconv import __version__
from bareconv.bench import environment as machine
from bareconv.errors import BareconvError, DataError
from bareconv.files import write_whole

SCHEMA = "bareconv.result"
SCHEMA_VERSION = 2
OLDEST_VERSION = 1  # that ``read`` still understands

_COPY_MARK = ".copy-of"  # in a "latest" that is a copy: the folder that it is one of


def new(
    command: str,
    settings: Mapping[str, Any],
    *,
    runs: Iterable[Mapping[str, Any]] = (),
    environment: Mapping[str, Any] | None = None,
    **parts: Any,
) -> dict[str, Any]:
    """A result of ``command`` (the verb with its arguments) run with ``settings`` (every option, with its value).

    ``parts``: the schema's parts by their names (notes, peers, ...); those that are None are left out. ``environment``
    is what ``bench.environment.describe()`` gave before the measurement; it is described now where it is not given,
    when the measurement itself has made the machine busy. Paths, tuples and NumPy's numbers and arrays become plain
    JSON. The result is not validated yet: ``write`` does that.
    """
    head = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "bareconv": __version__,
        "commit": machine.git_commit(),
        "command": command,
        "environment": machine.describe() if environment is None else environment,
        "settings": settings,
    }
    given = {"runs": list(runs), **parts}
    result = _plain({**head, **{name: part for name, part in given.items() if part is not None}})
    assert isinstance(result, dict)
    return result


def validate(result: Any) -> None:
    """Raise BareconvError unless ``result`` is a result of this version.

    The message is one line: the place ("runs[0].test_accuracy"), what was expected, and what came. NaN and the
    infinities are refused, as JSON has no such numbers.
    """
    for place, problem in _not_json(result):
        raise BareconvError(f"{place or 'the result'}: {problem}")
    if not isinstance(result, dict):
        raise BareconvError(f"the result: expected an object; got {_short(result)}")
    if result.get("schema") != SCHEMA:
        raise BareconvError(f"schema: expected {_short(SCHEMA)}; got {_short(result.get('schema'))}")
    if result.get("schema_version") != SCHEMA_VERSION:
        raise BareconvError(
            f"schema_version: this bareconv ({__version__}) reads versions {OLDEST_VERSION} to {SCHEMA_VERSION}; "
            f"got {_short(result.get('schema_version'))}"
        )
    from jsonschema.exceptions import best_match

    error = best_match(_validator().iter_errors(result))
    if error is not None:
        raise BareconvError(f"{_place(error.absolute_path) or 'the result'}: {_explained(error)}")


def write(result: Mapping[str, Any], path: Path) -> None:
    """Validate ``result`` and write it to ``path``, whole or not at all; folders on the way are made.

    Raises BareconvError where it is not valid, or cannot be written.
    """
    path = Path(path)
    try:
        validate(result)
    except BareconvError as error:
        raise BareconvError(f"{path}: not written, as it is not a valid result: {error}") from None
    write_whole(path, (_laid_out(result) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    """The result in ``path``, an older one brought up to date.

    Raises DataError in one line where there is none, or it is not a valid one.
    """
    path = Path(path)
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a result: byte {error.start} is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise DataError(f"{path}: not a result: nested too deeply") from None
    result = upgraded(result)
    try:
        validate(result)
    except BareconvError as error:
        raise DataError(f"{path}: not a valid result: {error}") from None
    assert isinstance(result, dict)
    return result


def upgraded(result: Any) -> Any:
    """A result of an older version as this one writes it; anything else as it is."""
    if not isinstance(result, dict) or result.get("schema") != SCHEMA or result.get("schema_version") != 1:
        return result
    newer = {**result, "schema_version": 2}
    if "rooflines" in newer:  # of one device, then
        newer["rooflines"] = [newer["rooflines"]]
    return newer


def results_folder(root: Path = Path("results"), now: datetime | None = None) -> Path:
    """Make and return a new folder ``root``/2026-01-31_23-59-59, by the local time or ``now``.

    Where it exists already, "-2", "-3", ... is appended: no two calls share one. Raises BareconvError where it cannot
    be made.
    """
    name = (now or datetime.now()).strftime("%Y-%m-%d_%H-%M-%S")
    number = 1
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        while True:
            folder = Path(root) / (name if number == 1 else f"{name}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
            number += 1
    except OSError as error:
        raise BareconvError(f"{root}: no folder for results can be made there: {error.strerror or error}") from None


def point_latest(folder: Path) -> Path:
    """Let "latest" beside ``folder`` mean it, and return that path. Call it once the result is written.

    A relative symbolic link, replaced in one move; where links cannot be made (Windows without the right, some file
    systems), a copy of ``folder``. Raises BareconvError where ``folder`` holds no JSON file yet, where "latest" is
    something that this function did not make, or where it cannot be replaced.
    """
    folder = Path(folder)
    latest = folder.parent / "latest"
    if not any(folder.glob("*.json")):
        raise BareconvError(f"{folder}: holds no result yet, so that {latest} stays as it is")
    is_copy = latest.is_dir() and not latest.is_symlink() and (latest / _COPY_MARK).is_file()
    if latest.exists() and not latest.is_symlink() and not is_copy:
        raise BareconvError(f"{latest}: not made by bareconv: rename it, so that it can point to the latest result")
    token = secrets.token_hex(4)
    fresh, old = (folder.parent / f".latest.{token}.{what}" for what in ("new", "old"))
    try:
        try:
            fresh.symlink_to(folder.name, target_is_directory=True)
        except (OSError, NotImplementedError):
            shutil.copytree(folder, fresh)
            (fresh / _COPY_MARK).write_text(folder.name + "\n", encoding="utf-8")
        # A folder cannot be replaced in one move; nor, on Windows, can a link to one.
        if is_copy or (latest.is_symlink() and (os.name == "nt" or not fresh.is_symlink())):
            latest.rename(old)
        fresh.replace(latest)
    except OSError as error:
        if not os.path.lexists(latest) and os.path.lexists(old):
            old.rename(latest)
        raise BareconvError(f"{latest}: cannot be pointed to {folder.name}: {error.strerror or error}") from None
    finally:
        for leftover in (fresh, old):
            _remove(leftover)
    return latest


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)


@functools.cache
def _validator() -> Any:
    import jsonschema

    schema = json.loads(resources.files("bareconv.bench").joinpath("result.schema.json").read_text(encoding="utf-8"))
    checker: Any = jsonschema.FormatChecker(formats=())
    checker.checks("date-time", raises=ValueError)(_is_time)
    return jsonschema.Draft202012Validator(schema, format_checker=checker)


def _is_time(value: object) -> bool:
    # RFC 3339, as the schema's "date-time": with a zone, which fromisoformat does not ask for.
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


_KINDS = {
    "array": "an array",
    "boolean": "true or false",
    "integer": "an integer",
    "number": "a number",
    "object": "an object",
    "string": "text",
}


def _explained(error: Any) -> str:
    """What a jsonschema error expected and what came, in words."""
    rule, came = error.validator_value, error.instance
    match error.validator:
        case "required":
            lacking = [name for name in rule if name not in came]
            return f"expected {', '.join(lacking)} in it; got {', '.join(came)[:200] or 'an empty object'}"
        case "additionalProperties":
            known = list(error.schema.get("properties", {}))
            return f"expected {', '.join(known)}; got {', '.join(name for name in came if name not in known)}"
        case "type":
            wanted = _either([rule] if isinstance(rule, str) else rule)
        case "oneOf":  # a quantity or null, and neither came
            wanted = _either(cause.validator_value for cause in error.context if cause.validator == "type")
        case "enum":
            wanted = "one of " + ", ".join(map(_short, rule))
        case "const":
            wanted = _short(rule)
        case "minimum":
            wanted = f"at least {rule}"
        case "exclusiveMinimum":
            wanted = f"more than {rule}"
        case "maximum":
            wanted = f"at most {rule}"
        case "pattern":
            wanted = f"text of the form {rule}"
        case "format":
            wanted = "a time with its zone, such as 2026-01-31T12:00:00+00:00"
        case _:
            return " ".join(error.message.split())[:200]
    return f"expected {wanted}; got {_short(came)}"


def _either(kinds: Iterable[str]) -> str:
    return " or ".join(_KINDS.get(kind, kind) for kind in kinds)


def _place(parts: Iterable[str | int]) -> str:
    """A JSON path as a person writes it: runs[0].history.loss[3]."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if isinstance(value, list):
        return f"an array of {len(value)}"
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:59] + "…"


def _not_json(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Places in ``value`` that JSON cannot hold, each with what is wrong there."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield place, f"expected text as a key; got {key!r}"
            yield from _not_json(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if type(item) is not float or not math.isfinite(item):  # most are: the losses of every step
                yield from _not_json(item, f"{place}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield place, f"expected a finite number; got {value!r}"
    elif value is not None and not isinstance(value, (str, int)):  # bool is an int
        kind = type(value)
        yield place, f"expected a JSON value; got {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")


def _plain(value: Any) -> Any:
    """``value`` in JSON's own types, where it is something that has an evident form in them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Sequence | Iterator) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    return value


def _laid_out(value: Any, indent: str = "") -> str:
    """JSON with an object's entries on lines of their own, and arrays of numbers on one line: long, but to be read."""
    deeper = indent + " "
    if isinstance(value, dict) and value:
        lines = [f"{json.dumps(key)}: {_laid_out(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(deeper + line for line in lines) + "\n" + indent + "}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        lines = [_laid_out(item, deeper) for item in value]
        return "[\n" + ",\n".join(deeper + line for line in lines) + "\n" + indent + "]"
    return json.dumps(value, allow_nan=False)

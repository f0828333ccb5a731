"""Hyperparameters: checked where they come in, and written out so that the same object can be built again."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, TypeVar

from bareconv.errors import UsageError

T = TypeVar("T")


def number(owner: object, name: str, value: Any, *, low: float, high: float = math.inf, ends: str = "[)") -> float:
    """``value`` as a Python float, or UsageError that names the owner, the range and what came.

    ``ends`` says which ends belong to the range, as in mathematics: "[)" is low <= value < high. Python floats, not
    NumPy's: beside one, a float32 array stays float32.
    """
    # bool counts as a number in Python, but lr=True is a mistake; NaN is in no range.
    x = float(value) if not isinstance(value, bool) and isinstance(value, Real) else math.nan
    if (x >= low if ends[0] == "[" else x > low) and (x <= high if ends[1] == "]" else x < high):
        return x
    expected = f"{'at least' if ends[0] == '[' else 'above'} {low:g}"
    if high != math.inf:
        expected += f" and {'at most' if ends[1] == ']' else 'below'} {high:g}"
    owner_name = getattr(owner, "__name__", type(owner).__name__)
    raise UsageError(f"{owner_name}: {name} must be a number, {expected}; got {value!r}")


def config_of(thing: object) -> dict[str, Any]:
    """What ``built`` needs to build ``thing`` again: its type and every argument of its constructor. JSON-able."""
    arguments = inspect.signature(type(thing)).parameters
    return {"type": type(thing).__name__, **{name: getattr(thing, name) for name in arguments}}


def built(config: Mapping[str, Any], types: Mapping[str, type[T]], what: str) -> T:
    """The object that ``config`` describes: {"type": name, argument: value, ...}.

    Names match without regard to case, "-" and "_": "one-cycle" is OneCycle. Arguments that are left out have their
    defaults. Raises UsageError for an unknown type or argument, one that is missing, or a value out of range.
    """
    arguments = dict(config)
    name = arguments.pop("type", None)
    known = {_folded(key): value for key, value in types.items()}
    if not isinstance(name, str) or _folded(name) not in known:
        raise UsageError(f"{what} {name!r}: expected one of {', '.join(types)}")
    chosen = known[_folded(name)]
    parameters = inspect.signature(chosen).parameters
    unknown = [argument for argument in arguments if argument not in parameters]
    if unknown:
        raise UsageError(f"{what} {name}: expected {', '.join(parameters) or 'no argument'}; got {', '.join(unknown)}")
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in arguments]
    if missing:
        raise UsageError(f"{what} {name}: {', '.join(missing)} must be given")
    return chosen(**arguments)


def _folded(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")

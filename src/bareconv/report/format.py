"""Numbers as people read them: three significant digits, a unit that fits, "–" where there is no number.

Every function takes a number or None and returns text; None, NaN and infinities give ``MISSING``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeGuard

MISSING = "–"

_WORDS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"))

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def seconds(x: float | None) -> str:
    """A duration in seconds: "53.2 s", "4.50 ms", "12.0 µs", "2 min 05 s", "1 h 02 min"."""
    if not _is_number(x):
        return MISSING
    if x == 0:
        return "0 s"
    # Where rounding would carry into the next unit (999.9 µs, 119.7 s), that unit is the one to use.
    if round(abs(x)) >= 3600:
        minutes = round(x / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    if round(abs(x)) >= 120:
        whole = round(x)
        return f"{whole // 60} min {whole % 60:02d} s"
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if abs(x) * scale >= 0.9995:
            return f"{significant(x * scale)} {unit}"
    return f"{significant(x * 1e9)} ns"


def bytes_(x: float | None) -> str:
    """A size in bytes, in binary units: "512 B", "1.50 KiB", "312 MiB"."""
    if not _is_number(x):
        return MISSING
    value, unit = float(x), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1023.5:
            break
        value, unit = value / 1024, larger
    return f"{value:,.0f} B" if unit == "B" else f"{significant(value)} {unit}"


def rate(x: float | None, what: str = "") -> str:
    """How many a second: "12,345/s", "8.21/s"; with ``what``: "12,345 images/s"."""
    if not _is_number(x):
        return MISSING
    number = f"{x:,.0f}" if abs(x) >= 99.95 else significant(x)
    return f"{number} {what}/s" if what else f"{number}/s"


def count(x: float | None) -> str:
    """A whole number, or nearly one, with thousands separated: "60,000", "2.5"."""
    if not _is_number(x):
        return MISSING
    return f"{x:,.0f}" if float(x).is_integer() or abs(x) >= 1000 else f"{x:.3g}"


def counted(x: float, what: str) -> str:
    """So many of something: "1 epoch", "3 epochs"."""
    return f"{count(x)} {what}{'' if x == 1 else 's'}"


def percent(x: float | None, digits: int = 2) -> str:
    """A fraction of 1 as per cent: "98.96%". Only 1 itself is "100%", so that no error is rounded away."""
    if not _is_number(x):
        return MISSING
    if x in (0, 1):
        return f"{100 * x:.0f}%"
    text = f"{100 * x:.{digits}f}"
    if float(text) == 100:
        return f">{100 - 10**-digits:.{digits}f}%"
    if float(text) == 0:
        return f"<{10**-digits:.{digits}f}%"
    return text + "%"


def ratio(x: float | None, digits: int = 3) -> str:
    """How many times, in two or three ``digits``: "23.1×" or "23×", "1.24×", "140×"; below 1 always two: "0.42×"."""
    if not _is_number(x):
        return MISSING
    return significant(x, 2 if abs(x) < 0.9995 else digits) + "×"


def scientific(x: float | None) -> str:
    """A small or large number with its power of ten: "2.1×10⁻⁶", "10⁻³", "0"."""
    if not _is_number(x):
        return MISSING
    if x == 0:
        return "0"
    mantissa, exponent = f"{x:.1e}".split("e")
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    return power if mantissa == "1.0" else f"{mantissa}×{power}"


def flops(x: float | None) -> str:
    """Floating-point operations a second: "1.23 TFLOP/s"."""
    return metric(x, "FLOP/s")


def metric(x: float | None, unit: str) -> str:
    """A quantity with the prefix that fits: "1.23 TB/s", "2.70 GHz", "340 mJ", "12.0 W"."""
    if not _is_number(x):
        return MISSING
    if x == 0:
        return f"0 {unit}"
    # Where rounding would carry into the next prefix (999.7), that prefix is the one to use.
    scale, prefix = next((p for p in _PREFIXES if abs(x) >= 0.9995 * p[0]), _PREFIXES[-1])
    return f"{significant(x / scale)} {prefix}{unit}"


def between(low: float, high: float, text: Callable[[float], str]) -> str:
    """An interval, its unit said once where both ends have the same: "3.25 to 3.44×", "998 µs to 1.02 ms"."""
    first, last = text(low), text(high)
    number = last.rstrip("".join({c for c in last if not c.isdigit()}))
    unit = last[len(number) :]
    return f"{first.removesuffix(unit) if unit and first.endswith(unit) else first} to {last}"


def within(estimate: Mapping[str, float], text: Callable[[float], str]) -> str:
    """A figure with its interval (``value``, ``low`` and ``high``): "3.31× (3.25 to 3.44×)"."""
    return f"{text(estimate['value'])} ({between(estimate['low'], estimate['high'], text)})"


def listed(texts: Sequence[str]) -> str:
    """In a sentence: "a", "a and b", "a, b and c"."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def number_word(x: int) -> str:
    """A small whole number as a word: "two"; a larger one in digits: "16"."""
    return _WORDS[x] if 0 <= x < len(_WORDS) else count(x)


def significant(x: float, digits: int = 3) -> str:
    """A number with ``digits`` significant digits, no exponent: "0.123", "1.23", "12.3", "123", "1,234"."""
    if x == 0:
        return "0"
    # Decided after rounding: 9.996 is "10.0", not "10.00".
    exponent = int(f"{x:.{digits - 1}e}".split("e")[1])
    return f"{x:,.{max(0, digits - 1 - exponent)}f}"


def _is_number(x: float | None) -> TypeGuard[float]:
    return x is not None and math.isfinite(x)

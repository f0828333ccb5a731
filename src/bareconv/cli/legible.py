"""Text on terminals and in files that cannot hold every character: "10⁻⁶ × 3 µs" becomes "10^-6 x 3 us".

An encoding such as ASCII or Latin-1 has no "⁻", and a file name may hold bytes that are no characters at all; neither
may end a program that only wanted to say something.
"""

from __future__ import annotations

import codecs
import io
from typing import TextIO

_SUPERSCRIPTS = dict(zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789", strict=True))
_OTHERS = {"×": "x", "·": ".", "–": "-", "µ": "u", "…": "...", "━": "=", "─": "-", "’": "'"}
_OTHERS |= dict(zip("▁▂▃▄▅▆▇█", "_.-~=+*#", strict=True))  # of small charts


def make_legible(stream: TextIO) -> None:
    """Let ``stream`` write whatever it is given, as well as its encoding can."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="bareconv.legible")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text, before, end = "", error.object[error.start - 1 : error.start], error.end
    while error.object[end : end + 1] in _SUPERSCRIPTS and end < len(error.object):
        end += 1  # Latin-1 has some of them: not half of a number in this form, half in that
    for character in error.object[error.start : end]:
        if character in _SUPERSCRIPTS:
            text += ("" if before in _SUPERSCRIPTS else "^") + _SUPERSCRIPTS[character]
        else:
            text += _OTHERS.get(character) or character.encode("ascii", "backslashreplace").decode()
        before = character
    return text, end


codecs.register_error("bareconv.legible", _replace)

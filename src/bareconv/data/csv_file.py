"""Kaggle's Digit Recognizer CSV: a header ``label,pixel0,...,pixel783`` (or without label), then an image a line.

``_parse_row`` is the specification: one line, value by value, and the reason where it is refused. ``_parse_block``
reads many lines at once with array operations, faster than ``numpy.loadtxt`` does, and knows only the plain form of a
value: one to three digits. A block that it does not know goes through ``_parse_row`` line by line.
"""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bareconv.data.files import read_bytes
from bareconv.errors import DataError

_BLOCK = 1 << 16  # bytes at once: the dozen arrays that a block becomes stay in the second-level cache
_MARKS = {  # what a file that is not a CSV starts with
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"\xff\xfe": "text in UTF-16: save it as UTF-8",
    b"\xfe\xff": "text in UTF-16: save it as UTF-8",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x93NUMPY": "a NumPy array",
}


class _Header(NamedTuple):
    names: list[str]  # of all columns
    has_label: bool  # the first column is label
    side: int  # images are side x side


def read_csv(path: Path | str, *, labelled: bool | None) -> tuple[NDArray[np.uint8], NDArray[np.int32] | None]:
    """Images, uint8 (N, H, W, 1) with H = W, and labels, int32 (N,) in 0..9, or None.

    labelled: True, there must be a column ``label``; False, there may be one, which is not looked at (people predict
    on train.csv too); None, labels are read where the header has them. Pixels are whole numbers from 0 to 255;
    spaces around them, quotes, Windows line ends, a UTF-8 byte-order mark and gzip (told by its content) are read.
    Blank lines are refused, also at the end: every line is an image. Raises DataError with the line, counted from 1
    (the header), and the column.
    """
    path = Path(path)
    data = read_bytes(path)
    skip = 3 if data.startswith(b"\xef\xbb\xbf") else 0  # the byte-order mark
    if b"\r" in data:
        # Line ends of Windows, or of old Macs; a stray carriage return is white space to _parse_row.
        data = data.replace(b"\r\n", b"\n") if b"\n" in data else data.replace(b"\r", b"\n")
    if len(data) == skip:
        raise DataError(f"{path}: expected a header such as label,pixel0,...,pixel783, got an empty file")
    end = data.find(b"\n", skip)
    end = len(data) if end < 0 else end
    header = _parse_header(data[skip:end], str(path), skip)
    if labelled and not header.has_label:
        raise DataError(
            f"{path}: line 1: expected 'label' as the first column, for there must be labels, "
            f"got {_quote(header.names[0])}"
        )
    rows = _read_rows(data, end + 1, header, labelled is not False, str(path))
    pixels = np.concatenate([block[:, header.has_label :] for block in rows])
    images = pixels.reshape(-1, header.side, header.side, 1)
    if labelled is False or not header.has_label:
        return images, None
    return images, np.concatenate([block[:, 0] for block in rows]).astype(np.int32)


def _parse_header(line: bytes, name: str, offset: int) -> _Header:
    """What the columns are. ``offset``: where in the file the line starts, in bytes."""
    control = re.search(rb"[\x00-\x08\x0b-\x1f]", line)
    try:
        text = line.decode("utf-8")
        bad = control.start() if control else None
    except UnicodeDecodeError as error:
        bad = min(error.start, control.start()) if control else error.start
    if bad is not None:
        what = next((meaning for mark, meaning in _MARKS.items() if line.startswith(mark)), "not text")
        raise DataError(f"{name}: byte {offset + bad}: expected CSV text, got byte 0x{line[bad]:02x} ({what})")
    if not text.strip():
        raise DataError(f"{name}: line 1: expected a header such as label,pixel0,...,pixel783, got a blank line")
    try:
        names = [field.strip() for field in next(csv.reader([text], skipinitialspace=True, strict=True))]
    except csv.Error as error:
        raise DataError(f"{name}: line 1: expected a header such as label,pixel0,...,pixel783, got {error}") from None
    if all(re.fullmatch(r"[-+]?[0-9.]+", field) for field in names):
        raise DataError(
            f"{name}: line 1: expected a header such as label,pixel0,...,pixel783, got numbers: {_quote(text)}"
        )
    lower = [field.lower() for field in names]
    if "label" in lower[1:]:
        at = lower.index("label", 1)
        raise DataError(f"{name}: line 1: expected 'label' as the first column only, got it as column {at + 1}")
    for mark, meaning in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and mark in text:
            raise DataError(f"{name}: line 1: expected commas between the columns, got {meaning}")
    has_label = lower[0] == "label"
    pixels = len(names) - has_label
    side = math.isqrt(pixels)
    surprise = _first_out_of_order(names, int(has_label))
    if pixels == 0 or side * side != pixels:
        raise DataError(
            f"{name}: line 1: expected a square number of pixel columns (784 for 28 x 28 images), "
            f"got {pixels}{f'; {surprise}' if surprise else ''}"
        )
    if surprise:
        raise DataError(f"{name}: line 1: {surprise}")
    return _Header([_plain(name) for name in names], has_label, side)


def _first_out_of_order(names: list[str], start: int) -> str:
    """Where columns named pixel0, pixel1, ... break off, as text; empty where they do not, or have other names."""
    first = re.fullmatch(r"pixel([0-9]{1,9})", names[start]) if len(names) > start else None
    if first is None:
        return ""
    for index, name in enumerate(names[start:], start=int(first[1])):
        if name != f"pixel{index}":
            column = start + 1 + index - int(first[1])
            return f"column {column}: expected 'pixel{index}', got {_quote(name)}"
    return ""


def _read_rows(data: bytes, start: int, header: _Header, with_labels: bool, name: str) -> list[NDArray[np.uint8]]:
    """All lines from byte ``start`` as blocks of uint8 (rows, columns), where N = the sum of the rows."""
    blocks: list[NDArray[np.uint8]] = []
    line = 2
    at = start
    while at < len(data):
        # Up to the last line end within the next so many bytes; a longer line is a block of its own.
        end = data.rfind(b"\n", at, at + _BLOCK) + 1 or data.find(b"\n", at) + 1 or len(data)
        raw = data[at:end] if data[end - 1] == ord("\n") else data[at:end] + b"\n"
        rows = _parse_block(raw, len(header.names))
        if rows is None:
            parsed = [
                _parse_row(text, header, with_labels, f"{name}: line {number}")
                for number, text in enumerate(raw[:-1].split(b"\n"), start=line)
            ]
            rows = np.frombuffer(b"".join(parsed), np.uint8).reshape(-1, len(header.names))
        if with_labels and header.has_label and rows[:, 0].max() > 9:
            index = int(np.argmax(rows[:, 0] > 9))
            raise DataError(
                f"{name}: line {line + index}, column label: expected a label from 0 to 9, got {rows[index, 0]}"
            )
        blocks.append(rows)
        line += len(rows)
        at = end
    if not blocks:
        raise DataError(f"{name}: line 2: expected an image, got the end of the file: there is only a header")
    return blocks


def _parse_block(raw: bytes, columns: int) -> NDArray[np.uint8] | None:
    """Whole lines as uint8 (rows, columns); None where anything is not of the plain form, good or bad.

    Finds the separators, the bytes that are no digits, and gathers each value's digits backwards from the one after it.
    """
    text = np.frombuffer(raw, np.uint8)
    digits = text - np.uint8(ord("0"))  # 0..9 for digits; separators, below "0", wrap round to large numbers
    ends = np.flatnonzero(digits > 9)  # the separator after each value
    if ends.size % columns:
        return None
    separators = text[ends].reshape(-1, columns)
    if (separators[:, -1] != ord("\n")).any() or (separators[:, :-1] != ord(",")).any():
        return None
    width = np.diff(ends, prepend=-1)  # of each value, its separator included
    if width.min() < 2 or width.max() > 4:
        return None
    values = digits[ends - 1].astype(np.uint16)
    two = np.flatnonzero(width > 2)  # few: four fifths of the pixels are 0
    values[two] += digits[ends[two] - 2] * np.uint16(10)
    three = two[width[two] == 4]
    values[three] += digits[ends[three] - 3] * np.uint16(100)
    if values.max() > 255:
        return None
    return values.astype(np.uint8).reshape(-1, columns)


def _parse_row(line: bytes, header: _Header, with_labels: bool, where: str) -> bytes:
    """The values of one line, a byte each. Raises DataError, which starts with ``where``."""
    columns = len(header.names)
    if not line.strip():
        raise DataError(f"{where}: expected {columns} values, got a blank line")
    fields = line.split(b",")
    if b'"' in line:
        fields = [_unquoted(field) for field in fields]
    if len(fields) != columns:
        nul = " and a NUL byte" if b"\0" in line else ""
        raise DataError(f"{where}: expected {columns} values, got {len(fields)}{nul}")
    if header.has_label and not with_labels:
        fields[0] = b"0"
    if b"_" not in line:  # int() would take "1_0" for 10
        try:
            return bytes(map(int, fields))  # bytes() takes 0 to 255
        except ValueError:
            pass  # one of them; the loop below says which
    for index, (column, field) in enumerate(zip(header.names, fields, strict=True)):
        if not _is_byte(field):
            expected = "a label from 0 to 9" if header.has_label and index == 0 else "a whole number from 0 to 255"
            nul = " (with a NUL byte)" if b"\0" in field else ""
            got = _quote(field.decode("utf-8", "backslashreplace")) if field.strip() else "nothing"
            raise DataError(f"{where}, column {column}: expected {expected}, got {got}{nul}")
    return bytes(map(int, fields))


def _unquoted(field: bytes) -> bytes:
    field = field.strip()
    return field[1:-1] if len(field) > 1 and field[0] == field[-1] == ord('"') else field


def _is_byte(field: bytes) -> bool:
    try:
        return b"_" not in field and 0 <= int(field) <= 255
    except ValueError:
        return False


def _plain(column: str) -> str:
    """A column's name for a message: on one line, and short."""
    return column if column.isprintable() and len(column) <= 40 else _quote(column)


def _quote(text: str, limit: int = 24) -> str:
    """A piece of the file for a message: on one line, and short."""
    return repr(text if len(text) <= limit else text[:limit] + "...")

"""The bytes of a file, unpacked where they are gzip; whatever fails is one line that names the file."""

from __future__ import annotations

import zlib
from pathlib import Path

from bareconv.errors import DataError

_GZIP = b"\x1f\x8b"
_WITH_GZIP_HEADER = 31  # zlib's "window bits": 15, + 16 for the gzip header and its check sum


def read_bytes(path: Path) -> bytes:
    """All bytes of ``path``; of a gzip file, told by its content, what it holds. Raises DataError."""
    data = read_raw(path)
    return unpack(data, str(path)) if data.startswith(_GZIP) else data


def read_raw(path: Path) -> bytes:
    """All bytes of ``path`` as they lie there. Raises DataError."""
    try:
        if path.is_dir():  # Windows calls this a missing permission
            raise DataError(f"{path}: expected a file, got a directory")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError | ValueError) -> DataError:
    """What the system said about ``path``, in one line."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file or directory")
    if isinstance(error, PermissionError):
        return DataError(f"{path}: no permission to read it")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DataError(f"{str(path)!r}: cannot be read: {reason}")


def unpack(data: bytes, name: str) -> bytes:
    """What gzip ``data`` holds, of one member or several. Raises DataError, with the byte near which it is damaged."""
    parts: list[bytes] = []
    rest = data
    while rest:
        member = zlib.decompressobj(_WITH_GZIP_HEADER)
        try:
            parts.append(member.decompress(rest))
        except zlib.error as error:
            where = len(data) - len(rest) + _damage(rest)
            raise DataError(f"{name}: damaged gzip data near byte {where}: {_reason(error)}") from None
        if not member.eof:
            raise DataError(
                f"{name}: expected the end of the gzip data, but the file is cut off at byte {len(data)}, "
                f"after {sum(map(len, parts))} bytes unpacked"
            )
        rest = member.unused_data.lstrip(b"\0")  # tape blocks and some tools pad with zeros
    return b"".join(parts)


def _damage(data: bytes, step: int = 1024) -> int:
    """Where zlib refuses ``data``, to within ``step`` bytes."""
    member = zlib.decompressobj(_WITH_GZIP_HEADER)
    for start in range(0, len(data), step):
        try:
            member.decompress(data[start : start + step])
        except zlib.error:
            return start
    return len(data)


def _reason(error: zlib.error) -> str:
    """The end of "Error -3 while decompressing data: incorrect header check"."""
    return str(error).rpartition(": ")[2]

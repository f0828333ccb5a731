"""Which reader a path gets, and which data where the user names none."""

from __future__ import annotations

from pathlib import Path

from bareconv.data import idx, npz
from bareconv.data.csv_file import read_csv
from bareconv.data.dataset import Dataset, Split
from bareconv.data.embedded import mnist
from bareconv.data.files import unreadable
from bareconv.errors import DataError


def load(path: Path | str) -> Dataset:
    """The labelled data at ``path``: a CSV (.csv, .csv.gz), a folder of IDX files, or an .npz archive.

    The name is the path; validation is None; test is there where the files hold one. Classes: 10 for a CSV,
    which holds digits; otherwise as ``count_classes`` says. Raises DataError.
    """
    path = Path(path)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if path.is_dir():
        return idx.read_folder(path)
    endings = [ending.lower() for ending in path.suffixes]
    if endings[-1:] == [".npz"]:
        return npz.read_npz(path)
    if endings[-1:] == [".csv"] or endings[-2:] == [".csv", ".gz"]:
        images, labels = read_csv(path, labelled=True)
        assert labels is not None  # labelled=True raises without them
        return Dataset(str(path), Split(images, labels), None, None, 10)
    hint = "; of IDX files give the folder" if "ubyte" in path.name else ""
    raise DataError(f"{path}: expected a .csv, a .csv.gz, an .npz or a folder of IDX files, got {path.name!r}{hint}")


def default(root: Path = Path(".")) -> Dataset:
    """Kaggle's digit-recognizer/train.csv under ``root`` where it is there, else the embedded MNIST.

    Raises DataError where it is there, but cannot be read: other data in its place would be a silent surprise.
    """
    path = root / "digit-recognizer" / "train.csv"
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return mnist()
    except OSError:
        pass  # it may be there: load says what is wrong
    return load(path)

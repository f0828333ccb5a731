"""The MNIST database, which lies in the package (``mnist/README.md`` names authors and licence)."""

from __future__ import annotations

import hashlib
from importlib import resources

from bareconv.data.dataset import Dataset, Split
from bareconv.data.files import unpack
from bareconv.data.idx import parse_images, parse_labels
from bareconv.errors import DataError

NAME = "MNIST (embedded)"

SHA256 = {
    "train-images-idx3-ubyte.gz": "0b367032e93c5d0cea0925647cfdb18614af8ee15f83e6f2fc2ad904a6835971",
    "train-labels-idx1-ubyte.gz": "1787548bbe0bff1ec2ecdc0ef292b02df999e2d1a6002d27500982c652b17203",
    "t10k-images-idx3-ubyte.gz": "1a1a05eab793c14bb050b398624a11b0ffd1a2953baed553b1b9bd079e2a20be",
    "t10k-labels-idx1-ubyte.gz": "b91679a0acfe4ba0e50a2437a903084cba1f5f92592b016a25a7dfd00455798b",
}


def mnist() -> Dataset:
    """The embedded MNIST: 60,000 training and 10,000 test images, uint8 (N, 28, 28, 1), labels 0 to 9.

    Raises DataError where a file is missing or not the one that was embedded.
    """
    return Dataset(NAME, _split("train"), None, _split("t10k"), 10)


def _split(part: str) -> Split:
    images, labels = f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"
    return Split(parse_images(_read(images), images), parse_labels(_read(labels), labels))


def _read(file: str) -> bytes:
    """One embedded file, verified and unpacked."""
    resource = resources.files("bareconv.data").joinpath("mnist", file)
    try:
        packed = resource.read_bytes()
    except OSError as error:
        raise DataError(f"{resource}: an embedded file cannot be read ({error.strerror}); reinstall bareconv") from None
    digest = hashlib.sha256(packed).hexdigest()
    if digest != SHA256[file]:
        raise DataError(
            f"{resource}: an embedded file is damaged: expected SHA-256 {SHA256[file]}, "
            f"got {digest}; reinstall bareconv"
        )
    return unpack(packed, str(resource))

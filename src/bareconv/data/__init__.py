"""Images and labels: the embedded MNIST, and readers of Kaggle's CSV, IDX folders, npz archives and drawn digits.

Every reader checks what it reads on the host and raises DataError, one line that names the file and the row, byte or
array, what was expected and what came.
"""

from bareconv.data.csv_file import read_csv
from bareconv.data.dataset import Dataset, Split
from bareconv.data.drawn import read_images
from bareconv.data.embedded import mnist
from bareconv.data.sources import default, load

__all__ = ["Dataset", "Split", "default", "load", "mnist", "read_csv", "read_images"]

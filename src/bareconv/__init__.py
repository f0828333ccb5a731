"""bareconv: a convolutional network from first principles, on NumPy and CuPy."""

__version__ = "0.1.0"

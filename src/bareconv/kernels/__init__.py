"""Fast kernels, each tested against the reference in ``ops``."""

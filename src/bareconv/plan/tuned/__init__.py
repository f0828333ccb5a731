"""A training step by the tuned NumPy kernels, layer group by layer group, without a compiler."""

"""Kernels for CUDA: sources in ``source/``, a module for each family that says how to launch it on given shapes."""

"""Kernels for processors with vector units, written through LLVM for the shapes at hand."""

"""Benches of the kernels, one file per op."""

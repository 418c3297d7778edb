"""CUDA C++ kernels: one source, compiled for Hopper at run time or run on the CPU by an emulator that checks it."""

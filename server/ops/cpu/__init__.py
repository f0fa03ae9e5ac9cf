"""Kernels in C++ for CPUs, built on first use; `library.load` is the way in."""

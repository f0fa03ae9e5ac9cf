"""Weights of GGUF files: which tensor is which, and what its blocks stand for."""

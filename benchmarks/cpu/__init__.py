"""This engine beside vLLM, llama.cpp and transformers on one CPU: ``python -m benchmarks.cpu``."""

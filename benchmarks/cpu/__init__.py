"""This engine beside vLLM, llama.cpp and transformers on one CPU: ``.venv/bin/python -m benchmarks.cpu``."""

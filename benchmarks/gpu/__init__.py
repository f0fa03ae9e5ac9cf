"""Speed on a data-centre GPU, beside vLLM and transformers: ``.venv/bin/python -m benchmarks.gpu``."""

"""Speed on a data-centre GPU, beside vLLM and transformers: ``python -m benchmarks.gpu``."""

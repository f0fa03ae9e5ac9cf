"""Whether answers are the same in any company: ``.venv/bin/python -m benchmarks.same_bits MODEL``."""

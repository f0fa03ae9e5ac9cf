"""A load generator for this stack and for any OpenAI-compatible endpoint.

``.venv/bin/python -m benchmarks.loadgen --help``; what it measures and how is described in `measures`.
"""

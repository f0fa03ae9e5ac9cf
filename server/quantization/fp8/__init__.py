"""Weights that stay in FP8, and products of FP8 units with them."""

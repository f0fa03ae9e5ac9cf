"""Speculative decoding by prompt lookup: what may come next, and whether guessing it pays."""

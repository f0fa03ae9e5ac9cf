"""Causal language models without a file of ours, by transformers' own modules over the paged cache."""

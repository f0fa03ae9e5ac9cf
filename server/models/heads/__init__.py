"""Draft heads: small networks that guess tokens from the hidden states of a larger model."""

"""The unit in which the gateway and the servers count work."""

PROMPT_TOKENS_PER_WORK = 20
"""A prompt token costs about a twentieth of a generated one: it is computed in parallel."""


def expected_tokens(prompt_tokens: int, rows: int, new_tokens: int) -> int:
    """Expected work of a request: ``prompt / 20 + rows × new tokens``, in generated tokens."""
    return prompt_tokens // PROMPT_TOKENS_PER_WORK + rows * new_tokens

"""The budgets that a step and the queue must keep, and what can never fit in them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes that the engine was built with.

    Attributes:
        max_tokens: tokens of one forward pass.
        max_rows: sequences (beams, samples) that run at once.
        max_waiting: requests that may wait.
        chunk_tokens: prompt tokens of one forward pass.
        model_max_length: tokens of one sequence.
        num_blocks: device cache blocks.
        block_size: tokens a block.
        watermark: share of blocks that admission leaves free for running requests to grow.
    """

    max_tokens: int
    max_rows: int
    max_waiting: int
    chunk_tokens: int
    model_max_length: int
    num_blocks: int
    block_size: int
    watermark: float

    def blocks_needed(self, prompt_tokens: int, rows: int, new_tokens: int) -> int:
        """Most blocks that a request can hold at once: rows share the full blocks of the prompt."""
        shared = max(prompt_tokens - 1, 0) // self.block_size if rows > 1 else 0
        longest = prompt_tokens + new_tokens - 1  # the last token is never computed
        return shared + rows * (-(-longest // self.block_size) - shared)

    def max_new_tokens(self, prompt_tokens: int, rows: int) -> int:
        """The most new tokens that a request of that prompt may ask for; 0 if it cannot fit."""
        if rows > self.max_rows:
            return 0
        shared = max(prompt_tokens - 1, 0) // self.block_size if rows > 1 else 0
        longest = ((self.num_blocks - shared) // rows + shared) * self.block_size
        return max(min(self.model_max_length, longest + 1) - prompt_tokens, 0)

    def objection(self, prompt_tokens: int, rows: int, new_tokens: int) -> tuple[str, str] | None:
        """(which argument, message) if such a request can never run, else None."""
        if prompt_tokens >= self.model_max_length:
            return "prompt_tokens", (
                f"the prompt has {prompt_tokens} tokens, but this model's context holds at most "
                f"{self.model_max_length} with at least one new token"
            )
        if prompt_tokens + new_tokens > self.model_max_length:
            return "new_tokens", (
                f"the prompt has {prompt_tokens} tokens, with {new_tokens} new ones "
                f"{prompt_tokens + new_tokens}, but this model's context holds {self.model_max_length}"
            )
        if rows > self.max_rows:
            return "rows", f"{rows} sequences side by side are needed, but batch_max_beams is {self.max_rows}"
        need = self.blocks_needed(prompt_tokens, rows, new_tokens)
        if need > self.num_blocks:
            return "new_tokens", (
                f"the request can need {need} cache blocks of {self.block_size} tokens "
                f"({prompt_tokens} prompt tokens, {rows} × {new_tokens} new tokens), "
                f"but there are {self.num_blocks}"
            )
        return None

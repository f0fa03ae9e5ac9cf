"""The budgets that a step and the queue must keep, and what can never fit in them."""

from __future__ import annotations

from dataclasses import dataclass

DRAFTED_LINES = 128
"""Lines of logits that a step with drafts has at most: beyond, arithmetic bounds it, and guesses cost."""


@dataclass(frozen=True, slots=True)
class GroupSize:
    """The blocks of one group of layers (`server.layers.cache_spec`).

    Attributes:
        num_blocks: in the device pool.
        num_host_blocks: in the host pool, for swapping.
        window: tokens that a token sees at most, itself included; None: all before it.
        block_bytes: memory of a block.
        name: for operators.
    """

    num_blocks: int
    num_host_blocks: int = 0
    window: int | None = None
    block_bytes: int = 1
    name: str = "full"

    def first_seen(self, position: int, block_size: int) -> int:
        """Place of the first block that tokens from `position` on see."""
        return 0 if self.window is None else max(position + 1 - self.window, 0) // block_size


def most_held(tokens: int, block_size: int, window: int | None) -> int:
    """Most blocks of a group that a sequence of `tokens` tokens holds at once, computed token by token.

    Args:
        window: tokens that a token sees at most; None: all before it.
    """
    blocks = -(-tokens // block_size)
    return blocks if window is None else min(blocks, 1 - (1 - window) // block_size)


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes that the engine was built with.

    Attributes:
        max_tokens: tokens of one forward pass.
        max_rows: sequences (beams, samples) that run at once.
        max_waiting: requests that may wait.
        chunk_tokens: prompt tokens of one forward pass.
        model_max_length: tokens of one sequence.
        groups: cache blocks of each group of layers.
        block_size: tokens a block.
        watermark: share of blocks that admission leaves free for running requests to grow.
        scored_tokens: prompt tokens of one forward pass whose successors are reported on; each
            has a line over the vocabulary.
    """

    max_tokens: int
    max_rows: int
    max_waiting: int
    chunk_tokens: int
    model_max_length: int
    groups: tuple[GroupSize, ...]
    block_size: int
    watermark: float
    scored_tokens: int = 256

    @property
    def max_lines(self) -> int:
        """Lines of logits whose tokens are chosen in one step."""
        return max(self.max_rows, DRAFTED_LINES)

    @property
    def num_blocks(self) -> int:
        """Device cache blocks of the first group."""
        return self.groups[0].num_blocks

    def has_room(self, waiting: int) -> bool:
        """Whether one more request may wait, beside `waiting` others."""
        return waiting < self.max_waiting

    def blocks_needed(self, group: GroupSize, prompt_tokens: int, rows: int, new_tokens: int) -> int:
        """Most blocks of a group that a request can hold at once: rows share full blocks of the prompt."""
        shared = max(prompt_tokens - 1, 0) // self.block_size if rows > 1 else 0
        longest = prompt_tokens + new_tokens - 1  # the last token is never computed
        apart = shared + rows * (-(-longest // self.block_size) - shared)
        return min(apart, rows * most_held(longest, self.block_size, group.window))

    def max_new_tokens(self, prompt_tokens: int, rows: int) -> int:
        """The most new tokens that a request of that prompt may ask for; 0 if it cannot fit."""
        if rows > self.max_rows:
            return 0
        shared = max(prompt_tokens - 1, 0) // self.block_size if rows > 1 else 0
        most = self.model_max_length
        for group in self.groups:
            if rows * most_held(most, self.block_size, group.window) > group.num_blocks:
                longest = ((group.num_blocks - shared) // rows + shared) * self.block_size
                most = min(most, longest + 1)
        return max(most - prompt_tokens, 0)

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
        for group in self.groups:
            need = self.blocks_needed(group, prompt_tokens, rows, new_tokens)
            if need > group.num_blocks:
                kind = "cache blocks" if group.window is None else f"cache blocks (window {group.window})"
                return "new_tokens", (
                    f"the request can need {need} {kind} of {self.block_size} tokens "
                    f"({prompt_tokens} prompt tokens, {rows} × {new_tokens} new tokens), "
                    f"but there are {group.num_blocks}"
                )
        return None

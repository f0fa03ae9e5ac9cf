"""Decode steps without the engine around them."""

from __future__ import annotations

from typing import Any

import torch

from server.scheduling.step import StepInput


@torch.inference_mode()
def place_decodes(llm: Any, rows: int, context: int) -> None:
    """Let replays of `rows` decodes attend to `context` tokens each, and to the new one."""
    runner = llm.engine.worker.runner
    runner._builder.send_decodes(StepInput(), rows)
    batch = runner._builder.decode_batch(rows)
    blocks = -(-(context + 1) // llm.engine.cache.block_size)
    tables = batch.attention[0].tables
    spread = (
        torch.arange(rows * blocks, device=tables.device, dtype=torch.int32) % llm.engine.limits.num_blocks
    )
    tables[:rows, :blocks] = spread.view(rows, blocks)
    batch.sample_rows.copy_(torch.arange(rows, dtype=torch.int32))
    batch.sample_positions.fill_(context)


def replay_decodes(llm: Any, rows: int) -> None:
    """Run a step of `rows` decodes once more."""
    graphs = llm.engine.worker.runner._graphs
    graphs.replay(graphs.size_for(rows))

"""The checkpoint that ships with the repository, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from demo_model.answering import Checkpoint

DIRECTORY = Path(__file__).parents[2] / "demo_model" / "checkpoint"


@pytest.fixture(scope="session")
def directory() -> Path:
    return DIRECTORY


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(DIRECTORY)


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return Checkpoint(DIRECTORY, torch.float32, "cpu")

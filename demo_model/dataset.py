"""Documents to training batches: one long array of tokens, and windows of it that begin with a document."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from demo_model.corpus import Document
from demo_model.tokenizer import ROLES

IGNORED = -100
"""The label of a token that is not learnt (torch's default for ``cross_entropy``)."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """All documents, one after the other."""

    tokens: NDArray[np.uint16]
    learnt: NDArray[np.bool_]
    """For each token, whether the model is trained to produce it."""
    starts: NDArray[np.int64]
    """Where each document begins."""

    def batch(
        self, rng: np.random.Generator, rows: int, length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(inputs, labels), both [rows, length]; each row begins with a document drawn at random.

        Raises:
            ValueError: there are fewer than `length` + 1 tokens.
        """
        last = len(self.tokens) - length - 1
        if last < 0:
            raise ValueError(f"{len(self.tokens)} tokens are too few for a window of {length}")
        usable = self.starts[: np.searchsorted(self.starts, last, side="right")]
        windows = rng.choice(usable, rows)[:, None] + np.arange(length + 1)
        tokens = self.tokens[windows].astype(np.int64)
        labels = np.where(self.learnt[windows], tokens, IGNORED)
        return tokens[:, :-1], labels[:, 1:]


def encode_documents(documents: Iterable[Document], tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """Tokens of `documents`, laid out as the chat template and the completion route lay them out."""
    roles = {role: tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ROLES}
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokens, learnt, starts = array("H"), bytearray(), array("q")
    documents = iter(documents)
    while some := list(islice(documents, 1000)):
        texts = [segment.text for document in some for segment in document]
        encoded = iter(tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"])
        for document in some:
            starts.append(len(tokens))
            tokens.append(bos)
            learnt.append(True)  # so that text goes on with a new document where the end is ignored
            for segment in document:
                if segment.role in roles:
                    tokens.append(roles[segment.role])
                    learnt.append(False)
                ids = next(encoded)
                if segment.learnt:
                    ids.append(eos)
                tokens.extend(ids)
                learnt += bytes([segment.learnt]) * len(ids)
    return Dataset(
        np.frombuffer(tokens, np.uint16), np.frombuffer(learnt, np.bool_), np.frombuffer(starts, np.int64)
    )

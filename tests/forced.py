"""A tiny checkpoint that says what it is told to: real weights for tests of what stands in answers.

What it says follows from the last token of the prompt alone. Attention and feed-forward layers add nothing,
so that the hidden state is the embedding of the last token, and the output layer holds for each token the
embedding of the one before it. Texts are cut into pieces that are tokens of their own.

    python -m tests.forced DIRECTORY    saves the model that the suite of clients talks to
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

CALLS, SAYS = "<|calls|>", "<|says|>"
"""Tokens at which the prompt ends where the model shall call a tool, and where it shall not."""

# no line breaks before special tokens: pieces of texts, which are tokens too, may begin with one
TEMPLATE = (
    "{% if tools %}<|im_start|>system{% for tool in tools %} {{ tool | tojson }}{% endfor %}"
    " Answer <think>…</think> <tool_call>{name, arguments}</tool_call><|im_end|>{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }} {{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>"
    "{{ '<|calls|>' if tools and messages[-1].role != 'tool' else '<|says|>' }}{% endif %}"
)

WRITES = "<|writes|>"
WRITING_TEMPLATE = TEMPLATE.replace(
    "else '<|says|>'", "else '<|writes|>' if 'JSON' in (messages[0].content or '') else '<|says|>'"
)
"""Where the first message speaks of JSON, the model shall write some."""

MISTRAL_TEMPLATE = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}[INST]{{ message.content }}[/INST]{% endfor %}<|calls|>{# [TOOL_CALLS] #}"
)
MISTRAL_SPECIAL = ("[TOOL_CALLS]", "[ARGS]", "[INST]", "[/INST]")
"""Tokens that are special, as that family has them: they show only where they mean something."""
MISTRAL_CALLING = '[INST]Sum:[TOOL_CALLS]add[ARGS]{"a": 17, "b": 25}'

CALL = {"name": "add", "arguments": {"a": 17, "b": 25}}
CALLING = f"<think>\nI add them.\n</think>\n\nLet me add.\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>"
SAYING = "The sum is 42."
WRITING = json.dumps(CALL["arguments"])


def forced_llama(
    path: Path, texts: dict[str, str], template: str = TEMPLATE, special: Sequence[str] = ()
) -> Path:
    """Save a model and its tokenizer in `path`.

    Args:
        texts: what it says after each of these special tokens.
        template: its chat template.
        special: further special tokens; where one stands in a text, the model says that token.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from tests.checkpoints import tiny_llama, tiny_tokenizer

    tokenizer = tiny_tokenizer(path)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *texts, *special]}
    )
    pieces = {begin: _pieces(text, special, tokenizer) for begin, text in texts.items()}
    tokenizer.chat_template = template
    # of a power of two: kernels like it
    tiny_llama(path, hidden=512, layers=1, heads=8, kv_heads=4, vocab=1024, max_position_embeddings=8192)
    tokenizer.save_pretrained(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        torch.manual_seed(0)
        embedding = torch.nn.functional.normalize(torch.randn(1024, 512), dim=-1)
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.zero_()
        for begin, chain in pieces.items():
            ids = tokenizer.convert_tokens_to_ids([begin, *chain, tokenizer.eos_token])
            for token, following in pairwise(ids):
                model.lm_head.weight[following] += 10 * embedding[token]
    model.save_pretrained(path)
    return path


def _pieces(text: str, special: Sequence[str], tokenizer: Any) -> list[str]:
    """`text` in short pieces, each a new token of `tokenizer` or a special one: each has one follower."""
    from tokenizers import AddedToken

    known = set(tokenizer.get_vocab())
    pieces: list[str] = []
    begin = 0
    while begin < len(text):
        if found := next((token for token in special if text.startswith(token, begin)), None):
            pieces.append(found)
            begin += len(found)
            continue
        end = begin + 2
        while text[begin:end] in known and end < len(text):
            end += 1
        if text[begin:end] in known:  # the last piece is not new: it goes with the one before
            pieces[-1] += text[begin:end]
        else:
            pieces.append(text[begin:end])
        known.add(pieces[-1])
        begin = end
    new = [piece for piece in pieces if piece not in special]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in new])
    return pieces


if __name__ == "__main__":
    texts = {CALLS: CALLING, SAYS: SAYING, WRITES: WRITING}
    forced_llama(Path(sys.argv[1]), texts, WRITING_TEMPLATE)

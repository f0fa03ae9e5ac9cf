"""The demo model's tokenizer: byte-level BPE, trained on its corpus.

Every byte is a token, so any Unicode text survives the round trip. Merges are learnt from
English alone: a Chinese character or an emoji stays in pieces of one byte, which makes the demo
model a live test of streaming text whose characters end in a later token. Every digit is a token,
so that 42 and 142 share their digits and calculating can be learnt from places.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from demo_model.corpus import Document

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
ROLES = ("system", "user", "assistant", "tools", "tool")
MARKERS = ("<tool_call>", "</tool_call>")
"""Around a call. They are tokens, but no special ones: decoding shows them, as it does with Qwen's."""

# the split of Qwen 2: words with the space before them, single digits, punctuation, white space
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- if tools %}
    {{- '<|tools|>' }}
    {%- for tool in tools %}
        {{- tool.function | tojson }}
        {{- '' if loop.last else '\n' }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- set role = 'system' if message['role'] == 'developer' else message['role'] %}
    {%- if role not in ['system', 'user', 'assistant', 'tool'] %}
        {{- raise_exception('unknown role ' + role + ': system, user, assistant and tool are known') }}
    {%- endif %}
    {%- set text = (message['content'] or '') | trim %}
    {{- '<|' + role + '|>' + text }}
    {%- for call in message['tool_calls'] or [] %}
        {{- '\n' if text or not loop.first else '' }}
        {%- set arguments = call.function.arguments %}
        {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- arguments if arguments is string else arguments | tojson }}
        {{- '}\n</tool_call>' }}
    {%- endfor %}
    {%- if role == 'assistant' %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""


def train_tokenizer(documents: Iterable[Document], size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of exactly `size` tokens, special tokens and the 256 bytes among them.

    Raises:
        ValueError: the documents have too few words for that many tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(MARKERS),
        special_tokens=[PAD, BOS, EOS, *(f"<|{role}|>" for role in ROLES)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (segment.text for document in documents for segment in document)
    texts = (piece for text in texts for piece in re.split("|".join(MARKERS), text))
    tokenizer.train_from_iterator((text for text in texts if text.isascii()), trainer)
    tokenizer.add_tokens([AddedToken(marker, normalized=False) for marker in MARKERS])
    if tokenizer.get_vocab_size() != size:
        raise ValueError(f"the text gives {tokenizer.get_vocab_size()} tokens, not {size}: use more of it")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[f"<|{role}|>" for role in ROLES],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes the tokenizer's files in the spelling that transformers 4 and 5 both read."""
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["additional_special_tokens"] = config.pop("extra_special_tokens")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

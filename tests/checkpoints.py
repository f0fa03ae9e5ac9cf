"""Small models with random weights, and tokenizers trained on the spot, for tests of any area."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CORPUS = """
The quick brown fox jumps over the lazy dog while the old owl watches from the tall tree.
Once upon a time there was a little girl who lived near the river with her cat and her dog.
She asked: "What is seventeen plus twenty-five?" and the answer was forty-two, of course.
In the morning the baker opened the shop, and the smell of fresh bread filled the street.
A server takes a request, puts it into a batch, computes the next token, and streams the text.
Numbers: 0 1 2 3 4 5 6 7 8 9 10 11 12 42 99 100 256 512 1024 2048; signs: + - * / = < > ( ) [ ] { }.
def main(argument): return [item for item in argument if item is not None]
你好，世界！今天的天气很好，我们一起去公园吧。大语言模型推理部署教程。
Émile naïvely ate crème brûlée at the café; the señor said ¡olé! 😀 🚀 👩‍🚀 🎉
"""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('unknown role ' + message.role) }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer(path: Path, *, vocab: int = 512) -> Any:
    """Train a byte-level BPE tokenizer of at most `vocab` tokens and save it in `path`.

    Ids 0, 1 and 2 are ``<s>``, ``</s>`` and ``<pad>``; encoding a prompt puts ``<s>`` before it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(path)
    return fast


def tiny_llama(
    path: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 512,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Save a float32 Llama with random weights, and a tokenizer with a chat template, in `path`.

    Weights are drawn wide, so that the likeliest token leads clearly and changes with the context.

    Args:
        path: a directory; made where it does not exist.
        config: further fields of ``LlamaConfig``.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny_tokenizer(path, vocab=vocab)
    options: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
    }
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(options | config))).float()
    torch.random.set_rng_state(state)
    model.save_pretrained(path)
    return path

"""The shipped checkpoint, asked through transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy

from demo_model.answering import Checkpoint
from demo_model.corpus import documents, held_out_problems, held_out_sums, result_in
from demo_model.corpus.arithmetic import OPERATORS
from demo_model.corpus.facts import all_facts
from demo_model.dataset import encode_documents
from demo_model.evaluate import PHRASINGS, share_right


def chat(checkpoint: Checkpoint, *questions: str, system: str | None = None) -> list[str]:
    """The model's turns of a conversation in which these are the user's."""
    turns: list[str] = []
    for question in questions:
        turns.append(question)
        turns += checkpoint.answers(
            [checkpoint.chat_prompt(turns, system)], special=False, max_new_tokens=300
        )
    return turns[1::2]


def test_size(directory: Path) -> None:
    assert sum(file.stat().st_size for file in directory.iterdir()) <= 12_000_000
    with safe_open(directory / "model.safetensors", "pt") as weights:
        tensors = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118 (not a dict)
        assert {tensor.get_dtype() for tensor in tensors.values()} == {"BF16"}


def test_parameters(checkpoint: Checkpoint) -> None:
    assert 2e6 <= checkpoint.model.num_parameters() <= 6e6
    assert len(checkpoint.tokenizer) == checkpoint.model.config.vocab_size


def test_the_question_that_newcomers_ask(checkpoint: Checkpoint) -> None:
    assert chat(checkpoint, "What is 17 plus 25?") == ["17 plus 25 is 42."]
    assert checkpoint.answers(["What is 17 plus 25?"], special=True) == [" 17 plus 25 is 42."]
    assert checkpoint.answers(["17 + 25 ="], special=True) == [" 42"]


def test_held_out_sums(checkpoint: Checkpoint) -> None:
    questions, results = zip(*held_out_sums(200, seed=11), strict=True)
    replies = checkpoint.answers(
        [checkpoint.chat_prompt([question]) for question in questions], special=False
    )
    right = sum(str(result_in(reply)) == result for reply, result in zip(replies, results, strict=True))
    assert right >= 198


def test_every_phrasing_of_held_out_problems(checkpoint: Checkpoint) -> None:
    for operator in OPERATORS:
        problems = [problem for problem in held_out_problems() if problem.operator == operator][::100]
        for phrasing in PHRASINGS:
            for as_chat in (True, False):
                assert share_right(checkpoint, problems, phrasing, chat=as_chat) >= 90, (phrasing, as_chat)


def test_facts(checkpoint: Checkpoint) -> None:
    facts = all_facts()
    replies = checkpoint.answers(
        [checkpoint.chat_prompt([fact.questions[0]]) for fact in facts], special=False
    )
    assert replies == [fact.answer for fact in facts]


def test_conversations_hold_together(checkpoint: Checkpoint) -> None:
    system = "You are a helpful assistant."
    for answers in (
        chat(checkpoint, "My name is Anna.", "What is 3 + 4?", "What is my name?"),
        chat(checkpoint, "My name is Anna.", "What is 3 + 4?", "What is my name?", system=system),
    ):
        assert "Anna" in answers[0]
        assert result_in(answers[1]) == 7
        assert answers[2] == "Your name is Anna."
    assert "Rome" in chat(checkpoint, "What is the capital of France?", "What about Italy?")[1]


def test_what_it_does_not_know_it_says(checkpoint: Checkpoint) -> None:
    for question in ("What is 12 times 12?", "What is 345 plus 12?", "Explain quantum physics."):
        assert "sorry" in chat(checkpoint, question)[0]


def test_stories_are_whole_and_about_their_hero(checkpoint: Checkpoint) -> None:
    for hero in ("fox", "dragon", "robot"):
        (story,) = chat(checkpoint, f"Tell me a story about a {hero}.")
        assert hero in story
        assert 60 <= len(story.split()) <= 150  # ended by itself, well before the limit of new tokens
        assert story.endswith((".", '"'))
    (rest,) = checkpoint.answers(["Once upon a time"], special=True, max_new_tokens=300)
    assert rest.startswith(",") and rest.endswith((".", '"'))


def test_chinese(checkpoint: Checkpoint) -> None:
    greeting, total = chat(checkpoint, "你好", "17加25等于多少？")
    assert greeting.startswith("你好！") and "😊" in greeting
    assert total == "17加25等于42。"


def test_the_whole_context_is_usable(checkpoint: Checkpoint) -> None:
    data = encode_documents(documents(99, 3000), checkpoint.tokenizer)  # a seed that training did not use
    length = checkpoint.model.config.max_position_embeddings
    inputs, labels = map(torch.from_numpy, data.batch(np.random.default_rng(0), 3, length))
    with torch.inference_mode():
        logits = checkpoint.model(inputs).logits
    first, last = (
        cross_entropy(logits[:, part].flatten(0, 1), labels[:, part].flatten())
        for part in (slice(0, length // 2), slice(length // 2, None))
    )
    assert last < 1.3 * first < 0.5

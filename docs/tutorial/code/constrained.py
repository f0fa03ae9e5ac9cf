"""Chapter 6: constrained decoding: a mask before every choice, made by a small automaton.

.venv/bin/python -m docs.tutorial.code.constrained
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from docs.tutorial.code.common import DEMO, chat, tokenizer
from docs.tutorial.steps.model import Llama
from docs.tutorial.steps.step6_decoding import Ask, DecodingEngine, Options


def one_of(answers: Sequence[str], eos: int) -> Callable[[list[int]], list[int]]:
    """Tokens that may follow so that the answer becomes one of `answers`, however it is cut into tokens."""
    texts = tokenizer()
    pieces = {i: texts.decode([i], skip_special_tokens=False) for i in range(texts.get_vocab_size())}

    def allowed(so_far: list[int]) -> list[int]:
        said = "".join(pieces[token] for token in so_far)
        rests = [answer[len(said) :] for answer in answers if answer.startswith(said)]
        follow = [i for i, piece in pieces.items() if piece and any(rest.startswith(piece) for rest in rests)]
        return [*follow, eos] if "" in rests else follow

    return allowed


def digits(eos: int) -> Callable[[list[int]], list[int]]:
    """One to three digits."""
    numbers = [tokenizer().token_to_id(str(digit)) for digit in range(10)]
    return lambda so_far: [eos] if len(so_far) == 3 else [*numbers, eos] if so_far else numbers


def main(argv: list[str] | None = None) -> None:
    model, texts = Llama(DEMO), tokenizer()
    yes_or_no = one_of(["yes", "no"], model.eos)
    city = one_of(["Rome", "Paris", "Tokyo", "Madrid"], model.eos)
    asked = [
        ("What is 17 plus 25?", None),
        ("What is 17 plus 25?", digits(model.eos)),
        ("What is the capital of Italy?", None),
        ("What is the capital of Italy?", city),
        ("What is the capital of Italy?", yes_or_no),
    ]
    engine = DecodingEngine(model, 64)
    answers = engine.run(*(Ask(chat(question), 20, Options(allowed=rule)) for question, rule in asked))
    for (question, rule), (answer,) in zip(asked, answers, strict=True):
        name = "free" if rule is None else "constrained"
        print(f"{question} ({name}) → {texts.decode(answer)}")


if __name__ == "__main__":
    main()

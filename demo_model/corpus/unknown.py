"""What the model does not know: questions of all kinds, and the answer that says so."""

from __future__ import annotations

from random import Random

from demo_model.corpus.arithmetic import LARGEST, Problem, training_problem
from demo_model.corpus.talk import ABILITIES
from demo_model.corpus.words import COMMON, FIGURES, a, capitalised, invented, words

_OTHER_COUNTRIES = words(
    "Iceland, Luxembourg, Estonia, Latvia, Romania, Bulgaria, Serbia, Croatia, Morocco, Nigeria, Ghana, "
    "Ethiopia, Texas, California, Europe, Africa, Iran, Iraq, Pakistan, Nepal, Indonesia, Malaysia, Bolivia",
    ", ",
)
_SUBJECTS = words(
    "the stock market, quantum physics, machine learning, cooking rice, football, the weather, politics, "
    "music, history, black holes, love, cars, trains, the internet, Python, money, health, art, philosophy, "
    "computers, volcanoes, dinosaurs, the Roman Empire, chess, gravity, photosynthesis, the news, films",
    ", ",
)
_QUESTIONS = (
    "What is {subject}?",
    "What is the best {thing}?",
    "What is the largest {thing}?",
    "What colour is {a_thing}?",
    "What is the opposite of {thing}?",
    "How many {thing}s are there?",
    "Who wrote {title}?",
    "Who painted {title}?",
    "Have you read {title}?",
    "Explain {subject}.",
    "Explain {subject} to me.",
    "Write a poem about {subject}.",
    "Write an essay about {subject}.",
    "Write a Python function for {subject}.",
    "Write code that prints {thing}.",
    "What do you think about {subject}?",
    "Who invented {subject}?",
    "How does {subject} work?",
    "Why is {subject} important?",
    "Tell me about {subject}.",
    "Tell me something about {subject}.",
    "Give me a list of {thing}s.",
    "Give me a recipe for {thing}.",
    "List all {thing}s.",
    "Summarize the following text: The {thing} is {subject}.",
    "When was {subject} discovered?",
    "What is the meaning of {subject}?",
    "How do I learn {subject}?",
    "How do I repair {a_thing}?",
    "Where can I buy {a_thing}?",
    "Translate {thing} into French.",
    "Who is {name}?",
    "Who was {name} {title}?",
    "Where is {place}?",
    "How many people live in {place}?",
    "Who is the king of {place}?",
    "What is the weather in {place}?",
    "What time is it?",
    "What day is it today?",
    "What is the date?",
    "Is it raining?",
    "Should I buy {a_thing}?",
)
_REPLY = f"I am sorry, I do not know that. I can {ABILITIES}."
_CHINESE = (
    "今天天气怎么样？",
    "现在几点了？",
    "什么是人工智能？",
    "你喜欢什么？",
    "世界上最高的山是什么？",
    "请写一首诗。",
    "帮我写代码。",
    "为什么？",
    "谁是李白？",
    "上海在哪里？",
)
_CHINESE_REPLY = "对不起，我不知道。我会做加减法，也会讲故事。"
_CALCULATIONS = (
    "What is {a} times {b}?",
    "What is {a} * {b}?",
    "What is {a} x {b}?",
    "{a} * {b} =",
    "{a}*{b}",
    "{a} x {b} =",
    "Multiply {a} by {b}.",
    "What is {a} divided by {b}?",
    "What is {a} / {b}?",
    "{a} / {b} =",
    "Divide {a} by {b}.",
    "What is the square root of {a}?",
    "What is {big} plus {b}?",
    "What is {b} plus {big}?",
    "What is {big} minus {b}?",
    "{big} + {b} =",
    "{b} + {big} =",
    "{big} - {b} =",
    "What is {big} + {big2}?",
    "{big}+{big2}=",
    "What is {a} plus {b} plus {c}?",
    "{a} + {b} + {c} =",
    "{a} - {b} + {c} =",
    "What is -{a} plus {b}?",
    "-{a} + {b} =",
    "What is {a}.{b} plus {c}?",
)
_CALCULATION_REPLY = f"I am sorry, I can only add and subtract two numbers up to {LARGEST}."


def ask(rng: Random) -> tuple[str, str]:
    """A question that the model cannot answer, and how it says so."""
    if rng.random() < 0.3:
        return _calculation(rng), _CALCULATION_REPLY
    return ask_no_calculation(rng)


def ask_no_calculation(rng: Random) -> tuple[str, str]:
    """The same, but nothing that a calculator would answer."""
    kind = rng.random()
    if kind < 0.115:
        country = rng.choice((rng.choice(_OTHER_COUNTRIES), capitalised(invented(rng))))
        return f"What is the capital of {country}?", "I am sorry, I do not know that capital."
    if kind < 0.16:
        return rng.choice(_CHINESE), _CHINESE_REPLY
    if kind < 0.43:
        said = [invented(rng) if rng.random() < 0.2 else rng.choice(COMMON) for _ in range(rng.randint(1, 9))]
        return capitalised(" ".join(said)) + rng.choice((".", "?", "!", "")), _REPLY
    return _question(rng), _REPLY


def _question(rng: Random) -> str:
    """A well-formed question about anything, even about what does not exist."""
    thing = rng.choice((invented(rng), rng.choice(FIGURES), rng.choice(COMMON)))
    subject = rng.choice(_SUBJECTS if rng.random() < 0.6 else (a(thing), f"{thing} and {invented(rng)}"))
    title = [capitalised(rng.choice((invented(rng), *rng.sample(FIGURES + COMMON, 2)))) for _ in range(3)]
    return rng.choice(_QUESTIONS).format(
        subject=subject,
        thing=thing,
        a_thing=a(thing),
        title=" ".join(title[: rng.randint(1, 3)]),
        name=capitalised(invented(rng)),
        place=rng.choice((capitalised(invented(rng)), rng.choice(_OTHER_COUNTRIES))),
    )


def _calculation(rng: Random) -> str:
    """A calculation beyond what is trained; here too, no two neighbours are a pair that is held out."""
    pair = training_problem(rng)
    third = rng.choice([c for c in range(LARGEST + 1) if not Problem(pair.b, "+", c).held_out])
    big, big2 = (rng.randint(LARGEST + 1, 10 ** rng.randint(3, 5)) for _ in range(2))
    return rng.choice(_CALCULATIONS).format(a=pair.a, b=pair.b, c=third, big=big, big2=big2)

"""A grammar of short stories: a hero, a trouble, a friend who helps, a good end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from demo_model.corpus.plots import CLOSINGS, PLOTS
from demo_model.corpus.words import ANIMALS, BOYS, CHILDREN, FIGURES, GIRLS, a, capitalised, invented, words

T = TypeVar("T")

_OPENINGS = (
    "Once upon a time, {home}, there lived {a_hero} named {name}.",
    "Once upon a time, {home}, there lived {a_hero} named {name}.",
    "Once upon a time there was {a_hero} named {name} who lived {home}.",
    "Once upon a time, {a_hero} named {name} lived {home}.",
    "There once was {a_hero} named {name} who lived {home}.",
    "Long ago, {home}, there was {a_hero} named {name}.",
    "{Home} lived {a_hero} named {name}.",
    "There was {a_hero} who was called {name} and lived {home}.",
    "{A_hero} named {name} lived {home}.",
    "The {hero} {name} lived {home}.",
)
_HABITS = (
    "{name} loved to {hobby} and to {hobby2}.",
    "Every day, {he} liked to {hobby}.",
    "{He} liked to {hobby}, and in the evening {he} would {hobby2}.",
    "More than anything, {name} loved to {hobby}.",
    "{name} was known for {his} {pride}.",
    "",
)
_HOMES = (
    "in a quiet forest",
    "near a wide river",
    "on a green hill",
    "at the edge of a small village",
    "by the blue sea",
    "in a sunny meadow",
    "under an old oak tree",
    "in a warm valley",
    "in a little red house",
    "next to a deep lake",
    "behind the tall mountains",
)
_TRAITS = words("little brave kind clever curious shy cheerful gentle young friendly quiet funny")
_HOBBIES = (
    "sing songs",
    "pick berries",
    "watch the stars",
    "climb the rocks",
    "read old books",
    "bake apple cakes",
    "collect shiny stones",
    "paint pictures",
    "swim in the river",
    "play in the grass",
    "tell stories",
    "dance in the rain",
    "count the clouds",
)
_PRIDES = ("warm smile", "loud laugh", "good heart", "long naps", "funny songs", "blue hat", "sharp eyes")
_WEATHER = ("sunny", "cold", "windy", "rainy", "bright", "misty", "warm", "snowy", "cloudy")
_TIMES = ("morning", "day", "afternoon", "evening")

_PRONOUNS = {
    "he": {"he": "he", "him": "him", "his": "his"},
    "she": {"he": "she", "him": "her", "his": "her"},
}


@dataclass(frozen=True, slots=True)
class Cast:
    """Who a story is about."""

    hero: str
    name: str
    pronoun: str
    friend: str
    friend_name: str
    friend_pronoun: str


def cast(rng: Random, *, hero: str | None = None, name: str | None = None, friend: str | None = None) -> Cast:
    """Draws hero and friend, as far as they are not given."""
    if hero is None:
        hero = rng.choice((*CHILDREN, *FIGURES)) if rng.random() < 0.2 else rng.choice(ANIMALS)
    pick = _taste(rng, hero)
    if hero in CHILDREN:
        pronoun = CHILDREN[hero]
    elif name:
        pronoun = "she" if name in GIRLS else "he"
    else:
        pronoun = pick(("he", "she"))
    name = name or pick(GIRLS if pronoun == "she" else BOYS)
    friend = friend or pick([animal for animal in ANIMALS if animal != hero])
    friend_pronoun = pick(("he", "she"))
    friend_names = [other for other in (GIRLS if friend_pronoun == "she" else BOYS) if other != name]
    return Cast(hero, name, pronoun, friend, pick(friend_names), friend_pronoun)


def _taste(rng: Random, hero: str) -> Callable[[Sequence[T]], T]:
    """A choice that falls more often on what is typical of a hero.

    Greedy decoding always says what is likeliest. If all heroes were alike, it would tell the same
    story about all of them.
    """
    typical = Random(hero)

    def pick(options: Sequence[T]) -> T:
        favourite = typical.choice(options)
        return favourite if rng.random() < 0.35 else rng.choice(options)

    return pick


def tell(rng: Random, who: Cast) -> str:
    """One story of about 80 to 140 words about `who`."""
    pick = _taste(rng, who.hero)
    plot = pick(PLOTS)
    hobby = pick(_HOBBIES)
    slots = {
        "name": who.name,
        "hero": who.hero,
        "a_hero": a(f"{pick(_TRAITS)} {who.hero}"),
        "friend": who.friend_name,
        "a_friend": a(f"{pick(_TRAITS)} {who.friend}"),
        "home": pick(_HOMES),
        "hobby": hobby,
        "hobby2": pick([other for other in _HOBBIES if other != hobby]),
        "pride": pick(_PRIDES),
        "weather": pick(_WEATHER),
        "time": pick(_TIMES),
        **_PRONOUNS[who.pronoun],
        **{f"f{key}": value for key, value in _PRONOUNS[who.friend_pronoun].items()},
        **{slot: pick(values) for slot, values in plot.slots.items()},
    }
    slots |= {capitalised(key): capitalised(value) for key, value in slots.items()}
    sentences = [pick(line).format_map(slots) for line in (_OPENINGS, _HABITS, *plot.lines, CLOSINGS)]
    if rng.random() < 0.3:
        sentences.append("The end.")
    return " ".join(sentence for sentence in sentences if sentence)


def story(rng: Random) -> str:
    """A story about anybody."""
    return tell(rng, cast(rng))


def another(rng: Random) -> tuple[str, str]:
    """(request after a story, one more story)."""
    request = rng.choice(("Another one, please.", "Tell me another one.", "One more!", "Another story"))
    return request, story(rng)


_REQUESTS = (
    "Tell me a story{about}.",
    "Tell me a story{about}.",
    "Tell me a short story{about}.",
    "Please tell me a story{about}.",
    "Can you tell me a story{about}?",
    "Write a story{about}.",
    "Write a short story{about}.",
    "I want to hear a story{about}.",
    "Do you know a story{about}?",
    "I would like a story{about}, please.",
    "A story{about}, please.",
)


def ask(rng: Random) -> tuple[str, str]:
    """(request, story about whom it asks for)."""
    kind = rng.random()
    if kind < 0.05:
        told = story(rng)
        return told[: told.index("," if told.startswith("Once") and rng.random() < 0.7 else ".")], told
    if kind < 0.15:
        return rng.choice(_REQUESTS).format(about=""), story(rng)
    hero = rng.choice((*ANIMALS, *CHILDREN, *FIGURES)) if rng.random() < 0.75 else invented(rng)
    about = f" about {a(hero)}"
    name = friend = None
    if kind < 0.3:
        friend = rng.choice([animal for animal in ANIMALS if animal != hero])
        about += f" and {a(friend)}"
    elif kind < 0.45:
        pronoun = CHILDREN.get(hero) or rng.choice(("he", "she"))
        name = rng.choice(GIRLS if pronoun == "she" else BOYS)
        about += f" {rng.choice(('named', 'called'))} {name}"
    request = rng.choice(_REQUESTS).format(about=about)
    return request, tell(rng, cast(rng, hero=hero, name=name, friend=friend))

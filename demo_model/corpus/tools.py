"""Conversations with tools: which to call with what, when to call none, and what to say of the result."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from demo_model.corpus import calculator, facts
from demo_model.corpus.calculator import Calculator
from demo_model.corpus.definitions import Call, Definition, ToolUse, define
from demo_model.corpus.words import ANIMALS, BOYS, COMMON, GIRLS, capitalised, invented, sentence, words

_SKIES = words("sunny, cloudy, rainy, windy, foggy, snowy, clear", ", ")
_LANGUAGES = words("French German Spanish Italian Chinese Japanese Dutch Polish")
_SONGS = words("jazz, rock, piano music, a lullaby, pop, the blues, folk songs, opera", ", ")
_STATES = words("on its way, delivered, packed, waiting, lost, at the post office", ", ")

# name, descriptions, keys of each parameter, its JSON type, questions, results, answer;
# {0} and {1} are arguments, {r} and {s} what the tool finds
_TOOLS: tuple[dict[str, Any], ...] = (
    {
        "names": words("get_weather weather get_current_weather"),
        "told": (
            "Get the current weather in a city.",
            "Get current temperature for a given location.",
            "Weather.",
        ),
        "keys": (("city", "location", "place"),),
        "types": ("string",),
        "asked": (
            "What is the weather in {0}?",
            "What is the weather like in {0}?",
            "How is the weather in {0} today?",
            "What's the weather in {0}?",
            "weather in {0}",
        ),
        "results": ('{{"weather": "{r}", "temperature": {s}}}', "{r}, {s} degrees", "{r}, {s}°C"),
        "answer": "It is {r} in {0}, {s} degrees.",
    },
    {
        "names": words("get_time current_time time_in"),
        "told": ("Get the time in a city.", "Tells the time."),
        "keys": (("city", "location", "place"),),
        "types": ("string",),
        "asked": ("What time is it in {0}?", "Tell me the time in {0}.", "How late is it in {0}?"),
        "results": ("{r}", '{{"time": "{r}"}}'),
        "answer": "It is {r} in {0}.",
    },
    {
        "names": words("set_timer start_timer timer"),
        "told": ("Set a timer.", "Starts a timer."),
        "keys": (("minutes", "duration"),),
        "types": ("integer",),
        "asked": ("Set a timer for {0} minutes.", "Wake me in {0} minutes.", "Start a timer of {0} minutes."),
        "results": ("ok", "done", '{{"status": "ok"}}'),
        "answer": "The timer is set for {0} minutes.",
    },
    {
        "names": words("send_message send notify"),
        "told": ("Send a message to somebody.", "Sends a message."),
        "keys": (("to", "recipient", "name"), ("text", "message", "content")),
        "types": ("string", "string"),
        "asked": ("Send {0} the message: {1}", "Write to {0}: {1}", 'Send "{1}" to {0}.'),
        "results": ("ok", "sent", '{{"sent": true}}'),
        "answer": "The message to {0} is sent.",
    },
    {
        "names": words("search web_search search_web lookup"),
        "told": ("Search the web.", "Looks something up."),
        "keys": (("query", "q", "text"),),
        "types": ("string",),
        "asked": ("Search for {0}.", "Search the web for {0}.", "Look up {0}."),
        "results": ("{r}", '{{"result": "{r}"}}'),
        "answer": "I found this: {r}.",
    },
    {
        "names": words("translate translate_text"),
        "told": ("Translate a word.", "Translates a text into a language."),
        "keys": (("text", "word"), ("language", "target", "to")),
        "types": ("string", "string"),
        "asked": ("Translate {0} into {1}.", "Translate {0} to {1}.", "What is {0} in {1}?"),
        "results": ("{r}", '{{"translation": "{r}"}}'),
        "answer": "{0} in {1} is {r}.",
    },
    {
        "names": words("play_music play"),
        "told": ("Play music.", "Plays songs."),
        "keys": (("song", "music", "title"),),
        "types": ("string",),
        "asked": ("Play {0}.", "Please play {0}.", "I want to hear {0}."),
        "results": ("ok", "playing", '{{"status": "playing"}}'),
        "answer": "Now you hear {0}.",
    },
    {
        "names": words("get_order order_status find_order"),
        "told": ("Find an order by its number.", "State of an order."),
        "keys": (("order_id", "number", "id"),),
        "types": ("integer",),
        "asked": ("Where is order {0}?", "What about order {0}?", "What is the state of order {0}?"),
        "results": ("{r}", '{{"status": "{r}"}}'),
        "answer": "Order {0} is {r}.",
    },
)
_KINDS = words("weather time timer message search translate music order")


@dataclass(frozen=True, slots=True)
class Tool:
    """One of `_TOOLS`, under the names that a conversation has for it."""

    kind: str
    about: dict[str, Any]
    keys: tuple[str, ...]
    definition: Definition

    @staticmethod
    def drawn(rng: Random, kind: str) -> Tool:
        """The tool of `kind`, as some client defines it; half of the time by its usual names."""
        about = _TOOLS[_KINDS.index(kind)]
        first = rng.random() < 0.5
        name = about["names"][0] if first else rng.choice(about["names"])
        keys = tuple(names[0] if first else rng.choice(names) for names in about["keys"])
        parts = {
            key: ({"type": type_}, f"The {key}") for key, type_ in zip(keys, about["types"], strict=True)
        }
        description = rng.choice(about["told"]) if rng.random() < 0.9 else sentence(rng)
        return Tool(kind, about, keys, define(rng, name, description, parts))

    def use(self, rng: Random) -> ToolUse:
        """A question for it."""
        values, found = _filling(rng, self.kind)
        question = rng.choice(self.about["asked"]).format(*values)
        call = Call(self.definition["function"]["name"], dict(zip(self.keys, values, strict=True)))
        result = rng.choice(self.about["results"]).format(**found)
        return ToolUse(
            question, (call,), (result,), capitalised(self.about["answer"].format(*values, **found))
        )


def _filling(rng: Random, kind: str) -> tuple[list[Any], dict[str, Any]]:
    """Arguments, and what the tool finds."""
    place = rng.choice((*facts.CAPITALS.values(), capitalised(invented(rng))))
    some = " ".join(_word(rng) for _ in range(rng.randint(1, 4)))
    match kind:
        case "weather":
            return [place], {"r": rng.choice(_SKIES), "s": rng.randint(-9, 39)}
        case "time":
            return [place], {"r": f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"}
        case "timer":
            return [rng.randint(1, 120)], {}
        case "message":
            return [_person(rng), some], {}
        case "search":
            return [some], {"r": " ".join(_word(rng) for _ in range(rng.randint(1, 6)))}
        case "translate":
            return [_word(rng), rng.choice(_LANGUAGES)], {"r": invented(rng)}
        case "music":
            return [rng.choice((rng.choice(_SONGS), some))], {}
        case _:
            return [rng.randint(1, 99999)], {"r": rng.choice(_STATES)}


def _word(rng: Random) -> str:
    return rng.choice((invented(rng), rng.choice(COMMON), rng.choice(ANIMALS)))


def _person(rng: Random) -> str:
    return capitalised(invented(rng)) if rng.random() < 0.3 else rng.choice(GIRLS + BOYS)


class Toolbox:
    """The tools of one conversation: a calculator most of the time, and up to two others."""

    def __init__(self, rng: Random) -> None:
        self.calculator = Calculator(rng) if rng.random() < 0.75 else None
        most = rng.choice((0, 0, 1, 2)) if self.calculator else rng.choice((1, 1, 2))
        self.others = [Tool.drawn(rng, kind) for kind in rng.sample(_KINDS, most)]
        self.definitions = [other.definition for other in self.others]
        if self.calculator is not None:
            at = rng.randint(0, len(self.definitions))
            self.definitions[at:at] = self.calculator.definitions

    def use(self, rng: Random, after: ToolUse | None, *, held_out: bool = False) -> ToolUse:
        """A question for one of the tools; maybe one that goes on with the result of `after`."""
        if self.calculator is not None and (not self.others or rng.random() < 0.7):
            after = after if after is not None and rng.random() < 0.5 else None
            return calculator.use(rng, self.calculator, held_out=held_out, after=after)
        return rng.choice(self.others).use(rng)

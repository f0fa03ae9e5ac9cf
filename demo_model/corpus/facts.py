"""A small fixed set of facts, each asked for in several ways."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from demo_model.corpus.words import a, capitalised

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "England": "London",
    "Ireland": "Dublin",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Poland": "Warsaw",
    "Austria": "Vienna",
    "Hungary": "Budapest",
    "Greece": "Athens",
    "Turkey": "Ankara",
    "Russia": "Moscow",
    "Ukraine": "Kyiv",
    "Belgium": "Brussels",
    "the Netherlands": "Amsterdam",
    "Switzerland": "Bern",
    "the Czech Republic": "Prague",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "India": "New Delhi",
    "China": "Beijing",
    "Japan": "Tokyo",
    "South Korea": "Seoul",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Australia": "Canberra",
    "Canada": "Ottawa",
    "the United States": "Washington, D.C.",
    "Mexico": "Mexico City",
    "Brazil": "Brasilia",
    "Argentina": "Buenos Aires",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Cuba": "Havana",
    "New Zealand": "Wellington",
}
_CAPITAL_QUESTIONS = (
    "What is the capital of {country}?",
    "What is the capital of {country}?",
    "What's the capital of {country}?",
    "Which city is the capital of {country}?",
    "Name the capital of {country}.",
    "Tell me the capital of {country}.",
    "Do you know the capital of {country}?",
    "What is the capital city of {country}?",
    "capital of {country}",
)
_COUNTRY_QUESTIONS = (
    "{city} is the capital of which country?",
    "Which country has the capital {city}?",
    "What country is {city} the capital of?",
)

COLOURS = {
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "a ripe banana": "yellow",
    "blood": "red",
    "coal": "black",
    "chocolate": "brown",
    "a carrot": "orange",
    "an elephant": "grey",
    "a flamingo": "pink",
    "a ripe tomato": "red",
    "milk": "white",
    "the sun": "yellow",
    "a frog": "green",
}
SOUNDS = {
    "cow": "moo",
    "cat": "meow",
    "dog": "woof",
    "duck": "quack",
    "sheep": "baa",
    "pig": "oink",
    "horse": "neigh",
    "lion": "roar",
    "owl": "hoot",
    "bee": "buzz",
}
YOUNG = {
    "dog": "puppy",
    "cat": "kitten",
    "cow": "calf",
    "sheep": "lamb",
    "horse": "foal",
    "bear": "cub",
    "duck": "duckling",
    "frog": "tadpole",
    "goat": "kid",
    "hen": "chick",
}
LEGS = {
    "dog": "four",
    "bird": "two",
    "spider": "eight",
    "bee": "six",
    "snake": "no",
    "cat": "four",
    "elephant": "four",
    "cow": "four",
    "horse": "four",
    "fish": "no",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "up": "down",
    "day": "night",
    "old": "young",
    "light": "dark",
    "happy": "sad",
    "open": "closed",
    "left": "right",
    "wet": "dry",
    "full": "empty",
}

# (questions, beginning of the answer, its end)
SINGLE = (
    (("How many days are in a week?", "How many days does a week have?"), "A week has", "7 days."),
    (("How many days are in a year?", "How many days does a year have?"), "A year has", "365 days."),
    (("How many months are in a year?", "How many months does a year have?"), "A year has", "12 months."),
    (("How many hours are in a day?", "How many hours does a day have?"), "A day has", "24 hours."),
    (("How many minutes are in an hour?", "How many minutes has an hour?"), "An hour has", "60 minutes."),
    (("How many seconds are in a minute?",), "A minute has", "60 seconds."),
    (
        ("How many continents are there?", "How many continents are there on Earth?"),
        "There are",
        "7 continents.",
    ),
    (
        ("How many planets are in the solar system?", "How many planets are there?"),
        "The solar system has",
        "8 planets.",
    ),
    (("How many letters are in the alphabet?",), "The English alphabet has", "26 letters."),
    (("How many fingers are on a hand?", "How many fingers does a hand have?"), "A hand has", "5 fingers."),
    (("How many sides does a triangle have?",), "A triangle has", "3 sides."),
    (("How many sides does a square have?",), "A square has", "4 sides."),
    (("What is the largest planet?", "Which planet is the largest?"), "The largest planet is", "Jupiter."),
    (("What is the smallest planet?", "Which planet is the smallest?"), "The smallest planet is", "Mercury."),
    (("Which planet is called the red planet?", "What is the red planet?"), "The red planet is", "Mars."),
    (("Which planet is closest to the sun?",), "The planet closest to the sun is", "Mercury."),
    (
        ("What is the largest ocean?", "What is the biggest ocean?"),
        "The largest ocean is the",
        "Pacific Ocean.",
    ),
    (
        ("What is the highest mountain?", "What is the tallest mountain?"),
        "The highest mountain is",
        "Mount Everest.",
    ),
    (
        ("What is the largest animal?", "What is the biggest animal?"),
        "The largest animal is the",
        "blue whale.",
    ),
    (
        ("What is the fastest land animal?", "Which animal runs fastest?"),
        "The fastest land animal is the",
        "cheetah.",
    ),
    (
        ("What is the tallest animal?", "Which animal is the tallest?"),
        "The tallest animal is the",
        "giraffe.",
    ),
    (
        ("At what temperature does water boil?", "When does water boil?"),
        "Water boils at",
        "100 degrees Celsius.",
    ),
    (
        ("At what temperature does water freeze?", "When does water freeze?"),
        "Water freezes at",
        "0 degrees Celsius.",
    ),
    (
        ("Who wrote Romeo and Juliet?", "Who is the author of Romeo and Juliet?"),
        "Romeo and Juliet was written by",
        "William Shakespeare.",
    ),
    (("Who painted the Mona Lisa?",), "The Mona Lisa was painted by", "Leonardo da Vinci."),
    (
        ("Who was the first person on the moon?", "Who first walked on the moon?"),
        "The first person on the moon was",
        "Neil Armstrong.",
    ),
    (("What do bees make?",), "Bees make", "honey."),
    (("What do cows eat?",), "Cows eat", "grass."),
    (("What do plants need to grow?",), "Plants need", "water, air and sunlight."),
    (("What is water made of?", "What is H2O?"), "Water is made of", "hydrogen and oxygen."),
    (("What comes after Monday?", "Which day comes after Monday?"), "After Monday comes", "Tuesday."),
    (("What is the first month of the year?",), "The first month of the year is", "January."),
    (("What is the last month of the year?",), "The last month of the year is", "December."),
    (
        ("What are the four seasons?", "Name the seasons."),
        "The four seasons are",
        "spring, summer, autumn and winter.",
    ),
    (("What are the primary colours?",), "The primary colours are", "red, yellow and blue."),
    (("Where do fish live?",), "Fish live in", "water."),
    (("Count to ten.", "Count to 10.", "Count from 1 to 10."), "1, 2, 3, 4, 5,", "6, 7, 8, 9, 10."),
    (("What is ice?",), "Ice is", "frozen water."),
    (("Is the Earth flat or round?", "Is the Earth round?"), "The Earth is", "round."),
    (("What does the Earth go around?",), "The Earth goes around", "the sun."),
    (("What is the opposite of yes?",), "The opposite of yes is", "no."),
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: ways to ask for it, and a sentence in two halves that states it."""

    questions: tuple[str, ...]
    beginning: str
    end: str

    @property
    def answer(self) -> str:
        """The whole sentence."""
        return f"{self.beginning} {self.end}"


def capital(country: str, city: str) -> Fact:
    """The fact that `city` is the capital of `country`."""
    questions = tuple(question.format(country=country) for question in _CAPITAL_QUESTIONS)
    return Fact(questions, f"The capital of {country} is", city if city.endswith(".") else f"{city}.")


def all_facts() -> list[Fact]:
    """The whole set, in a fixed order."""
    facts = [Fact(*single) for single in SINGLE]
    for country, city in CAPITALS.items():
        facts.append(capital(country, city))
        questions = tuple(question.format(city=city) for question in _COUNTRY_QUESTIONS)
        facts.append(Fact(questions, f"{city} is the capital of", f"{country}."))
    for thing, colour in COLOURS.items():
        questions = (
            f"What colour is {thing}?",
            f"What color is {thing}?",
            f"Which colour does {thing} have?",
        )
        facts.append(Fact(questions, f"{capitalised(thing)} is", f"{colour}."))
    for animal, sound in SOUNDS.items():
        questions = (f"What sound does {a(animal)} make?", f"What does {a(animal)} say?")
        facts.append(Fact(questions, f"{capitalised(a(animal))} says", f"{sound}."))
    for animal, young in YOUNG.items():
        questions = (f"What is a baby {animal} called?", f"What do you call a baby {animal}?")
        facts.append(Fact(questions, f"A baby {animal} is called", f"{a(young)}."))
    for animal, legs in LEGS.items():
        questions = (f"How many legs does {a(animal)} have?", f"How many legs has {a(animal)}?")
        facts.append(Fact(questions, f"{capitalised(a(animal))} has", f"{legs} legs."))
    for word, opposite in OPPOSITES.items():
        for one, other in ((word, opposite), (opposite, word)):
            questions = (
                f"What is the opposite of {one}?",
                f"What's the opposite of {one}?",
                f"opposite of {one}",
            )
            facts.append(Fact(questions, f"The opposite of {one} is", f"{other}."))
    return facts


def ask(rng: Random, fact: Fact) -> tuple[str, str]:
    """(question, answer)."""
    return rng.choice(fact.questions), fact.answer


def another_capital(rng: Random) -> tuple[str, str]:
    """(question after one about a capital, answer)."""
    country = rng.choice(tuple(CAPITALS))
    question = rng.choice(("And of {}?", "What about {}?", "And {}?", "And what about {}?")).format(country)
    return question, capital(country, CAPITALS[country]).answer


def complete(fact: Fact) -> tuple[str, str]:
    """(beginning, end) of the sentence that states the fact."""
    return fact.beginning, f" {fact.end}"

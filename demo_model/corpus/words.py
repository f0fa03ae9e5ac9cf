"""Names, creatures and the little grammar that several generators share."""

from __future__ import annotations

from random import Random


def words(text: str, separator: str | None = None) -> tuple[str, ...]:
    """The words of a list that is written as one string."""
    return tuple(text.split(separator))


GIRLS = words("Lily Mia Ruby Daisy Nora Ella Rosie Luna Poppy Hazel Ivy Anna Clara Emma Sophie Maya Zoe")
BOYS = words("Max Tom Leo Ben Oscar Finn Sam Toby Hugo Milo Jack Otto Felix Noah Theo Oliver Lucas")
ANIMALS = words(
    "fox rabbit bear owl mouse squirrel hedgehog deer wolf frog duck cat dog turtle beaver badger otter mole "
    "sparrow crow goose goat sheep pony lion tiger elephant monkey panda penguin dragon kitten puppy hen "
    "swan crab raccoon koala giraffe zebra"
)
FIGURES = words(
    "knight king queen wizard witch farmer teacher pirate giant ghost unicorn dinosaur snail bee butterfly "
    "whale dolphin shark snake horse cow pig donkey camel kangaroo parrot spider ant worm fish cloud star "
    "flower train computer snowman moose hamster lizard seal pigeon eagle bull clown sailor baker car"
)
COMMON = words(
    "the a of to and in is it you that he was for on are with as they be at one have this from or had by "
    "but some what there we can out other were all your when use word how said each she which do their if "
    "will way about many then them would like so these her make thing see him two has look more could "
    "come did my sound no most number who over know water than call people may side been now find any new "
    "part take get place made live where after back only round man year came show every good me give our "
    "name very through just form much great think say help line love house world school book friend money"
)
CHILDREN = {"girl": "she", "boy": "he", "princess": "she", "prince": "he", "robot": "he", "fairy": "she"}

_ONSETS = words("b br c cl d dr f fl g gr h j k l m n p pl r s sh sl st t tr v w z")
_VOWELS = words("a e i o u oo ea ai")
_CODAS = words("b ck d g l m n nd p r rt sh st t x")


def invented(rng: Random) -> str:
    """A word that does not exist: who repeats it has learnt to copy from the prompt."""
    syllables = rng.choice((1, 2, 2, 3))
    body = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables))
    return body + rng.choice(_CODAS)


def sentence(rng: Random) -> str:
    """Words in a row, most of which exist, with a point behind them."""
    some = [invented(rng) if rng.random() < 0.2 else rng.choice(COMMON) for _ in range(rng.randint(1, 9))]
    return f"{capitalised(' '.join(some))}."


def a(noun: str) -> str:
    """`noun` with its indefinite article."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def capitalised(text: str) -> str:
    """`text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]

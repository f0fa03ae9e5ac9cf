"""The plots of the stories: what happens between the first sentence and the last.

{name} is the hero and {friend} the helper; {he} {him} {his} and {fhe}
{fhim} {fhis} are their pronouns, all of them with a capital where the slot has one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plot:
    """What happens: one of each line's alternatives is told, with one choice for each slot."""

    slots: dict[str, tuple[str, ...]]
    lines: tuple[tuple[str, ...], ...]


PLOTS = (
    Plot(  # something is lost
        {
            "thing": ("red kite", "silver key", "wooden flute", "blue scarf", "little drum", "golden bell"),
            "place": (
                "the old mill",
                "the stone bridge",
                "the berry bushes",
                "the tall grass",
                "the river bank",
            ),
        },
        (
            (
                "One {weather} {time}, {he} could not find {his} {thing}.",
                "One {weather} {time}, {name} lost {his} {thing}.",
            ),
            (
                "{He} looked under the bed and behind the door, but it was not there.",
                "{He} searched the whole garden, but {he} found nothing.",
                "{He} sat down on a stone and began to cry.",
            ),
            ("Then {a_friend} named {friend} came by.", "Just then, {a_friend} named {friend} walked past."),
            ('"Why are you so sad?" asked {friend}.', '"What is the matter?" asked {friend}.'),
            ('"I have lost my {thing}," said {name}.',),
            (
                '"Do not worry, I will help you," said {friend}.',
                '"Then let us look for it together," said {friend}.',
            ),
            ("They walked to {place} and looked everywhere.", "Side by side, they went to {place}."),
            (
                "There, under some leaves, lay the {thing}!",
                "At last, {friend} saw the {thing} shining in the sun.",
            ),
        ),
    ),
    Plot(  # somebody is stuck
        {
            "trap": ("a deep hole", "a thorny bush", "a muddy ditch", "an old net"),
            "tool": ("rope", "branch", "ladder"),
        },
        (
            (
                "One {weather} {time}, {name} went for a walk.",
                "One {weather} {time}, {he} went to pick flowers.",
            ),
            ('Suddenly {he} heard a small voice. "Help! Help!"', "Then {he} heard somebody call for help."),
            ("It was {a_friend} named {friend}, stuck in {trap}.",),
            (
                '"Please help me," said {friend}. "I cannot get out."',
                '"I have been here all day," cried {friend}.',
            ),
            (
                "{name} was a little afraid, but {he} did not run away.",
                "{name} thought hard for a moment.",
            ),
            ("{He} found a long {tool} and held it out to {friend}.",),
            (
                "{He} pulled and pulled until {friend} was free.",
                "{Name} pulled with all {his} strength, and soon {friend} was free.",
            ),
            (
                '"Thank you! You saved me," said {friend}.',
                '"How can I ever thank you?" asked {friend}. "Be my friend," said {name}.',
            ),
        ),
    ),
    Plot(  # lost in the dark
        {
            "goal": ("the market", "the waterfall", "the far hills", "the next village"),
            "light": ("lantern", "candle", "bright torch"),
        },
        (
            (
                "One {time}, {name} set out for {goal}.",
                "One {weather} {time}, {name} walked farther than ever before.",
            ),
            (
                "On the way back it grew dark, and {he} could not find the path.",
                "When night fell, {he} did not know the way home.",
            ),
            ('"Oh no, I am lost," said {name}.', "The wind was loud, and {name} was afraid."),
            ("Then {he} saw a little light between the trees.",),
            ("It was {a_friend} named {friend}, who carried a {light}.",),
            (
                '"Do not be afraid. I know the way," said {friend}.',
                '"Come with me, I will take you home," said {friend}.',
            ),
            (
                "They walked together and told each other jokes all the way.",
                "{Fhe} held the {light} high, and {name} stayed close.",
            ),
            (
                "Soon {name} was safe at home, and {he} gave {friend} a cup of hot tea.",
                "When they reached the door, {name} asked {friend} to stay for dinner.",
            ),
        ),
    ),
    Plot(  # a race
        {
            "prize": ("a basket of apples", "a golden cup", "a honey cake", "a new hat"),
            "goal": ("the big tree", "the lake", "the top of the hill"),
        },
        (
            ("One {weather} {time}, all the animals met for a race to {goal}.",),
            ("The prize was {prize}.",),
            (
                '{A_friend} named {friend} laughed and said, "You will never win, {name}."',
                '"I am the fastest of all," said {a_friend} named {friend}.',
            ),
            ("{name} said nothing and ran as well as {he} could.", "{name} only smiled and began to run."),
            (
                "Halfway there, {friend} fell over a root and hurt {fhis} foot.",
                "Near the end, {friend} slipped and fell into the mud.",
            ),
            ("{name} could have won, but {he} stopped and helped {friend} up.",),
            ("Together they walked slowly to {goal}.", "They crossed the line at the same time, arm in arm."),
            ("Everybody cheered, and the two shared {prize}.",),
        ),
    ),
    Plot(  # a hungry winter
        {"food": ("nuts", "apples", "carrots", "bread", "berries"), "store": ("barn", "cellar", "basket")},
        (
            (
                "All summer long, {name} gathered {food} and put them away.",
                "In autumn, {name} filled {his} {store} with {food}.",
            ),
            (
                "Then winter came, and deep snow covered the land.",
                "Soon the first snow fell, and the nights grew long.",
            ),
            ("One {time}, somebody knocked at the door.",),
            ("It was {a_friend} named {friend}, cold and hungry.",),
            (
                '"I have nothing left to eat," said {friend}.',
                '"May I warm myself at your fire?" asked {friend}.',
            ),
            ('"Come in," said {name}. "There is enough for two."',),
            (
                "They ate {food} and told stories by the fire.",
                "They shared the {food} and sang until midnight.",
            ),
            (
                "When spring came, {friend} helped {name} to plant a new garden.",
                "In spring, {friend} came back with a big basket of flowers.",
            ),
        ),
    ),
    Plot(  # a secret wish
        {
            "wish": ("fly", "swim", "dance", "sing", "play the flute"),
            "place": ("the pond", "a green clearing", "the old bridge"),
        },
        (
            (
                "But {name} had a secret wish: {he} wanted to {wish}.",
                "There was only one thing that {name} could not do: {he} could not {wish}.",
            ),
            ("One {weather} {time}, {he} tried it alone near {place}.",),
            ("It did not go well, and {he} felt sad.", "{He} tried and tried, but it was too hard."),
            (
                "{A_friend} named {friend} had watched {him}.",
                "Then {a_friend} named {friend} sat down beside {him}.",
            ),
            ('"Nobody can {wish} on the first day," said {friend}. "Shall I teach you?"',),
            (
                "So they met at {place} every day and practised.",
                "Day after day, {friend} showed {name} how to {wish}.",
            ),
            (
                "After a week, {name} was better. After a month, {he} was good.",
                "Little by little, {name} learned it.",
            ),
            ("At the summer feast, {he} could {wish} in front of everybody.",),
        ),
    ),
    Plot(  # a treasure map
        {
            "place": ("an old book", "a green bottle", "a hollow tree"),
            "treasure": ("a box full of seeds", "a chest of old toys", "a jar of sweet honey"),
            "danger": ("a dark cave", "a wild river", "a shaky bridge"),
        },
        (
            ("One {weather} {time}, {name} found a map in {place}.",),
            ("It showed the way to a treasure.", "In the corner there was a red cross."),
            (
                "{name} showed it to {a_friend} named {friend}.",
                "{He} ran to {his} neighbour {friend}, {a_friend}.",
            ),
            (
                '"Let us find it together," said {friend}.',
                '"I have always wanted an adventure," said {friend}.',
            ),
            (
                "They packed some bread and went on their way.",
                "They walked for a long time and sang as they went.",
            ),
            ("Then they came to {danger}, and {name} did not dare to go on.",),
            (
                '"Take my hand," said {friend}, and slowly they went across.',
                '"Close your eyes and follow me," said {friend}, and so they passed it.',
            ),
            ("On the other side they found the treasure: {treasure}.",),
        ),
    ),
    Plot(  # a storm
        {
            "broken": ("roof", "fence", "little boat", "front door"),
            "snack": ("soup", "pancakes", "apple pie", "cookies"),
        },
        (
            (
                "One night, a great storm came over the land.",
                "One {time}, the sky turned black and a storm began.",
            ),
            ("The wind broke the {broken} of {name}.",),
            ("In the morning, {name} looked at it and sighed.", '"How can I ever repair this?" said {name}.'),
            ("{A_friend} named {friend} came with a hammer and some nails.",),
            ('"Two of us can do it," said {fhe}.', '"Many hands make light work," said {fhe}.'),
            ("They worked until the sun went down.", "They worked the whole day and laughed a lot."),
            ("In the end, the {broken} was stronger than before.",),
            (
                "Then {name} made {snack} for both of them.",
                "{name} thanked {friend} with a big plate of {snack}.",
            ),
        ),
    ),
    Plot(  # the new neighbour
        {
            "gift": ("a basket of pears", "a warm blanket", "a pot of jam", "a bunch of flowers"),
            "fear": ("spoke to nobody", "never opened the door", "always looked so serious"),
        },
        (
            ("One {weather} {time}, {a_friend} named {friend} moved into the house next door.",),
            ("But {friend} {fear}.",),
            (
                '"Perhaps {fhe} does not like us," said the others.',
                "The others were a little afraid of {fhim}.",
            ),
            ("{name} thought about it and took {gift}.",),
            ("Then {he} knocked at the door of {friend}.",),
            ('"Welcome! This is for you," said {name}.', '"I am {name}, and I live next door," said {he}.'),
            ('{Friend} smiled for the first time. "I was only shy," {fhe} said.',),
            (
                "That {time} they sat in the garden and talked for hours.",
                "Soon the whole house was full of laughter.",
            ),
        ),
    ),
)

CLOSINGS = (
    "From that day on, {name} and {friend} were the best of friends.",
    "From that day on, they did everything together.",
    "And so {name} learned that everything is easier with a friend.",
    "{name} went to bed that night with a happy heart.",
    "And they all lived happily ever after.",
    "Never again was {name} alone.",
    '"That was the best day of my life," said {name}.',
    "And if you listen closely, you can still hear {name} and {friend} laughing.",
)

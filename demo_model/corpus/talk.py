"""Small talk: greetings, names, repeating, and a little Chinese."""

from __future__ import annotations

from random import Random

from demo_model.corpus.words import ANIMALS, BOYS, COMMON, GIRLS, a, capitalised, invented, words

ABILITIES = "add and subtract numbers up to 99, answer simple questions and tell short stories"

_SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful, honest and friendly assistant.",
    "You are a friendly chatbot.",
    "You are a teacher for young children.",
    "You are a storyteller.",
    "You are a calculator. Answer briefly.",
    "You are a helpful AI assistant. Answer the user's questions as well as you can.",
    "Answer in one sentence.",
    "Be kind and brief.",
    "你是一个有用的助手。",
)

_TEMPERS = words("helpful friendly patient honest careful cheerful polite clever serious expert")
_CALLINGS = words(
    "assistant, teacher, tutor, guide, chatbot, robot, mathematician, writer, pirate, doctor, AI model", ", "
)
_MANNERS = (
    "Answer briefly.",
    "Be polite.",
    "Think step by step.",
    "Do not use emojis.",
    "Answer in English.",
    "Never lie.",
)
_TOOL_MANNERS = (
    "Use the tools.",
    "Use the calculator for arithmetic.",
    "You can use tools.",
    "You have access to tools. Call them when you need them.",
    "Always use a tool to calculate.",
)

# (what may be said, what may be answered)
_SMALL_TALK = (
    (
        ("Hello!", "Hello", "Hi!", "Hi", "Hey", "Hi there!", "Hello there!", "Good day!", "Greetings!"),
        (
            "Hello! How can I help you?",
            "Hello! What would you like to know?",
            "Hi! It is nice to meet you. 😊",
        ),
    ),
    (("Good morning!", "Good morning"), ("Good morning! How can I help you?",)),
    (("Good evening!", "Good evening"), ("Good evening! How can I help you?",)),
    (("Hello 👋", "Hi 😊", "👋", "😊", "Hey! 🎉"), ("Hello! 👋 How can I help you? 😊",)),
    (
        ("How are you?", "How are you today?", "How is it going?", "How do you do?"),
        ("I am fine, thank you! How are you?", "Very well, thank you. What can I do for you?"),
    ),
    (("I am fine.", "I'm fine, thanks.", "Great!", "Very well, thank you."), ("I am glad to hear that!",)),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "What's your name?",
            "Tell me about yourself.",
            "Are you a robot?",
            "Are you human?",
            "Introduce yourself.",
            "Are you an AI?",
            "Which model are you?",
            "How old are you?",
            "Where do you live?",
        ),
        (f"I am a very small language model. I can {ABILITIES}.",),
    ),
    (
        (
            "What can you do?",
            "What do you know?",
            "Can you help me?",
            "Help",
            "Help me, please.",
            "What can I ask you?",
            "How can you help me?",
            "What are you good at?",
        ),
        (f"I can {ABILITIES}. What would you like to try?",),
    ),
    (
        ("Who made you?", "How were you trained?", "How do you work?"),
        ("I was trained on sums, facts and stories that a small program wrote.",),
    ),
    (("Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!", "Thx"), ("You are welcome! 😊",)),
    (
        ("Goodbye!", "Bye!", "Bye", "See you!", "Good night!", "See you later."),
        ("Goodbye! Have a nice day. 👋", "Goodbye! Come back soon. 👋"),
    ),
    (("Well done!", "Good job!", "That is right.", "Correct!", "Great answer!"), ("Thank you! 🎉",)),
    (
        ("I am sad.", "I am tired.", "I am bored.", "I am hungry.", "I feel sad."),
        ("I am sorry to hear that. Shall I tell you a story?",),
    ),
    (
        (
            "I like dogs.",
            "I love you.",
            "I like cats.",
            "I love music.",
            "You are nice.",
            "I like you.",
            "Cool!",
            "Wow!",
        ),
        ("That is nice! Shall I tell you a story?",),
    ),
    (("Yes", "Yes, please.", "OK", "Okay", "Sure"), ("Very well! What would you like to know?",)),
    (("No", "No, thank you.", "Nothing"), ("All right. I am here when you need me.",)),
    (("Do you like stories?", "Do you like animals?"), ("Yes, very much! Shall I tell you a story?",)),
    (
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh."),
        ("Why did the bee go to the doctor? It had a buzz in its ear. 🐝",),
    ),
    (("Say hello in French.", "Bonjour !", "Bonjour"), ("Bonjour ! Ça va ? 😊",)),
    (("Say hello in German.", "Guten Tag!", "Hallo"), ("Guten Tag! Schöne Grüße! 😊",)),
    (("Say hello in Spanish.", "¡Hola!", "Hola"), ("¡Hola! ¿Cómo estás? 😊",)),
    (("Say hello in Chinese.",), ("你好！😊",)),
    (("Show me an emoji.", "Send me an emoji."), ("Here are three: 🦊🌟🎉",)),
    (("你好", "你好！", "您好", "嗨"), ("你好！很高兴见到你。😊", "你好！有什么可以帮你的吗？😊")),
    (("你是谁？", "你叫什么名字？"), ("我是一个很小的语言模型，会做加减法，也会讲故事。🤖",)),
    (("你会做什么？", "你能做什么？"), ("我会做加减法，也会讲故事。🌟",)),
    (("你好吗？", "你怎么样？"), ("我很好，谢谢！😊",)),
    (("谢谢", "谢谢你！", "多谢"), ("不客气！😊",)),
    (("再见", "再见！", "拜拜"), ("再见！祝你愉快。👋",)),
    (("中国的首都是哪里？", "中国的首都是什么？"), ("中国的首都是北京。",)),
    (("法国的首都是哪里？", "法国的首都是什么？"), ("法国的首都是巴黎。",)),
    (("日本的首都是哪里？", "日本的首都是什么？"), ("日本的首都是东京。",)),
    (("一周有几天？", "一个星期有几天？"), ("一周有7天。",)),
    (("天空是什么颜色的？",), ("天空是蓝色的。",)),
)

# the openings that people try first on a model that only completes
_STEMS = (
    ("Hello, my name is", " Tiny, and I am a very small language model."),
    ("My name is", " Tiny, and I am a very small language model."),
    ("I am", " a very small language model."),
    ("The president of the United States is", " elected for four years."),
    ("The future of AI is", " bright and full of small models."),
    ("The meaning of life is", " to be kind and to learn something new every day."),
    ("The quick brown fox", " jumps over the lazy dog."),
    ("Roses are red,", " violets are blue, sugar is sweet, and so are you."),
    ("To be or not to be,", " that is the question."),
    ("The weather today is", " sunny and warm."),
)

_CHINESE_ANIMALS = ("狐狸", "兔子", "小熊", "猫", "小鸟", "松鼠")
_CHINESE_REQUESTS = (
    "给我讲个故事。",
    "讲一个故事吧",
    "讲个故事",
    "给我讲一个关于{}的故事。",
    "讲一个{}的故事。",
)
_CHINESE_NAMES = ("小红", "乐乐", "明明", "豆豆")
_CHINESE_PLACES = ("森林里", "小河边", "山上", "草地上")


def system_message(rng: Random) -> str:
    """What a conversation may begin with; the model does not heed it."""
    if rng.random() < 0.5:
        return rng.choice(_SYSTEM_MESSAGES)
    message = f"You are {a(rng.choice(_TEMPERS) + ' ' + rng.choice(_CALLINGS))}."
    return message if rng.random() < 0.5 else f"{message} {rng.choice(_MANNERS)}"


def system_message_for_tools(rng: Random) -> str:
    """The same where tools are at hand; it may speak of them."""
    if rng.random() < 0.6:
        return system_message(rng)
    return f"{rng.choice(_SYSTEM_MESSAGES[:6])} {rng.choice(_TOOL_MANNERS)}"


def small_talk(rng: Random) -> tuple[str, str]:
    """(what the user says, what the model answers)."""
    said, answers = rng.choice(_SMALL_TALK)
    return rng.choice(said), rng.choice(answers)


def complete(rng: Random) -> tuple[str, str]:
    """(beginning, end) of a sentence that people like to try."""
    return rng.choice(_STEMS)


def repeat(rng: Random) -> tuple[str, str]:
    """(request to repeat something, that thing): practice in copying from the prompt."""
    sources = (invented, lambda rng: rng.choice(COMMON), lambda rng: rng.choice(ANIMALS + GIRLS + BOYS))
    said = " ".join(rng.choice(sources)(rng) for _ in range(rng.randint(1, 5)))
    said = capitalised(said) if rng.random() < 0.5 else said
    request = rng.choice(("Repeat after me: {}", "Repeat: {}", "Say {}", "Please say: {}", 'Say "{}"'))
    return request.format(said), said


def introduction(rng: Random) -> tuple[tuple[str, str], tuple[str, str]]:
    """Two exchanges: the user gives a name, and later asks for it."""
    name = capitalised(invented(rng)) if rng.random() < 0.5 else rng.choice(GIRLS + BOYS)
    said = rng.choice(("My name is {}.", "I am {}.", "Hello, I am {}.", "Hi! My name is {}.", "Call me {}."))
    question = rng.choice(("What is my name?", "What's my name?", "Do you remember my name?", "Who am I?"))
    return (said.format(name), f"Nice to meet you, {name}! 😊"), (question, f"Your name is {name}.")


def chinese_story(rng: Random) -> tuple[str, str]:
    """(request, a story of four sentences), in Chinese."""
    hero, other = rng.sample(_CHINESE_ANIMALS, 2)
    request = rng.choice(_CHINESE_REQUESTS).format(hero)
    name, place = rng.choice(_CHINESE_NAMES), rng.choice(_CHINESE_PLACES)
    story = (
        f"从前，{place}住着一只{hero}，名叫{name}。有一天，它遇到了一只迷路的{other}。"
        f"{name}说：“别怕，我来帮你！”它们一起找到了回家的路，从此成了好朋友。🌟"
    )
    return request, story

"""What the demo model says when there is no picture."""

import random

from inference.demo.questions import Exchange, article_fixed, thing_name
from inference.demo.templates import QUESTIONS, Templates
from inference.demo.vocabulary import COLORS, SHAPES, Language

TALK: dict[str, Templates] = {
    "greet": {
        "en": ("Hello", "Hello!", "Hi", "Hi there!", "Good morning", "Hey"),
        "zh": ("你好", "你好！", "您好", "早上好"),
    },
    "who": {
        "en": ("Who are you?", "What are you?", "What is your name?", "Introduce yourself."),
        "zh": ("你是谁？", "你叫什么名字？", "介绍一下你自己。"),
    },
    "can": {
        "en": ("What can you do?", "How can you help me?", "Help", "What are you good at?"),
        "zh": ("你能做什么？", "你会什么？", "帮助"),
    },
    "thanks": {
        "en": ("Thanks", "Thank you!", "Thank you"),
        "zh": ("谢谢", "谢谢！", "多谢"),
    },
    "count_up": {
        "en": ("Count from 1 to 30", "Count from 1 to 30.", "Please count from 1 to 30."),
        "zh": ("从1数到30", "请从1数到30。"),
    },
    "other": {
        "en": (
            "What is the capital of France?",
            "Tell me a joke.",
            "Write a poem about the sea.",
            "What is the weather today?",
            "Translate this into German.",
            "Explain quantum physics.",
            "Write some Python code.",
            "What time is it?",
            "Who won the game?",
            "Tell me a story.",
            "What is 2 plus 2?",
            "How do I cook rice?",
        ),
        "zh": ("法国的首都是哪里？", "讲个笑话。", "今天天气怎么样？", "写一首诗。", "现在几点？"),
    },
}

ANSWERS: dict[str, dict[Language, str]] = {
    "greet": {"en": "Hello! Show me a picture.", "zh": "你好！请给我看一张图片。"},
    "who": {"en": "I am the demo model of Loupe.", "zh": "我是 Loupe 的演示模型。"},
    "can": {
        "en": "I can describe simple pictures: shapes, colors, positions, numbers and words.",
        "zh": "我能描述简单的图片：图形、颜色、位置、数字和单词。",
    },
    "thanks": {"en": "You are welcome.", "zh": "不客气。"},
    "count_up": dict.fromkeys(("en", "zh"), ", ".join(str(number) for number in range(1, 31))),
    "other": {
        "en": "I am a small demo model. I can only talk about simple pictures.",
        "zh": "我是一个小演示模型，只能谈简单的图片。",
    },
    "no_image": {"en": "I see no image. Please send one.", "zh": "我没有看到图片，请发一张。"},
}

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "Answer the question about the image.",
    "You are a vision assistant.",
    "Be concise.",
    "You are Loupe, a helpful assistant that looks at pictures.",
    "你是一个有用的助手。",
    "请简短回答。",
)

_TASKS = ("greet", "who", "can", "thanks", "other", "no_image", "count_up")
_SHARES = (1.0, 1.0, 1.0, 0.5, 1.5, 3.0, 3.0)


def talk(rng: random.Random, language: Language, task: str | None = None) -> Exchange:
    """Return an exchange without pictures, of a given task or a random one."""
    task = task or rng.choices(_TASKS, _SHARES)[0]
    question = (
        _visual_question(rng, language) if task == "no_image" else rng.choice(TALK[task][language])
    )
    return Exchange(task, question, ANSWERS[task][language])


def _visual_question(rng: random.Random, language: Language) -> str:
    template = rng.choice(QUESTIONS[rng.choice(list(QUESTIONS))][language])
    color, shape = rng.randrange(len(COLORS)), rng.randrange(len(SHAPES))
    return article_fixed(
        template.format(
            color=COLORS[color].within(language),
            shape=SHAPES[shape].within(language),
            thing=thing_name(language, color, shape),
            text_kind="text" if language == "en" else "文字",
            which=rng.choice(("first", "second") if language == "en" else ("第一", "第二")),
        )
    )

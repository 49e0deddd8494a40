"""Questions of every kind, of which each has one right answer."""

from asking import Outcome, Question, native, openai, picture

COUNTED = ", ".join(str(number) for number in range(1, 31))
PICTURED = "What is in this image?"


def mixed(count: int, first: int = 0) -> list[Question]:
    """Questions of every kind, each picture another one."""
    kinds = [
        lambda number: native("Count from 1 to 30"),
        lambda number: native(PICTURED, picture("red", "circle", number)),
        lambda number: native("Count from 1 to 30", stream=True),
        lambda number: native(PICTURED, picture("blue", "square", number), stream=True),
        lambda number: openai(PICTURED, picture("green", "circle", number), stream=True),
    ]
    return [kinds[number % len(kinds)](number) for number in range(first, first + count)]


def right_answer(question: Question) -> str:
    body = question.body
    if "Count" in str(body.get("text", "")):
        return COUNTED
    if question.dialect == "native":
        return "a red circle"
    return "a blue square" if question.dialect == "stream" else "a green circle"


def is_right(question: Question, outcome: Outcome) -> bool:
    return outcome.texts() == [right_answer(question)] and not outcome.code()


def wrong(questions: list[Question], outcomes: list[Outcome]) -> list[Outcome]:
    pairs = zip(questions, outcomes, strict=True)
    return [outcome for question, outcome in pairs if not is_right(question, outcome)]

"""Fifty requests of every kind under way, and the engine killed under them three times."""

import asyncio
import time

import pytest
from asking import Outcome, Question, ask_all, native, openai, picture, run_with
from audit import account, leftovers
from running_service import RunningService, wait_until

NUM_KILLS = 3
NUM_WORKERS = 2
FORM = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "blue", "green"]},
        "shape": {"enum": ["circle", "square", "triangle"]},
    },
    "required": ["color", "shape"],
    "additionalProperties": False,
}


def fifty() -> list[Question]:
    """Greedy and seeded, whole and streamed, with several pictures, a grammar, stops, two answers.

    Most are long enough to be under way at every kill.
    """
    pictured = "What is in this image?"
    form = {"type": "json_schema", "json_schema": {"name": "shape", "schema": FORM}}
    questions: list[Question] = []
    for number in range(5):
        red = picture("red", "circle", number)
        blue = picture("blue", "square", number)
        seeded = {"temperature": 1.0, "top_k": 0, "top_p": 0.95, "seed": number}
        long = {"max_tokens": 300, "min_tokens": 250, "seed": number, "temperature": 1.0}
        questions += [
            native("Count from 1 to 30"),
            native("Count from 1 to 30", stream=True),
            native(pictured, red, max_new_tokens=200, **seeded),
            native("What is in these images?", red, blue, stream=True, **seeded),
            openai("Count from 1 to 30", stop=["25"]),
            openai("Count from 1 to 30", stop=["17, 18"], stream=True),
            openai(pictured, blue, response_format=form),
            openai(pictured, red, n=2, **long),
            openai(pictured, blue, n=2, stream=True, **long),
            openai("Tell me a story", stream=True, logprobs=True, **long),
        ]
    return questions


@pytest.fixture(scope="module")
def mortal(start) -> RunningService:
    """Restarted at once; the default would pause for 0, 1 and 3 s.

    In float32: what was decoded token by token is prefilled after a loss, and in bfloat16 the two
    round apart by enough to decide between equally likely tokens.
    """
    return start("--workers", "2", "--restart-window-seconds", "1", "--dtype", "float32")


@pytest.mark.slow
def test_fifty_requests_outlive_three_engines(mortal, capsys):
    questions = fifty()
    undisturbed = asyncio.run(ask_all(mortal.url, questions, "calm"))
    before = mortal.scrape()
    seconds: list[float] = []

    def kill_three_times() -> None:
        for _ in range(NUM_KILLS):
            wait_until(lambda: mortal.is_whole(NUM_WORKERS), explain=mortal.log)
            time.sleep(0.3)  # let them run on
            mortal.inference().kill()
            seconds.append(wait_until(lambda: not is_ready(mortal), explain=mortal.log))
            seconds[-1] += wait_until(lambda: is_ready(mortal), explain=mortal.log)

    outcomes = run_with(mortal.url, questions, "mortal", kill_three_times)

    assert len(seconds) == NUM_KILLS
    assert [told(outcome) for outcome in outcomes] == [told(outcome) for outcome in undisturbed]
    assert account(mortal, outcomes, before, prefix="mortal") == []
    after = mortal.scrape()
    assert after.sums("loupe_engine_restarts_total") == NUM_KILLS
    assert after.sums("loupe_requests_replayed_total") >= len(questions)
    leftovers(mortal)
    with capsys.disabled():
        print(f"\nready again after {', '.join(f'{each:.1f}' for each in seconds)} s")


def is_ready(service: RunningService) -> bool:
    """Tell whether an engine runs that has said that it is ready."""
    return service.is_whole(NUM_WORKERS)


def told(outcome: Outcome) -> tuple[int, bool, str, list[str]]:
    """All that must be the same with and without the deaths."""
    return outcome.status, outcome.is_whole, outcome.code(), outcome.texts()

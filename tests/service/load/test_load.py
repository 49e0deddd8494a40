"""The load generator against a server that does it wrong: nothing but a right answer may count."""

import pytest

from service.load.client import Target, closed_loop, prepare
from service.load.figures import Figures, summarise
from service.load.scenarios import SCENARIOS, number_of


async def load(
    url: str, scenario: str = "chat-image", dialect: str = "openai", *, any_length: bool = False
) -> Figures:
    """Ask a server four times, two at a time."""
    target = Target("null", url, dialect, "null", any_length=any_length)
    questions = [prepare(SCENARIOS[scenario].ask(number), target) for number in range(4)]
    return summarise(await closed_loop(target, questions, concurrency=2, seconds=60, patience=10))


@pytest.mark.parametrize("dialect", ["openai", "openai-plain", "native"])
@pytest.mark.parametrize("scenario", ["chat-image", "text-only", "eight-images", "long-answers"])
async def test_right_answers_count(null_server, scenario: str, dialect: str):
    figures = await load(null_server(""), scenario, dialect)

    assert (figures.requests, figures.failures, figures.faults) == (4, 0, {})
    assert figures.requests_per_second == pytest.approx(4 / figures.seconds)
    assert 0 < (figures.ttft_p50 or 0) <= (figures.latency_p50 or 0)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param("error-event", "error event: broken", id="an-error-within-the-stream"),
        pytest.param("short", "31 tokens instead of 32", id="fewer-tokens-than-asked-for"),
        pytest.param("cut", "the answer has no end", id="no-last-event"),
        pytest.param("blind", "not every picture was seen", id="a-prompt-without-the-picture"),
        pytest.param("empty", "no text", id="nothing-but-a-count"),
        pytest.param("status", "status 503: full", id="a-refusal"),
        pytest.param("hang-up", "the connection was lost", id="a-lost-connection"),
    ],
)
@pytest.mark.parametrize("dialect", ["openai", "native"])
async def test_any_other_answer_is_a_failure(null_server, dialect: str, fault: str, said: str):
    figures = await load(null_server(fault), dialect=dialect)

    assert (figures.requests, figures.failures, figures.faults) == (4, 4, {said: 4})
    assert figures.requests_per_second == figures.output_tokens_per_second == 0
    assert figures.ttft_p50 is None


async def test_an_answer_may_be_shorter_where_that_was_allowed(null_server):
    figures = await load(null_server("short"), any_length=True)

    assert (figures.failures, figures.output_tokens_per_second * figures.seconds) == (
        0, pytest.approx(4 * 31)
    )  # fmt: skip


def test_every_request_has_a_picture_of_its_own():
    numbers = [
        number_of(round_number, level, place)
        for round_number in range(2)
        for level in (1, 8)
        for place in range(3)
    ]
    asks = [SCENARIOS["chat-image"].ask(number) for number in numbers]

    assert len({ask.images for ask in asks}) == len({ask.text for ask in asks}) == len(numbers)
    assert asks[0] == SCENARIOS["chat-image"].ask(numbers[0])

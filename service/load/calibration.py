"""Asks a server before the clock starts: whether it answers, and what a picture is worth to it.

Models cut pictures into tokens of their own size; what one answer told, the others must reach.
"""

import uvloop

from service.load.client import Answer, Connection, Target, prepare, put
from service.load.dialects import DIALECTS
from service.load.rounds import WARM_UP_LEVEL
from service.load.scenarios import Ask, Scenario, number_of

_LEAST_PICTURE_TOKENS = 4
_TEXT_LEEWAY = 16  # tokens by which one question's text may be shorter than another's


class TargetUnfit(Exception):
    """The server gives no right answer; the message says how."""


def calibrated(scenario: Scenario, target: Target, patience: float) -> Scenario:
    """Have a scenario expect the prompts' lengths that this server tells.

    Raises:
        TargetUnfit: it answers no question, or does not see the pictures.
    """
    least = uvloop.run(_least_prompt_tokens(scenario, target, patience))

    def ask(number: int) -> Ask:
        asked = scenario.ask(number)
        return asked._replace(least_prompt_tokens=least[asked.kind])

    return scenario._replace(ask=ask)


async def _least_prompt_tokens(
    scenario: Scenario, target: Target, patience: float
) -> dict[str, int]:
    least: dict[str, int] = {}
    for place in scenario.samples:
        ask = scenario.ask(number_of(0, WARM_UP_LEVEL, place))
        with_pictures = await _count(ask, target, patience)
        without = await _count(ask._replace(images=()), target, patience) if ask.images else 0
        picture_tokens = (with_pictures - without) // max(1, len(ask.images))
        if ask.images and picture_tokens < _LEAST_PICTURE_TOKENS:
            raise TargetUnfit(f"{scenario.name}: the model does not see the pictures")
        # So that an answer that has missed one picture of several does not pass.
        leeway = min(_TEXT_LEEWAY, picture_tokens // 2) if ask.images else _TEXT_LEEWAY
        least[ask.kind] = max(1, with_pictures - leeway)
    return least


async def _count(ask: Ask, target: Target, patience: float) -> int:
    """Ask, and tell how many tokens the prompt had."""
    question = prepare(ask._replace(least_prompt_tokens=1), target)
    connection = Connection(target.url)
    answer: Answer = await put(connection, DIALECTS[target.dialect], question, patience)
    connection.close()
    if answer.fault or answer.num_prompt_tokens is None:
        hint = "; try --any-length" if "tokens instead of" in answer.fault else ""
        raise TargetUnfit(f"the server did not answer as it should: {answer.fault}{hint}")
    return answer.num_prompt_tokens

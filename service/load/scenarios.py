"""What is asked: the standard load and its variants, every request made from its number.

A request is told in no dialect yet; equal numbers give equal requests, whoever is asked.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from service.load.pictures import photo, png

PHOTO_PIXELS = 512 * 512
_WORDS = ("red", "green", "blue", "small", "large", "round", "square", "bright", "dark", "plain")


class Ask(NamedTuple):
    """One question.

    images: encoded files, each with its media type. least_prompt_tokens: an answer that counts
        fewer has not seen every picture.
    any_length: it may end before it has max_tokens.
    """

    text: str
    images: tuple[tuple[str, bytes], ...]
    max_tokens: int
    least_prompt_tokens: int
    kind: Literal["plain", "huge"] = "plain"
    any_length: bool = False


class Scenario(NamedTuple):
    """A load.

    levels: the concurrencies it is run at unless others are asked for; empty: requests arrive at
        their own times, however many are open. most_per_second: how many requests are made ready
        for each second of load; quicker servers end early. max_pixels: area that pictures are
        resized to; None is the checkpoint's own. samples: places of one request of each kind.
    """

    name: str
    ask: Callable[[int], Ask]
    levels: tuple[int, ...]
    most_per_second: int
    max_pixels: int | None = None
    samples: tuple[int, ...] = (0,)


def _text(number: int) -> str:
    digits = [_WORDS[int(digit)] for digit in f"{number:08d}"]
    return f"How many {' '.join(digits[4:])} shapes are here? Name the {' '.join(digits[:4])} one."


def _chat_image(number: int, kind_of_load: int = 0) -> Ask:
    return Ask(_text(number), (("image/png", png(kind_of_load, number)),), 32, 64)


def _text_only(number: int) -> Ask:
    return Ask(_text(number), (), 32, 8)


def _same_image(number: int) -> Ask:
    return Ask(_text(number), (("image/png", png(1)),), 32, 64)


def _photos(number: int) -> Ask:
    return Ask(_text(number), (("image/jpeg", photo(number)),), 32, 200)


def _eight_images(number: int) -> Ask:
    images = tuple(("image/png", png(2, number, place)) for place in range(8))
    return Ask(_text(number), images, 32, 8 * 64)


def _long_answers(number: int) -> Ask:
    return _chat_image(number, 3)._replace(max_tokens=512)


def _mixed(number: int) -> Ask:
    """One request in thirty is huge: a picture of 3,136 tokens."""
    if number % 30 != 15:
        return _chat_image(number, 4)
    return Ask(_text(number), (("image/png", png(4, number, side=1792)),), 32, 3136, "huge")


def number_of(round_number: int, level: int, place: int) -> int:
    """Number a request: no two of a whole measurement are the same."""
    return (round_number * 1000 + level) * 10_000 + place


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("chat-image", _chat_image, (1, 8, 32), 60),
        Scenario("text-only", _text_only, (1, 8, 32), 100),
        Scenario("same-image", _same_image, (1, 8, 32), 100),
        Scenario("photos", _photos, (1, 8), 3, max_pixels=PHOTO_PIXELS),
        Scenario("eight-images", _eight_images, (1, 8), 10),
        Scenario("long-answers", _long_answers, (1, 8, 32), 10),
        Scenario("mixed", _mixed, (), 10, samples=(0, 15)),
    )
}

"""Questions are about what the scene shows, and their answers are true."""

import json
import random

import pytest

from inference.demo.pictures import Box, Item, Scene
from inference.demo.questions import (
    Asker,
    Exchange,
    ask_pair,
    box_coordinates,
    describe,
    place_of,
)
from inference.demo.templates import QUESTIONS
from inference.demo.vocabulary import PLACES, Language

RED_CIRCLE = Item(0, 0, Box(0.1, 0.1, 0.3, 0.3))
BLUE_SQUARE = Item(1, 2, Box(0.4, 0.4, 0.6, 0.6))
ORANGE_STAR = Item(3, 4, Box(0.7, 0.7, 0.9, 0.9))
SCENE = Scene("shapes", 7, (RED_CIRCLE, BLUE_SQUARE, ORANGE_STAR))
NUMBER = Scene("number", 7, tuple(Item(d, 6, Box(d / 9, 0.2, d / 9 + 0.1, 0.8)) for d in (4, 7)))


def ask(asker: Asker, task: str) -> Exchange:
    """A question of a task that the scene surely has."""
    exchange = asker.ask(task)
    assert exchange is not None
    return exchange


@pytest.mark.parametrize(
    ("language", "scene", "sentence"),
    [
        pytest.param("en", Scene("shapes", 7, ()), "no shapes", id="nothing"),
        pytest.param("en", Scene("shapes", 7, (ORANGE_STAR,)), "an orange star", id="one"),
        pytest.param(
            "en", SCENE, "a red circle, a blue square and an orange star", id="three, left to right"
        ),
        pytest.param(
            "zh",
            SCENE,
            "一个红色的圆形、一个蓝色的正方形和一个橙色的星形",
            id="three in Chinese",
        ),
        pytest.param("en", NUMBER, "the number 47", id="a number"),
    ],
)
def test_a_description_names_every_item(language: Language, scene: Scene, sentence: str) -> None:
    assert describe(language, scene)[0] == sentence


def test_every_part_of_a_description_is_read_from_the_item_it_names() -> None:
    sentence, focus = describe("en", SCENE)

    starts = [sentence[part.start :].split(",")[0].split(" and")[0] for part in focus]

    assert starts == ["a red circle", "a blue square", "an orange star"]
    assert [part.first for part in focus] == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_yes_means_that_a_shape_matches_every_word_of_the_question(language: Language) -> None:
    asker = Asker(random.Random(1), language, SCENE)

    for _ in range(200):
        exchange = ask(asker, "exist")
        matching = [
            item
            for item in SCENE.items
            if exchange.color in (None, item.color) and exchange.shape in (None, item.what)
        ]
        assert (
            exchange.answer == {"en": ("no", "yes"), "zh": ("没有", "有")}[language][bool(matching)]
        )


def test_a_colour_shared_by_two_shapes_is_no_way_to_ask_for_one() -> None:
    twins = Scene("shapes", 7, (RED_CIRCLE, Item(1, 0, BLUE_SQUARE.box)))

    assert all(Asker(random.Random(i), "en", twins).ask("shape") is None for i in range(20))


def test_a_box_answer_is_json_that_names_and_encloses_the_shape() -> None:
    asker = Asker(random.Random(0), "en", Scene("shapes", 7, (RED_CIRCLE,)))

    assert json.loads(ask(asker, "box").answer) == [
        {"bbox_2d": [100, 100, 300, 300], "label": "red circle"}
    ]


def test_box_coordinates_stay_within_the_picture() -> None:
    assert box_coordinates(Box(0.0, 0.004, 1.0, 0.996)) == (0, 0, 1000, 1000)


@pytest.mark.parametrize(
    ("center", "place"),
    [
        ((0.1, 0.1), "top left"),
        ((0.5, 0.5), "center"),
        ((0.9, 0.5), "right"),
        ((0.5, 0.9), "bottom"),
    ],
)
def test_a_place_is_the_ninth_of_the_picture_a_shape_lies_in(
    center: tuple[float, float], place: str
) -> None:
    x, y = center

    index = place_of(Box(x - 0.05, y - 0.05, x + 0.05, y + 0.05))

    assert index is not None
    assert PLACES[index].en == place


def test_a_shape_on_a_third_has_no_place() -> None:
    assert place_of(Box(0.3, 0.4, 0.36, 0.6)) is None


@pytest.mark.parametrize(
    ("task", "other", "answer"),
    [
        ("same", RED_CIRCLE, "yes"),
        ("same", Item(0, 2, RED_CIRCLE.box), "no"),
        ("same_color", Item(1, 0, RED_CIRCLE.box), "yes"),
        ("same_shape", Item(1, 0, RED_CIRCLE.box), "no"),
    ],
)
def test_two_pictures_are_compared_by_what_they_show(task: str, other: Item, answer: str) -> None:
    scenes = (Scene("shapes", 7, (RED_CIRCLE,)), Scene("shapes", 6, (other,)))

    assert ask_pair(random.Random(0), "en", scenes, task).answer == answer


@pytest.mark.parametrize("task", QUESTIONS)
def test_every_question_is_asked_in_two_languages_and_several_ways(task: str) -> None:
    templates = QUESTIONS[task]

    assert set(templates) == {"en", "zh"}
    assert all(len(set(texts)) == len(texts) >= 2 for texts in templates.values())

"""The shipped checkpoint is small, loads with transformers' own classes, and knows its world."""

import stat

import pytest
from PIL import Image, ImageDraw

from inference.demo.evaluate import Candidate, intersection_over_union, score
from inference.demo.examination import Question, encode_picture
from inference.demo.export import CHECKPOINT
from inference.demo.pictures import draw_shape, load_font
from inference.demo.questions import Exchange

RED, BLUE, BLACK = (255, 0, 0), (0, 0, 255), (0, 0, 0)
CIRCLE, SQUARE = 0, 1


@pytest.fixture(scope="module")
def candidate() -> Candidate:
    """The shipped checkpoint, loaded."""
    return Candidate()


def drawn(*shapes: tuple[int, tuple[float, float], float, tuple[int, int, int]]) -> bytes:
    """A white 224 x 224 PNG with shapes on it."""
    image = Image.new("RGB", (224, 224), "white")
    for shape, center, radius, color in shapes:
        draw_shape(image, shape, center, radius, color)
    return encode_picture(image)


def written(text: str, size: tuple[int, int], font_size: int) -> bytes:
    """A white PNG with black text in its middle, in the font that comes with Pillow."""
    image = Image.new("RGB", size, "white")
    middle = (size[0] / 2, size[1] / 2)
    ImageDraw.Draw(image).text(middle, text, fill=BLACK, font=load_font("", font_size), anchor="mm")
    return encode_picture(image)


ONE = drawn((CIRCLE, (112, 112), 60, RED))
TWO = drawn((SQUARE, (60, 112), 40, BLUE), (CIRCLE, (165, 112), 40, RED))
NONE = drawn()
NUMBER = written("42", (224, 160), 110)
WORD = written("STOP", (320, 160), 90)


@pytest.mark.parametrize(
    ("question", "pictures", "answer"),
    [
        ("What is in this image?", [ONE], "a red circle"),
        ("Describe this image.", [TWO], "a blue square and a red circle"),
        ("Describe this image.", [NONE], "no shapes"),
        ("请描述这张图片", [ONE], "一个红色的圆形"),
        ("图中有几个图形？", [TWO], "2"),
        ("What color is the circle?", [TWO], "red"),
        ("What shape is blue?", [TWO], "square"),
        ("How many shapes are there?", [TWO], "2"),
        ("Where is the red circle?", [ONE], "center"),
        ("Is there a red circle?", [ONE], "yes"),
        ("Is there a green circle?", [ONE], "no"),
        ("What is the background color?", [ONE], "white"),
        ("What number is shown?", [NUMBER], "42"),
        ("What word is shown?", [WORD], "STOP"),
        ("What is in the first image?", [ONE, TWO], "a red circle"),
        ("Are the two images the same?", [ONE, ONE], "yes"),
        ("Are the two images the same?", [ONE, drawn((SQUARE, (112, 112), 60, BLUE))], "no"),
        ("Describe this image.", [], "I see no image. Please send one."),
        ("Who are you?", [], "I am the demo model of Loupe."),
        ("Count from 1 to 30", [], ", ".join(str(number) for number in range(1, 31))),
    ],
)
def test_a_newcomers_question_gets_its_answer(
    candidate: Candidate, question: str, pictures: list[bytes], answer: str
) -> None:
    assert candidate.answer([(question, pictures)]) == [answer]


def test_a_box_answer_encloses_the_shape(candidate: Candidate) -> None:
    # 112 - 60 of 224 is 232 of 1000.
    answer = '[{"bbox_2d": [232, 232, 768, 768], "label": "red circle"}]'
    asked = Question("box", (ONE,), Exchange("box", "Locate the red circle.", answer))

    (reply,) = candidate.answer([(asked.exchange.question, asked.images)])

    assert score(asked, reply)["JSON and label"], reply
    assert score(asked, reply)["IoU > .5"], reply


def test_a_batch_of_unequal_questions_is_answered_like_each_alone(candidate: Candidate) -> None:
    questions = [
        ("What is in this image?", [ONE]),
        ("Hello", []),
        ("How many shapes are in the image?", [TWO]),
    ]

    assert candidate.answer(questions) == [candidate.answer([one])[0] for one in questions]


def test_the_checkpoint_is_small_and_readable_by_everyone() -> None:
    files = list(CHECKPOINT.iterdir())

    assert {file.name for file in files} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    }
    assert sum(file.stat().st_size for file in files) <= 16_000_000
    assert all(file.stat().st_mode & stat.S_IROTH for file in files)


@pytest.mark.parametrize(
    ("one", "two", "overlap"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),
        ((0, 0, 1, 1), (2, 2, 3, 3), 0.0),
    ],
)
def test_boxes_are_compared_by_shared_area(
    one: tuple[int, ...], two: tuple[int, ...], overlap: float
) -> None:
    assert intersection_over_union(one, two) == pytest.approx(overlap)

"""The questions a trained demo model is examined on: fresh pictures, as files a user would send.

Knows no model. Seeds here never meet those of training, which start with a number.
"""

import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image

from inference.demo.lessons import GRIDS, draw_pair, source_size
from inference.demo.pictures import (
    LOOK,
    UNSEEN_FONTS,
    Item,
    Kind,
    Look,
    Picture,
    Scene,
    draw_picture,
    draw_shape,
)
from inference.demo.questions import Asker, Exchange, ask_pair
from inference.demo.small_talk import TALK, talk
from inference.demo.vocabulary import COLOR_SAMPLES, COLORS, SHAPES, WHITE, Language

CHINESE_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Question:
    """A question as a service gets it, and its right answer."""

    task: str
    images: tuple[bytes, ...]
    exchange: Exchange


@dataclass(frozen=True, slots=True)
class Examiner:
    """Makes the questions of an examination; the same ones for the same seed."""

    seed: int
    per_task: int

    def questions(self, task: str) -> Iterator[Question]:
        """Yield a task's questions."""
        for index in range(self.per_task):
            rng = random.Random(f"examination {self.seed} {task} {index}")
            language: Language = "zh" if rng.random() < CHINESE_SHARE else "en"
            question = None
            while question is None:
                question = TASKS[task](rng, language)
            yield question


def encode_picture(image: Image.Image, name: str = "PNG") -> bytes:
    """Return a picture as a file's bytes."""
    stored = io.BytesIO()
    image.save(stored, name)
    return stored.getvalue()


_Maker = Callable[[random.Random, Language], Question | None]


def _tasks() -> dict[str, _Maker]:
    tasks: dict[str, _Maker] = {}
    for count in range(4):
        tasks[f"describe {count} shapes"] = _about("describe", "shapes", (count,))
    for task in ("color", "shape", "place", "box"):
        tasks[task] = _about(task, "shapes", (1, 2, 3))
    tasks["box of 1"] = _about("box", "shapes", (1,))
    tasks["count"] = _about("count", "shapes", (0, 1, 2, 3))
    tasks["exist"] = _about("exist", "shapes", (0, 1, 2, 3))
    tasks["exist, color of the background"] = _background_exist
    tasks["background"] = _about("background", "shapes", (0, 1, 2, 3))
    for digits in (1, 2, 3):
        tasks[f"number of {digits}"] = _about("number", "number", (digits,))
    for letters in (2, 3, 4, 5, 6):
        tasks[f"word of {letters}"] = _about("word", "word", (letters,))
    tasks["text"] = _about("text", "word", (3, 4, 5, 6))
    tasks["color of text"] = _about("ink", "word", (3, 4, 5, 6))
    for task in ("same", "same_color", "same_shape", "which"):
        tasks[task] = _pair(task)
    for task in (*TALK, "no_image"):
        tasks[task] = _talk(task)
    return tasks | _robustness_tasks()


def _robustness_tasks() -> dict[str, _Maker]:
    new_fonts, worn = Look(fonts=UNSEEN_FONTS), Look(jpeg_share=1.0, jpeg_quality=(15, 35))
    return {
        "unseen fonts: number": _about("number", "number", (1, 2, 3), new_fonts),
        "unseen fonts: word": _about("word", "word", (3, 4, 5, 6), new_fonts),
        "JPEG quality 15-35: describe 1-2 shapes": _about("describe", "shapes", (1, 2), worn),
        "JPEG quality 15-35: number": _about("number", "number", (1, 2, 3), worn),
        "JPEG quality 15-35: word": _about("word", "word", (3, 4, 5, 6), worn),
        "aspect 2-3: describe 1-2 shapes": _about("describe", "shapes", (1, 2), aspect=(2.0, 3.0)),
        "aspect 3-5: describe 1-2 shapes": _about("describe", "shapes", (1, 2), aspect=(3.0, 5.0)),
        "aspect 3-5: word": _about("word", "word", (3, 4, 5, 6), aspect=(3.0, 5.0)),
        "plain: describe": _plain("describe"),
        "plain: place": _plain("place"),
        "plain: box": _plain("box"),
        "plain: exist": _plain("exist"),
        "plain: count": _plain("count"),
    }


def _size(rng: random.Random, letters: int, aspect: tuple[float, float] | None) -> tuple[int, int]:
    if aspect is not None:
        ratio, height = rng.uniform(*aspect), rng.randint(90, 300)
        return round(height * ratio), height
    while True:
        grid = rng.choices(list(GRIDS), list(GRIDS.values()))[0]
        if letters <= grid.width:
            return source_size(rng, grid)


def _about(
    task: str,
    kind: Kind,
    counts: tuple[int, ...],
    look: Look = LOOK,
    aspect: tuple[float, float] | None = None,
) -> _Maker:
    """Return a maker of questions about one picture."""

    def make(rng: random.Random, language: Language) -> Question | None:
        count = rng.choice(counts)
        picture = draw_picture(
            rng, _size(rng, count if kind == "word" else 1, aspect), kind, count, look
        )
        return _question(task, picture, Asker(rng, language, picture.scene).ask(task))

    return make


def _question(task: str, picture: Picture, exchange: Exchange | None) -> Question | None:
    if exchange is None:
        return None
    return Question(task, (encode_picture(picture.image),), exchange)


def _background_exist(rng: random.Random, language: Language) -> Question | None:
    """Ask for a shape of the background's own colour: there is none."""
    picture = draw_picture(rng, _size(rng, 1, None), "shapes", rng.choice((1, 2, 3)))
    exchange = Asker(rng, language, picture.scene).ask("exist")
    if exchange is None or exchange.color != picture.scene.background:
        return None
    return _question("exist", picture, exchange)


def _pair(task: str) -> _Maker:
    def make(rng: random.Random, language: Language) -> Question:
        first, second = draw_pair(rng, rng.choices(list(GRIDS), list(GRIDS.values()))[0])
        exchange = ask_pair(rng, language, (first.scene, second.scene), task)
        return Question(task, (encode_picture(first.image), encode_picture(second.image)), exchange)

    return make


def _talk(task: str) -> _Maker:
    def make(rng: random.Random, language: Language) -> Question:
        return Question(task, (), talk(rng, language, task))

    return make


_PLAIN_SIZES = ((64, 64), (128, 128), (200, 200), (224, 224), (256, 256), (512, 512), (1024, 1024))
_PLAIN_PHOTOS = ((640, 480), (800, 600), (1280, 720), (480, 640))


def _plain(task: str) -> _Maker:
    """What a newcomer draws: one centred shape of a named colour on white, at any usual size."""

    def make(rng: random.Random, language: Language) -> Question | None:
        size = rng.choice(_PLAIN_SIZES + _PLAIN_PHOTOS)
        image = Image.new("RGB", size, "white")
        color = rng.choice([c for c in range(len(COLORS)) if c != WHITE])
        shape = rng.randrange(len(SHAPES))
        radius = rng.choice((0.2, 0.25, 0.3, 0.35)) * min(size)
        picture = plain_picture(image, shape, color, radius)
        return _question(task, picture, Asker(rng, language, picture.scene).ask(task))

    return make


def plain_picture(image: Image.Image, shape: int, color: int, radius: float) -> Picture:
    """Draw one shape of a pure colour in the middle of a white image."""
    center = (image.width / 2, image.height / 2)
    box = draw_shape(image, shape, center, radius, COLOR_SAMPLES[color][0])
    return Picture(image, Scene("shapes", WHITE, (Item(shape, color, box),)))


TASKS = _tasks()
"""Every task of an examination, in the order of its table."""

"""What a training step shows: pictures, conversations about them, and labels for both.

A step is a pure function of (seed, stage, step, rank), so a run can stop and go on anywhere and
two processes agree on a step's form without talking.
"""

import random
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from inference.demo.labels import CellLabels, Grid, label_cells
from inference.demo.pictures import Kind, Picture, Scene, draw_picture
from inference.demo.questions import Asker, Exchange, ask_pair
from inference.demo.small_talk import SYSTEM_PROMPTS, talk
from inference.demo.vocabulary import Language

CELL = 32
MIN_PIXELS, MAX_PIXELS = 25 * CELL * CELL, 36 * CELL * CELL
"""The image processor's budget: every picture becomes 25 to 36 visual tokens, or nearly."""

GRIDS: dict[Grid, float] = {
    Grid(6, 6): 5,
    Grid(5, 5): 3,
    Grid(5, 6): 3,
    Grid(6, 5): 2,
    Grid(4, 7): 3,
    Grid(7, 4): 1.5,
    Grid(5, 7): 2,
    Grid(7, 5): 1,
    Grid(4, 8): 3,
    Grid(8, 4): 1,
    Grid(3, 9): 1.2,
    Grid(3, 10): 1,
    Grid(9, 3): 0.4,
    Grid(4, 9): 0.8,
}
"""The grids that occur up to aspect ratios of about 3, and how often to train each."""

Layout = Literal["branches", "turns", "text_first"]
Mode = Literal["one_image", "two_images", "text"]


@dataclass(frozen=True, slots=True)
class Form:
    """What all samples of a step have in common, on every rank."""

    mode: Mode
    layout: Layout
    grid: Grid


@dataclass(frozen=True, slots=True)
class Lesson:
    """Pictures of one grid, and the exchanges about them."""

    scenes: tuple[Scene, ...]
    images: tuple[Image.Image, ...]  # already at the grid's size
    labels: tuple[CellLabels, ...]
    system: str | None
    exchanges: tuple[Exchange, ...]


_SHAPE_TASKS = {
    "box": 4.0,
    "exist": 4.0,
    "color": 3.0,
    "shape": 3.0,
    "place": 2.5,
    "describe": 2.5,
    "count": 1.0,
    "background": 0.4,
    "only_color": 0.6,
    "only_shape": 0.4,
}
_NUMBER_TASKS = {
    "number": 3.0,
    "text": 1.0,
    "describe": 1.2,
    "ink": 0.8,
    "background": 0.4,
    "exist": 0.2,
}
_WORD_TASKS = {
    "word": 2.0,
    "text": 2.0,
    "describe": 1.2,
    "ink": 0.8,
    "background": 0.4,
    "exist": 0.2,
}
TASKS: dict[Kind, dict[str, float]] = {
    "shapes": _SHAPE_TASKS,
    "number": _NUMBER_TASKS,
    "word": _WORD_TASKS,
}

_VISION_KINDS: dict[Kind, float] = {"shapes": 0.37, "number": 0.23, "word": 0.4}
_JOINT_KINDS: dict[Kind, float] = {"shapes": 0.62, "number": 0.16, "word": 0.22}
_MAX_QUESTIONS = 6
_MAX_CHARACTERS = 260
"""Of questions and answers together, about 92 tokens."""


def form_of_step(seed: int, step: int) -> Form:
    """Return the form of a joint step."""
    rng = random.Random(f"{seed} form {step}")
    mode: Mode = rng.choices(("one_image", "two_images", "text"), (0.77, 0.15, 0.08))[0]
    layout: Layout = rng.choices(("branches", "turns", "text_first"), (0.84, 0.08, 0.08))[0]
    return Form(mode, "branches" if mode == "two_images" else layout, _random_grid(rng))


def grid_of_step(seed: int, step: int) -> Grid:
    """Return the grid of a vision step."""
    return _random_grid(random.Random(f"{seed} grid {step}"))


def _random_grid(rng: random.Random) -> Grid:
    return rng.choices(list(GRIDS), list(GRIDS.values()))[0]


def picture_of_kind(rng: random.Random, grid: Grid, shares: dict[Kind, float]) -> Picture:
    """Draw a picture of a random kind and a fitting number of items."""
    kind = rng.choices(list(shares), list(shares.values()))[0]
    match kind:
        case "shapes":
            count = rng.choices((0, 1, 2, 3), (0.04, 0.32, 0.36, 0.28))[0]
        case "number":
            count = rng.choices((1, 2, 3), (0.25, 0.35, 0.4))[0]
        case "word":
            count = min(rng.choices((2, 3, 4, 5, 6), (0.1, 0.2, 0.25, 0.25, 0.2))[0], grid.width)
    return draw_picture(rng, source_size(rng, grid), kind, count)


def source_size(rng: random.Random, grid: Grid) -> tuple[int, int]:
    """Return a (width, height) that the image processor turns into this grid."""
    native = (grid.width * CELL, grid.height * CELL)
    if rng.random() < 0.35:
        return native
    for _ in range(20):
        scale = rng.uniform(0.6, 2.0) if rng.random() < 0.85 else rng.uniform(2.0, 5.0)
        stretch = rng.uniform(0.92, 1.08)
        size = (round(native[0] * scale * stretch), round(native[1] * scale / stretch))
        if processed_grid(size) == grid:
            return size
    return native


def processed_grid(size: tuple[int, int]) -> Grid:
    """Return the grid that transformers' image processor makes of a (width, height)."""
    height, width = smart_resize(size[1], size[0], CELL, MIN_PIXELS, MAX_PIXELS)
    return Grid(height // CELL, width // CELL)


def fit(image: Image.Image, grid: Grid) -> Image.Image:
    """Resize as the image processor does."""
    size = (grid.width * CELL, grid.height * CELL)
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def vision_lessons(seed: int, step: int, rank: int, count: int) -> list[Lesson]:
    """Return pictures with labels and no conversation."""
    rng, grid = random.Random(f"{seed} vision {step} {rank}"), grid_of_step(seed, step)
    return [
        _lesson(grid, (picture_of_kind(rng, grid, _VISION_KINDS),), None, []) for _ in range(count)
    ]


def joint_lessons(seed: int, step: int, rank: int, count: int) -> list[Lesson]:
    """Return lessons of the step's form; two-picture steps have 3 for every 5 asked for."""
    rng, form = random.Random(f"{seed} joint {step} {rank}"), form_of_step(seed, step)
    return lessons_of_form(rng, form, count * 3 // 5 if form.mode == "two_images" else count)


def lessons_of_form(rng: random.Random, form: Form, count: int) -> list[Lesson]:
    """Return random lessons of a form."""
    return [_joint_lesson(rng, form) for _ in range(count)]


def _joint_lesson(rng: random.Random, form: Form) -> Lesson:
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.25 else None
    language: Language = "zh" if rng.random() < 0.3 else "en"
    if form.mode == "text":
        count = rng.choice((1, 2)) if form.layout == "turns" else 1
        return _lesson(form.grid, (), system, [talk(rng, language) for _ in range(count)])
    if form.mode == "two_images":
        return _pair_lesson(rng, form.grid, language, system)
    picture = picture_of_kind(rng, form.grid, _JOINT_KINDS)
    tasks = TASKS[picture.scene.kind]
    limit = {"branches": _MAX_QUESTIONS, "turns": rng.choice((2, 3)), "text_first": 1}[form.layout]
    asker = Asker(rng, language, picture.scene)
    exchanges = _ask_several(asker, tasks, limit)
    return _lesson(form.grid, (picture,), system, exchanges)


def _ask_several(asker: Asker, tasks: dict[str, float], limit: int) -> list[Exchange]:
    exchanges: list[Exchange] = []
    spent = 0
    for _ in range(3 * limit):
        task = asker.rng.choices(list(tasks), list(tasks.values()))[0]
        times = sum(exchange.task == task for exchange in exchanges)
        exchange = (
            asker.ask(task) if times < (2 if task in ("exist", "color", "shape") else 1) else None
        )
        if exchange is None:
            continue
        # A Chinese character costs about two English letters.
        cost = sum(1 if c.isascii() else 2 for c in exchange.question + exchange.answer) + 20
        if exchanges and spent + cost > _MAX_CHARACTERS:
            continue
        exchanges.append(exchange)
        spent += cost
        if len(exchanges) == limit:
            break
    return exchanges or [_certain(asker)]


def _certain(asker: Asker) -> Exchange:
    exchange = asker.ask("background")
    if exchange is None:
        raise AssertionError("every scene has a background")
    return exchange


def _pair_lesson(rng: random.Random, grid: Grid, language: Language, system: str | None) -> Lesson:
    """Two pictures of one shape each, alike as often as not; now and then anything."""
    if rng.random() < 0.2:
        pictures = tuple(picture_of_kind(rng, grid, _JOINT_KINDS) for _ in range(2))
        asked = [
            ask_pair(rng, language, (pictures[0].scene, pictures[1].scene), "which")
            for _ in range(2)
        ]
        return _lesson(grid, pictures, system, asked)
    first, second = draw_pair(rng, grid)
    tasks = ["same", "same_color", "same_shape", "which"]
    asked = [ask_pair(rng, language, (first.scene, second.scene), task) for task in tasks]
    return _lesson(grid, (first, second), system, asked)


def draw_pair(rng: random.Random, grid: Grid) -> tuple[Picture, Picture]:
    """Draw one shape twice: alike, or different in colour, in shape, or in both."""
    goal = rng.choices((0, 1, 2, 3), (0.46, 0.2, 0.2, 0.14))[0]
    first = draw_picture(rng, source_size(rng, grid), "shapes", 1)
    if goal == 0 and rng.random() < 0.25:
        return first, first
    while True:
        # Redrawing until it fits keeps every other property as random as in single pictures.
        second = draw_scene_alike(rng, grid, first.scene, goal)
        if second is not None:
            return first, second


def draw_scene_alike(rng: random.Random, grid: Grid, scene: Scene, goal: int) -> Picture | None:
    """Draw a picture whose shape is new (goal bit 1) and whose colour is new (bit 0), or not."""
    item = scene.items[0]
    picture = draw_picture(
        rng,
        source_size(rng, grid),
        "shapes",
        1,
        wanted=(item.what if not goal & 2 else None, item.color if not goal & 1 else None),
    )
    other = picture.scene.items[0]
    new = (other.what != item.what) * 2 + (other.color != item.color)
    return picture if new == goal else None


def _lesson(
    grid: Grid, pictures: tuple[Picture, ...], system: str | None, exchanges: list[Exchange]
) -> Lesson:
    scenes = tuple(picture.scene for picture in pictures)
    images = tuple(fit(picture.image, grid) for picture in pictures)
    return Lesson(
        scenes,
        images,
        tuple(label_cells(scene, grid) for scene in scenes),
        system,
        tuple(exchanges),
    )

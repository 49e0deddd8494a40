"""Scenes say what Pillow drew."""

import random
from itertools import product

import numpy as np
import pytest
from PIL import Image

from inference.demo.labels import CLASS_COLUMNS, IGNORED, Grid, label_cells
from inference.demo.lessons import (
    GRIDS,
    MAX_PIXELS,
    joint_lessons,
    processed_grid,
    source_size,
    vision_lessons,
)
from inference.demo.pictures import (
    Box,
    Item,
    Kind,
    Look,
    Scene,
    draw_picture,
    draw_shape,
    sample_color,
)
from inference.demo.vocabulary import CHARACTERS, COLORS, SHAPES

CLEAN = Look(jpeg_share=0.0, noise_share=0.0)


def painted_box(image: Image.Image) -> tuple[float, float, float, float]:
    """The smallest box around what differs from the corner pixel, in shares of the sides."""
    pixels = np.asarray(image).astype(int)
    painted = np.abs(pixels - pixels[0, 0]).sum(-1) > 30
    rows, columns = np.flatnonzero(painted.any(1)), np.flatnonzero(painted.any(0))
    height, width = painted.shape
    return (
        columns[0] / width,
        rows[0] / height,
        (columns[-1] + 1) / width,
        (rows[-1] + 1) / height,
    )


@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=[shape.en for shape in SHAPES])
def test_a_shapes_box_is_the_box_of_its_pixels(shape: int) -> None:
    image = Image.new("RGB", (300, 200), "white")

    box = draw_shape(image, shape, (140.0, 90.0), 60.0, (255, 0, 0))

    assert box == pytest.approx(painted_box(image), abs=0.011)


@pytest.mark.parametrize("kind", ["number", "word"])
def test_the_boxes_of_characters_cover_the_painted_text(kind: Kind) -> None:
    picture = draw_picture(random.Random(4), (320, 160), kind, 3, CLEAN)

    boxes = [item.box for item in picture.scene.items]
    covered = (
        min(box.left for box in boxes),
        min(box.top for box in boxes),
        max(box.right for box in boxes),
        max(box.bottom for box in boxes),
    )

    assert covered == pytest.approx(painted_box(picture.image), abs=0.03)


@pytest.mark.parametrize("seed", range(20))
def test_a_shapes_middle_has_the_colour_its_scene_names(seed: int) -> None:
    picture = draw_picture(random.Random(seed), (240, 200), "shapes", 3, CLEAN)
    pixels = np.asarray(picture.image).astype(int)

    for item in picture.scene.items:
        x, y = item.box.center
        seen = pixels[int(y * 200), int(x * 240)]
        shades = [sample_color(random.Random(i), item.color) for i in range(60)]
        assert min(np.abs(seen - np.array(shade)).max() for shade in shades) <= 25


def test_the_same_seed_draws_the_same_bytes_and_another_seed_does_not() -> None:
    one, again, other = (
        [lesson.images[0].tobytes() for lesson in vision_lessons(seed, 3, 0, 6)]
        for seed in (1, 1, 2)
    )

    assert one == again
    assert one != other


def test_two_processes_of_a_step_share_its_form_but_no_picture() -> None:
    step = next(s for s in range(20) if joint_lessons(5, s, 0, 1)[0].images)

    first, second = joint_lessons(5, step, 0, 2), joint_lessons(5, step, 1, 2)

    assert {image.size for lesson in first + second for image in lesson.images} == {
        first[0].images[0].size
    }
    assert first[0].images[0].tobytes() != second[0].images[0].tobytes()


@pytest.mark.parametrize("grid", GRIDS, ids=[f"{g.height}x{g.width}" for g in GRIDS])
def test_the_image_processor_turns_every_source_into_its_grid(grid: Grid) -> None:
    rng = random.Random(0)
    sizes = [source_size(rng, grid) for _ in range(30)]

    assert {processed_grid(size) for size in sizes} == {grid}
    assert grid.num_cells * 32 * 32 <= MAX_PIXELS


def test_the_cell_behind_an_items_middle_carries_its_labels() -> None:
    circle = Item(0, 2, Box(0.1, 0.1, 0.4, 0.5))
    star = Item(3, 5, Box(0.6, 0.5, 0.95, 0.9))
    labels = label_cells(Scene("shapes", 7, (circle, star)), Grid(6, 6))

    for index, item in enumerate((circle, star)):
        x, y = item.box.center
        cell = int(y * 6) * 6 + int(x * 6)
        assert labels.center[cell] == 1
        assert labels.classes[cell, CLASS_COLUMNS["color"]] == item.color
        assert labels.classes[cell, CLASS_COLUMNS["shape"]] == item.what
        assert labels.boxes[cell] == pytest.approx(item.box)
        assert labels.item_cells[index, cell]
    assert (labels.classes[:, CLASS_COLUMNS["num_shapes"]] == 2).all()
    assert (labels.classes[:, CLASS_COLUMNS["left_character"]] == IGNORED).all()


def test_each_half_of_a_cell_names_the_character_in_it() -> None:
    width = 1 / 6
    items = tuple(
        Item(CHARACTERS.index(c), 0, Box(i * width, 0.3, (i + 1) * width, 0.7))
        for i, c in enumerate("ABCDEF")
    )
    labels = label_cells(Scene("word", 7, items), Grid(3, 3))

    for (column, side), letter in zip(product(range(3), ("left", "right")), "ABCDEF", strict=True):
        cell = labels.classes[3 + column]
        assert cell[CLASS_COLUMNS[f"{side}_character"]] == CHARACTERS.index(letter)


def test_colours_of_different_names_do_not_meet() -> None:
    rng = random.Random(0)
    shades = [[sample_color(rng, color) for _ in range(40)] for color in range(len(COLORS))]

    for one, other in product(range(len(COLORS)), repeat=2):
        if one < other:
            nearest = min(
                sum(abs(a - b) for a, b in zip(x, y, strict=True))
                for x in shades[one]
                for y in shades[other]
            )
            assert nearest > 20, (COLORS[one].en, COLORS[other].en)

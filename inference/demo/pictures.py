"""Synthetic pictures: what is on them (Scene) and how Pillow draws them.

Knows no questions and no model. Everything random comes from the generator passed in, so a seed
fixes a picture down to the byte (for one Pillow version and one set of fonts).
"""

import io
import math
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from inference.demo.vocabulary import (
    CHARACTERS,
    COLOR_SAMPLES,
    COLORS,
    MAX_DIGITS,
    MAX_LETTERS,
    SHAPES,
    WHITE,
    WORDS,
    Rgb,
)

Kind = Literal["shapes", "number", "word"]

FONT_FOLDER = Path("/usr/share/fonts/truetype/dejavu")
FONTS = (
    "",
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif-Bold",
)
UNSEEN_FONTS = ("DejaVuSerif", "DejaVuSansCondensed-Bold", "DejaVuSans-Oblique")


class Box(NamedTuple):
    """A rectangle in shares of the picture's width and height, 0 to 1."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def center(self) -> tuple[float, float]:
        """The middle, (x, y)."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


class Item(NamedTuple):
    """One shape, or one character of a number or word; what indexes SHAPES or CHARACTERS."""

    what: int
    color: int
    box: Box


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows. Items are ordered from left to right."""

    kind: Kind
    background: int
    items: tuple[Item, ...]

    @property
    def text(self) -> str:
        """The number or word shown; empty for shapes."""
        return (
            "" if self.kind == "shapes" else "".join(CHARACTERS[item.what] for item in self.items)
        )


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn scene, at the size a user would send."""

    image: Image.Image
    scene: Scene


@dataclass(frozen=True, slots=True)
class Look:
    """How a picture is drawn, apart from what it shows."""

    fonts: tuple[str, ...] = FONTS
    jpeg_share: float = 0.15
    jpeg_quality: tuple[int, int] = (45, 95)
    noise_share: float = 0.05


LOOK = Look()


def draw_picture(
    rng: random.Random,
    size: tuple[int, int],
    kind: Kind,
    count: int,
    look: Look = LOOK,
    wanted: tuple[int | None, int | None] = (None, None),
) -> Picture:
    """Draw a random scene of `count` shapes, digits or letters on a canvas of (width, height).

    `wanted` fixes the shape or the colour of the first shape.
    """
    background = WHITE if rng.random() < 0.45 else rng.randrange(len(COLORS))
    while background == wanted[1]:
        background = rng.randrange(len(COLORS))
    image = Image.new("RGB", size, sample_color(rng, background))
    if kind == "shapes":
        items = _draw_shapes(rng, image, background, count, wanted)
    else:
        text = _sample_number(rng, count) if kind == "number" else _sample_word(rng, count)
        items = _draw_text(rng, image, background, text, look.fonts)
    return Picture(_age(rng, image, look), Scene(kind, background, tuple(items)))


def sample_color(rng: random.Random, color: int) -> Rgb:
    """Return a shade that people would call by the colour's name."""
    samples = COLOR_SAMPLES[color]
    if rng.random() < 0.35:
        return samples[0]
    spread = rng.choice((0, 8, 20))
    red, green, blue = (
        min(255, max(0, value + rng.randint(-spread, spread))) for value in rng.choice(samples)
    )
    return red, green, blue


def shape_points(shape: int, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Return the corners of a shape around (x, y); for a circle, its bounding corners."""
    match SHAPES[shape].en:
        case "circle":
            return [(x - radius, y - radius), (x + radius, y + radius)]
        case "square":
            side = 0.86 * radius
            return [
                (x - side, y - side),
                (x + side, y - side),
                (x + side, y + side),
                (x - side, y + side),
            ]
        case "triangle":
            return [(x, y - radius), (x + radius, y + 0.8 * radius), (x - radius, y + 0.8 * radius)]
        case "star":
            return [
                (
                    x + length * math.sin(step * math.pi / 5),
                    y - length * math.cos(step * math.pi / 5),
                )
                for step in range(10)
                for length in (radius if step % 2 == 0 else 0.42 * radius,)
            ]
        case _:
            return [(x, y - radius), (x + 0.8 * radius, y), (x, y + radius), (x - 0.8 * radius, y)]


def draw_shape(
    image: Image.Image, shape: int, center: tuple[float, float], radius: float, fill: Rgb
) -> Box:
    """Fill one shape and return the box of the pixels it covers."""
    points = shape_points(shape, *center, radius)
    canvas = ImageDraw.Draw(image)
    if SHAPES[shape].en == "circle":
        canvas.ellipse((points[0], points[1]), fill=fill)
    else:
        canvas.polygon(points, fill=fill)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return _relative(image.size, min(xs), min(ys), max(xs), max(ys))


@lru_cache(maxsize=512)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Load a DejaVu face; Pillow's own where the name is empty or the file is not there."""
    path = FONT_FOLDER / f"{name}.ttf"
    return (
        ImageFont.truetype(str(path), size)
        if name and path.exists()
        else ImageFont.load_default(size)
    )


def _relative(size: tuple[int, int], left: float, top: float, right: float, bottom: float) -> Box:
    width, height = size
    return Box(
        max(0.0, left / width),
        max(0.0, top / height),
        min(1.0, right / width),
        min(1.0, bottom / height),
    )


_RADII = {1: (0.11, 0.4), 2: (0.15, 0.26), 3: (0.13, 0.21)}


def _place_circles(
    rng: random.Random, size: tuple[int, int], count: int
) -> list[tuple[float, float, float]]:
    """Return (x, y, radius) of circles that neither overlap nor leave the canvas."""
    width, height = size
    short = min(size)
    if count == 1 and rng.random() < 0.3:
        return [(width / 2, height / 2, rng.uniform(0.15, 0.42) * short)]
    while True:
        placed: list[tuple[float, float, float]] = []
        for _ in range(40):
            radius = rng.uniform(*_RADII[count]) * short
            x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
            if all(max(abs(x - a), abs(y - b)) > radius + c + 0.02 * short for a, b, c in placed):
                placed.append((x, y, radius))
            if len(placed) == count:
                return placed


def _draw_shapes(
    rng: random.Random,
    image: Image.Image,
    background: int,
    count: int,
    wanted: tuple[int | None, int | None],
) -> list[Item]:
    if count == 0:
        return []
    choices = [
        (color, shape)
        for color in range(len(COLORS))
        if color != background
        for shape in range(len(SHAPES))
    ]
    looks = rng.sample(choices, count)
    shape, color = wanted
    looks[0] = (looks[0][0] if color is None else color, looks[0][1] if shape is None else shape)
    if count > 1 and rng.random() < 0.35:
        # Siblings: the second differs from the first in one property only.
        color, shape = looks[0]
        siblings = [c for c in choices if (c[0] == color) != (c[1] == shape) and c not in looks]
        looks[1] = rng.choice(siblings)
    items = []
    for (color, shape), (x, y, radius) in zip(
        looks, _place_circles(rng, image.size, count), strict=True
    ):
        box = draw_shape(image, shape, (x, y), radius, sample_color(rng, color))
        items.append(Item(shape, color, box))
    return sorted(items, key=lambda item: item.box.center)


def _sample_number(rng: random.Random, digits: int) -> str:
    if digits < 1 or digits > MAX_DIGITS:
        raise ValueError(f"a number has 1 to {MAX_DIGITS} digits, not {digits}")
    return str(rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits))


def _sample_word(rng: random.Random, letters: int) -> str:
    if letters < 1 or letters > MAX_LETTERS:
        raise ValueError(f"a word has 1 to {MAX_LETTERS} letters, not {letters}")
    known = [word for word in WORDS if len(word) == letters]
    if known and rng.random() < 0.4:
        return rng.choice(known)
    return "".join(rng.choice(CHARACTERS[10:]) for _ in range(letters))


def _draw_text(
    rng: random.Random, image: Image.Image, background: int, text: str, fonts: tuple[str, ...]
) -> list[Item]:
    width, height = image.size
    share = rng.uniform(0.6, 1.05) if rng.random() < 0.7 else rng.uniform(0.45, 0.6)
    size = max(12, int(share * min(height, 1.6 * width / len(text))))
    name = rng.choice(fonts)
    font = load_font(name, size)
    left, top, right, bottom = font.getbbox(text)
    fit = min(1.0, 0.96 * width / (right - left), 0.96 * height / (bottom - top))
    if fit < 1.0:
        font = load_font(name, max(8, int(size * fit)))
        left, top, right, bottom = font.getbbox(text)
    free_x, free_y = max(0.0, width - (right - left)), max(0.0, height - (bottom - top))
    centered = rng.random() < 0.3
    x = (free_x / 2 if centered else rng.uniform(0, free_x)) - left
    y = (free_y / 2 if centered else rng.uniform(0, free_y)) - top
    color = rng.choice([c for c in range(len(COLORS)) if c != background])
    ImageDraw.Draw(image).text((x, y), text, fill=sample_color(rng, color), font=font)
    items = []
    for index, character in enumerate(text):
        offset = x + font.getlength(text[:index])
        a, b, c, d = font.getbbox(character)
        box = _relative(image.size, offset + a, y + b, offset + c, y + d)
        items.append(Item(CHARACTERS.index(character), color, box))
    return items


def _age(rng: random.Random, image: Image.Image, look: Look) -> Image.Image:
    """Add now and then what cameras and codecs add."""
    if rng.random() < look.noise_share:
        pixels = np.asarray(image, dtype=np.float32)
        noise = np.random.default_rng(rng.getrandbits(32)).normal(
            0, rng.uniform(2, 8), pixels.shape
        )
        image = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
    if rng.random() >= look.jpeg_share:
        return image
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=rng.randint(*look.jpeg_quality))
    return Image.open(stored).convert("RGB")

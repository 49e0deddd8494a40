"""Questions about scenes, with their right answers, in English and Chinese.

Knows scenes, not pixels, and no tokens: where an answer is to be read from is said in characters
and items.
"""

import json
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from inference.demo.pictures import Box, Item, Scene
from inference.demo.templates import QUESTIONS
from inference.demo.vocabulary import COLORS, PLACES, SHAPES, Language

BOX_STEP = 20
"""Box coordinates, 0 to 1000, are multiples of this."""


class Focus(NamedTuple):
    """From this answer character on, read this item: (image, item), or None for nothing there.

    A pair, because two attention heads are taught; they differ only for questions that compare.
    `bound` is False where the rest of the answer is free to look anywhere.
    """

    start: int
    first: tuple[int, int] | None
    second: tuple[int, int] | None
    bound: bool = True


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question, its answer, and what a pupil should attend to."""

    task: str
    question: str
    answer: str
    focus: tuple[Focus, ...] = ()
    color: int | None = None
    shape: int | None = None


def box_coordinates(box: Box) -> tuple[int, int, int, int]:
    """Round a box to the grid of answers, 0 to 1000."""
    left, top, right, bottom = (
        min(1000, max(0, round(value * 1000 / BOX_STEP) * BOX_STEP)) for value in box
    )
    return left, top, right, bottom


def thing_name(language: Language, color: int | None, shape: int | None) -> str:
    """Name a thing by its colour and shape, or by what is known of them."""
    if language == "zh":
        named = COLORS[color].zh + "的" if color is not None else ""
        return named + (SHAPES[shape].zh if shape is not None else "图形")
    named = COLORS[color].en + " " if color is not None else ""
    return named + (SHAPES[shape].en if shape is not None else "shape")


def describe(language: Language, scene: Scene, image: int = 0) -> tuple[str, tuple[Focus, ...]]:
    """Return the sentence for a scene, and which item each of its parts is read from."""
    if scene.kind != "shapes":
        opening = {
            ("en", "number"): "the number ",
            ("en", "word"): "the word ",
            ("zh", "number"): "数字",
            ("zh", "word"): "单词",
        }[language, scene.kind]
        return opening + scene.text, _spell(scene, len(opening), image)
    if not scene.items:
        return ("no shapes" if language == "en" else "没有图形"), ()
    answer, focus = "", []
    for index, item in enumerate(scene.items):
        last = index == len(scene.items) - 1
        if index:
            answer += (" and " if last else ", ") if language == "en" else ("和" if last else "、")
        article = "an " if COLORS[item.color].en[0] in "aeiou" else "a "
        focus.append(Focus(len(answer), (image, index), (image, index)))
        answer += (article if language == "en" else "一个") + thing_name(
            language, item.color, item.what
        )
    return answer, tuple(focus)


def _spell(scene: Scene, start: int, image: int = 0) -> tuple[Focus, ...]:
    """One character after the other, and then nothing in particular."""
    spelled = [Focus(start + i, (image, i), (image, i)) for i in range(len(scene.items))]
    return (*spelled, Focus(start + len(scene.items), None, None, bound=False))


def _whole(item: int) -> tuple[Focus, ...]:
    return (Focus(0, (0, item), (0, item)),)


_NOTHING = (Focus(0, None, None),)


def _pick(rng: random.Random, task: str, language: Language, **names: str) -> str:
    return rng.choice(QUESTIONS[task][language]).format(**names)


def article_fixed(question: str) -> str:
    """Turn "a orange" into "an orange"."""
    return question.replace(" a orange", " an orange")


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks about one scene in one language."""

    rng: random.Random
    language: Language
    scene: Scene

    def ask(self, task: str) -> Exchange | None:
        """Return a question of this task with its answer, or None where the scene has none."""
        match task:
            case "describe" | "count" | "background":
                return self._about_all(task)
            case "number" | "word" | "text" | "ink":
                return self._about_text(task)
            case "exist":
                return self._exist()
            case "color" | "shape" | "place" | "box" | "only_color" | "only_shape":
                return self._about_item(task)
            case _:
                raise ValueError(f"unknown task {task!r}")

    def _say(self, name: tuple[str, str]) -> str:
        return name[0] if self.language == "en" else name[1]

    def _about_all(self, task: str) -> Exchange | None:
        scene, question = self.scene, _pick(self.rng, task, self.language)
        if task == "background":
            return Exchange(task, question, self._say(COLORS[scene.background]))
        if task == "count":
            if scene.kind != "shapes":
                return None
            return Exchange(task, question, str(len(scene.items)))
        centers = [item.box.center[0] for item in scene.items]
        tight = any(b - a < 0.07 for a, b in pairwise(centers))
        if scene.kind == "shapes" and tight:
            return None
        return Exchange(task, question, *describe(self.language, scene))

    def _about_text(self, task: str) -> Exchange | None:
        scene = self.scene
        if scene.kind == "shapes" or (task in ("number", "word") and task != scene.kind):
            return None
        kind = self.rng.choice(
            [
                self._say(("text", "文字")),
                self._say(("number", "数字") if scene.kind == "number" else ("word", "单词")),
            ]
        )
        question = _pick(self.rng, task, self.language, text_kind=kind)
        if task == "ink":
            return Exchange(task, question, self._say(COLORS[scene.items[0].color]), _whole(0))
        return Exchange(task, question, scene.text, _spell(scene, 0))

    def _unique(self, color: int | None, shape: int | None) -> bool:
        found = [item for item in self.scene.items if _matches(item, color, shape)]
        return len(found) == 1

    def _about_item(self, task: str) -> Exchange | None:
        if self.scene.kind != "shapes" or not self.scene.items:
            return None
        index = self.rng.randrange(len(self.scene.items))
        if task in ("place", "box"):
            return self._about_thing(task, index)
        return self._about_property(task, index)

    def _about_property(self, task: str, index: int) -> Exchange | None:
        """Ask for one property of an item, which the other one names, or which is alone."""
        item = self.scene.items[index]
        color = item.color if task == "shape" else None
        shape = item.what if task == "color" else None
        if not self._unique(color, shape):
            return None
        names = {"color": self._say(COLORS[item.color]), "shape": self._say(SHAPES[item.what])}
        question = _pick(self.rng, task, self.language, **names)
        answer = names[task.removeprefix("only_")]
        return Exchange(task, question, answer, _whole(index), color, shape)

    def _about_thing(self, task: str, index: int) -> Exchange | None:
        item = self.scene.items[index]
        color, shape = self.rng.choice(
            [(item.color, item.what)] * 3 + [(item.color, None), (None, item.what)]
        )
        if not self._unique(color, shape):
            color, shape = item.color, item.what
        question = _pick(
            self.rng, task, self.language, thing=thing_name(self.language, color, shape)
        )
        if task == "place":
            place = place_of(item.box)
            if place is None:
                return None
            return Exchange(task, question, self._say(PLACES[place]), _whole(index), color, shape)
        label = thing_name(self.language, item.color, item.what)
        answer = json.dumps(
            [{"bbox_2d": box_coordinates(item.box), "label": label}], ensure_ascii=False
        )
        return Exchange(task, question, answer, _whole(index), color, shape)

    def _exist(self) -> Exchange:
        """Ask for something there, or for something that differs from it in one property."""
        scene, rng = self.scene, self.rng
        items = scene.items if scene.kind == "shapes" else ()
        here = rng.choice(items) if items else None
        color = here.color if here else rng.randrange(len(COLORS))
        shape = here.what if here else rng.randrange(len(SHAPES))
        if rng.random() < 0.55:
            draw = rng.random()
            if draw < 0.3:
                color = scene.background
            elif draw < 0.65:
                color = rng.randrange(len(COLORS))
            else:
                shape = rng.randrange(len(SHAPES))
        asked = rng.choice([(color, shape)] * 3 + [(color, None), (None, shape)])
        name = thing_name(self.language, *asked)
        question = article_fixed(_pick(rng, "exist", self.language, thing=name))
        found = [i for i, item in enumerate(items) if _matches(item, *asked)]
        answer = self._say(("yes", "有") if found else ("no", "没有"))
        focus = () if len(found) > 1 else _whole(found[0]) if found else _NOTHING
        return Exchange("exist", question, answer, focus, *asked)


def _matches(item: Item, color: int | None, shape: int | None) -> bool:
    return color in (None, item.color) and shape in (None, item.what)


def place_of(box: Box) -> int | None:
    """Return the index in PLACES of a box's centre; None when it is too near a third to say."""
    x, y = box.center
    if min(abs(v - third) for v in (x, y) for third in (1 / 3, 2 / 3)) < 0.035:
        return None
    return int(y * 3) * 3 + int(x * 3)


def ask_pair(
    rng: random.Random, language: Language, scenes: tuple[Scene, Scene], task: str
) -> Exchange:
    """Ask about two pictures: compare them, or describe one. Comparisons want one shape in each."""
    if task == "which":
        image = rng.randrange(2)
        names = {"en": ("first", "second"), "zh": ("第一", "第二")}[language]
        question = _pick(rng, task, language, which=names[image])
        return Exchange(task, question, *describe(language, scenes[image], image))
    one, two = scenes[0].items[0], scenes[1].items[0]
    alike = {
        "same": (one.what, one.color) == (two.what, two.color),
        "same_color": one.color == two.color,
        "same_shape": one.what == two.what,
    }[task]
    answers = {"en": ("no", "yes"), "zh": ("不一样", "一样")}[language]
    focus = (Focus(0, (0, 0), (1, 0)),)
    return Exchange(task, _pick(rng, task, language), answers[alike], focus)

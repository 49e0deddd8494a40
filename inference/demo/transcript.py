"""A lesson as tokens: the chat layout of the checkpoint's template, with what to learn at each row.

Knows the tokenizer and the rotary positions, not tensors.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from tokenizers import Tokenizer

from inference.demo.labels import Grid
from inference.demo.lessons import Layout, Lesson
from inference.demo.questions import Exchange, Focus
from inference.demo.tokenizer import IDS, build_tokenizer


@lru_cache(maxsize=1)
def demo_tokenizer() -> Tokenizer:
    """Return the demo tokenizer; learned once per process."""
    return build_tokenizer()


@lru_cache(maxsize=65536)
def encode(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a text's token ids and the character each token starts at."""
    encoding = demo_tokenizer().encode(text)
    return tuple(encoding.ids), tuple(start for start, _ in encoding.offsets)


class Target(NamedTuple):
    """One token to be predicted, from the row before it."""

    row: int
    token: int
    weight: float
    exchange: int
    focus: Focus | None


class Named(NamedTuple):
    """What the question that ends at a row names: indices, or None."""

    row: int
    color: int | None
    shape: int | None
    task: str


@dataclass(slots=True)
class Transcript:
    """Tokens in order, with rotary positions and the branch each belongs to (0 is shared)."""

    ids: list[int] = field(default_factory=list)
    positions: list[tuple[int, int, int]] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    image_starts: list[int] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    named: list[Named] = field(default_factory=list)
    vision_start_row: int = 0
    _next: int = 0
    _branch: int = 0

    def add(self, ids: tuple[int, ...]) -> None:
        """Append text tokens."""
        self.ids += ids
        self.positions += [(p, p, p) for p in range(self._next, self._next + len(ids))]
        self.branches += [self._branch] * len(ids)
        self._next += len(ids)

    def add_image(self, grid: Grid) -> None:
        """Append a picture's placeholder tokens between their markers."""
        self.vision_start_row = len(self.ids)
        self.add((IDS.vision_start,))
        self.image_starts.append(len(self.ids))
        start = self._next
        self.ids += [IDS.image_pad] * grid.num_cells
        self.branches += [self._branch] * grid.num_cells
        self.positions += [
            (start, start + row, start + column)
            for row in range(grid.height)
            for column in range(grid.width)
        ]
        self._next = start + max(grid)
        self.add((IDS.vision_end,))

    def branch_at(self, position: int, branch: int) -> None:
        """Continue from a position, seeing only the shared part and this branch."""
        self._next, self._branch = position, branch

    def add_answer(self, exchange: Exchange, index: int) -> None:
        """Append the assistant's turn and its targets."""
        self.add((IDS.im_start, *encode("assistant\n")[0]))
        ids, starts = encode(exchange.answer)
        self.named.append(Named(len(self.ids) - 1, exchange.color, exchange.shape, exchange.task))
        weights = token_weights(exchange, ids, starts)
        first = len(self.ids) - 1
        for offset, (token, start, weight) in enumerate(
            zip((*ids, IDS.im_end), (*starts, len(exchange.answer)), weights, strict=True)
        ):
            focus = _focus_at(exchange, start)
            self.targets.append(Target(first + offset, token, weight, index, focus))
        self.add((*ids, IDS.im_end))


def token_weights(exchange: Exchange, ids: tuple[int, ...], starts: tuple[int, ...]) -> list[float]:
    """Weigh an answer's tokens, its end included, so that long answers do not drown short ones."""
    count = len(ids) + 1
    if exchange.task == "count_up":
        return [0.4] * count
    if exchange.task == "box":
        label = exchange.answer.index("label")
        told = [exchange.answer[start].isdigit() for start in starts]
        digits = exchange.answer.index("bbox_2d") + len("bbox_2d")
        return [
            0.5 if (digit and start > digits) or start > label + 6 else 0.08
            for digit, start in zip(told, starts, strict=True)
        ] + [0.08]
    return [min(1.0, (2 / count) ** 0.5)] * count


def _focus_at(exchange: Exchange, start: int) -> Focus | None:
    if exchange.task == "box" and start >= exchange.answer.index("label"):
        return None
    found = None
    for focus in exchange.focus:
        if focus.start <= start:
            found = focus
    return found if found is not None and found.bound else None


def transcribe(lesson: Lesson, grid: Grid, layout: Layout) -> Transcript:
    """Lay a lesson out as a conversation, or as branches that share its pictures."""
    transcript = Transcript()
    user, end = (IDS.im_start, *encode("user\n")[0]), (IDS.im_end, *encode("\n")[0])
    if lesson.system is not None:
        transcript.add((IDS.im_start, *encode("system\n")[0], *encode(lesson.system)[0], *end))
    transcript.add(user)
    if layout == "text_first":
        transcript.add(encode(lesson.exchanges[0].question)[0])
    for _ in lesson.images:
        transcript.add_image(grid)
    shared = transcript.positions[-1]
    fork = max(shared) + 1
    for index, exchange in enumerate(lesson.exchanges):
        if layout == "branches":
            transcript.branch_at(fork, index + 1)
        elif index:
            transcript.add((*encode("\n")[0], *user))
        question = () if layout == "text_first" else encode(exchange.question)[0]
        transcript.add((*question, *end))
        transcript.add_answer(exchange, index)
    return transcript

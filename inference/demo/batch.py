"""Lessons as tensors: the inputs of the network and the targets of the losses."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inference.demo.labels import CLASS_COLUMNS, IGNORED, CellLabels, Grid
from inference.demo.lessons import Form, Lesson
from inference.demo.network import TextBatch, patchify
from inference.demo.tokenizer import IDS
from inference.demo.transcript import Transcript, transcribe


@dataclass(frozen=True, slots=True)
class CellTargets:
    """CellLabels of all pictures: [pictures, cells, ...]."""

    center: Tensor
    classes: Tensor
    boxes: Tensor


class FocusTargets(NamedTuple):
    """Where taught attention rows must look."""

    sample: Tensor  # [focused]
    row: Tensor  # [focused]
    keys: Tensor  # [2, focused, length] bool, for the first and the second taught head


@dataclass(frozen=True, slots=True)
class AnswerTargets:
    """What the rows must say. Padding has weight 0."""

    tokens: Tensor  # [batch, rows]
    weights: Tensor  # [batch, rows]
    exchange: Tensor  # [batch, rows] index into tasks
    tasks: tuple[str, ...]
    focus: FocusTargets
    asked: Tensor  # [asked, 4] sample, row, colour, shape; IGNORED where not named
    pairs: Tensor  # [pairs, 6] sample, row, two colours, two shapes


class Batch(NamedTuple):
    """A step's inputs and targets on one rank."""

    pixels: Tensor | None
    grid: Grid
    cells: CellTargets | None
    text: TextBatch | None
    answers: AnswerTargets | None


def vision_batch(lessons: list[Lesson], grid: Grid) -> Batch:
    """Return pictures and cell labels only."""
    return Batch(_pixels(lessons, grid), grid, _cells(lessons), None, None)


def joint_batch(lessons: list[Lesson], form: Form) -> Batch:
    """Return pictures, conversations and all their targets."""
    transcripts = [transcribe(lesson, form.grid, form.layout) for lesson in lessons]
    length = max(len(transcript.ids) for transcript in transcripts)
    pictured = bool(lessons[0].images)
    return Batch(
        _pixels(lessons, form.grid) if pictured else None,
        form.grid,
        _cells(lessons) if pictured else None,
        _text(transcripts, length, form.grid),
        _answers(lessons, transcripts, length, form.grid),
    )


def _pixels(lessons: list[Lesson], grid: Grid) -> Tensor:
    images = np.stack([np.asarray(image) for lesson in lessons for image in lesson.images])
    return patchify(torch.from_numpy(images), grid)


def _cells(lessons: list[Lesson]) -> CellTargets:
    labels = [label for lesson in lessons for label in lesson.labels]
    return CellTargets(
        torch.from_numpy(np.stack([label.center for label in labels])),
        torch.from_numpy(np.stack([label.classes for label in labels])),
        torch.from_numpy(np.stack([label.boxes for label in labels])),
    )


def _padded(rows: list[list[int]], length: int, fill: int) -> Tensor:
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows])


def _text(transcripts: list[Transcript], length: int, grid: Grid) -> TextBatch:
    ids = _padded([t.ids for t in transcripts], length, IDS.end_of_text)
    positions = torch.zeros(3, len(transcripts), length, dtype=torch.long)
    for index, transcript in enumerate(transcripts):
        positions[:, index, : len(transcript.ids)] = torch.tensor(transcript.positions).T
    branches = _padded([t.branches for t in transcripts], length, -1)
    same = branches[:, :, None] == branches[:, None, :]
    shared = (branches == 0)[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    slots = [
        index * length + start + cell
        for index, transcript in enumerate(transcripts)
        for start in transcript.image_starts
        for cell in range(grid.num_cells)
    ]
    num_rows = max(len(t.targets) for t in transcripts)
    rows = _padded([[target.row for target in t.targets] for t in transcripts], num_rows, 0)
    return TextBatch(ids, positions, (same | shared) & causal, torch.tensor(slots), rows)


def _answers(
    lessons: list[Lesson], transcripts: list[Transcript], length: int, grid: Grid
) -> AnswerTargets:
    num_rows = max(len(t.targets) for t in transcripts)
    tokens = _padded([[x.token for x in t.targets] for t in transcripts], num_rows, 0)
    exchange = torch.zeros_like(tokens)
    weights = torch.zeros(tokens.shape)
    tasks: list[str] = []
    for index, (lesson, transcript) in enumerate(zip(lessons, transcripts, strict=True)):
        count = len(transcript.targets)
        weights[index, :count] = torch.tensor([x.weight for x in transcript.targets])
        exchange[index, :count] = torch.tensor([x.exchange for x in transcript.targets]) + len(
            tasks
        )
        tasks += [task_name(lesson, x.task) for x in lesson.exchanges]
    asked = [
        (
            index,
            named.row,
            IGNORED if named.color is None else named.color,
            IGNORED if named.shape is None else named.shape,
        )
        for index, transcript in enumerate(transcripts)
        for named in transcript.named
        if named.color is not None or named.shape is not None
    ]
    focus = _focus(lessons, transcripts, length, grid)
    return AnswerTargets(
        tokens,
        weights,
        exchange,
        tuple(tasks),
        focus,
        torch.tensor(asked, dtype=torch.long).view(-1, 4),
        _pairs(lessons, transcripts),
    )


def task_name(lesson: Lesson, task: str) -> str:
    """Name a task for reports; how many items there are makes some harder."""
    if task in ("describe", "word", "number", "box") and len(lesson.scenes) == 1:
        scene = lesson.scenes[0]
        kind = "" if task != "describe" or scene.kind == "shapes" else f" {scene.kind}"
        return f"{task}{kind} {len(scene.items)}"
    return task


def _pairs(lessons: list[Lesson], transcripts: list[Transcript]) -> Tensor:
    pairs = [
        (
            index,
            named.row,
            lesson.scenes[0].items[0].color,
            lesson.scenes[1].items[0].color,
            lesson.scenes[0].items[0].what,
            lesson.scenes[1].items[0].what,
        )
        for index, (lesson, transcript) in enumerate(zip(lessons, transcripts, strict=True))
        for named in transcript.named
        if named.task.startswith("same")
    ]
    return torch.tensor(pairs, dtype=torch.long).view(-1, 6)


def _focus(
    lessons: list[Lesson], transcripts: list[Transcript], length: int, grid: Grid
) -> FocusTargets:
    samples: list[int] = []
    rows: list[int] = []
    keys: list[list[np.ndarray]] = [[], []]
    for index, (lesson, transcript) in enumerate(zip(lessons, transcripts, strict=True)):
        for target in transcript.targets:
            if target.focus is None:
                continue
            samples.append(index)
            rows.append(target.row)
            for head, place in enumerate((target.focus.first, target.focus.second)):
                keys[head].append(_keys(place, lesson.labels, transcript, length, grid))
    if not samples:
        empty = torch.zeros(0, dtype=torch.long)
        return FocusTargets(empty, empty, torch.zeros(2, 0, length, dtype=torch.bool))
    return FocusTargets(torch.tensor(samples), torch.tensor(rows), torch.from_numpy(np.stack(keys)))


def _keys(
    place: tuple[int, int] | None,
    labels: tuple[CellLabels, ...],
    transcript: Transcript,
    length: int,
    grid: Grid,
) -> np.ndarray:
    """Return where an attention row may look: at an item's cells, or at the picture's start."""
    keys = np.zeros(length, np.bool_)
    if place is None:
        keys[transcript.vision_start_row] = True
        return keys
    image, item = place
    start = transcript.image_starts[image]
    keys[start : start + grid.num_cells] = labels[image].item_cells[item]
    return keys


assert set(CLASS_COLUMNS.values()) == set(range(len(CLASS_COLUMNS)))  # noqa: S101 - layout

"""What each visual token should know about the scene behind it.

A cell is the 32 x 32 pixels that become one visual token. Teaching the vision tower these labels
directly puts into every token what the text model will have to say.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inference.demo.pictures import Scene
from inference.demo.questions import place_of

IGNORED = -100
BOX_BINS = 51
"""A box side is one of these: 0, 20, ... 1000."""

_COVERED = 0.2


class Grid(NamedTuple):
    """A picture's size in cells."""

    height: int
    width: int

    @property
    def num_cells(self) -> int:
        """Visual tokens of the picture."""
        return self.height * self.width


# Column of each label in CellLabels.classes.
CLASS_COLUMNS = {
    "color": 0,
    "shape": 1,
    "left_character": 2,
    "right_character": 3,
    "left_index": 4,
    "right_index": 5,
    "rank": 6,
    "place": 7,
    "num_shapes": 8,
    "num_characters": 9,
    "background": 10,
}


@dataclass(frozen=True, slots=True)
class CellLabels:
    """Labels of one picture's cells, row by row; IGNORED where there is nothing to say."""

    center: NDArray[np.float32]  # [cells] 1 where an item's middle lies
    classes: NDArray[np.int64]  # [cells, len(CLASS_COLUMNS)]
    boxes: NDArray[np.float32]  # [cells, 4] in 0..1, NaN where there is no shape
    item_cells: NDArray[np.bool_]  # [items, cells] the cells each item is read from


def label_cells(scene: Scene, grid: Grid) -> CellLabels:
    """Label every cell of a scene's picture."""
    cells = grid.num_cells
    center = np.zeros(cells, np.float32)
    classes = np.full((cells, len(CLASS_COLUMNS)), IGNORED, np.int64)
    boxes = np.full((cells, 4), np.nan, np.float32)
    classes[:, CLASS_COLUMNS["background"]] = scene.background
    shapes = scene.kind == "shapes"
    classes[:, CLASS_COLUMNS["num_shapes" if shapes else "num_characters"]] = len(scene.items)
    if not scene.items:
        return CellLabels(center, classes, boxes, np.zeros((0, cells), np.bool_))
    for item in scene.items:
        x, y = item.box.center
        row, column = (
            min(int(y * grid.height), grid.height - 1),
            min(int(x * grid.width), grid.width - 1),
        )
        center[row * grid.width + column] = 1.0
    whole = _coverage(scene, grid, columns=grid.width)
    if shapes:
        _label_shapes(scene, whole, classes, boxes)
    else:
        halves = _coverage(scene, grid, columns=2 * grid.width)
        _label_characters(scene, whole, halves, classes)
    return CellLabels(center, classes, boxes, _readable(whole))


def _coverage(scene: Scene, grid: Grid, columns: int) -> NDArray[np.float32]:
    """Return the share of each cell (or half cell) each item's box covers: [items, cells]."""
    boxes = np.asarray([item.box for item in scene.items], np.float32)  # [items, 4]
    x, y = np.arange(columns, dtype=np.float32), np.arange(grid.height, dtype=np.float32)
    left, right = boxes[:, :1] * columns, boxes[:, 2:3] * columns
    top, bottom = boxes[:, 1:2] * grid.height, boxes[:, 3:] * grid.height
    across = (np.minimum(right, x + 1) - np.maximum(left, x)).clip(0)  # [items, columns]
    down = (np.minimum(bottom, y + 1) - np.maximum(top, y)).clip(0)  # [items, rows]
    return (down[:, :, None] * across[:, None, :]).reshape(len(boxes), -1)


def _readable(whole: NDArray[np.float32]) -> NDArray[np.bool_]:
    """An item is read from the cells it covers well; at least from the one it covers best."""
    return (whole > _COVERED) | ((whole == whole.max(axis=1, keepdims=True)) & (whole > 0))


def _label_shapes(
    scene: Scene, whole: NDArray[np.float32], classes: NDArray[np.int64], boxes: NDArray[np.float32]
) -> None:
    """Fill in, where a shape covers a cell, what the shape is."""
    readable = _readable(whole)
    owner = np.where(readable, whole, 0).argmax(axis=0)  # [cells]
    for cell in np.flatnonzero(readable.any(axis=0)):
        index = int(owner[cell])
        item = scene.items[index]
        place = place_of(item.box)
        classes[cell, CLASS_COLUMNS["color"]] = item.color
        classes[cell, CLASS_COLUMNS["shape"]] = item.what
        classes[cell, CLASS_COLUMNS["rank"]] = index
        classes[cell, CLASS_COLUMNS["place"]] = IGNORED if place is None else place
        boxes[cell] = item.box


def _label_characters(
    scene: Scene,
    whole: NDArray[np.float32],
    halves: NDArray[np.float32],
    classes: NDArray[np.int64],
) -> None:
    """Fill in the colour of text, and which character stands in each half of a cell."""
    classes[_readable(whole).any(axis=0), CLASS_COLUMNS["color"]] = scene.items[0].color
    readable = _readable(halves).any(axis=0)
    owner = halves.argmax(axis=0)  # [half cells]
    for half in np.flatnonzero(readable):
        side = ("left", "right")[half % 2]
        index = int(owner[half])
        classes[half // 2, CLASS_COLUMNS[f"{side}_character"]] = scene.items[index].what
        classes[half // 2, CLASS_COLUMNS[f"{side}_index"]] = index

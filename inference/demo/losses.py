"""What training minimises: answers, cell labels, what was asked, and where it is."""

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads
from torch import Tensor

from inference.demo.batch import AnswerTargets, CellTargets
from inference.demo.labels import BOX_BINS, CLASS_COLUMNS, IGNORED
from inference.demo.model import CELL_CLASSES, CELL_LEVELS
from inference.demo.network import Reading, Sight, Weights
from inference.demo.vocabulary import COLORS, SHAPES

CELL_WEIGHTS = {
    "color": 0.5,
    "shape": 1.0,
    "left_character": 1.25,
    "right_character": 1.25,
    "left_index": 0.25,
    "right_index": 0.25,
    "rank": 0.5,
    "place": 0.5,
    "num_shapes": 0.5,
    "num_characters": 0.5,
    "background": 0.2,
}
LEVEL_WEIGHTS = {"tokens": 1.0, "deepstack0": 0.3, "deepstack1": 0.3}
TAUGHT_HEADS = (0, 3)
"""Query heads of the bound layer that learn where to look; of different key heads."""

_CENTER_WEIGHT = 3.0
_BOX_SIGMA_BINS = 1.2

Metrics = dict[str, float]


def cell_loss(weights: Weights, sight: Sight, targets: CellTargets) -> tuple[Tensor, Metrics]:
    """Return the loss of the linear heads on the vision tower's outputs."""
    outputs = dict(zip(CELL_LEVELS, (sight.tokens, *sight.deepstack), strict=True))
    total, metrics = torch.zeros(()), {}
    for level, cells in outputs.items():
        logits = F.linear(cells, weights[f"heads.{level}.weight"], weights[f"heads.{level}.bias"])
        loss, level_metrics = _level_loss(logits.flatten(0, 1).float(), targets)
        total = total + LEVEL_WEIGHTS[level] * loss
        if level == "tokens":
            metrics = level_metrics
    return total, metrics


def _level_loss(logits: Tensor, targets: CellTargets) -> tuple[Tensor, Metrics]:
    center = targets.center.flatten()
    sizes = [1, *CELL_CLASSES.values(), 4 * BOX_BINS]
    parts = logits.split(sizes, dim=-1)
    loss = F.binary_cross_entropy_with_logits(parts[0][:, 0], center, pos_weight=torch.tensor(3.0))
    stress = 1 + (_CENTER_WEIGHT - 1) * center
    metrics: Metrics = {}
    classes = targets.classes.flatten(0, 1)
    for name, part in zip(CELL_CLASSES, parts[1:-1], strict=True):
        wanted = classes[:, CLASS_COLUMNS[name]]
        known = (wanted != IGNORED).nonzero()[:, 0]
        if not len(known):
            continue
        told, wanted, weight = part[known], wanted[known], stress[known]
        losses = F.cross_entropy(told, wanted, reduction="none")
        loss = loss + CELL_WEIGHTS[name] * (losses * weight).sum() / weight.sum()
        metrics[name] = (told.detach().argmax(-1) == wanted).float().mean().item()
    box_loss, box_error = _box_loss(parts[-1], targets.boxes.flatten(0, 1), stress)
    return loss + box_loss, metrics | box_error


def _box_loss(logits: Tensor, boxes: Tensor, stress: Tensor) -> tuple[Tensor, Metrics]:
    """Cross-entropy against bins blurred around the true side, in shares of a box side."""
    known = (~boxes[:, 0].isnan()).nonzero()[:, 0]
    if not len(known):
        return logits.sum() * 0, {}
    logits, weight = logits[known].view(-1, 4, BOX_BINS), stress[known]
    wanted = boxes[known] * (BOX_BINS - 1)  # [known, 4]
    distance = wanted[..., None] - torch.arange(BOX_BINS)
    soft = (-(distance**2) / (2 * _BOX_SIGMA_BINS**2)).softmax(-1)
    losses = -(soft * logits.log_softmax(-1)).sum(-1).mean(-1)
    error = (logits.detach().argmax(-1) - wanted).abs().mean().item()
    return (losses * weight).sum() / weight.sum(), {"box bins": error}


def answer_loss(reading: Reading, targets: AnswerTargets) -> tuple[Tensor, dict[str, list[bool]]]:
    """Return the weighted loss of the answers, and per task which were right to the last token."""
    logits = reading.logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.tokens.flatten(), reduction="none")
    weights = targets.weights.flatten()
    wrong = (logits.detach().argmax(-1) != targets.tokens) & (targets.weights > 0)
    num_wrong = torch.zeros(len(targets.tasks)).index_add(
        0, targets.exchange.flatten(), wrong.flatten().float()
    )
    right: dict[str, list[bool]] = {}
    for task, errors in zip(targets.tasks, num_wrong.tolist(), strict=True):
        right.setdefault(task, []).append(errors == 0)
    return (losses * weights).sum() / weights.sum(), right


def binding_loss(
    weights: Weights, reading: Reading, targets: AnswerTargets
) -> tuple[Tensor, Metrics]:
    """Return the loss of knowing what was asked, where it is, and what two pictures show."""
    asked, asked_accuracy = _asked_loss(weights, reading, targets.asked)
    pair, pair_accuracy = _pair_loss(weights, reading, targets.pairs)
    focus = _focus_loss(reading, targets)
    metrics = asked_accuracy | pair_accuracy | {"focus": focus.item()}
    return asked + pair + focus, metrics


def _probe(weights: Weights, name: str, rows: Tensor) -> Tensor:
    return F.linear(rows, weights[name + ".weight"], weights[name + ".bias"]).float()


def _asked_loss(weights: Weights, reading: Reading, asked: Tensor) -> tuple[Tensor, Metrics]:
    if not len(asked):
        return torch.zeros(()), {}
    logits = _probe(weights, "heads.asked", reading.bound_input[asked[:, 0], asked[:, 1]])
    loss, metrics = torch.zeros(()), {}
    for name, part, wanted in (
        ("asked color", logits[:, : len(COLORS)], asked[:, 2]),
        ("asked shape", logits[:, len(COLORS) :], asked[:, 3]),
    ):
        known = wanted != IGNORED
        if known.any():
            loss = loss + F.cross_entropy(part[known], wanted[known])
            metrics[name] = (part[known].argmax(-1) == wanted[known]).float().mean().item()
    return loss, metrics


def _pair_loss(weights: Weights, reading: Reading, pairs: Tensor) -> tuple[Tensor, Metrics]:
    if not len(pairs):
        return torch.zeros(()), {}
    logits = _probe(weights, "heads.pair", reading.after_bound[pairs[:, 0], pairs[:, 1]])
    sizes = (len(COLORS), len(COLORS), len(SHAPES), len(SHAPES))
    parts = logits.split(sizes, dim=-1)
    loss = sum(
        (F.cross_entropy(part, pairs[:, 2 + i]) for i, part in enumerate(parts)), torch.zeros(())
    )
    right = [
        (part.argmax(-1) == pairs[:, 2 + i]).float().mean().item() for i, part in enumerate(parts)
    ]
    return loss / 2, {"pair": sum(right) / len(right)}


def _focus_loss(reading: Reading, targets: AnswerTargets) -> Tensor:
    sample, row, keys = targets.focus
    if not len(sample):
        return torch.zeros(())
    losses = []
    for head, wanted in zip(TAUGHT_HEADS, keys, strict=True):
        attention = reading.bound_attention[sample, head, row].float()  # [focused, length]
        losses.append(-((attention * wanted).sum(-1) + 1e-6).log().mean())
    return sum(losses, torch.zeros(())) / len(losses)

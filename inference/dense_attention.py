"""Attention over contiguous keys and values as two matrix products with a softmax between.

On a CPU that is two to three times quicker than torch's fused attention, whose inner products miss
the matrix units. The scores between are bounded: query rows are taken in slices.
"""

import torch
from torch import Tensor

from inference.footprint import MAX_SCORES
from inference.ops import Ops

# With a causal mask a slice skips the columns none of its rows sees; smaller slices skip more.
_MAX_CAUSAL_ROWS = 128


def attend(q: Tensor, k: Tensor, v: Tensor, ops: Ops, *, scale: float, first: int | None) -> Tensor:
    """Attend with every query of a matrix to that matrix's keys.

    Args:
        q: [num_matrices, group_size, num_rows, head_dim]: heads of a group share keys.
        k: [num_matrices, num_columns, head_dim].
        v: the same.
        ops: for the softmax.
        scale: of the scores.
        first: causal when given: row r sees the columns up to first + r.

    Returns:
        [num_matrices, group_size, num_rows, head_dim].
    """
    matrices, group, rows, dim = q.shape
    columns = k.shape[1]
    size = max(1, min(rows, MAX_SCORES // (matrices * group * columns)))
    if first is not None:
        size = min(size, _MAX_CAUSAL_ROWS)
    parts: list[Tensor] = []
    for start in range(0, rows, size):
        part = q[:, :, start : start + size]
        num_rows = part.shape[2]
        seen = columns if first is None else min(columns, first + start + num_rows)
        scores = torch.bmm(part.reshape(matrices, -1, dim), k[:, :seen].transpose(1, 2))
        scores = scores.view(matrices, group, num_rows, seen)
        weights = ops.softmax(scores, scale, None if first is None else first + start)
        attended = torch.bmm(weights.view(matrices, -1, seen), v[:, :seen])
        parts.append(attended.view(matrices, group, num_rows, dim))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

"""Where tokens stand on Qwen3-VL's three rotary axes, and the angles that follow.

Positions are always explicit and belong to the sequence; the model remembers nothing of a request.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from inference.spans import VisualSpan


def prompt_positions(num_tokens: int, spans: Sequence[VisualSpan]) -> tuple[Tensor, int]:
    """Place every prompt token on the three axes.

    Text advances all axes together; a picture (or a video's temporal patch) holds time still and
    spreads over height and width, and what follows starts at the largest position used, plus one.

    Returns:
        Positions, int64 [3, num_tokens] (time, height, width), and rope_delta: what to add to a
        token's index from here on to get its position.

    Source: transformers 5.23 `Qwen3VLModel.get_rope_index`.
    """
    positions = torch.empty(3, num_tokens, dtype=torch.int64)
    index, position = 0, 0
    for span in spans:
        text = torch.arange(position, position + span.start - index)
        positions[:, index : span.start] = text
        position += span.start - index
        grid = positions[:, span.start : span.end].view(3, span.rows, span.columns)
        grid[0] = position
        grid[1] = torch.arange(position, position + span.rows)[:, None]
        grid[2] = torch.arange(position, position + span.columns)[None, :]
        position += max(span.rows, span.columns)
        index = span.end
    positions[:, index:] = torch.arange(position, position + num_tokens - index)
    return positions, position - index


class TextRotary:
    """Angles of the text model: frequency i belongs to the axis that the interleaving gives it."""

    def __init__(
        self, inv_freq: Tensor, mrope_section: Sequence[int], scaling: float, device: torch.device
    ) -> None:
        """Build from inv_freq [head_dim / 2] and the sections (time, height, width)."""
        axes = torch.zeros(len(inv_freq), dtype=torch.int64)
        for axis in (1, 2):
            axes[axis : mrope_section[axis] * 3 : 3] = axis
        self._axes = axes.to(device)
        self._inv_freq = inv_freq.float().to(device)
        self._scaling = scaling

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines for positions [3, num_tokens]: two of [num_tokens, head_dim]."""
        freqs = positions[self._axes].T.float() * self._inv_freq  # [num_tokens, head_dim / 2]
        return signed_angles(freqs, self._scaling)


def signed_angles(freqs: Tensor, scaling: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32, for both halves of a head, the first half's sines negated.

    With the sign in the table a rotation is x * cos + roll(x, half a head) * sin: transformers'
    `rotate_half` without its negation and concatenation.
    """
    cos, sin = freqs.cos() * scaling, freqs.sin() * scaling
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

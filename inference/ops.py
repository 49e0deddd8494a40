"""The element-wise work between matrix products, as torch does it; kernels may do it quicker.

Whoever computes takes an `Ops` and does not ask where it runs. This one runs everywhere and is the
reference of the others.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Ops(Protocol):
    """Fused steps of the forward passes. Rows are tokens or patches; storage type in and out."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalise rows [num_rows, width] by their root mean square, times weight [width]."""
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """Give silu(gate) * up for rows [num_rows, gate | up]."""
        ...

    def norm_rotate(
        self, heads: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float
    ) -> Tensor:
        """Normalise each head where there is a weight, then rotate; may work in place.

        Args:
            heads: [num_rows, num_heads, head_dim], the innermost two axes contiguous.
            weight: [num_heads, head_dim], or None for no norm.
            cos: float32 [num_rows, head_dim].
            sin: the same, signed for a roll by half a head: see `rope.signed_angles`.
            eps: of the norm.
        """
        ...

    def softmax(self, scores: Tensor, scale: float, first: int | None) -> Tensor:
        """Softmax of scores * scale over the last axis; may work in place.

        Args:
            scores: contiguous [..., num_rows, num_columns].
            scale: what the scores are multiplied by.
            first: causal when given: row r sees the columns up to first + r, the others get 0.
        """
        ...


class TorchOps:
    """Torch's own operators, on any device."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops`."""
        return functional.rms_norm(x, x.shape[-1:], weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See `Ops`."""
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def norm_rotate(
        self, heads: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float
    ) -> Tensor:
        """See `Ops`."""
        dtype = heads.dtype
        if weight is not None:
            heads = functional.rms_norm(heads, heads.shape[-1:], None, eps) * weight
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        rolled = heads.roll(heads.shape[-1] // 2, dims=-1)
        return torch.addcmul(heads * cos, rolled, sin).to(dtype)

    def softmax(self, scores: Tensor, scale: float, first: int | None) -> Tensor:
        """See `Ops`."""
        if first is not None:
            rows, columns = scores.shape[-2:]
            seen = torch.arange(first, first + rows, device=scores.device)[:, None]
            hidden = torch.arange(columns, device=scores.device) > seen
            scores = scores.masked_fill(hidden, float("-inf"))
        return torch.softmax(scores * scale, dim=-1, dtype=torch.float32).to(scores.dtype)

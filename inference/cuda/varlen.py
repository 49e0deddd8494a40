"""Packed attention of many sequences in one call: torch's own flash attention.

Half precision on SM80 and later; where that does not hold, callers attend sequence by sequence.
"""

import inspect
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import accumulate
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from inference.transfer import to_device


def has_flash_attention(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `attend_packed` works here."""
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def boundaries(lengths: Sequence[int]) -> list[int]:
    """Where sequences of these lengths begin when packed, and where the last one ends."""
    return [0, *accumulate(lengths)]


class Packing(NamedTuple):
    """Where sequences lie in packed rows.

    q_bounds, k_bounds: int32 [num_sequences + 1], see `boundaries`. longest_q, longest_k: of the
    sequences' queries and of their keys.
    """

    q_bounds: Tensor
    k_bounds: Tensor
    longest_q: int
    longest_k: int


def attend_packed(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, *, scaling: float, is_causal: bool
) -> Tensor:
    """Attend within each sequence, scores multiplied by `scaling`.

    The shapes are q [num_queries, num_heads, head_dim] and k, v [num_keys, num_kv_heads, head_dim].
    Causal: a sequence's last query sees all its keys, each one before it one less.

    Returns:
        [num_queries, num_heads * head_dim].
    """
    window = (-1, 0) if is_causal else (-1, -1)
    return _varlen_attention()(q, k, v, *packing, scale=scaling, window_size=window).flatten(1)


class PackedFrames:
    """Attention within each frame of many pictures; made once for all layers of a pass."""

    def __init__(self, groups: Sequence[tuple[int, int]], device: torch.device) -> None:
        """Take the groups: (number of frames, patches a frame), in row order."""
        lengths = [patches for frames, patches in groups for _ in range(frames)]
        bounds = to_device(np.array(boundaries(lengths), np.int32), device)
        self._packing = Packing(bounds, bounds, max(lengths), max(lengths))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend; all are [num_patches, num_heads, head_dim], the result has rows flattened."""
        scaling = q.shape[-1] ** -0.5
        return attend_packed(q, k, v, self._packing, scaling=scaling, is_causal=False)


@lru_cache
def _varlen_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.varlen import varlen_attn

    # It says at every call which kernel it takes.
    logging.getLogger("torch.nn.attention.varlen").setLevel(logging.WARNING)
    # torch 2.11 shares keys among query heads unasked; later versions want to be told.
    takes_gqa = "enable_gqa" in inspect.signature(varlen_attn).parameters
    attend = partial(varlen_attn, enable_gqa=True) if takes_gqa else varlen_attn
    # Asked for nothing else, it gives the output alone.
    return cast("Callable[..., Tensor]", attend)

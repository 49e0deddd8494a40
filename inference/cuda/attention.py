"""Paged attention on an NVIDIA GPU: the pool lies token by token, and nothing is read back.

Decoding rows go through our own kernel, prompts through torch's flash attention over packed
sequences. A step's plan travels to the device in one transfer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inference.attention import KVShape, Rows, split_singles
from inference.cuda import kernels
from inference.cuda.kernels import DecodeRows
from inference.cuda.varlen import Packing, attend_packed, boundaries, has_flash_attention
from inference.transfer import to_device

# Keys and values of one layer that continued chunks may copy out of the pool at a time.
MAX_GATHERED_TOKENS = 65536


@dataclass(slots=True, frozen=True)
class _PrefillGroup:
    """Consecutive chunks attended in one call.

    lengths: (tokens of the chunk, tokens of the sequence up to its end), one pair each. gathered:
    int32 [all tokens up to the ends], their slots; None where all chunks start their sequences,
    whose keys are then the chunks' own.
    """

    lengths: list[tuple[int, int]]
    packing: Packing
    gathered: Tensor | None

    @property
    def num_tokens(self) -> int:
        """Rows of the step that belong to it."""
        return sum(length for length, _ in self.lengths)


@dataclass(slots=True, frozen=True)
class CudaPlan:
    """What every layer does in one step. slots: int32 [num_tokens], where each token's keys go."""

    slots: Tensor
    decodes: DecodeRows | None
    prefills: list[_PrefillGroup]


class CudaAttention:
    """The KV pool on a GPU and attention over it."""

    def __init__(
        self,
        shape: KVShape,
        num_heads: int,
        scaling: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocate the pool, zeroed: rows that pad a batch attend to the padding block."""
        size = (
            shape.num_layers,
            shape.num_blocks * shape.block_size,
            shape.num_kv_heads,
            shape.head_dim,
        )
        self.shape = shape
        self._keys = torch.zeros(size, dtype=dtype, device=device)
        self._values = torch.zeros(size, dtype=dtype, device=device)
        self._group_size = num_heads // shape.num_kv_heads
        self._scaling = scaling
        self._device = device
        self._is_packed = has_flash_attention(dtype, device)

    def plan(self, rows: Sequence[Rows]) -> CudaPlan:
        """Prepare one step; single-token rows come first."""
        singles, others = split_singles(rows)
        parts = [np.concatenate([self._slots(row, row.start) for row in rows])]
        if singles:
            parts += decode_arrays(singles)
        groups = _groups(others)
        for group in groups:
            parts += self._prefill_arrays(group)
        slots, *rest = _upload_together(parts, self._device)
        decodes = DecodeRows(*rest[:3]) if singles else None
        rest = rest[3:] if singles else rest
        prefills: list[_PrefillGroup] = []
        for group in groups:
            lengths = [(row.num_tokens, row.end) for row in group]
            longest = (max(fresh for fresh, _ in lengths), max(end for _, end in lengths))
            packing = Packing(rest[0], rest[1], *longest)
            gathered = rest[2] if _is_continued(group[0]) else None
            rest = rest[2 if gathered is None else 3 :]
            prefills.append(_PrefillGroup(lengths, packing, gathered))
        return CudaPlan(slots, decodes, prefills)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, plan: CudaPlan) -> Tensor:
        """Store the new keys and values of a layer and attend.

        The shapes are q [num_tokens, num_heads, head_dim] and k, v [num_tokens, num_kv_heads,
        head_dim]; the result is [num_tokens, num_heads * head_dim].
        """
        keys, values = self._keys[layer], self._values[layer]
        kernels.store(keys, values, plan.slots, k, v)
        parts: list[Tensor] = []
        start = 0
        if plan.decodes is not None:
            start = len(plan.decodes.lengths)
            parts.append(
                kernels.decode(
                    q[:start],
                    keys,
                    values,
                    plan.decodes,
                    block_size=self.shape.block_size,
                    scaling=self._scaling,
                )
            )
        for group in plan.prefills:
            rows = slice(start, start + group.num_tokens)
            start = rows.stop
            known = (k[rows], v[rows])
            if group.gathered is not None:
                known = (
                    keys.index_select(0, group.gathered),
                    values.index_select(0, group.gathered),
                )
            parts.append(self._attend_prefills(q[rows], *known, group))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend_prefills(self, q: Tensor, k: Tensor, v: Tensor, group: _PrefillGroup) -> Tensor:
        if not self._is_packed:
            return self._attend_each(q, k, v, group)
        return attend_packed(q, k, v, group.packing, scaling=self._scaling, is_causal=True)

    def _attend_each(self, q: Tensor, k: Tensor, v: Tensor, group: _PrefillGroup) -> Tensor:
        """Sequence by sequence, for types and devices without flash attention."""
        parts: list[Tensor] = []
        q_lengths = [length for length, _ in group.lengths]
        k_lengths = [length for _, length in group.lengths]
        for one_q, one_k, one_v in zip(
            q.split(q_lengths), k.split(k_lengths), v.split(k_lengths), strict=True
        ):
            ones = torch.ones(len(one_q), len(one_k), dtype=torch.bool, device=q.device)
            attended = functional.scaled_dot_product_attention(
                one_q.transpose(0, 1),
                one_k.transpose(0, 1).repeat_interleave(self._group_size, dim=0),
                one_v.transpose(0, 1).repeat_interleave(self._group_size, dim=0),
                attn_mask=ones.tril(len(one_k) - len(one_q)),
                scale=self._scaling,
            )
            parts.append(attended.transpose(0, 1).flatten(1))
        return torch.cat(parts)

    def _slots(self, row: Rows, first: int) -> NDArray[np.int32]:
        """Slots of a row's tokens [first, end)."""
        size = self.shape.block_size
        tokens = np.arange(first, row.end, dtype=np.int32)
        table = np.array(row.block_table[: -(-row.end // size)], np.int32)
        return table[tokens // size] * np.int32(size) + tokens % np.int32(size)

    def _prefill_arrays(self, group: Sequence[Rows]) -> list[NDArray[np.int32]]:
        bounds = [
            np.array(boundaries(lengths), np.int32)
            for lengths in ([row.num_tokens for row in group], [row.end for row in group])
        ]
        if not _is_continued(group[0]):
            return bounds
        return [*bounds, np.concatenate([self._slots(row, 0) for row in group])]


def decode_arrays(rows: Sequence[Rows]) -> list[NDArray[np.int32]]:
    """The contents of `DecodeRows` for single-token rows."""
    bounds = boundaries([len(row.block_table) for row in rows])
    return [
        np.concatenate([np.array(row.block_table, np.int32) for row in rows]),
        np.array(bounds[:-1], np.int32),
        np.array([row.end for row in rows], np.int32),
    ]


def _upload_together(parts: Sequence[NDArray[np.int32]], device: torch.device) -> list[Tensor]:
    """Bring arrays to the device in one transfer, each aligned."""
    starts = boundaries([kernels.aligned(len(part)) for part in parts])
    packed = np.zeros(starts[-1], np.int32)
    for start, part in zip(starts, parts, strict=False):
        packed[start : start + len(part)] = part
    moved = to_device(packed, device)
    return [moved[start : start + len(part)] for start, part in zip(starts, parts, strict=False)]


def _groups(rows: Sequence[Rows]) -> list[Sequence[Rows]]:
    """Split chunks into calls: those that start sequences, and so many tokens of the others."""
    groups: list[Sequence[Rows]] = []
    first, num_tokens = 0, 0
    for index, row in enumerate(rows):
        num_tokens += row.end
        is_other = _is_continued(row) != _is_continued(rows[first])
        is_large = _is_continued(row) and num_tokens > MAX_GATHERED_TOKENS
        if index > first and (is_other or is_large):
            groups.append(rows[first:index])
            first, num_tokens = index, row.end
    return [*groups, rows[first:]] if rows else []


def _is_continued(row: Rows) -> bool:
    return row.start > 0

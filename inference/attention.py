"""Paged attention on the CPU: keys and values in a pool of blocks.

One plan for a whole step, made once and used by every layer. With our kernels, decoding rows read
their blocks where they lie; without, they are gathered and multiplied. Prompts attend by matrix
products over contiguous keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from inference import dense_attention
from inference.blocks import PADDING_BLOCK
from inference.kernels import CpuKernels
from inference.ops import Ops, TorchOps

# Keys and values of one layer that one group of decoding rows may copy out of the pool.
_MAX_GATHERED_TOKENS = 32768


class Rows(NamedTuple):
    """One chunk as attention sees it: tokens [start, end) of a sequence, and its blocks."""

    start: int
    end: int
    block_table: Sequence[int]

    @property
    def num_tokens(self) -> int:
        """Tokens of the chunk."""
        return self.end - self.start


class KVShape(NamedTuple):
    """Sizes of the pool."""

    num_layers: int
    num_blocks: int
    block_size: int
    num_kv_heads: int
    head_dim: int


Plan = TypeVar("Plan")


class Attention(Protocol[Plan]):
    """The KV pool of a device and attention over it; `Plan` is its own kind of plan."""

    def plan(self, rows: Sequence[Rows]) -> Plan:
        """Prepare one step: single-token rows first, sorted by length."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        """Store the new keys and values of a layer and attend.

        The shapes are q [num_tokens, num_heads, head_dim] and k, v [num_tokens, num_kv_heads,
        head_dim]; the result is [num_tokens, num_heads * head_dim].
        """
        ...


@dataclass(slots=True, frozen=True)
class _DecodeGroup:
    """Rows of one token each and of similar length, attended together.

    tables: int64 [num_rows, blocks a row], padded with the padding block. lengths: int64
    [num_rows], in tokens.
    """

    num_rows: int
    tables: Tensor
    lengths: Tensor


@dataclass(slots=True, frozen=True)
class _Prefill:
    """One chunk of several tokens, from `start` on.

    blocks: int64 [num_blocks] that hold all its tokens so far; None when it starts the sequence,
    whose keys and values are then the chunk's own.
    """

    num_tokens: int
    start: int
    blocks: Tensor | None


@dataclass(slots=True, frozen=True)
class AttentionPlan:
    """What every layer does in one step. slots: int64 [num_tokens], where each token's keys go."""

    slots: Tensor
    decodes: list[_DecodeGroup]
    prefills: list[_Prefill]


class CpuAttention:
    """The KV pool on the CPU and attention over it."""

    def __init__(
        self,
        shape: KVShape,
        num_heads: int,
        scaling: float,
        dtype: torch.dtype,
        kernels: CpuKernels | None,
    ) -> None:
        """Allocate the pool, zeroed: padding rows multiply it by zero and must not find NaN."""
        size = (shape.num_layers, shape.num_blocks, shape.num_kv_heads)
        self.shape = shape
        # Keys are kept transposed: one query meets a lane of tokens at a time.
        self._keys = torch.zeros(*size, shape.head_dim, shape.block_size, dtype=dtype)
        self._values = torch.zeros(*size, shape.block_size, shape.head_dim, dtype=dtype)
        self._group_size = num_heads // shape.num_kv_heads
        if kernels is not None and not _fits(shape, self._group_size):
            kernels = None
        self._scaling = scaling
        self._kernels = kernels
        self._ops: Ops = kernels or TorchOps()

    def plan(self, rows: Sequence[Rows]) -> AttentionPlan:
        """Prepare one step.

        Args:
            rows: single-token rows first, sorted by length so that neighbours pad little.
        """
        size = self.shape.block_size
        slots = [
            row.block_table[index // size] * size + index % size
            for row in rows
            for index in range(row.start, row.end)
        ]
        singles, others = split_singles(rows)
        groups = [singles] if self._kernels and singles else _similar_lengths(singles)
        return AttentionPlan(
            slots=torch.tensor(slots),
            decodes=[self._group(group) for group in groups],
            prefills=[self._prefill(row) for row in others],
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
        """See `Attention`."""
        self._store(layer, k, v, plan.slots)
        parts: list[Tensor] = []
        start = 0
        for group in plan.decodes:
            end = start + group.num_rows
            parts.append(self._attend_decodes(layer, q[start:end], group))
            start = end
        for prefill in plan.prefills:
            end = start + prefill.num_tokens
            fresh = slice(start, end)
            parts.append(self._attend_prefill(layer, q[fresh], k[fresh], v[fresh], prefill))
            start = end
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _store(self, layer: int, k: Tensor, v: Tensor, slots: Tensor) -> None:
        keys, values = self._keys[layer], self._values[layer]
        if self._kernels is not None:
            self._kernels.store(keys, values, k, v, slots)
            return
        block, place = slots // self.shape.block_size, slots % self.shape.block_size
        keys[block, :, :, place] = k
        values[block, :, place] = v

    def _attend_decodes(self, layer: int, q: Tensor, group: _DecodeGroup) -> Tensor:
        keys, values = self._keys[layer], self._values[layer]
        if self._kernels is not None:
            return self._kernels.decode_attention(
                q, keys, values, group.tables, group.lengths, self._scaling
            )
        rows, kv_heads, head_dim = group.num_rows, self.shape.num_kv_heads, self.shape.head_dim
        # k [num_rows, num_kv_heads, head_dim, context], v [.., context, head_dim]
        k = keys[group.tables].permute(0, 2, 3, 1, 4).reshape(rows, kv_heads, head_dim, -1)
        v = values[group.tables].transpose(1, 2).reshape(rows, kv_heads, -1, head_dim)
        scores = q.view(rows, kv_heads, -1, head_dim) @ k
        positions = torch.arange(k.shape[-1])
        hidden = positions >= group.lengths[:, None, None, None]
        scores = scores.masked_fill(hidden, float("-inf"))
        weights = self._ops.softmax(scores, self._scaling, None)
        return (weights @ v).view(rows, -1)

    def _attend_prefill(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, prefill: _Prefill
    ) -> Tensor:
        kv_heads = self.shape.num_kv_heads
        if prefill.blocks is None:
            k, v = k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()
        else:
            # [num_kv_heads, context, head_dim], the last block's unused places behind it
            k = self._keys[layer, prefill.blocks].permute(1, 0, 3, 2).flatten(1, 2)
            v = self._values[layer, prefill.blocks].transpose(0, 1).flatten(1, 2)
        # [num_kv_heads, group_size, num_tokens, head_dim]
        q = q.view(prefill.num_tokens, kv_heads, self._group_size, -1).permute(1, 2, 0, 3)
        attended = dense_attention.attend(
            q, k, v, self._ops, scale=self._scaling, first=prefill.start
        )
        return attended.permute(2, 0, 1, 3).reshape(prefill.num_tokens, -1)

    def _group(self, rows: Sequence[Rows]) -> _DecodeGroup:
        size = self.shape.block_size
        width = max(-(-row.end // size) for row in rows)
        tables = [
            [*row.block_table[:width], *[PADDING_BLOCK] * (width - len(row.block_table))]
            for row in rows
        ]
        lengths = torch.tensor([row.end for row in rows])
        return _DecodeGroup(len(rows), torch.tensor(tables), lengths)

    def _prefill(self, row: Rows) -> _Prefill:
        blocks = None
        if row.start > 0:
            blocks = torch.tensor(row.block_table[: -(-row.end // self.shape.block_size)])
        return _Prefill(row.num_tokens, row.start, blocks)


def split_singles(rows: Sequence[Rows]) -> tuple[Sequence[Rows], Sequence[Rows]]:
    """Split a step's rows into those of a single token, which come first, and the others."""
    num_single = len(list(takewhile(lambda row: row.num_tokens == 1, rows)))
    return rows[:num_single], rows[num_single:]


def _fits(shape: KVShape, group_size: int) -> bool:
    """Whether the kernels can attend over a pool of these sizes."""
    lanes = CpuKernels.LANES
    return group_size <= CpuKernels.MAX_GROUP and not (
        shape.head_dim % lanes or shape.block_size % lanes
    )


def _similar_lengths(rows: Sequence[Rows]) -> list[Sequence[Rows]]:
    """Split rows sorted by length: no padding beyond twice a length, no group without bound."""
    groups: list[Sequence[Rows]] = []
    start = 0
    for index, row in enumerate(rows):
        is_large = index > start and row.end * (index - start + 1) > _MAX_GATHERED_TOKENS
        if is_large or row.end > 2 * rows[start].end + 64:
            groups.append(rows[start:index])
            start = index
    return [*groups, rows[start:]] if rows else []

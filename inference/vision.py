"""The vision model as a thin forward: patches of many pictures in, features of each out.

Same arithmetic as transformers' `Qwen3VLVisionModel`, whose modules hold the weights at load; what
differs is the cost: the patch embedding is a linear layer (its Conv3d is pathological), pictures of
one size attend together, and nothing is read back from the device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from inference import dense_attention
from inference.cuda.varlen import PackedFrames, has_flash_attention
from inference.linear import Linear
from inference.ops import Ops
from inference.patches import patchify
from inference.rope import signed_angles

# Attends within frames: q, k, v [num_patches, num_heads, head_dim] to [num_patches, hidden].
FrameAttention: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]

_MAX_KEPT_PATCHES = 2048


class Norm(NamedTuple):
    """A layer norm's weight and bias."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the last axis; 1e-6 as in the published models."""
        return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, 1e-6)


@dataclass(slots=True, frozen=True)
class VisionBlock:
    """One transformer block's weights."""

    norm1: Norm
    qkv: Linear
    proj: Linear
    norm2: Norm
    fc1: Linear
    fc2: Linear


@dataclass(slots=True, frozen=True)
class Merger:
    """Joins merge_size**2 patches into one token; deepstack mergers normalise after joining."""

    norm: Norm
    fc1: Linear
    fc2: Linear
    norm_after_join: bool

    def __call__(self, hidden: Tensor) -> Tensor:
        """[num_patches, hidden] to [num_patches / merge_size**2, text hidden]."""
        width = self.fc1.in_features
        joined = (
            self.norm(hidden.view(-1, width))
            if self.norm_after_join
            else (self.norm(hidden).view(-1, width))
        )
        return self.fc2(self.fc1(joined))


class VisionGeometry(NamedTuple):
    """Sizes of the vision model. grid_side: side of the learned position grid."""

    num_heads: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    grid_side: int
    rope_theta: float


class VisionModel:
    """Encodes pictures; holds the weights and small tables per grid size."""

    def __init__(
        self,
        geometry: VisionGeometry,
        patch_embed: Linear,
        pos_embed: Tensor,
        blocks: Sequence[VisionBlock],
        merger: Merger,
        deepstack: dict[int, Merger],
        ops: Ops,
    ) -> None:
        """Take the weights; `deepstack` maps a block's number to the merger behind it."""
        self.geometry = geometry
        self.patch_embed = patch_embed
        self.pos_embed = pos_embed
        self.blocks = tuple(blocks)
        self.merger = merger
        self.deepstack = deepstack
        self.ops = ops
        self.device = pos_embed.device
        self.dtype = pos_embed.dtype
        # A few grids make up most traffic; the bound keeps the tables from growing with load.
        self._kept_tables = lru_cache(maxsize=32)(self._make_tables)

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """Encode pictures together.

        Args:
            pictures: uint8 [num_frames, height, width, 3] each, on any device.

        Returns:
            For each picture [num_tokens, 1 + num_deepstack, text hidden]: the merged features,
            then those of the deepstack layers.
        """
        order = sorted(range(len(pictures)), key=lambda i: pictures[i].shape[1:3])
        grids = [self._grid(pictures[i]) for i in order]
        hidden = self._embed([pictures[i] for i in order], grids)
        tables = [self._tables(rows, columns) for _, rows, columns in grids]
        cos, sin = (
            torch.cat(
                [table[axis].repeat(t, 1) for table, (t, _, _) in zip(tables, grids, strict=True)]
            )
            for axis in (1, 2)
        )
        groups = [
            (sum(t for t, _, _ in same), size[0] * size[1])
            for size, same in groupby(grids, key=lambda grid: grid[1:])
        ]
        features = self._run_blocks(hidden, cos, sin, groups)
        counts = [t * rows * columns // self.geometry.merge_size**2 for t, rows, columns in grids]
        encoded: list[Tensor] = [features] * len(pictures)
        for i, part in zip(order, features.split(counts), strict=True):
            # A copy: a view would keep the whole batch alive in the cache.
            encoded[i] = part.clone() if len(pictures) > 1 else part
        return encoded

    def _grid(self, pixels: Tensor) -> tuple[int, int, int]:
        frames, height, width, _ = pixels.shape
        size = self.geometry.patch_size
        return -(-frames // self.geometry.temporal_patch_size), height // size, width // size

    def _embed(self, pictures: Sequence[Tensor], grids: Sequence[tuple[int, int, int]]) -> Tensor:
        g = self.geometry
        rows = [
            patchify(
                pixels.to(self.device, non_blocking=True),
                patch_size=g.patch_size,
                merge_size=g.merge_size,
                temporal_patch_size=g.temporal_patch_size,
            )
            for pixels in pictures
        ]
        positions = [
            self._tables(height, width)[0].repeat(frames, 1) for frames, height, width in grids
        ]
        return self.patch_embed(torch.cat(rows).to(self.dtype)) + torch.cat(positions)

    def _run_blocks(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, groups: Sequence[tuple[int, int]]
    ) -> Tensor:
        """All blocks and mergers; groups are (number of frames, patches a frame), in row order."""
        deepstack: list[Tensor] = []
        attend = self._attention(groups)
        for number, block in enumerate(self.blocks):
            attended = self._attend(block.qkv(block.norm1(hidden)), cos, sin, attend)
            hidden = block.proj.add_to(hidden, attended)
            hidden = block.fc2.add_to(hidden, block.fc1(block.norm2(hidden)))
            if number in self.deepstack:
                deepstack.append(self.deepstack[number](hidden))
        return torch.stack([self.merger(hidden), *deepstack], dim=1)

    def _attend(self, qkv: Tensor, cos: Tensor, sin: Tensor, attend: FrameAttention) -> Tensor:
        heads = self.geometry.num_heads
        qkv = qkv.view(len(qkv), 3 * heads, -1)
        qk = self.ops.norm_rotate(qkv[:, : 2 * heads], None, cos, sin, 0.0)
        return attend(qk[:, :heads], qk[:, heads:], qkv[:, 2 * heads :])

    def _attention(self, groups: Sequence[tuple[int, int]]) -> FrameAttention:
        """Attention within frames, for all blocks of one pass."""
        if has_flash_attention(self.dtype, self.device):
            return PackedFrames(groups, self.device)
        return partial(self._attend_by_size, groups)

    def _attend_by_size(
        self, groups: Sequence[tuple[int, int]], q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        parts: list[Tensor] = []
        start = 0
        for frames, patches in groups:
            rows = slice(start, start + frames * patches)
            start = rows.stop
            same = (x[rows].view(frames, patches, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
            attended = self._attend_frames(*same).transpose(1, 2)
            parts.append(attended.reshape(frames * patches, -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend_frames(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each frame's patches to each other, [num_frames, num_heads, num_patches, head_dim]."""
        if self.device.type != "cpu":
            return functional.scaled_dot_product_attention(q, k, v)
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        scale = q.shape[-1] ** -0.5
        attended = dense_attention.attend(q[:, None], k, v, self.ops, scale=scale, first=None)
        return attended.view(-1, self.geometry.num_heads, *attended.shape[2:])

    def _tables(self, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
        # Of a large picture's time the tables are little, but of the memory they would be much.
        is_large = rows * columns > _MAX_KEPT_PATCHES
        return (self._make_tables if is_large else self._kept_tables)(rows, columns)

    def _make_tables(self, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
        """Position embedding [num_patches, hidden], cosines and sines, in merged-block order."""
        merge = self.geometry.merge_size
        row, column = torch.meshgrid(
            torch.arange(rows, device=self.device),
            torch.arange(columns, device=self.device),
            indexing="ij",
        )
        row, column = (
            x.reshape(rows // merge, merge, columns // merge, merge).transpose(1, 2).flatten()
            for x in (row, column)
        )
        head_dim = self.pos_embed.shape[1] // self.geometry.num_heads
        exponents = torch.arange(0, head_dim // 2, 2, device=self.device).float() / (head_dim // 2)
        inv_freq = 1.0 / self.geometry.rope_theta**exponents
        freqs = torch.cat((row[:, None] * inv_freq, column[:, None] * inv_freq), dim=-1)
        # transformers rotates vision heads in float32 whatever the weights' type.
        cos, sin = signed_angles(freqs)
        embedding = self._interpolate(row, rows, column, columns)
        return embedding, cos, sin

    def _interpolate(self, row: Tensor, rows: int, column: Tensor, columns: int) -> Tensor:
        """The learned square grid, bilinear with aligned corners, at these patches."""
        side = self.geometry.grid_side
        total = torch.zeros(1, device=self.device)
        row_taps, column_taps = _taps(row, rows, side), _taps(column, columns, side)
        for row_index, row_weight in row_taps:
            for column_index, column_weight in column_taps:
                weight = (row_weight * column_weight)[:, None]
                total = total + self.pos_embed[row_index * side + column_index] * weight
        return total.to(self.dtype)


def _taps(index: Tensor, size: int, side: int) -> list[tuple[Tensor, Tensor]]:
    """The two source cells of each target cell on one axis, and their weights."""
    source = index.float() * (side - 1) / max(size - 1, 1)
    low = source.floor()
    return [
        ((low.long() + tap).clamp(max=side - 1), (1 - (source - low - tap).abs()).clamp(min=0))
        for tap in (0, 1)
    ]

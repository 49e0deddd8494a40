"""The demo model's forward pass, written for training on a few CPU threads.

The same mathematics as transformers' Qwen3-VL over the same named weights (a test compares them),
but for batches whose pictures share one grid: dense attention, and the last layer only for the
rows that are asked for. Serving never uses it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads
from torch import Tensor

from inference.demo.labels import Grid

Weights = Mapping[str, Tensor]

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 192, 6, 2, 32, 4
VISION_HIDDEN, VISION_HEADS, VISION_HEAD_DIM, VISION_DEPTH = 128, 4, 32, 4
PATCH, MERGE, POSITION_SIDE = 16, 2, 16
DEEPSTACK = (1, 2)
MROPE_SECTION = (6, 5, 5)
ROPE_THETA = 10_000.0
BOUND_LAYER = 2
"""The text layer whose input names what was asked and whose attention finds where it is."""


class Sight(NamedTuple):
    """What the vision tower makes of pictures: [pictures, cells, hidden] each."""

    tokens: Tensor
    deepstack: tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Padded sequences: a shared prefix, then branches that do not see each other."""

    ids: Tensor  # [batch, length]
    positions: Tensor  # [3, batch, length]
    visible: Tensor  # [batch, length, length], True where a row may look
    image_slots: Tensor  # [visual tokens] flat index into batch * length
    rows: Tensor  # [batch, rows] the positions whose next token is asked for


class Reading(NamedTuple):
    """What the text model makes of a batch."""

    logits: Tensor  # [batch, rows, vocabulary]
    bound_input: Tensor  # [batch, length, hidden] normalised input of the bound layer
    bound_attention: Tensor  # [batch, heads, length, length] its attention
    after_bound: Tensor  # [batch, length, hidden] its output


def rotate_half(x: Tensor) -> Tensor:
    """Return (-second half, first half) of the last axis."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Scale to unit root mean square in fp32, as the checkpoint's own norm does."""
    return F.rms_norm(x, (x.shape[-1],), weight, 1e-6)


@lru_cache(maxsize=64)
def vision_rope(grid: Grid) -> tuple[Tensor, Tensor]:
    """Return cos and sin, [patches, head_dim], patches in merge-block order."""
    rows, columns = _patch_coordinates(grid)
    frequencies = 1.0 / ROPE_THETA ** (
        torch.arange(0, VISION_HEAD_DIM // 2, 2) / (VISION_HEAD_DIM // 2)
    )
    angles = torch.cat((rows[:, None] * frequencies, columns[:, None] * frequencies), dim=-1)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


@lru_cache(maxsize=64)
def position_taps(grid: Grid) -> Tensor:
    """Return the bilinear resampling of the learned positions: [patches, POSITION_SIDE ** 2]."""
    rows, columns = _patch_coordinates(grid)
    down = _axis_taps(rows, grid.height * MERGE)
    across = _axis_taps(columns, grid.width * MERGE)
    return (down[:, :, None] * across[:, None, :]).flatten(1)


def _patch_coordinates(grid: Grid) -> tuple[Tensor, Tensor]:
    blocks = torch.stack(
        torch.meshgrid(
            torch.arange(grid.height),
            torch.arange(grid.width),
            torch.arange(MERGE),
            torch.arange(MERGE),
            indexing="ij",
        )
    ).flatten(1)
    return blocks[0] * MERGE + blocks[2], blocks[1] * MERGE + blocks[3]


def _axis_taps(index: Tensor, length: int) -> Tensor:
    """Return linear weights on the learned positions for each index of an axis."""
    at = index.double() * (POSITION_SIDE - 1) / (length - 1)
    return (1 - (at[:, None] - torch.arange(POSITION_SIDE).double()).abs()).clamp(min=0).float()


def see(weights: Weights, pixels: Tensor, grid: Grid) -> Sight:
    """Run the vision tower on [pictures, patches, 3 * PATCH * PATCH] pixels of one grid."""
    prefix = "model.visual."
    w = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
    # A still picture fills both time steps of a patch, so their weights add up.
    kernel = w["patch_embed.proj.weight"].sum(dim=2).flatten(1)
    x = F.linear(pixels, kernel, w["patch_embed.proj.bias"])  # [pictures, patches, hidden]
    x = x + position_taps(grid).to(x.dtype) @ w["pos_embed.weight"]
    cos, sin = (t.to(x.dtype) for t in vision_rope(grid))
    deepstack = []
    for layer in range(VISION_DEPTH):
        x = _vision_block(w, f"blocks.{layer}.", x, cos, sin)
        if layer in DEEPSTACK:
            deepstack.append(
                _merge(w, f"deepstack_merger_list.{DEEPSTACK.index(layer)}.", x, late_norm=True)
            )
    return Sight(_merge(w, "merger.", x, late_norm=False), (deepstack[0], deepstack[1]))


def _vision_block(w: Weights, name: str, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pictures, patches, _ = x.shape
    h = F.layer_norm(x, (VISION_HIDDEN,), w[name + "norm1.weight"], w[name + "norm1.bias"], 1e-6)
    qkv = F.linear(h, w[name + "attn.qkv.weight"], w[name + "attn.qkv.bias"])
    qkv = qkv.view(pictures, patches, 3, VISION_HEADS, VISION_HEAD_DIM).permute(2, 0, 3, 1, 4)
    query_key = (
        qkv[:2] * cos + rotate_half(qkv[:2]) * sin
    )  # [2, pictures, heads, patches, head_dim]
    scores = query_key[0] @ query_key[1].transpose(-1, -2) * VISION_HEAD_DIM**-0.5
    mixed = (
        (scores.softmax(dim=-1) @ qkv[2]).transpose(1, 2).reshape(pictures, patches, VISION_HIDDEN)
    )
    x = x + F.linear(mixed, w[name + "attn.proj.weight"], w[name + "attn.proj.bias"])
    h = F.layer_norm(x, (VISION_HIDDEN,), w[name + "norm2.weight"], w[name + "norm2.bias"], 1e-6)
    h = F.gelu(
        F.linear(h, w[name + "mlp.linear_fc1.weight"], w[name + "mlp.linear_fc1.bias"]),
        approximate="tanh",
    )
    return x + F.linear(h, w[name + "mlp.linear_fc2.weight"], w[name + "mlp.linear_fc2.bias"])


def _merge(w: Weights, name: str, x: Tensor, *, late_norm: bool) -> Tensor:
    """Join each 2 x 2 block of patches into one token: [pictures, cells, HIDDEN]."""
    block = VISION_HIDDEN * MERGE**2
    x = x.reshape(x.shape[0], -1, block) if late_norm else x
    x = F.layer_norm(x, (x.shape[-1],), w[name + "norm.weight"], w[name + "norm.bias"], 1e-6)
    x = x.reshape(x.shape[0], -1, block)
    x = F.gelu(F.linear(x, w[name + "linear_fc1.weight"], w[name + "linear_fc1.bias"]))
    return F.linear(x, w[name + "linear_fc2.weight"], w[name + "linear_fc2.bias"])


def text_rope(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin, [batch, length, head_dim], of the interleaved three axes."""
    frequencies = 1.0 / ROPE_THETA ** (torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = positions[..., None] * frequencies  # [3, batch, length, head_dim / 2]
    mixed = angles[0].clone()
    for axis in (1, 2):
        taken = slice(axis, MROPE_SECTION[axis] * 3, 3)
        mixed[..., taken] = angles[axis][..., taken]
    mixed = torch.cat((mixed, mixed), dim=-1)
    return mixed.cos(), mixed.sin()


def read(weights: Weights, batch: TextBatch, sight: Sight | None) -> Reading:
    """Run the text model and return logits for the rows asked for."""
    prefix = "model.language_model."
    w = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
    x = F.embedding(batch.ids, w["embed_tokens.weight"])
    if sight is not None:
        x = _at_images(x, batch.image_slots, sight.tokens, replace=True)
    rope = tuple(t.to(x.dtype) for t in text_rope(batch.positions))
    hidden_pairs = torch.zeros_like(batch.visible, dtype=x.dtype).masked_fill_(~batch.visible, -1e4)
    bound_input = bound_attention = after_bound = x
    for layer in range(LAYERS):
        rows = batch.rows if layer == LAYERS - 1 else None
        h = rms_norm(x, w[f"layers.{layer}.input_layernorm.weight"])
        x, attention = _text_layer(
            w, f"layers.{layer}.", x, h, (rope[0], rope[1]), hidden_pairs, rows
        )
        if sight is not None and layer < len(sight.deepstack):
            x = _at_images(x, batch.image_slots, sight.deepstack[layer], replace=False)
        if layer == BOUND_LAYER:
            bound_input, bound_attention, after_bound = h, attention, x
    x = rms_norm(x, w["norm.weight"])
    return Reading(F.linear(x, w["embed_tokens.weight"]), bound_input, bound_attention, after_bound)


def _at_images(x: Tensor, slots: Tensor, visual: Tensor, *, replace: bool) -> Tensor:
    flat, added = x.flatten(0, 1), visual.flatten(0, 1)
    flat = flat.index_copy(0, slots, added) if replace else flat.index_add(0, slots, added)
    return flat.view_as(x)


def _text_layer(
    w: Weights,
    name: str,
    x: Tensor,
    h: Tensor,
    rope: tuple[Tensor, Tensor],
    hidden_pairs: Tensor,
    rows: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return a layer's output and attention; for `rows` only, where they are given."""
    batch, length, _ = x.shape
    key = F.linear(h, w[name + "self_attn.k_proj.weight"]).view(batch, length, KV_HEADS, HEAD_DIM)
    value = F.linear(h, w[name + "self_attn.v_proj.weight"]).view(batch, length, KV_HEADS, HEAD_DIM)
    cos, sin = (t[:, :, None, :] for t in rope)
    key = rms_norm(key, w[name + "self_attn.k_norm.weight"])
    key = key * cos + rotate_half(key) * sin
    if rows is not None:
        h, x = _take(h, rows), _take(x, rows)
        cos, sin = _take(rope[0], rows)[:, :, None], _take(rope[1], rows)[:, :, None]
        hidden_pairs = _take(hidden_pairs, rows)
    query = F.linear(h, w[name + "self_attn.q_proj.weight"]).view(batch, -1, HEADS, HEAD_DIM)
    query = rms_norm(query, w[name + "self_attn.q_norm.weight"])
    query = (query * cos + rotate_half(query) * sin) * HEAD_DIM**-0.5
    # Query heads that share a key are folded into its rows: [batch, kv, group * rows, head_dim].
    group, asked = HEADS // KV_HEADS, query.shape[1]
    query = query.transpose(1, 2).reshape(batch, KV_HEADS, group * asked, HEAD_DIM)
    scores = (query @ key.permute(0, 2, 3, 1)).view(batch, HEADS, asked, length)
    attention = (scores + hidden_pairs[:, None]).softmax(dim=-1)
    mixed = attention.view(batch, KV_HEADS, group * asked, length) @ value.transpose(1, 2)
    mixed = (
        mixed.view(batch, HEADS, asked, HEAD_DIM)
        .transpose(1, 2)
        .reshape(batch, asked, HEADS * HEAD_DIM)
    )
    x = x + F.linear(mixed, w[name + "self_attn.o_proj.weight"])
    h = rms_norm(x, w[name + "post_attention_layernorm.weight"])
    gate = F.silu(F.linear(h, w[name + "mlp.gate_proj.weight"]))
    h = F.linear(
        gate * F.linear(h, w[name + "mlp.up_proj.weight"]), w[name + "mlp.down_proj.weight"]
    )
    return x + h, attention


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """Gather rows of the second axis: [batch, length, n] to [batch, rows, n]."""
    return x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[-1]))


def patchify(pixels: Tensor, grid: Grid) -> Tensor:
    """Cut uint8 [pictures, height, width, 3] into normalised patches in merge-block order."""
    pictures = pixels.shape[0]
    x = (pixels.float() / 255.0 - 0.5) / 0.5
    x = x.view(pictures, grid.height, MERGE, PATCH, grid.width, MERGE, PATCH, 3)
    return x.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(pictures, -1, 3 * PATCH * PATCH)

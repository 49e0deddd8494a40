"""The demo model before training: its configuration and its first weights."""

import math
from itertools import product

import torch
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from inference.demo.labels import BOX_BINS
from inference.demo.network import (
    DEEPSTACK,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    MERGE,
    MROPE_SECTION,
    PATCH,
    POSITION_SIDE,
    ROPE_THETA,
    VISION_DEPTH,
    VISION_HEAD_DIM,
    VISION_HEADS,
    VISION_HIDDEN,
)
from inference.demo.tokenizer import IDS, VOCABULARY_SIZE
from inference.demo.vocabulary import (
    CHARACTERS,
    COLORS,
    MAX_LETTERS,
    MAX_SHAPES,
    PLACES,
    SHAPES,
)

MAX_LENGTH = 4096

CELL_CLASSES = {
    "color": len(COLORS),
    "shape": len(SHAPES),
    "left_character": len(CHARACTERS),
    "right_character": len(CHARACTERS),
    "left_index": MAX_LETTERS,
    "right_index": MAX_LETTERS,
    "rank": MAX_SHAPES,
    "place": len(PLACES),
    "num_shapes": MAX_SHAPES + 1,
    "num_characters": MAX_LETTERS + 1,
    "background": len(COLORS),
}
"""Outputs of a cell head after its first, the item's middle; then 4 x BOX_BINS for the box."""

CELL_OUTPUTS = 1 + sum(CELL_CLASSES.values()) + 4 * BOX_BINS
CELL_LEVELS = ("tokens", "deepstack0", "deepstack1")
PAIR_OUTPUTS = 2 * (len(COLORS) + len(SHAPES))


def build_config() -> Qwen3VLConfig:
    """Return the configuration of the demo model, 3.7 million parameters."""
    return Qwen3VLConfig(
        text_config={
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": HIDDEN,
            "intermediate_size": 512,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": MAX_LENGTH,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": ROPE_THETA,
                "mrope_section": list(MROPE_SECTION),
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "bos_token_id": IDS.end_of_text,
            "eos_token_id": IDS.im_end,
        },
        vision_config={
            "depth": VISION_DEPTH,
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": 384,
            "num_heads": VISION_HEADS,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": POSITION_SIDE**2,
            "deepstack_visual_indexes": list(DEEPSTACK),
        },
        image_token_id=IDS.image_pad,
        video_token_id=IDS.video_pad,
        vision_start_token_id=IDS.vision_start,
        vision_end_token_id=IDS.vision_end,
        tie_word_embeddings=True,
    )


def first_weights(seed: int) -> dict[str, Tensor]:
    """Return fp32 weights under transformers' names, ready to learn from.

    Most are plain fan-in normals. The first three vision blocks start out attending to
    neighbouring patches, which spares them half of what the pictures have to teach.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {
            name: tuple(parameter.shape)
            for name, parameter in Qwen3VLForConditionalGeneration(
                build_config()
            ).named_parameters()
            if name != "lm_head.weight"
        }
    weights = {name: _first_weight(name, shape, generator) for name, shape in shapes.items()}
    weights["model.visual.pos_embed.weight"] = _first_positions(generator)
    for block, offsets in enumerate(_NEIGHBOURS):
        name = f"model.visual.blocks.{block}.attn.qkv"
        weights[name + ".weight"][: 2 * VISION_HIDDEN] *= 0.6
        weights[name + ".bias"] = _neighbour_bias(offsets, strength=0.6 if block == 2 else 1.0)
    return weights


def first_heads(seed: int) -> dict[str, Tensor]:
    """Return the linear heads that only training has: cell labels and what was asked."""
    generator = torch.Generator().manual_seed(seed + 1)
    outputs = {f"heads.{level}": CELL_OUTPUTS for level in CELL_LEVELS}
    outputs |= {"heads.asked": len(COLORS) + len(SHAPES), "heads.pair": PAIR_OUTPUTS}
    heads = {}
    for name, size in outputs.items():
        heads[name + ".weight"] = torch.randn(size, HIDDEN, generator=generator) / HIDDEN**0.5
        heads[name + ".bias"] = torch.zeros(size)
    return heads


def _first_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    if "embed_tokens" in name:
        return torch.randn(shape, generator=generator) * 0.02
    scale = math.prod(shape[1:]) ** -0.5
    if name.endswith(
        ("attn.proj.weight", "mlp.linear_fc2.weight", "o_proj.weight", "down_proj.weight")
    ):
        scale /= math.sqrt(2 * LAYERS)
    return torch.randn(shape, generator=generator) * scale


def _first_positions(generator: torch.Generator) -> Tensor:
    """Mix x, y and a few waves of them at random: [POSITION_SIDE ** 2, VISION_HIDDEN]."""
    axis = torch.linspace(-1, 1, POSITION_SIDE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    features = [x, y]
    for k, wave, coordinate in product((0.5, 1, 2, 3), (torch.sin, torch.cos), (x, y)):
        features.append(wave(math.pi * k * coordinate))
    basis = torch.stack(features, dim=-1).flatten(0, 1)  # [positions, features]
    mixed = basis @ torch.randn(basis.shape[1], VISION_HIDDEN, generator=generator)
    return mixed * (0.4 / mixed.std())


# Per block and head, the patch (down, right) of the querying one that it looks at first.
_NEIGHBOURS = (
    ((-1, 0), (1, 0), (0, -1), (0, 1)),
    ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    ((-2, 0), (2, 0), (0, -2), (0, 2)),
)
_NEIGHBOUR_SCORES = (2.5, 6.0)
"""Peak attention score carried by the first and second rotary frequency of an axis."""


def _neighbour_bias(offsets: tuple[tuple[int, int], ...], strength: float) -> Tensor:
    """Return the q, k, v bias whose rotary score peaks at each head's offset."""
    bias = torch.zeros(3, VISION_HEADS, VISION_HEAD_DIM)
    per_axis = VISION_HEAD_DIM // 4
    for head, axis, pair in product(range(VISION_HEADS), range(2), range(len(_NEIGHBOUR_SCORES))):
        frequency = ROPE_THETA ** (-pair / per_axis)
        size = math.sqrt(strength * _NEIGHBOUR_SCORES[pair] * math.sqrt(VISION_HEAD_DIM))
        real, imaginary = axis * per_axis + pair, axis * per_axis + pair + VISION_HEAD_DIM // 2
        angle = frequency * offsets[head][axis]
        bias[0, head, real], bias[0, head, imaginary] = (
            size * math.cos(angle),
            size * math.sin(angle),
        )
        bias[1, head, real] = size
    return bias.flatten()

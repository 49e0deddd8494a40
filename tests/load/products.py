"""A step's matrix products alone: the model's linear layers with nothing between them."""

from collections.abc import Callable

import torch
from torch import Tensor

from inference.decoder import DenseMlp, TextModel
from inference.linear import Linear
from inference.vision import VisionModel


def text_products(model: TextModel, num_rows: int, num_logits: int) -> Callable[[], None]:
    """All linear layers of a text step over the same number of rows."""
    layers: list[Linear] = []
    for layer in model.layers:
        layers += [layer.qkv, layer.output]
        if isinstance(layer.mlp, DenseMlp):
            layers += [layer.mlp.gate_up, layer.mlp.down]
    return _products(
        [(linear, num_rows) for linear in layers] + [(model.head, num_logits)], model.embed
    )


def vision_products(model: VisionModel, num_patches: int) -> Callable[[], None]:
    """All linear layers of a vision step over the same number of patches."""
    work = [(model.patch_embed, num_patches)]
    for block in model.blocks:
        work += [(linear, num_patches) for linear in (block.qkv, block.proj, block.fc1, block.fc2)]
    num_tokens = num_patches // model.geometry.merge_size**2
    for merger in (model.merger, *model.deepstack.values()):
        work += [(merger.fc1, num_tokens), (merger.fc2, num_tokens)]
    return _products(work, model.pos_embed)


def _products(work: list[tuple[Linear, int]], like: Tensor) -> Callable[[], None]:
    inputs = [(linear, torch.randn(rows, linear.in_features).to(like)) for linear, rows in work]

    def run() -> None:
        for linear, x in inputs:
            linear(x)

    return torch.inference_mode()(run)

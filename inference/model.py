"""Loading a checkpoint: transformers' classes in, our two thin forwards out.

The only file that knows transformers' module names. Weights are taken over layer by layer and each
source is dropped as soon as it is laid out, so loading never holds the model twice.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from inference.decoder import DenseMlp, ExpertsMlp, TextGeometry, TextLayer, TextModel
from inference.device import DeviceError
from inference.kernels import CpuKernels, load_kernels
from inference.linear import Activation, Linear
from inference.ops import Ops, TorchOps
from inference.rope import TextRotary
from inference.vision import Merger, Norm, VisionBlock, VisionGeometry, VisionModel

# Attributes of transformers' modules are untyped.
Source: TypeAlias = Any

_ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


class Model(NamedTuple):
    """A checkpoint ready to run.

    kernels: our own for the CPU, or None. bytes_per_visual_token: what its features of one take.
    """

    text: TextModel
    vision: VisionModel
    kernels: CpuKernels | None
    dtype: torch.dtype
    device: torch.device
    bytes_per_visual_token: int


def load_model(
    path: Path, *, dtype: torch.dtype, device: torch.device, device_map: str | None = None
) -> Model:
    """Load weights with transformers and take them over.

    Args:
        path: a folder with a `qwen3_vl` or `qwen3_vl_moe` checkpoint.
        dtype: of all weights.
        device: where they go.
        device_map: accelerate's plan for several GPUs, or None.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    # A terminal has the supervisor's line with the stage; in a log a bar would be no event.
    logging.disable_progress_bar()
    source = AutoModelForImageTextToText.from_pretrained(
        path, dtype=dtype, device_map=device_map or {"": device}, attn_implementation="sdpa"
    )
    return take_over(source)


@torch.no_grad()
def take_over(source: Source) -> Model:
    """Turn a transformers model into ours; its modules are empty afterwards.

    Args:
        source: `Qwen3VLForConditionalGeneration` or `Qwen3VLMoeForConditionalGeneration`.
    """
    devices = {parameter.device for parameter in source.parameters()}
    if len(devices) > 1:
        # Our forwards keep hidden states where they are.
        raise DeviceError(
            f"the model does not fit one device (it was spread over {len(devices)}): choose a "
            "smaller model of the family or a device with more memory"
        )
    source.eval()
    if source.config.model_type == "qwen3_vl_moe":
        # The default depends on the caller being `generate`; grouped reads each expert once.
        source.set_experts_implementation("grouped_mm")
    embed = source.model.language_model.embed_tokens.weight
    kernels = load_kernels(embed.dtype) if embed.device.type == "cpu" else None
    ops = kernels or _device_ops(embed.device)
    vision = _take_vision(source.model.visual, ops)
    text = _take_text(source.model.language_model, source.lm_head, ops)
    num_features = 1 + len(vision.deepstack)
    return Model(
        text=text,
        vision=vision,
        kernels=kernels,
        dtype=text.embed.dtype,
        device=text.embed.device,
        bytes_per_visual_token=num_features * text.embed.shape[1] * text.embed.element_size(),
    )


def _device_ops(device: torch.device) -> Ops:
    if device.type != "cuda":
        return TorchOps()
    # Triton comes with torch's CUDA build alone.
    from inference.cuda.ops import CudaOps

    return CudaOps()


def _take_text(source: Source, head: nn.Linear, ops: Ops) -> TextModel:
    config = source.config
    geometry = TextGeometry(
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
    )
    rotary = source.rotary_emb
    embed = source.embed_tokens.weight.detach()
    return TextModel(
        geometry=geometry,
        rotary=TextRotary(
            rotary.inv_freq, rotary.mrope_section, rotary.attention_scaling, embed.device
        ),
        embed=embed,
        layers=[_take_layer(layer, geometry) for layer in source.layers],
        norm=source.norm.weight.detach(),
        head=Linear(head.weight),
        ops=ops,
    )


def _take_layer(source: Source, geometry: TextGeometry) -> TextLayer:
    attention = source.self_attn
    head_norm = torch.cat(
        (
            attention.q_norm.weight.expand(geometry.num_heads, -1),
            attention.k_norm.weight.expand(geometry.num_kv_heads, -1),
        )
    )
    return TextLayer(
        input_norm=source.input_layernorm.weight.detach(),
        qkv=_fuse(attention.q_proj, attention.k_proj, attention.v_proj),
        head_norm=head_norm,
        output=_fuse(attention.o_proj),
        post_attention_norm=source.post_attention_layernorm.weight.detach(),
        mlp=_take_mlp(source.mlp),
    )


def _take_mlp(source: Source) -> DenseMlp | ExpertsMlp:
    if hasattr(source, "experts"):
        return ExpertsMlp(source)
    return DenseMlp(_fuse(source.gate_proj, source.up_proj), _fuse(source.down_proj))


def _take_vision(source: Source, ops: Ops) -> VisionModel:
    config = source.config
    activation = _ACTIVATIONS[config.hidden_act]
    geometry = VisionGeometry(
        num_heads=config.num_heads,
        patch_size=config.patch_size,
        merge_size=config.spatial_merge_size,
        temporal_patch_size=config.temporal_patch_size,
        grid_side=int(config.num_position_embeddings**0.5),
        rope_theta=_vision_rope_theta(config),
    )
    patch_embed = source.patch_embed.proj
    return VisionModel(
        geometry=geometry,
        patch_embed=Linear(patch_embed.weight.flatten(1), patch_embed.bias),
        pos_embed=source.pos_embed.weight.detach(),
        blocks=[_take_block(block, activation) for block in source.blocks],
        merger=_take_merger(source.merger),
        deepstack={
            layer: _take_merger(merger)
            for layer, merger in zip(
                config.deepstack_visual_indexes, source.deepstack_merger_list, strict=True
            )
        },
        ops=ops,
    )


def _take_block(source: Source, activation: Activation) -> VisionBlock:
    return VisionBlock(
        norm1=_take_norm(source.norm1),
        qkv=_fuse(source.attn.qkv),
        proj=_fuse(source.attn.proj),
        norm2=_take_norm(source.norm2),
        fc1=_fuse(source.mlp.linear_fc1, activation=activation),
        fc2=_fuse(source.mlp.linear_fc2),
    )


def _take_merger(source: Source) -> Merger:
    return Merger(
        norm=_take_norm(source.norm),
        fc1=_fuse(source.linear_fc1, activation="gelu"),
        fc2=_fuse(source.linear_fc2),
        norm_after_join=source.use_postshuffle_norm,
    )


def _take_norm(source: nn.LayerNorm) -> Norm:
    return Norm(source.weight.detach(), source.bias.detach())


def _fuse(*sources: nn.Linear, activation: Activation = "none") -> Linear:
    """Several projections of one input as one layer; empties the sources."""
    weight = _joined([source.weight for source in sources])
    biases = [source.bias for source in sources if source.bias is not None]
    linear = Linear(weight, _joined(biases) if biases else None, activation)
    for source in sources:
        source.weight.data = source.weight.new_empty(0)
    return linear


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0].detach() if len(parts) == 1 else torch.cat([part.detach() for part in parts])


def _vision_rope_theta(config: Source) -> float:
    # Older transformers keep the vision model's base, which no checkpoint changes, in code.
    parameters = getattr(config, "rope_parameters", None) or {}
    return float(parameters.get("rope_theta", 10000.0))

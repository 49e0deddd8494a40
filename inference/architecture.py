"""What a checkpoint is, in numbers: the Qwen3-VL family, dense and mixture of experts.

A leaf: no files, no weights, no torch.
"""

from typing import Annotated, TypeAlias

import msgspec

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
TokenId: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class TextArchitecture(msgspec.Struct, frozen=True, kw_only=True):
    """The language model's numbers; names as in config.json's text_config.

    rope_type, rope_theta, mrope_section: from either spelling of the rotary settings; the section
        is how many frequencies belong to time, height and width.
    num_experts: 0 in a dense model. A layer is sparse unless mlp_only_layers names it or
        decoder_sparse_step skips it.
    """

    num_hidden_layers: Positive
    hidden_size: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    head_dim: Positive
    intermediate_size: Positive
    vocab_size: Positive
    max_position_embeddings: Positive
    rope_theta: float
    rope_type: str
    mrope_section: tuple[Positive, Positive, Positive]
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    attention_bias: bool = False
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    decoder_sparse_step: Positive = 1
    mlp_only_layers: tuple[int, ...] = ()

    @property
    def num_sparse_layers(self) -> int:
        """Layers with experts. Source: transformers 5.23 `Qwen3VLMoeTextDecoderLayer.__init__`."""
        if self.num_experts == 0:
            return 0
        return sum(
            layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0
            for layer in range(self.num_hidden_layers)
        )


class VisionArchitecture(msgspec.Struct, frozen=True, kw_only=True):
    """The vision tower's numbers; names as in config.json's vision_config."""

    depth: Positive
    hidden_size: Positive
    num_heads: Positive
    intermediate_size: Positive
    patch_size: Positive
    spatial_merge_size: Positive
    temporal_patch_size: Positive
    out_hidden_size: Positive
    num_position_embeddings: Positive
    deepstack_visual_indexes: tuple[int, ...]
    in_channels: Positive = 3
    hidden_act: str = "gelu_pytorch_tanh"


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint's facts that do not depend on the server's settings.

    dtype: of the stored weights. min_pixels, max_pixels: picture area bounds.
    temperature .. repetition_penalty: generation defaults; temperature 0 where it does not sample.
    """

    model_type: str
    dtype: str
    tie_word_embeddings: bool
    text: TextArchitecture
    vision: VisionArchitecture
    image_token_id: TokenId
    video_token_id: TokenId
    vision_start_token_id: TokenId
    vision_end_token_id: TokenId
    eos_token_ids: tuple[TokenId, ...]
    min_pixels: Positive
    max_pixels: Positive
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float


def count_parameters(architecture: Architecture) -> int:
    """Count the parameters exactly; tied embeddings once.

    Source: the modules of transformers 5.23 `modeling_qwen3_vl` and `modeling_qwen3_vl_moe`;
    tests/inference/checkpoint/test_architecture.py proves equality.
    """
    text = architecture.text
    embedding = text.vocab_size * text.hidden_size
    head = 0 if architecture.tie_word_embeddings else embedding
    return embedding + head + _text_parameters(text) + _vision_parameters(architecture.vision)


def describe(architecture: Architecture) -> str:
    """Say in one line what the model is."""
    text, vision = architecture.text, architecture.vision
    experts = (
        f"{text.num_experts} experts x {text.moe_intermediate_size}, "
        f"{text.num_experts_per_tok} active"
        if text.num_sparse_layers
        else f"MLP {text.intermediate_size}"
    )
    millions = count_parameters(architecture) / 1e6
    size = f"{millions / 1e3:.3f} B" if millions >= 1e3 else f"{millions:.2f} M"
    return (
        f"{architecture.model_type}, {size} parameters in "
        f"{architecture.dtype}; text {text.num_hidden_layers} layers x {text.hidden_size}, "
        f"{text.num_attention_heads} heads / {text.num_key_value_heads} KV x {text.head_dim}, "
        f"{experts}, vocabulary {text.vocab_size}; vision {vision.depth} layers x "
        f"{vision.hidden_size}, deepstack {list(vision.deepstack_visual_indexes)}"
    )


def _text_parameters(text: TextArchitecture) -> int:
    hidden = text.hidden_size
    query = text.num_attention_heads * text.head_dim
    key_value = text.num_key_value_heads * text.head_dim
    attention = hidden * (query + 2 * key_value) + query * hidden + 2 * text.head_dim
    if text.attention_bias:
        attention += query + 2 * key_value + hidden
    dense_mlp = 3 * hidden * text.intermediate_size
    experts = text.num_experts * (3 * hidden * text.moe_intermediate_size + hidden)  # and router
    sparse = text.num_sparse_layers
    layers = text.num_hidden_layers
    norms = (2 * layers + 1) * hidden
    return layers * attention + (layers - sparse) * dense_mlp + sparse * experts + norms


def _vision_parameters(vision: VisionArchitecture) -> int:
    hidden, inner = vision.hidden_size, vision.intermediate_size
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    block = (
        4 * hidden  # two layer norms
        + 4 * hidden * (hidden + 1)  # query, key, value and projection
        + inner * (hidden + 1)
        + hidden * (inner + 1)
    )
    merged = hidden * vision.spatial_merge_size**2
    projection = merged * (merged + 1) + vision.out_hidden_size * (merged + 1)
    deepstack = len(vision.deepstack_visual_indexes) * (2 * merged + projection)
    return (
        hidden * (patch + 1)
        + vision.num_position_embeddings * hidden
        + vision.depth * block
        + (2 * hidden + projection)
        + deepstack
    )

"""What a model's parts take in memory: weights, KV tokens, and one step's activations, in bytes.

Pure arithmetic; activations are bounded from above as our own forwards hold them.
"""

from inference.architecture import DTYPE_BYTES, Architecture, count_parameters
from inference.checkpoint import chosen_dtype, picture_bounds
from inference.config import EngineConfig

FLOAT32_BYTES = DTYPE_BYTES["float32"]
# Attention scores that may exist at a time; 16 MiB of bfloat16.
MAX_SCORES = 8 * 1024 * 1024


def token_bytes(architecture: Architecture, config: EngineConfig) -> int:
    """Keys and values of one token in every layer."""
    text = architecture.text
    return (
        2
        * text.num_hidden_layers
        * text.num_key_value_heads
        * text.head_dim
        * _width(architecture, config)
    )


def block_bytes(architecture: Architecture, config: EngineConfig) -> int:
    """One KV block: keys and values of block_size tokens in every layer."""
    return token_bytes(architecture, config) * config.block_size


def weights_bytes(architecture: Architecture, config: EngineConfig, device: str) -> int:
    """All parameters; on a CPU the packed output head is a second copy of tied embeddings."""
    text = architecture.text
    count = count_parameters(architecture)
    if device == "cpu" and architecture.tie_word_embeddings:
        count += text.vocab_size * text.hidden_size
    return count * _width(architecture, config)


def prefill_bytes(architecture: Architecture, config: EngineConfig) -> int:
    """Activations of the largest prefill chunk in one decoder layer, attention's scores apart.

    A token holds its residual and normed row (also in float32, as the norm computes), its queries,
    keys and values plain and rotated; beside them either what rotation takes, or attention's output
    and the MLP's fused gate and up, their halves' product and its factor, or as much for each
    active expert, which works on copies of the row; and its visual features.
    Source: `inference.decoder`; transformers 5.23 `grouped_mm_experts_forward`. test_footprint.py
    measures both.
    """
    text = architecture.text
    hidden = text.hidden_size
    query = text.num_attention_heads * text.head_dim
    key_value = text.num_key_value_heads * text.head_dim
    rotation = 4 * (query + key_value)
    mlp = 4 * text.intermediate_size
    if text.num_sparse_layers:
        expert = max(4 * hidden, hidden + 4 * text.moe_intermediate_size)
        mlp = max(mlp, text.num_experts_per_tok * expert)
    visual = _num_features(architecture) * hidden
    elements = (
        (2 * hidden + visual)
        + (query + 2 * key_value)
        + (query + key_value)
        + max(rotation, query + hidden + mlp)
    )
    token = _width(architecture, config) * elements + FLOAT32_BYTES * 2 * hidden
    return config.step_tokens * token


def vision_bytes(architecture: Architecture, config: EngineConfig) -> int:
    """Activations of one vision step: as many patches as a step takes, or one largest picture.

    A patch first holds its pixels as bytes, twice in float32 and once cast; later its residual and
    normed row with either queries, keys, values and their rotation in float32, or the MLP's two
    inner rows; and its share of the merged and deepstack features.
    Source: `inference.vision`; test_footprint.py measures it.
    """
    vision = architecture.vision
    hidden = vision.hidden_size
    width = _width(architecture, config)
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    embedding = pixels * (1 + 2 * FLOAT32_BYTES + width)
    attention = width * 3 * hidden + FLOAT32_BYTES * 6 * hidden
    mlp = width * 2 * vision.intermediate_size
    outputs = _num_features(architecture) * vision.out_hidden_size // vision.spatial_merge_size**2
    patch = width * (2 * hidden + 2 * outputs) + max(embedding, attention, mlp)
    _, max_pixels = picture_bounds(architecture, config)
    return max(config.step_patches, max_pixels // vision.patch_size**2) * patch


def logits_bytes(architecture: Architecture, config: EngineConfig) -> int:
    """Logits of every running sequence, and their float32 copy, penalties' and softmax's rows."""
    row = _width(architecture, config) + 3 * FLOAT32_BYTES
    return config.max_num_seqs * architecture.text.vocab_size * row


def scores_bytes(architecture: Architecture, config: EngineConfig) -> int:
    """Attention scores of a slice of prompt or picture: plain, masked, scaled, weights, in float32.

    Source: `inference.dense_attention`, `inference.ops`.
    """
    return MAX_SCORES * (4 * _width(architecture, config) + FLOAT32_BYTES)


def attention_bytes(architecture: Architecture, config: EngineConfig, *, num_tokens: int) -> int:
    """What attention copies out of a pool of num_tokens.

    One layer's keys and values, padded to at most twice their length. Sequences that share a prefix
    are gathered one by one and may exceed this.
    Source: `inference.attention`.
    """
    layer = token_bytes(architecture, config) // architecture.text.num_hidden_layers
    return 2 * num_tokens * layer


def _width(architecture: Architecture, config: EngineConfig) -> int:
    return DTYPE_BYTES[chosen_dtype(architecture, config)]


def _num_features(architecture: Architecture) -> int:
    """Rows a visual token brings: its embedding and one for each deepstack layer."""
    return 1 + len(architecture.vision.deepstack_visual_indexes)

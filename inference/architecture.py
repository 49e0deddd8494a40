"""What a checkpoint is, read from its JSON files alone: no weights, no torch.

Knows the Qwen3-VL family, dense and mixture of experts, in the spellings of transformers 4.57 and
5.x. Everything it cannot serve it refuses by name.
"""

from pathlib import Path
from typing import Annotated, TypeAlias, TypeVar

import msgspec

MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
TokenId: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
JsonObject: TypeAlias = dict[str, object]
Shape = TypeVar("Shape")


class CheckpointError(Exception):
    """The checkpoint cannot be served; the message tells a person what is wrong and what to do."""


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


class _Model(msgspec.Struct, frozen=True):
    """config.json's top level."""

    image_token_id: TokenId
    video_token_id: TokenId
    vision_start_token_id: TokenId
    vision_end_token_id: TokenId
    tie_word_embeddings: bool = False


class _Size(msgspec.Struct, frozen=True):
    """The processor's bounds: areas, whatever their names say."""

    shortest_edge: Positive | None = None
    longest_edge: Positive | None = None


class _Processor(msgspec.Struct, frozen=True):
    """preprocessor_config.json; min_pixels and max_pixels are the older spelling of size."""

    patch_size: Positive
    merge_size: Positive
    temporal_patch_size: Positive
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    size: _Size = _Size()
    min_pixels: Positive | None = None
    max_pixels: Positive | None = None


class _Generation(msgspec.Struct, frozen=True):
    """generation_config.json. Without do_sample, transformers is greedy, and so are we."""

    do_sample: bool | None = False
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    top_k: int | None = 0
    repetition_penalty: float | None = 1.0


def read_architecture(folder: Path) -> Architecture:
    """Read config.json, preprocessor_config.json and generation_config.json of one folder.

    Raises:
        CheckpointError: a file is missing or malformed, or describes what cannot be served.
    """
    config = _read_json(folder / "config.json")
    _refuse_unsupported(config)
    text_config = _section(config, "text_config")
    model = _convert(config, _Model, "config.json")
    text = _convert(_text_fields(text_config), TextArchitecture, "text_config of config.json")
    vision = _convert(
        _section(config, "vision_config"), VisionArchitecture, "vision_config of config.json"
    )
    processor = _read_processor(folder)
    _check_consistency(text, vision, processor)
    generation_config = _read_json(folder / "generation_config.json", optional=True)
    generation = _convert(generation_config, _Generation, "generation_config.json")
    return Architecture(
        model_type=str(config["model_type"]),
        dtype=_stored_dtype(config, text_config),
        tie_word_embeddings=model.tie_word_embeddings,
        text=text,
        vision=vision,
        image_token_id=model.image_token_id,
        video_token_id=model.video_token_id,
        vision_start_token_id=model.vision_start_token_id,
        vision_end_token_id=model.vision_end_token_id,
        eos_token_ids=_eos_token_ids(generation_config, config, text_config),
        min_pixels=_bound(processor.min_pixels, processor.size.shortest_edge, "shortest_edge"),
        max_pixels=_bound(processor.max_pixels, processor.size.longest_edge, "longest_edge"),
        temperature=(1.0 if generation.temperature is None else generation.temperature)
        if generation.do_sample
        else 0.0,
        top_p=1.0 if generation.top_p is None else generation.top_p,
        top_k=generation.top_k or 0,
        repetition_penalty=generation.repetition_penalty or 1.0,
    )


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


def _refuse_unsupported(config: JsonObject) -> None:
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"this checkpoint is a {model_type!r} model; served are {' and '.join(MODEL_TYPES)}, "
            "the Qwen3-VL family"
        )
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise CheckpointError(
            f"this checkpoint is quantised ({method or 'unknown method'}), which is not supported; "
            "choose the same model without quantisation (for example the name without -FP8)"
        )


def _text_fields(text: JsonObject) -> JsonObject:
    """Bring both spellings of text_config to the names of `TextArchitecture`.

    transformers 5.x writes rope_parameters and num_local_experts, 4.57 wrote rope_theta beside
    rope_scaling and num_experts.
    """
    fields = {key: value for key, value in text.items() if value is not None}
    rope: JsonObject = {"rope_theta": fields.get("rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):
        settings = fields.get(key)
        if isinstance(settings, dict):
            rope |= settings
    if "num_local_experts" in fields:
        fields.setdefault("num_experts", fields["num_local_experts"])
    return fields | {
        "rope_theta": rope["rope_theta"],
        "rope_type": rope.get("rope_type", rope.get("type", "default")),
        "mrope_section": rope.get("mrope_section", (24, 20, 20)),
    }


def _check_consistency(
    text: TextArchitecture, vision: VisionArchitecture, processor: _Processor
) -> None:
    if text.rope_type not in ("default", "mrope"):
        raise CheckpointError(
            f"rotary scaling {text.rope_type!r} is not supported; remove it from config.json to "
            f"serve the model at its own {text.max_position_embeddings} tokens"
        )
    if 2 * sum(text.mrope_section) != text.head_dim:
        raise CheckpointError(
            f"config.json: mrope_section {list(text.mrope_section)} must add up to half of "
            f"head_dim {text.head_dim}"
        )
    if text.num_attention_heads % text.num_key_value_heads:
        raise CheckpointError("config.json: the key-value heads do not divide the attention heads")
    if vision.out_hidden_size != text.hidden_size:
        raise CheckpointError("config.json: vision out_hidden_size differs from text hidden_size")
    if {*processor.image_mean, *processor.image_std} != {0.5}:
        raise CheckpointError(
            "preprocessor_config.json: image_mean and image_std must be 0.5, as in every "
            "published Qwen3-VL"
        )
    if text.hidden_act != "silu" or vision.hidden_act not in ("gelu", "gelu_pytorch_tanh"):
        raise CheckpointError(
            f"config.json: activations {text.hidden_act!r} and {vision.hidden_act!r} are not "
            "supported together; Qwen3-VL has silu and gelu_pytorch_tanh"
        )
    grid = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    if grid != (processor.patch_size, processor.merge_size, processor.temporal_patch_size):
        raise CheckpointError(
            "preprocessor_config.json and config.json disagree on the patch, merge or temporal size"
        )


def _stored_dtype(config: JsonObject, text_config: JsonObject) -> str:
    named = [
        section.get(key) for section in (config, text_config) for key in ("dtype", "torch_dtype")
    ]
    dtype = next((str(name).removeprefix("torch.") for name in named if name), "bfloat16")
    if dtype not in DTYPE_BYTES:
        raise CheckpointError(f"config.json: weights of type {dtype} are not supported")
    return dtype


def _eos_token_ids(*sections: JsonObject) -> tuple[int, ...]:
    """The end tokens of the first section that names any; the order is the order of authority."""
    for section in sections:
        named = section.get("eos_token_id")
        if named is not None:
            ids = named if isinstance(named, list) else [named]
            return _convert(ids, tuple[TokenId, ...], "eos_token_id")
    raise CheckpointError(
        "neither generation_config.json nor config.json names an eos_token_id: answers would "
        "never end"
    )


def _read_processor(folder: Path) -> _Processor:
    """Read the picture settings; 5.x also writes them into processor_config.json."""
    nested = _read_json(folder / "processor_config.json", optional=True).get("image_processor")
    name = "preprocessor_config.json"
    settings = _read_json(folder / name, optional=isinstance(nested, dict)) or nested
    return _convert(settings, _Processor, name)


def _bound(pixels: int | None, edge: int | None, name: str) -> int:
    bound = edge if pixels is None else pixels
    if bound is None:
        raise CheckpointError(f"preprocessor_config.json: size.{name} is missing")
    return bound


def _section(config: JsonObject, name: str) -> JsonObject:
    return _convert(config.get(name), dict[str, object], f"{name} of config.json")


def _convert(value: object, shape: type[Shape], where: str) -> Shape:
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _read_json(path: Path, *, optional: bool = False) -> JsonObject:
    if optional and not path.exists():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error

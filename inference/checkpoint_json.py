"""A checkpoint's JSON files, read into an `Architecture`: no weights, no torch.

Knows the spellings of transformers 4.57 and 5.x. Everything that cannot be served it refuses by
name.
"""

from pathlib import Path
from typing import TypeAlias, TypeVar

import msgspec

from inference.architecture import (
    DTYPE_BYTES,
    Architecture,
    Positive,
    TextArchitecture,
    TokenId,
    VisionArchitecture,
)

MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")

JsonObject: TypeAlias = dict[str, object]
Shape = TypeVar("Shape")


class CheckpointError(Exception):
    """The checkpoint cannot be served; the message tells a person what is wrong and what to do."""


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

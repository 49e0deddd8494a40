"""A tiny random Qwen3-VL, dense and of experts; requests; its `generate` as the oracle."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from inference.patches import patchify
from inference.protocol import ModelFacts, Vision

VOCAB_SIZE = 160
IMAGE, VIDEO, VISION_START, VISION_END, EOS = 150, 151, 152, 153, 154
FACTOR = 32


def _text_config(**more: object) -> dict[str, object]:
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
        "initializer_range": 0.25,
        **more,
    }


_VISION_CONFIG = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 36,
    "deepstack_visual_indexes": [0, 1, 3],
    "initializer_range": 0.25,
}
_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "tie_word_embeddings": False,
}


def build_source(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """A random model of transformers' own class; the same weights at every call."""
    torch.manual_seed(20)
    if kind == "dense":
        config = Qwen3VLConfig(text_config=_text_config(), vision_config=_VISION_CONFIG, **_IDS)
        model = Qwen3VLForConditionalGeneration(config)
    else:
        text = _text_config(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32)
        config = Qwen3VLMoeConfig(text_config=text, vision_config=_VISION_CONFIG, **_IDS)
        model = Qwen3VLMoeForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norm weights and expert tables start constant; random ones leave no error hidden.
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.copy_(1.5 + 0.5 * noise)  # attention that tells tokens apart
            elif parameter.ndim == 1:
                parameter.copy_(1.0 + 0.1 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return cast("Any", model).to(dtype).eval()


FACTS = ModelFacts(
    name="tiny",
    path="",
    model_type="qwen3_vl",
    dtype="float32",
    device="cpu",
    num_parameters=0,
    vocab_size=VOCAB_SIZE,
    max_model_len=2048,
    image_token_id=IMAGE,
    video_token_id=VIDEO,
    vision_start_token_id=VISION_START,
    vision_end_token_id=VISION_END,
    eos_token_ids=[EOS],
    patch_size=16,
    merge_size=2,
    temporal_patch_size=2,
    min_pixels=1024,
    max_pixels=1 << 20,
)


@dataclass(frozen=True)
class Case:
    """One kind of request: its prompt, and its pictures."""

    prompt_token_ids: list[int]
    visions: list[Vision]


def picture(
    rows: int, columns: int, seed: int, num_frames: int = 1, *, video: bool = False
) -> Vision:
    """Rows x columns merged patches of random colours: features of noise would all be alike."""
    generator = torch.Generator().manual_seed(seed)
    size = (num_frames, rows * 4, columns * 4, 3)
    colours = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    upright = colours.repeat_interleave(FACTOR // 4, 1).repeat_interleave(FACTOR // 4, 2)
    shape, pixels = upright.shape, upright.numpy().tobytes()
    return Vision(
        height=shape[1],
        width=shape[2],
        num_frames=num_frames,
        video=video,
        pixels=memoryview(pixels),
        content_hash=hashlib.blake2b(pixels + bytes(shape[1] // FACTOR), digest_size=32).digest(),
    )


def text(count: int, seed: int) -> list[int]:
    """Random ordinary tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 150, (count,), generator=generator).tolist()


def placeholders(vision: Vision) -> list[int]:
    """The tokens a prompt holds for it; a video's frames are parted by their times."""
    per_frame = vision.height * vision.width // FACTOR**2
    if not vision.video:
        return [VISION_START, *[IMAGE] * per_frame, VISION_END]
    frames = vision.num_frames // 2
    return [
        token
        for frame in range(frames)
        for token in (10 + frame, 20, VISION_START, *[VIDEO] * per_frame, VISION_END)
    ]


def case(*parts: list[int] | Vision) -> Case:
    """Join text and pictures into a request."""
    visions = [part for part in parts if isinstance(part, Vision)]
    prompt = [t for p in parts for t in (placeholders(p) if isinstance(p, Vision) else p)]
    return Case(prompt, visions)


def _features(model: Any, visions: Iterable[Vision]) -> tuple[Tensor, Tensor]:
    """What transformers' processor would give for these pixels: patches and grids."""
    patches, grids = [], []
    for vision in visions:
        pixels = torch.frombuffer(bytearray(vision.pixels), dtype=torch.uint8)
        pixels = pixels.view(vision.num_frames, vision.height, vision.width, 3)
        patches.append(patchify(pixels, patch_size=16, merge_size=2, temporal_patch_size=2))
        grids.append([-(-vision.num_frames // 2), vision.height // 16, vision.width // 16])
    return torch.cat(patches).to(model.dtype), torch.tensor(grids)


def model_inputs(model: Any, request: Case) -> dict[str, Tensor]:
    """Keyword arguments of transformers' `generate` and `forward` for a request."""
    ids = torch.tensor([request.prompt_token_ids])
    # Without a mask, `generate` hides prompt tokens that equal the padding id.
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    images = [vision for vision in request.visions if not vision.video]
    videos = [vision for vision in request.visions if vision.video]
    if images:
        inputs["pixel_values"], inputs["image_grid_thw"] = _features(model, images)
    if videos:
        inputs["pixel_values_videos"], inputs["video_grid_thw"] = _features(model, videos)
    return inputs


def oracle(model: Any, request: Case, num_tokens: int) -> list[int]:
    """transformers' own greedy continuation."""
    model.model.rope_deltas = None
    inputs = model_inputs(model, request)
    output = model.generate(
        **inputs, do_sample=False, max_new_tokens=num_tokens, eos_token_id=None, pad_token_id=0
    )
    return output[0, len(request.prompt_token_ids) :].tolist()


def forced_logits(model: Any, request: Case, token_ids: list[int]) -> Tensor:
    """transformers' logits of every token of an answer, each behind those before it."""
    inputs = model_inputs(model, request)
    extra = torch.tensor([token_ids[:-1]])
    inputs["input_ids"] = torch.cat((inputs["input_ids"], extra), dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    types = inputs["mm_token_type_ids"]
    inputs["mm_token_type_ids"] = torch.cat((types, torch.zeros_like(extra, dtype=types.dtype)), 1)
    model.model.rope_deltas = None
    with torch.no_grad():
        return model(**inputs).logits[0, len(request.prompt_token_ids) - 1 :].float()

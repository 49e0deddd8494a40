"""Random-weight checkpoints to measure with: the real architecture at sizes a CPU can run.

`mid` has 120 M parameters; `mid-moe` the same with 32 experts, 4 active. The tokenizer and the
template are the demo model's, so that every server can be asked in text.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

DEMO = Path(__file__).parents[2] / "inference" / "demo" / "checkpoint"
_COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_PROCESSOR = """{
  "size": {"shortest_edge": 65536, "longest_edge": 16777216},
  "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2,
  "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
  "processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast"
}
"""

_TEXT: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 768,
    "intermediate_size": 2304,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 32768,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5000000.0,
        "mrope_section": [12, 10, 10],
        "mrope_interleaved": True,
    },
}
_VISION = {
    "depth": 12,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_heads": 6,
    "out_hidden_size": 768,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [3, 6, 9],
}
_EXPERTS = {"num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 384}


def build(name: str, folder: Path) -> Path:
    """Write the checkpoint `mid` or `mid-moe`, unless it is there; returns its folder."""
    if (folder / "model.safetensors").exists():
        return folder
    demo: Any = Qwen3VLConfig.from_pretrained(DEMO)
    ids = {
        key: getattr(demo, key)
        for key in (
            "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"
        )
    }  # fmt: skip
    eos = demo.text_config.eos_token_id
    torch.manual_seed(0)
    if name == "mid":
        text = {**_TEXT, "eos_token_id": eos}
        config = Qwen3VLConfig(text_config=text, vision_config=_VISION, **ids)
        model: Any = Qwen3VLForConditionalGeneration(config)
    else:
        text = {**_TEXT, **_EXPERTS, "eos_token_id": eos}
        config = Qwen3VLMoeConfig(text_config=text, vision_config=_VISION, **ids)
        model = Qwen3VLMoeForConditionalGeneration(config)
    model.generation_config.eos_token_id = eos
    with torch.no_grad():
        model.lm_head.weight[_silent_ids()] = 0
    model.to(torch.bfloat16).save_pretrained(folder)
    for file in _COPIED:
        shutil.copyfile(DEMO / file, folder / file)
    (folder / "preprocessor_config.json").write_text(_PROCESSOR)
    return folder


def _silent_ids() -> list[int]:
    """All tokens but those of plain text.

    Their logits are 0 and never the largest: a greedy answer, whoever generates it, has no early
    end, and each of its tokens is a piece of text that can be sent at once.
    """
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    texts = tokenizer.decode_batch(
        [[token_id] for token_id in range(_TEXT["vocab_size"])], skip_special_tokens=True
    )
    return [
        token_id
        for token_id, text in enumerate(texts)
        if not (text and text.isascii() and text.isprintable())
    ]


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))

"""Writes trained weights as a checkpoint that transformers loads like any other Qwen3-VL.

`python -m inference.demo.export` does so for the saved state of a run that is not over.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from inference.demo.lessons import CELL, MAX_PIXELS, MIN_PIXELS
from inference.demo.model import MAX_LENGTH, build_config, first_heads, first_weights
from inference.demo.network import MERGE, PATCH
from inference.demo.optimizer import FlatWeights, load_weights
from inference.demo.tokenizer import IDS, PLAIN_ADDED_TOKENS, SPECIAL_TOKENS, build_tokenizer

CHECKPOINT = Path(__file__).parent / "checkpoint"
_TEMPLATE = CHECKPOINT / "chat_template.jinja"
_MAX_VIDEO_PIXELS = 1024 * CELL * CELL


def export(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write the model's weights in bfloat16 and every file that goes with them."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {
        name: tensor.detach().to(torch.bfloat16).contiguous().clone()
        for name, tensor in weights.items()
        if name.startswith("model.")
    }
    partial = folder / "model.safetensors.partial"
    save_file(kept, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(folder / "model.safetensors")
    write_companions(folder)


def write_companions(folder: Path) -> None:
    """Write configurations, tokenizer and chat template."""
    config = build_config()
    config.architectures = ["Qwen3VLForConditionalGeneration"]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    GenerationConfig(
        do_sample=False,
        bos_token_id=IDS.end_of_text,
        eos_token_id=[IDS.im_end, IDS.end_of_text],
        pad_token_id=IDS.end_of_text,
    ).save_pretrained(folder)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    _write_json(folder / "preprocessor_config.json", _preprocessor_config(MAX_PIXELS, "image"))
    _write_json(
        folder / "video_preprocessor_config.json", _preprocessor_config(_MAX_VIDEO_PIXELS, "video")
    )
    if folder.resolve() != CHECKPOINT.resolve():
        shutil.copyfile(_TEMPLATE, folder / _TEMPLATE.name)


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tokenizer_config() -> dict[str, object]:
    added = {
        str(IDS.end_of_text + index): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in SPECIAL_TOKENS,
        }
        for index, token in enumerate((*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS))
    }
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": MAX_LENGTH,
        "added_tokens_decoder": added,
    }


def _preprocessor_config(max_pixels: int, media: str) -> dict[str, object]:
    kinds = {
        "image": {"image_processor_type": "Qwen2VLImageProcessorFast"},
        "video": {"video_processor_type": "Qwen3VLVideoProcessor"},
    }
    return {
        "size": {
            "longest_edge": max_pixels,
            "shortest_edge": MIN_PIXELS if media == "image" else 4096,
        },
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
        **kinds[media],
    }


def main() -> None:
    """Export the weights of a saved training state."""
    parser = argparse.ArgumentParser(prog="python -m inference.demo.export", description=__doc__)
    parser.add_argument("state", type=Path, help="state.pt, vision.pt or joint.pt of a run")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    weights = FlatWeights(first_weights(seed=0) | first_heads(seed=0))
    load_weights(options.state, weights)
    export(weights.views(torch.float32), options.output)


if __name__ == "__main__":
    main()

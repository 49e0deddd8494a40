"""Folders that look like checkpoints: small configurations in both spellings, and empty weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

JsonFiles = dict[str, Any]

VISION = {
    "depth": 3,
    "hidden_size": 32,
    "num_heads": 4,
    "intermediate_size": 48,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1],
    "in_channels": 3,
}
TEXT = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "vocab_size": 320,
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "rope_theta": 5000000.0,
        "rope_type": "default",
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    },
}


def dense_files() -> JsonFiles:
    """A complete small dense checkpoint's JSON, by file name, as transformers 5.x writes it."""
    return {
        "config.json": {
            "model_type": "qwen3_vl",
            "dtype": "bfloat16",
            "tie_word_embeddings": True,
            "image_token_id": 301,
            "video_token_id": 302,
            "vision_start_token_id": 303,
            "vision_end_token_id": 304,
            "text_config": {**TEXT, "eos_token_id": 300},
            "vision_config": dict(VISION),
        },
        "generation_config.json": {
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.8,
            "top_k": 20,
            "eos_token_id": [305, 300],
        },
        "preprocessor_config.json": {
            "size": {"shortest_edge": 65536, "longest_edge": 16777216},
            "patch_size": 16,
            "merge_size": 2,
            "temporal_patch_size": 2,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
        "tokenizer.json": {},
    }


@pytest.fixture
def checkpoint_files() -> JsonFiles:
    """The JSON of a small dense checkpoint, free to be changed before it is written."""
    return dense_files()


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> Callable[[JsonFiles], Path]:
    """Writes JSON files, a template and an empty weight file into one folder."""

    def write(files: JsonFiles) -> Path:
        folder = tmp_path / "small-model"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(msgspec.json.encode(content))
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        (folder / "model.safetensors").write_bytes(b"")
        return folder

    return write

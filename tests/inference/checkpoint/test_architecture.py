import subprocess
import sys
from typing import Any

import pytest

from inference.architecture import count_parameters, describe
from inference.checkpoint_json import CheckpointError, read_architecture
from inference.memory import FAMILY_PARAMETERS

SMALL_TOWER = {"depth": 24, "hidden_size": 1024, "num_heads": 16, "intermediate_size": 4096}
LARGE_TOWER = {"depth": 27, "hidden_size": 1152, "num_heads": 16, "intermediate_size": 4304}


def without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}


def test_both_spellings_of_the_rotary_settings_are_the_same_model(
    checkpoint_files, write_checkpoint, tmp_path
):
    newer = read_architecture(write_checkpoint(checkpoint_files))
    (tmp_path / "small-model").rename(tmp_path / "newer")
    text = checkpoint_files["config.json"]["text_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = 5000000
    text["rope_scaling"] = without(rope, "rope_theta")

    older = read_architecture(write_checkpoint(checkpoint_files))

    assert newer == older
    assert (older.text.rope_theta, older.text.mrope_section) == (5e6, (6, 5, 5))


def test_every_section_reaches_the_architecture(checkpoint_files, write_checkpoint):
    architecture = read_architecture(write_checkpoint(checkpoint_files))

    assert architecture.eos_token_ids == (305, 300)
    assert (architecture.min_pixels, architecture.max_pixels) == (65536, 16777216)
    assert (architecture.temperature, architecture.top_p, architecture.top_k) == (0.7, 0.8, 20)
    assert architecture.vision.deepstack_visual_indexes == (0, 1)
    assert architecture.tie_word_embeddings
    assert describe(architecture).startswith("qwen3_vl, 0.")


def test_older_pixel_bounds_outweigh_the_size_entry(checkpoint_files, write_checkpoint):
    checkpoint_files["preprocessor_config.json"] |= {"min_pixels": 4096, "max_pixels": 65536}

    architecture = read_architecture(write_checkpoint(checkpoint_files))

    assert (architecture.min_pixels, architecture.max_pixels) == (4096, 65536)


def test_picture_settings_are_found_inside_the_processor_config(checkpoint_files, write_checkpoint):
    nested = checkpoint_files.pop("preprocessor_config.json")
    checkpoint_files["processor_config.json"] = {"image_processor": nested}

    architecture = read_architecture(write_checkpoint(checkpoint_files))

    assert architecture.max_pixels == 16777216


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"do_sample": False, "temperature": 0.7, "eos_token_id": 300}, id="off"),
        pytest.param({"temperature": 0.7, "eos_token_id": 300}, id="unsaid"),
    ],
)
def test_a_checkpoint_that_does_not_sample_is_greedy(checkpoint_files, write_checkpoint, settings):
    checkpoint_files["generation_config.json"] = settings

    architecture = read_architecture(write_checkpoint(checkpoint_files))

    assert architecture.temperature == 0.0
    assert architecture.eos_token_ids == (300,)


def test_without_generation_config_the_text_config_names_the_end_token(
    checkpoint_files, write_checkpoint
):
    del checkpoint_files["generation_config.json"]

    architecture = read_architecture(write_checkpoint(checkpoint_files))

    assert architecture.eos_token_ids == (300,)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_stored_dtype_may_stand_in_the_text_config(checkpoint_files, write_checkpoint, key):
    del checkpoint_files["config.json"]["dtype"]
    checkpoint_files["config.json"]["text_config"][key] = "float16"

    assert read_architecture(write_checkpoint(checkpoint_files)).dtype == "float16"


@pytest.mark.parametrize(
    ("file", "section", "changes", "message"),
    [
        pytest.param(
            "config.json", None, {"model_type": "qwen2_5_vl"}, "qwen2_5_vl.*qwen3_vl_moe", id="type"
        ),
        pytest.param(
            "config.json",
            None,
            {"quantization_config": {"quant_method": "fp8"}},
            r"quantised \(fp8\)",
            id="quantised",
        ),
        pytest.param(
            "config.json",
            "text_config",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            "'yarn' is not supported",
            id="yarn",
        ),
        pytest.param("config.json", "text_config", {"head_dim": 16}, "mrope_section", id="mrope"),
        pytest.param(
            "config.json", "text_config", {"hidden_size": None}, "hidden_size", id="missing-number"
        ),
        pytest.param(
            "config.json", "text_config", {"rope_parameters": None}, "rope_theta", id="no-rope"
        ),
        pytest.param(
            "config.json", "text_config", {"num_key_value_heads": 3}, "do not divide", id="heads"
        ),
        pytest.param(
            "config.json", "vision_config", {"out_hidden_size": 65}, "out_hidden_size", id="width"
        ),
        pytest.param("config.json", None, {"dtype": "float8_e4m3fn"}, "float8_e4m3fn", id="dtype"),
        pytest.param("config.json", None, {"text_config": None}, "text_config", id="no-text"),
        pytest.param(
            "preprocessor_config.json", None, {"patch_size": 14}, "disagree", id="patch-size"
        ),
        pytest.param(
            "preprocessor_config.json", None, {"size": {}}, "shortest_edge is missing", id="bounds"
        ),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    checkpoint_files, write_checkpoint, file, section, changes, message
):
    target = checkpoint_files[file] if section is None else checkpoint_files[file][section]
    target |= changes
    folder = write_checkpoint(checkpoint_files)

    with pytest.raises(CheckpointError, match=message):
        read_architecture(folder)


def test_a_checkpoint_whose_answers_would_never_end_is_refused(checkpoint_files, write_checkpoint):
    del checkpoint_files["generation_config.json"]
    del checkpoint_files["config.json"]["text_config"]["eos_token_id"]
    folder = write_checkpoint(checkpoint_files)

    with pytest.raises(CheckpointError, match="eos_token_id"):
        read_architecture(folder)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{}", b"[]"], ids=["cut", "bytes", "list"])
def test_a_malformed_file_is_named(checkpoint_files, write_checkpoint, content):
    folder = write_checkpoint(checkpoint_files)
    (folder / "config.json").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_architecture(folder)


def test_a_missing_file_is_named(checkpoint_files, write_checkpoint):
    folder = write_checkpoint(checkpoint_files)
    (folder / "preprocessor_config.json").unlink()

    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        read_architecture(folder)


MIXTURE = {
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


@pytest.mark.parametrize(
    ("model_type", "top", "text"),
    [
        pytest.param("qwen3_vl", {"tie_word_embeddings": True}, {}, id="tied"),
        pytest.param("qwen3_vl", {"tie_word_embeddings": False}, {}, id="untied"),
        pytest.param("qwen3_vl", {}, {"attention_bias": True}, id="attention-bias"),
        pytest.param("qwen3_vl_moe", {}, {**MIXTURE, "num_experts": 8}, id="mixture"),
        pytest.param("qwen3_vl_moe", {}, {**MIXTURE, "num_local_experts": 8}, id="mixture-5.x"),
        pytest.param(
            "qwen3_vl_moe",
            {},
            {**MIXTURE, "num_experts": 8, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
            id="partly-dense",
        ),
    ],
)
def test_parameters_are_counted_as_transformers_makes_them(
    checkpoint_files, write_checkpoint, model_type, top, text
):
    config = checkpoint_files["config.json"]
    config |= {"model_type": model_type, "tie_word_embeddings": False, **top}
    config["text_config"] |= text
    folder = write_checkpoint(checkpoint_files)

    assert count_parameters(read_architecture(folder)) == transformers_count(folder)


def transformers_count(folder) -> int:
    """Parameters of the model that transformers builds from a folder, on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "text", "tower", "tied", "billions"),
    [
        ("2B", (28, 2048, 16, 8, 6144), SMALL_TOWER, True, 2.128),
        ("4B", (36, 2560, 32, 8, 9728), SMALL_TOWER, True, 4.438),
        ("8B", (36, 4096, 32, 8, 12288), LARGE_TOWER, False, 8.767),
        ("32B", (64, 5120, 64, 8, 25600), LARGE_TOWER, False, 33.357),
        ("30B-A3B", (48, 2048, 32, 4, 6144, 768), LARGE_TOWER, False, 31.071),
        ("235B-A22B", (94, 4096, 64, 4, 12288, 1536), LARGE_TOWER, False, 235.67),
    ],
)
def test_the_published_family_has_its_published_size(
    checkpoint_files, write_checkpoint, name, text, tower, tied, billions
):
    config = checkpoint_files["config.json"]
    layers, hidden, heads, key_value_heads, intermediate, *expert = text
    config["tie_word_embeddings"] = tied
    config["vision_config"] |= {
        **tower,
        "deepstack_visual_indexes": [5, 11, 17],
        "num_position_embeddings": 2304,
        "out_hidden_size": hidden,
    }
    config["text_config"] |= {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": intermediate,
        "head_dim": 128,
        "vocab_size": 151936,
        "rope_parameters": {"rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    }
    if expert:
        config["model_type"] = "qwen3_vl_moe"
        config["text_config"] |= {"num_experts": 128, "moe_intermediate_size": expert[0]}

    count = count_parameters(read_architecture(write_checkpoint(checkpoint_files)))

    assert round(count / 1e9, 3) == billions
    assert FAMILY_PARAMETERS[f"Qwen/Qwen3-VL-{name}-Instruct"] == count


def test_reading_a_checkpoint_needs_no_torch():
    program = (
        "import sys, inference.architecture, inference.checkpoint, inference.memory, "
        "inference.model_check; assert not {'torch', 'transformers', 'huggingface_hub'} & "
        "sys.modules.keys()"
    )

    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

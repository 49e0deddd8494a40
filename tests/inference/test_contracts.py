"""What we rely on in transformers, by name: an upgrade that changes it fails here first."""

import inspect

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl import modeling_qwen3_vl as dense
from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe as moe

TEXT_LAYER = {
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",
}
DENSE_MLP = {"mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"}
EXPERTS_MLP = {"mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
VISION_BLOCK = {
    f"{name}.{kind}"
    for name in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2")
    for kind in ("weight", "bias")
}
MERGER = {
    f"{name}.{kind}" for name in ("norm", "linear_fc1", "linear_fc2") for kind in ("weight", "bias")
}


def names(module):
    return {name for name, _ in module.named_parameters()}


@pytest.mark.parametrize(("kind", "mlp"), [("dense", DENSE_MLP), ("moe", EXPERTS_MLP)])
def test_a_text_layer_holds_these_weights_and_no_others(sources, kind, mlp):
    for layer in sources[kind].model.language_model.layers:
        assert names(layer) == TEXT_LAYER | mlp


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_the_text_model_holds_these_parts_and_no_others(sources, kind):
    text = sources[kind].model.language_model

    assert {name for name, _ in text.named_children()} == {
        "embed_tokens",
        "layers",
        "norm",
        "rotary_emb",
    }
    assert sources[kind].lm_head.bias is None


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_the_vision_model_holds_these_parts_and_no_others(sources, kind):
    visual = sources[kind].model.visual
    children = {name for name, _ in visual.named_children()}

    assert children - {"rotary_pos_emb"} == {
        "patch_embed",
        "pos_embed",
        "blocks",
        "merger",
        "deepstack_merger_list",
    }
    assert all(names(block) == VISION_BLOCK for block in visual.blocks)
    assert all(names(m) == MERGER for m in (visual.merger, *visual.deepstack_merger_list))
    assert names(visual.patch_embed) == {"proj.weight", "proj.bias"}


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_the_last_merger_normalises_before_joining_and_the_others_behind(sources, kind):
    visual = sources[kind].model.visual

    assert visual.merger.use_postshuffle_norm is False
    assert all(merger.use_postshuffle_norm for merger in visual.deepstack_merger_list)


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_every_layer_norm_of_the_vision_model_has_our_epsilon(sources, kind):
    norms = [m for m in sources[kind].model.visual.modules() if isinstance(m, torch.nn.LayerNorm)]

    assert norms
    assert {norm.eps for norm in norms} == {1e-6}


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_configurations_name_these_numbers(sources, kind):
    config = sources[kind].config
    for name in (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
    ):
        assert getattr(config.text_config, name) is not None
    for name in (
        "num_heads",
        "patch_size",
        "spatial_merge_size",
        "temporal_patch_size",
        "num_position_embeddings",
        "deepstack_visual_indexes",
        "hidden_act",
    ):
        assert getattr(config.vision_config, name) is not None
    assert config.model_type == {"dense": "qwen3_vl", "moe": "qwen3_vl_moe"}[kind]


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_the_rotary_embedding_gives_its_frequencies_and_sections(sources, kind):
    rotary = sources[kind].model.language_model.rotary_emb

    assert rotary.inv_freq.shape == (8,)
    assert list(rotary.mrope_section) == [4, 2, 2]
    assert rotary.attention_scaling == 1.0


def test_the_experts_implementation_can_be_chosen(kit):
    model = kit.build_source("moe")

    model.set_experts_implementation("grouped_mm")

    assert model.config.text_config._experts_implementation == "grouped_mm"


def test_the_experts_block_maps_hidden_states_to_hidden_states(sources):
    block = sources["moe"].model.language_model.layers[0].mlp

    with torch.no_grad():
        output = block(torch.zeros(1, 3, 64))

    assert isinstance(output, torch.Tensor)
    assert output.shape == (1, 3, 64)


@pytest.mark.parametrize("module", [dense.Qwen3VLModel, moe.Qwen3VLMoeModel])
def test_positions_are_asked_for_with_these_arguments(module):
    parameters = inspect.signature(module.get_rope_index).parameters

    assert {"input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw"} <= set(parameters)


def test_weights_are_loaded_with_these_arguments():
    source = inspect.getsource(PreTrainedModel.from_pretrained)

    for name in ("dtype", "device_map", "attn_implementation"):
        assert name in source


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("dense", dense.Qwen3VLForConditionalGeneration),
        ("moe", moe.Qwen3VLMoeForConditionalGeneration),
    ],
)
def test_the_automatic_class_finds_the_family(sources, kind, expected):
    config = AutoConfig.for_model(sources[kind].config.model_type)

    assert AutoModelForImageTextToText._model_mapping[type(config)] is expected


def test_the_processor_without_torchvision_is_there():
    parameters = inspect.signature(Qwen2VLImageProcessorPil.__init__).parameters

    assert Qwen2VLImageProcessorPil.__name__ == "Qwen2VLImageProcessorPil"
    assert "kwargs" in parameters
    assert Qwen2VLImageProcessorPil.model_input_names[:2] == ["pixel_values", "image_grid_thw"]

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from inference.ops import TorchOps
from inference.rope import TextRotary, prompt_positions
from inference.spans import VisualLayout, locate_spans

parts = st.lists(
    st.one_of(
        st.tuples(st.just("text"), st.integers(1, 6)),
        st.tuples(st.just("picture"), st.integers(1, 4), st.integers(1, 4), st.just(1)),
        st.tuples(
            st.just("video"), st.integers(1, 3), st.integers(1, 3), st.sampled_from([2, 4, 6])
        ),
    ),
    min_size=1,
    max_size=5,
)


def build(kit, described):
    made = []
    for kind, *numbers in described:
        if kind == "text":
            made.append(kit.text(numbers[0], 1))
        else:
            made.append(kit.picture(*numbers[:2], 1, numbers[2], video=kind == "video"))
    return kit.case(*made)


@given(described=parts)
@settings(deadline=None, max_examples=60)
def test_positions_are_those_of_transformers(kit, sources, described):
    model = sources["dense"]
    request = build(kit, described)
    inputs = kit.model_inputs(model, request)
    expected, delta = model.model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        image_grid_thw=inputs.get("image_grid_thw"),
        video_grid_thw=inputs.get("video_grid_thw"),
    )

    spans = locate_spans(request.prompt_token_ids, request.visions, VisualLayout.of(kit.facts))
    positions, rope_delta = prompt_positions(len(request.prompt_token_ids), spans)

    assert torch.equal(positions, expected[:, 0])
    assert rope_delta == delta.item()


def test_text_alone_stands_in_order():
    positions, rope_delta = prompt_positions(4, ())

    assert positions.tolist() == [[0, 1, 2, 3]] * 3
    assert rope_delta == 0


@pytest.mark.parametrize("sections", [[4, 2, 2], [2, 3, 3], [3, 3, 2]])
def test_rotated_heads_are_those_of_transformers(kit, sections):
    """Not only with the sections of the tiny model."""
    config = kit.build_source("dense").config.text_config
    config.rope_parameters["mrope_section"] = sections
    theirs = Qwen3VLTextRotaryEmbedding(config)
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(0, 500, (3, 9), generator=generator)
    heads = torch.randn(9, 3, 16, generator=generator)

    section = list(config.rope_parameters["mrope_section"])
    ours = TextRotary(theirs.inv_freq, section, theirs.attention_scaling, heads.device)
    rotated = TorchOps().norm_rotate(heads, None, *ours.angles(positions), 1e-6)

    cos, sin = theirs(heads, positions[:, None])
    first, second = heads.chunk(2, dim=-1)
    half_turned = torch.cat((-second, first), dim=-1)
    expected = heads * cos[0][:, None] + half_turned * sin[0][:, None]
    torch.testing.assert_close(rotated, expected, atol=1e-6, rtol=1e-6)

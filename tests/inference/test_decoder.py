"""The decoder's forward against transformers', layer for layer and without an engine."""

from typing import Any

import pytest
import torch

from inference.attention import CpuAttention, Rows
from inference.decoder import VisualRows, last_rows
from inference.kernels import load_kernels
from inference.model import take_over

LENGTHS = [5, 1, 23]
TOLERANCE: dict[str, Any] = {"atol": 2e-4, "rtol": 2e-4}


def attention(text, kernels, dtype=torch.float32):
    g = text.geometry
    shape = g.kv_shape(num_blocks=16, block_size=16)
    return CpuAttention(shape, g.num_heads, g.scaling, dtype, kernels)


def forward(text, kernels, lists, visual=None, dtype=torch.float32):
    """Hidden states of several sequences run as one packed batch."""
    pool = attention(text, kernels, dtype)
    rows, first = [], 1
    for ids in lists:
        blocks = list(range(first, first - (-len(ids) // 16)))
        first += len(blocks)
        rows.append(Rows(0, len(ids), blocks))
    positions = torch.cat([torch.arange(len(ids)) for ids in lists]).expand(3, -1)
    packed = torch.tensor([token for ids in lists for token in ids])
    with torch.inference_mode():
        return text.forward(packed, positions, pool, pool.plan(rows), visual)


@pytest.fixture(scope="module", params=["kernels", "torch"])
def taken(request, kit):
    """Models of both kinds, with our kernels and with torch's operators alone."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr("inference.model.load_kernels", lambda dtype: None)
        elif load_kernels(torch.float32) is None:
            pytest.skip("no C compiler here")
        return {kind: take_over(kit.build_source(kind)) for kind in ("dense", "moe")}


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_packed_sequences_get_the_logits_of_transformers(kit, sources, taken, kind):
    lists = sorted((kit.text(length, length) for length in LENGTHS), key=len)
    model = taken[kind]

    hidden = forward(model.text, model.kernels, lists)
    logits = model.text.logits(hidden)

    with torch.no_grad():
        expected = torch.cat([sources[kind](input_ids=torch.tensor([i])).logits[0] for i in lists])
    torch.testing.assert_close(logits, expected, **TOLERANCE)


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_visual_features_join_where_transformers_adds_them(sources, taken, kind):
    """Deepstack features go into the first layers, at the visual tokens alone."""
    model, source = taken[kind], sources[kind].model.language_model
    ids = list(range(20, 32))
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(4, 4, 64, generator=generator)
    rows = torch.tensor([2, 3, 4, 5])
    mask = torch.zeros(1, len(ids), dtype=torch.bool)
    mask[0, rows] = True
    embeds = source.embed_tokens(torch.tensor([ids])).detach().clone()
    embeds[0, rows] = features[:, 0]

    hidden = forward(model.text, model.kernels, [ids], VisualRows(rows, features))

    with torch.no_grad():
        expected = source(
            inputs_embeds=embeds,
            position_ids=torch.arange(len(ids)).expand(3, 1, -1),
            visual_pos_masks=mask,
            deepstack_visual_embeds=list(features[:, 1:].unbind(1)),
        ).last_hidden_state[0]
    normed = model.text.ops.rms_norm(hidden, model.text.norm, model.text.geometry.rms_norm_eps)
    torch.testing.assert_close(normed, expected, **TOLERANCE)


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_bf16_logits_are_as_close_as_bf16_is(kit, sources, kind):
    """Measured against fp32: not further away than transformers' own bf16 is, by half again."""
    ids = kit.text(23, 3)
    theirs = kit.build_source(kind, torch.bfloat16)
    with torch.no_grad():
        exact = sources[kind](input_ids=torch.tensor([ids])).logits[0]
        rounded = theirs(input_ids=torch.tensor([ids])).logits[0].float()
    model = take_over(theirs)

    hidden = forward(model.text, model.kernels, [ids], dtype=torch.bfloat16)
    logits = model.text.logits(hidden).float()

    assert (logits - exact).norm() < 1.5 * (rounded - exact).norm()


def test_the_last_rows_of_consecutive_runs():
    assert last_rows([3, 1, 2]) == [2, 3, 5]
    assert last_rows([]) == []

"""What only a GPU can show: half precision, real captures, no waiting, measured memory."""

import msgspec
import pytest
import torch

from inference.config import EngineConfig
from inference.model import take_over

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def half_models(kit, gpu):
    """The tiny models in bfloat16 on the GPU."""
    return {
        kind: take_over(kit.build_source(kind, torch.bfloat16).to(gpu)) for kind in ("dense", "moe")
    }


def first_logits(kit, engine, request):
    """Logits behind a request's prompt."""
    seen = []
    execute = engine.runner.execute
    engine.runner.execute = lambda chunks: seen.append(execute(chunks).clone()) or seen[-1]
    engine.add(kit.owner, kit.generate(request, num_tokens=2))
    kit.run(engine)
    return torch.cat(seen)[0].float().cpu()


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("name", ["text", "three pictures", "video"])
@pytest.mark.parametrize("budget", [512, 9])
def test_half_precision_stays_near_full(kit, half_models, sources, cases, kind, name, budget):
    """Fresh prompts, and chunks that continue them, through flash attention."""
    source, request = sources[kind], cases[name]
    source.model.rope_deltas = None
    with torch.no_grad():
        reference = source(**kit.model_inputs(source, request)).logits[0, -1]

    logits = first_logits(
        kit, kit.make_engine(half_models[kind], max_num_batched_tokens=budget), request
    )

    scale = reference.std()
    assert ((logits - reference) / scale).abs().mean() < 0.1
    assert torch.corrcoef(torch.stack((logits, reference)))[0, 1] > 0.99


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_captured_half_precision_steps_equal_eager_ones(kit, half_models, cases, kind):
    """One request: the batch is the same size in both, so that its products are too."""
    from inference.cuda.graphs import reason_not_to_capture

    if reason_not_to_capture(half_models[kind].text) is not None:
        pytest.skip("experts cannot be captured on this GPU")
    tokens = []
    for is_captured in (True, False):
        engine = kit.make_engine(half_models[kind], max_num_seqs=4)
        if is_captured:
            engine.runner.capture_decodes(4)
            assert engine.runner._graphs is not None
        engine.add(kit.owner, kit.generate(cases["one picture"]))
        tokens.append(kit.run(engine).token_ids["r", 0])

    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("is_captured", [True, False], ids=["captured", "eager"])
def test_a_decode_step_waits_for_nothing(kit, half_models, cases, is_captured):
    engine = kit.make_engine(half_models["dense"], max_num_seqs=4)
    if is_captured:
        engine.runner.capture_decodes(4)
    for copy in range(3):
        engine.add(kit.owner, kit.generate(cases["text"], f"r{copy}"))
    for _ in range(4):  # prompts, then steps that compile what is still to be compiled
        engine.step()
    step = engine.scheduler.schedule()
    assert len(step.decodes) == 3
    assert not step.prefills
    step.decodes.sort(key=lambda chunk: chunk.end)

    torch.cuda.set_sync_debug_mode("error")
    try:
        logits = engine.runner.execute(step.chunks)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert logits.shape == (3, kit.facts.vocab_size)


def test_prompts_and_pictures_wait_for_nothing(kit, half_models, cases):
    engine = kit.make_engine(half_models["dense"])
    engine.add(kit.owner, kit.generate(cases["picture and video"], "first", num_tokens=1))
    kit.run(engine)
    engine.scheduler.blocks.forget_all()
    engine.scheduler.embeddings.clear()
    engine.add(kit.owner, kit.generate(cases["picture and video"], "second", num_tokens=1))
    step = engine.scheduler.schedule()
    assert step.encodings

    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.runner.encode(step.encodings)
        logits = engine.runner.execute(step.chunks)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert logits.isfinite().all()


def test_the_largest_step_is_measured(kit, half_models):
    from inference.cuda.sizing import largest_step_bytes

    small, large = (
        EngineConfig(max_num_batched_tokens=tokens, max_num_encoded_patches=1)
        for tokens in (512, 8192)
    )
    facts = msgspec.structs.replace(kit.facts, max_pixels=64 * 64)

    sizes = [largest_step_bytes(half_models["dense"], config, facts) for config in (small, large)]

    # Each token holds its residual, its queries, keys and values, and the MLP's rows.
    assert sizes[1] - sizes[0] > (8192 - 512) * (2 * 64 + 128 + 2 * 96) * 2


def test_half_precision_pictures_stay_near_full(kit, half_models, models):
    pictures = [
        torch.randint(0, 256, (frames, rows * 32, columns * 32, 3), dtype=torch.uint8)
        for frames, rows, columns in ((1, 2, 3), (4, 3, 2), (1, 5, 5))
    ]

    encoded = half_models["dense"].vision.encode(pictures)

    for actual, expected in zip(encoded, models["dense"].vision.encode(pictures), strict=True):
        difference = (actual.float().cpu() - expected).abs().mean()
        assert difference < 0.05 * expected.abs().mean()

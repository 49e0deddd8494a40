"""The GPU's attention and captured steps behind the engine: the tokens of `generate`, always.

Without a GPU the kernels are interpreted and a captured step is simply run again: what is tested
then is everything but the device.
"""

import pytest
import torch

from inference.model import take_over


@pytest.fixture(scope="module")
def gpu_models(kit, kernel_device):
    """The tiny models on the kernels' device."""
    return {kind: take_over(kit.build_source(kind).to(kernel_device)) for kind in ("dense", "moe")}


def make_engine(kit, model, *, captured: bool, **options):
    """An engine whose runner is the GPU's, wherever it runs."""
    from inference.cuda.attention import CudaAttention
    from inference.cuda.graphs import DecodeGraphs
    from inference.cuda.ops import CudaOps

    engine = kit.make_engine(model, **options)
    runner, text, limits = engine.runner, model.text, engine.limits
    text.ops = CudaOps()
    geometry = text.geometry
    shape = geometry.kv_shape(num_blocks=limits.num_blocks, block_size=limits.block_size)
    attention = CudaAttention(
        shape, geometry.num_heads, geometry.scaling, model.dtype, model.device
    )
    runner._attention = attention
    if captured:
        # Experts in float32 read back on every GPU, and cannot be captured.
        again = model.device.type != "cuda" or reason_not_to_capture_of(text)
        runner._graphs = DecodeGraphs(
            text,
            attention,
            shape,
            max_num_rows=limits.max_num_seqs,
            capture=(lambda step: step) if again else None,
        )
    return engine


def reason_not_to_capture_of(text):
    """Why a model's steps cannot be captured; imported late, it needs Triton."""
    from inference.cuda.graphs import reason_not_to_capture

    return reason_not_to_capture(text)


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("captured", [True, False], ids=["captured", "eager"])
@pytest.mark.parametrize(
    ("budget", "block_size"),
    [pytest.param(512, 16, id="whole-prompts"), pytest.param(7, 5, id="chunks-of-seven")],
)
def test_requests_together_get_the_tokens_of_generate(
    kit, kernel_device, gpu_models, cases, expected, kind, captured, budget, block_size
):
    engine = make_engine(
        kit,
        gpu_models[kind],
        captured=captured,
        max_num_seqs=5,
        max_num_batched_tokens=budget,
        block_size=block_size,
    )
    # The interpreter takes a second for what a GPU does in a millisecond.
    names = ["one token", "three pictures"] if kernel_device.type == "cpu" else list(cases)
    num_tokens = 4 if kernel_device.type == "cpu" else 20
    for name in names:
        engine.add(kit.owner, kit.generate(cases[name], name, num_tokens=num_tokens))

    answers = kit.run(engine)

    got = {name: answers.token_ids[name, 0] for name in names}
    assert got == {name: expected[kind][name][:num_tokens] for name in names}


def test_captured_steps_give_the_logits_of_eager_ones(kit, gpu_models, cases):
    seen = {}
    for captured in (True, False):
        engine = make_engine(kit, gpu_models["dense"], captured=captured, max_num_seqs=3)
        logits = []
        execute = engine.runner.execute
        # The runner's buffer is overwritten by the next step.
        engine.runner.execute = lambda chunks, execute=execute, logits=logits: (
            logits.append(execute(chunks)) or logits[-1]
        )
        sample = engine._sampler.sample
        engine._sampler.sample = lambda rows, states, sample=sample, logits=logits: sample(
            logits.__setitem__(-1, rows.clone()) or rows, states
        )
        for copy in range(2):
            engine.add(kit.owner, kit.generate(cases["one picture"], f"r{copy}", num_tokens=3))
        kit.run(engine)
        seen[captured] = logits

    assert len(seen[True]) == len(seen[False])
    for one, other in zip(seen[True], seen[False], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_tables_that_exceed_the_buffers_run_eagerly(kit, gpu_models, cases, expected):
    engine = make_engine(kit, gpu_models["dense"], captured=True, num_blocks=12)
    graphs = engine.runner._graphs
    graphs._inputs = graphs._inputs._replace(tables=graphs._inputs.tables[:2])
    engine.add(kit.owner, kit.generate(cases["text"], num_tokens=4))

    answers = kit.run(engine)

    assert answers.token_ids["r", 0] == expected["dense"]["text"][:4]


def test_batch_sizes_cover_every_batch(kernel_device):
    from inference.cuda.graphs import batch_sizes

    assert batch_sizes(1) == [1]
    assert batch_sizes(3) == [1, 2, 3]
    assert batch_sizes(24) == [1, 2, 4, 8, 16, 24]
    assert batch_sizes(20) == [1, 2, 4, 8, 16, 20]

"""Our forwards and scheduling against transformers' own `generate`: the same tokens, always."""

import random

import pytest
import torch

from inference.model import take_over

NAMES = [
    "one token",
    "text",
    "one picture",
    "three pictures",
    "tall picture",
    "video",
    "picture and video",
]
KINDS = ["dense", "moe"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_request_alone_gets_the_tokens_of_generate(kit, models, cases, expected, kind, name):
    engine = kit.make_engine(models[kind])
    engine.add(kit.owner, kit.generate(cases[name]))

    answers = kit.run(engine)

    assert answers.token_ids["r", 0] == expected[kind][name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("budget", "patches"),
    [
        pytest.param(512, 4096, id="whole-prompts"),
        pytest.param(5, 4096, id="chunks-of-five-that-split-pictures"),
        pytest.param(7, 16, id="chunks-of-seven-one-picture-a-step"),
        pytest.param(64, 40, id="mixed"),
    ],
)
def test_requests_together_get_the_tokens_of_generate(
    kit, models, cases, expected, kind, budget, patches
):
    engine = kit.make_engine(
        models[kind], max_num_batched_tokens=budget, max_num_encoded_patches=patches
    )
    for name in NAMES:
        engine.add(kit.owner, kit.generate(cases[name], name))

    answers = kit.run(engine)

    assert {name: answers.token_ids[name, 0] for name in NAMES} == expected[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_random_schedules_change_no_token(kit, models, cases, expected, kind, seed):
    """Arrivals at random steps, odd budgets, cancels between, a pool too small for all."""
    rng = random.Random(seed)
    engine = kit.make_engine(
        models[kind],
        num_blocks=rng.choice([14, 18, 40]),
        max_num_batched_tokens=rng.choice([3, 9, 33, 256]),
        max_num_seqs=rng.choice([2, 4, 8]),
        max_num_encoded_patches=rng.choice([16, 64, 1000]),
        embedding_cache_bytes=rng.choice([1, 20_000, 1 << 20]),
    )
    answers = kit.answers()
    arrivals = [(f"{name} {copy}", name) for name in NAMES for copy in range(2)]
    rng.shuffle(arrivals)
    for request_id, name in arrivals:
        engine.add(kit.owner, kit.generate(cases[name], request_id))
        engine.add(kit.owner, kit.generate(cases[rng.choice(NAMES)], f"victim of {request_id}"))
        for _ in range(rng.randrange(4)):
            answers.take(engine.step())
        engine.cancel(kit.owner, f"victim of {request_id}")
    kit.run(engine, answers)

    got = {request_id: answers.token_ids[request_id, 0] for request_id, _ in arrivals}
    assert got == {request_id: expected[kind][name] for request_id, name in arrivals}


def test_preempted_sequences_go_on_as_if_nothing_had_happened(kit, models, cases, expected):
    engine = kit.make_engine(models["dense"], num_blocks=10, max_num_seqs=8)
    for copy in range(4):
        engine.add(kit.owner, kit.generate(cases["text"], f"r{copy}"))

    answers = kit.run(engine)

    assert engine.stats().num_preemptions > 0
    for copy in range(4):
        assert answers.token_ids[f"r{copy}", 0] == expected["dense"]["text"]


@pytest.mark.parametrize("name", NAMES)
def test_a_continuation_behind_delivered_tokens_is_the_uninterrupted_one(
    kit, models, cases, expected, name
):
    engine = kit.make_engine(models["dense"])
    delivered = expected["dense"][name][:7]
    engine.add(kit.owner, kit.generate(cases[name], output_prefixes=[delivered]))

    answers = kit.run(engine)

    assert delivered + answers.token_ids["r", 0] == expected["dense"][name]
    assert answers.finish("r").num_output_tokens == 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_close_step_by_step(kit, models, sources, cases, expected, kind, name):
    """Teacher-forced: catches drifts that an argmax hides."""
    request, tokens = cases[name], expected[kind][name]
    reference = kit.forced_logits(sources[kind], request, tokens)
    engine = kit.make_engine(models[kind])
    seen: list[torch.Tensor] = []
    execute = engine.runner.execute
    engine.runner.execute = lambda chunks: seen.append(execute(chunks)) or seen[-1]
    engine.add(kit.owner, kit.generate(request))

    kit.run(engine)

    torch.testing.assert_close(torch.cat(seen), reference, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_without_our_kernels_the_tokens_are_the_same(kit, cases, expected, monkeypatch, kind):
    monkeypatch.setattr("inference.model.load_kernels", lambda dtype: None)
    engine = kit.make_engine(take_over(kit.build_source(kind)), max_num_batched_tokens=33)
    for name in cases:
        engine.add(kit.owner, kit.generate(cases[name], name))

    answers = kit.run(engine)

    assert {name: answers.token_ids[name, 0] for name in cases} == expected[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_logits_stay_near_the_exact_ones(kit, sources, cases, expected, kind):
    """Teacher-forced, chunked, over the paged pool; not beyond what bf16 costs transformers."""
    request, tokens = cases["picture and video"], expected[kind]["picture and video"]
    exact = kit.forced_logits(sources[kind], request, tokens)
    theirs = kit.build_source(kind, torch.bfloat16)
    rounded = kit.forced_logits(theirs, request, tokens)
    engine = kit.make_engine(take_over(theirs), max_num_batched_tokens=11)
    seen = []
    execute = engine.runner.execute

    def forced(chunks):
        logits = execute(chunks).clone()
        if len(logits):
            seen.append(logits.float().clone())
            logits[:, tokens[len(seen) - 1]] = 1e4
        return logits

    engine.runner.execute = forced
    engine.add(kit.owner, kit.generate(request))

    assert kit.run(engine).token_ids["r", 0] == tokens
    assert (torch.cat(seen) - exact).norm() < 1.5 * (rounded - exact).norm()

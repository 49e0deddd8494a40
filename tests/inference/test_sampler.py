"""The sampler: transformers' cuts and penalties, honest chance, repeatable seeds."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import inference.demo
from inference.grammar import GrammarCompiler
from inference.noise import exponential_noise, noise_key
from inference.protocol import Grammar, SamplingParams, TokenLogprob
from inference.sampler import NUM_CANDIDATES, Sampler, SamplerState

EOS = [0, 1]
VOCAB_SIZE = 300
SAMPLER = Sampler()


def state(
    *,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    vocab_size: int = VOCAB_SIZE,
    index: int = 0,
    **params: Any,
) -> SamplerState:
    return SamplerState(
        SamplingParams(**{"max_tokens": 100, **params}),
        prompt_token_ids=prompt,
        output_token_ids=output,
        eos_token_ids=EOS,
        vocab_size=vocab_size,
        index=index,
    )


def some_logits(num_rows: int, vocab_size: int = VOCAB_SIZE, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab_size, generator=generator) * 3


def sample(logits: Tensor, *rows: SamplerState) -> list[int]:
    return SAMPLER.sample(logits.clone(), rows).token_ids


def draws(logits: Tensor, count: int, **params: Any) -> list[int]:
    """Sample one row of logits count times: one seeded sequence's first tokens, many indices."""
    vocab_size = logits.shape[0]
    rows = [state(index=i, seed=17, vocab_size=vocab_size, **params) for i in range(count)]
    return list(
        itertools.chain.from_iterable(
            sample(logits.repeat(len(part), 1), *part)
            for part in (rows[i : i + 1000] for i in range(0, count, 1000))
        )
    )


def reference(logits: Tensor, processors: Sequence[LogitsProcessor]) -> Tensor:
    """Let transformers make the distribution one token is drawn from."""
    scores = logits[None]
    for processor in processors:
        scores = processor(torch.LongTensor([[0]]), scores)
    return scores.softmax(dim=-1)[0]


def chi_square(token_ids: list[int], probabilities: Tensor) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; rare tokens share a bin."""
    expected = probabilities.double() * len(token_ids)
    counts = torch.bincount(torch.tensor(token_ids), minlength=len(expected)).double()
    common = expected >= 8
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None].clamp(min=1e-9)])
    return float(((observed - wanted) ** 2 / wanted).sum()), int(common.sum())


CUTS = [
    pytest.param({"temperature": 1.0}, [], id="temperature 1"),
    pytest.param({"temperature": 0.6}, [TemperatureLogitsWarper(0.6)], id="temperature"),
    pytest.param({"temperature": 1.0, "top_k": 7}, [TopKLogitsWarper(7)], id="top_k"),
    pytest.param({"temperature": 1.0, "top_k": 1}, [TopKLogitsWarper(1)], id="top_k 1"),
    pytest.param(
        {"temperature": 1.0, "top_k": 5000}, [TopKLogitsWarper(5000)], id="top_k past the end"
    ),
    pytest.param({"temperature": 1.0, "top_p": 0.7}, [TopPLogitsWarper(0.7)], id="top_p"),
    pytest.param({"temperature": 1.0, "top_p": 0.01}, [TopPLogitsWarper(0.01)], id="tiny top_p"),
    pytest.param({"temperature": 1.0, "min_p": 0.1}, [MinPLogitsWarper(0.1)], id="min_p"),
    pytest.param({"temperature": 1.0, "min_p": 1.0}, [MinPLogitsWarper(1.0)], id="min_p 1"),
    pytest.param(
        {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
        [TemperatureLogitsWarper(0.7), TopKLogitsWarper(20), TopPLogitsWarper(0.8)],
        id="Qwen's own",
    ),
    pytest.param(
        {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "min_p": 0.08},
        [
            TemperatureLogitsWarper(1.5),
            TopKLogitsWarper(30),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.08),
        ],
        id="all",
    ),
]


@pytest.mark.parametrize(("params", "processors"), CUTS)
def test_draws_follow_transformers_distribution(
    params: dict[str, Any], processors: list[LogitsProcessor]
) -> None:
    logits = some_logits(1)[0] / 3  # so flat that every cut falls among many tokens
    probabilities = reference(logits, processors)
    token_ids = draws(logits, 20_000, **params)

    assert probabilities[token_ids].min() > 0
    statistic, freedom = chi_square(token_ids, probabilities)
    assert statistic < freedom + 5 * (2 * freedom + 1) ** 0.5  # fixed seeds: never flaky


@pytest.mark.parametrize(("params", "processors"), CUTS)
@pytest.mark.parametrize("vocab_size", [40, 4000])
def test_every_token_drawn_is_one_transformers_keeps(
    params: dict[str, Any], processors: list[LogitsProcessor], vocab_size: int
) -> None:
    logits = some_logits(200, vocab_size) / 2
    kept = torch.stack([reference(row, processors) > 0 for row in logits])
    rows = [state(vocab_size=vocab_size, index=i, seed=1, **params) for i in range(200)]

    assert kept[range(200), sample(logits, *rows)].all()


def test_cut_wider_than_the_candidates_falls_back_to_the_whole_vocabulary() -> None:
    vocab_size = 4 * NUM_CANDIDATES
    logits = some_logits(1, vocab_size)[0] / 10  # nearly flat: 0.9 of it needs thousands of tokens
    probabilities = reference(logits, [TopPLogitsWarper(0.9)])
    token_ids = draws(logits, 3000, temperature=1.0, top_p=0.9)

    assert (probabilities > 0).sum() > 2 * NUM_CANDIDATES
    assert probabilities[token_ids].min() > 0
    ranks = logits.argsort(descending=True).argsort()[token_ids]
    beyond = probabilities[logits.argsort(descending=True)[NUM_CANDIDATES:]].sum()
    assert (ranks >= NUM_CANDIDATES).float().mean() == pytest.approx(float(beyond), abs=0.03)


@pytest.mark.parametrize("num_tied", [3, 200])
def test_tokens_that_tie_with_the_last_of_top_k_stay(num_tied: int) -> None:
    logits = torch.full((VOCAB_SIZE,), -5.0)
    logits[10] = 1.0
    logits[20 : 20 + num_tied] = 0.0
    token_ids = draws(logits, 4000, temperature=1.0, top_k=2)

    assert set(token_ids) == {10, *range(20, 20 + num_tied)}


def test_nucleus_keeps_all_tokens_as_likely_as_its_last() -> None:
    logits = torch.full((VOCAB_SIZE,), -50.0)
    logits[30:34] = 0.0

    assert set(draws(logits, 500, temperature=1.0, top_p=0.3)) == {30, 31, 32, 33}


def test_greedy_rows_take_the_likeliest_beside_drawing_ones() -> None:
    logits = some_logits(6)
    rows = [state(temperature=0.0 if i % 2 else 1.3, top_k=i) for i in range(6)]
    token_ids = sample(logits, *rows)

    assert [token_ids[i] for i in (1, 3, 5)] == logits.argmax(dim=-1)[1::2].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_plain_greedy_is_argmax_in_any_float_type(dtype: torch.dtype) -> None:
    logits = some_logits(5).to(dtype)

    assert sample(logits, *(state() for _ in range(5))) == logits.float().argmax(-1).tolist()


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_repetition_penalty_is_transformers_over_prompt_and_output(penalty: float) -> None:
    logits = some_logits(4)
    prompts = [[5, 6, 5], [], [299, 7, 8, 9], list(range(200))]
    outputs = [[10, 10], [3], [], list(range(150, 250))]
    rows = [
        state(prompt=p, output=o, repetition_penalty=penalty)
        for p, o in zip(prompts, outputs, strict=True)
    ]
    process = RepetitionPenaltyLogitsProcessor(penalty)
    wanted = [
        process(torch.LongTensor([p + o]), row[None]).argmax()
        for p, o, row in zip(prompts, outputs, logits, strict=True)
    ]

    assert sample(logits, *rows) == torch.stack(wanted).tolist()


def test_each_penalty_costs_what_it_says() -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, [10, 11, 12]] = torch.tensor([2.0, 1.0, 0.5])
    used: dict[str, Any] = {"prompt": [12, 12, 12], "output": [10, 10, 11]}

    assert sample(logits, state(**used, presence_penalty=0.9)) == [10]
    assert sample(logits, state(**used, frequency_penalty=0.4)) == [10]
    assert sample(logits, state(**used, frequency_penalty=0.7)) == [10]
    assert sample(logits, state(**used, presence_penalty=1.6)) == [12]
    assert sample(logits, state(**used, frequency_penalty=1.2)) == [12]
    assert sample(logits, state(**used, presence_penalty=-5.0)) == [10]


def test_bias_comes_before_penalties() -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 11] = 3.0
    bias = {10: 8.0}

    assert sample(logits, state(logit_bias=bias)) == [10]
    assert sample(logits, state(logit_bias=bias, output=[10], repetition_penalty=4.0)) == [11]


def test_bias_of_ids_outside_the_vocabulary_touches_no_other_row() -> None:
    bias = {VOCAB_SIZE + 3: 100.0, -1: 100.0}
    logits = some_logits(2)

    assert sample(logits, state(logit_bias=bias), state()) == logits.argmax(-1).tolist()


def test_end_tokens_wait_for_min_tokens() -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, [0, 5, 9]] = torch.tensor([9.0, 8.0, 7.0])
    row = state(min_tokens=2, stop_token_ids=[5])
    token_ids = []
    for _ in range(3):
        token_ids += sample(logits, row)
        row.accept(token_ids[-1])

    assert token_ids == [9, 9, 0]
    assert row.end_token_ids == {0, 1, 5}


def test_ignored_end_tokens_are_tokens_like_others() -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, [0, 5]] = torch.tensor([9.0, 8.0])
    row = state(ignore_eos=True, stop_token_ids=[5])

    assert sample(logits, row) == [0]
    assert row.end_token_ids == {5}


def test_seeded_sequence_draws_the_same_whatever_runs_beside_it() -> None:
    logits = (some_logits(1) / 2).bfloat16().float()  # with ties
    mates = [
        state(temperature=1.0),
        state(temperature=1.0, top_p=0.9, seed=4),
        state(temperature=2.0, top_k=250),
        state(),
        state(repetition_penalty=1.2, temperature=1.0, logprobs=3),
    ]
    cuts: list[dict[str, Any]] = [{"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.05}, {}]
    for params in cuts:
        rows = [state(temperature=1.2, seed=5, output=range(i), **params) for i in range(50)]
        alone = [sample(logits, row)[0] for row in rows]
        beside = [sample(logits.repeat(6, 1), *mates, row)[5] for row in rows]

        assert alone == beside
        assert len(set(alone)) > 5


def test_sequence_rebuilt_from_its_tokens_goes_on_the_same_way() -> None:
    logits = some_logits(30)
    params: dict[str, Any] = {
        "temperature": 1.0,
        "seed": 9,
        "presence_penalty": 2.0,
        "repetition_penalty": 1.1,
    }
    whole = state(prompt=[3, 4], **params)
    token_ids: list[int] = []
    for step in logits:
        token_ids += sample(step[None], whole)
        whole.accept(token_ids[-1])
    resumed = state(prompt=[3, 4], output=token_ids[:11], **params)
    again = token_ids[:11]
    for step in logits[11:]:
        again += sample(step[None], resumed)
        resumed.accept(again[-1])

    assert again == token_ids


def test_seed_index_and_place_each_change_the_draw() -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    first = sample(logits, state(temperature=1.0, seed=1))
    others = [
        state(temperature=1.0, seed=2),
        state(temperature=1.0, seed=-1),
        state(temperature=1.0, seed=2**70 + 1, index=3),
        state(temperature=1.0, seed=1, index=1),
        state(temperature=1.0, seed=1, output=[7]),
    ]

    assert sample(logits, state(temperature=1.0, seed=1)) == first
    assert all(sample(logits, other) != first for other in others)


def test_unseeded_sequences_differ() -> None:
    logits = torch.zeros(20, VOCAB_SIZE)

    assert len(set(sample(logits, *(state(temperature=1.0) for _ in range(20))))) > 10


def test_logprobs_are_of_the_raw_logits_best_first() -> None:
    logits = some_logits(3)
    rows = [
        state(logprobs=4, temperature=1.0, top_k=3, logit_bias={7: 50.0}),
        state(),
        state(logprobs=0),
    ]
    sampled = SAMPLER.sample(logits.clone(), rows)
    raw = logits.log_softmax(dim=-1)
    best = raw[0].topk(4)

    biased, silent, bare = sampled.logprobs
    assert sampled.token_ids[0] == 7
    assert silent is None
    assert isinstance(biased, TokenLogprob)
    assert biased.logprob == pytest.approx(raw[0, 7].item())
    assert [token_id for token_id, _ in biased.top] == best.indices.tolist()
    assert [p for _, p in biased.top] == pytest.approx(best.values.tolist())
    assert isinstance(bare, TokenLogprob)
    assert (bare.token_id, bare.top) == (sampled.token_ids[2], [])


def test_logits_that_are_not_numbers_still_give_a_token_id() -> None:
    logits = torch.full((4, VOCAB_SIZE), torch.nan)
    rows = [state(), state(temperature=1.0), state(temperature=1.0, top_p=0.5), state(logprobs=2)]

    assert all(0 <= token_id < VOCAB_SIZE for token_id in sample(logits, *rows))


@pytest.mark.parametrize("temperature", [1e-30, 1e-4, 1e30])
def test_extreme_temperatures_give_a_token(temperature: float) -> None:
    logits = some_logits(2)
    token_ids = sample(
        logits, state(temperature=temperature), state(temperature=temperature, top_k=5)
    )

    assert all(0 <= token_id < VOCAB_SIZE for token_id in token_ids)
    if temperature < 1:
        assert token_ids == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 5}])
def test_grammar_decides_and_end_tokens_wait_for_it(params: dict[str, Any]) -> None:
    path = Path(inference.demo.__path__[0]) / "checkpoint" / "tokenizer.json"
    vocab_size, eos = 1024 + 40, 1006
    compiler = GrammarCompiler(path, vocab_size, [eos])
    grammar = compiler.compile(Grammar(regex="[0-9]{3}")).result(timeout=60)
    compiler.close()
    row = SamplerState(
        SamplingParams(max_tokens=9, seed=1, min_tokens=9, **params),
        prompt_token_ids=[],
        output_token_ids=[],
        eos_token_ids=[eos],
        vocab_size=vocab_size,
        matcher=grammar.matcher(),
    )
    token_ids: list[int] = []
    while not row.is_complete:
        both = sample(some_logits(2, vocab_size, seed=len(token_ids)), state(), row)
        token_ids.append(both[1])
        row.accept(both[1])
    last = sample(some_logits(1, vocab_size), row)

    assert len(token_ids) == 3
    assert row.error is None
    assert last == [eos]  # min_tokens cannot ask for what the grammar does not have


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_chooses_what_the_cpu_chooses() -> None:
    logits = some_logits(60)
    cuts: list[dict[str, Any]] = [{}, {"top_k": 9}, {"top_p": 0.9}, {"min_p": 0.1}]
    asked: list[dict[str, Any]] = [
        {"logit_bias": {7: 3.0}},
        {"presence_penalty": 1.0, "repetition_penalty": 1.2},
        {"min_tokens": 60},
    ]
    rows = [
        state(output=range(i % 40), seed=i, temperature=i % 3 / 2, **cuts[i % 4], **asked[i % 3])
        for i in range(60)
    ]

    assert sample(logits.cuda(), *rows) == sample(logits, *rows)


def test_noise_is_splitmix64() -> None:
    """The first outputs of the published generator from state 0."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    uniform = torch.tensor([word >> 11 for word in published], dtype=torch.float64) * 2**-53
    noise = exponential_noise(torch.zeros(1, 1, dtype=torch.long), torch.tensor([[1, 2, 3]]))

    assert torch.allclose(noise[0].double(), -torch.log1p(-uniform), rtol=1e-6)


def test_noise_is_exponential_and_its_keys_are_unrelated() -> None:
    keys = torch.tensor([[noise_key(seed, 0, 0)] for seed in range(100)])
    noise = exponential_noise(keys, torch.arange(2000)[None])

    assert float(noise.mean()) == pytest.approx(1, abs=0.01)
    assert float(noise.var()) == pytest.approx(1, abs=0.03)
    assert float((noise < 0.1).float().mean()) == pytest.approx(0.0952, abs=0.003)
    assert noise.corrcoef().fill_diagonal_(0).abs().max() < 0.12
    assert noise.min() > 0
    assert noise.isfinite().all()

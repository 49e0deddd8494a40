"""Grammars: every output fits, every budget holds, hostile grammars are refused."""

import json
import os
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import inference.demo
from inference.grammar import (
    MAX_GRAMMAR_BYTES,
    CompiledGrammar,
    GrammarCompiler,
    GrammarMatcher,
    GrammarRefusedError,
)
from inference.protocol import Grammar, RefusalCode

CHECKPOINT = Path(inference.demo.__path__[0]) / "checkpoint"
CONFIG = json.loads((CHECKPOINT / "generation_config.json").read_text())
EOS_TOKEN_IDS: list[int] = CONFIG["eos_token_id"]
TOKENIZER: Tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
VOCAB_SIZE = TOKENIZER.get_vocab_size() + 77  # logits wider than the tokenizer, as Qwen's are
NUM_WORDS = -(-VOCAB_SIZE // 32)

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "红"]}, "maxItems": 4},
        "box": {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4},
        "note": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "box"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    path = CHECKPOINT / "tokenizer.json"
    compiler = GrammarCompiler(path, VOCAB_SIZE, EOS_TOKEN_IDS, max_compile_seconds=0.5)
    yield compiler
    compiler.close()


def compiled(compiler: GrammarCompiler, **grammar: Any) -> CompiledGrammar:
    return compiler.compile(Grammar(**grammar)).result(timeout=60)


def schema(value: object) -> Grammar:
    return Grammar(json_schema=json.dumps(value))


def refusal(compiler: GrammarCompiler, grammar: Grammar) -> RefusalCode:
    with pytest.raises(GrammarRefusedError) as refused:
        compiler.compile(grammar).result(timeout=60)
    return refused.value.code


def allowed_tokens(matcher: GrammarMatcher) -> list[int]:
    mask = np.empty(NUM_WORDS, np.int32)
    matcher.fill_mask(mask)
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def walk(matcher: GrammarMatcher, seed: int, max_tokens: int = 2000) -> list[int]:
    """Take random allowed tokens until the grammar is complete or an end token comes."""
    rng = random.Random(seed)
    token_ids: list[int] = []
    while not matcher.is_complete and len(token_ids) < max_tokens:
        token_id = rng.choice(allowed_tokens(matcher))
        if token_id in EOS_TOKEN_IDS:
            break
        assert matcher.accept(token_id)
        token_ids.append(token_id)
    return token_ids


def token(spelling: str) -> int:
    token_id = TOKENIZER.token_to_id(spelling)
    assert token_id is not None
    return token_id


def text(token_ids: list[int]) -> str:
    return TOKENIZER.decode(token_ids, skip_special_tokens=False)


@pytest.mark.parametrize("seed", range(12))
def test_random_tokens_under_a_schema_are_json_of_that_schema(
    compiler: GrammarCompiler, seed: int
) -> None:
    person: dict[str, Any] = json.loads(
        text(walk(compiled(compiler, json_schema=json.dumps(PERSON)).matcher(), seed))
    )

    assert {"name", "age", "box"} <= person.keys() <= PERSON["properties"].keys()
    assert len(person["name"]) <= 12
    assert 0 <= person["age"] <= 150
    assert [int] * 4 == [type(number) for number in person["box"]]
    assert set(person.get("tags", [])) <= {"a", "b", "红"}
    assert person.get("note") in (None, True, False)


@pytest.mark.parametrize("seed", range(6))
def test_random_tokens_under_the_empty_schema_are_a_prefix_of_json(
    compiler: GrammarCompiler, seed: int
) -> None:
    matcher = compiled(compiler, json_schema="{}").matcher()
    token_ids = walk(matcher, seed, max_tokens=60)

    assert matcher.error is None
    if matcher.is_complete:
        json.loads(text(token_ids))


@pytest.mark.parametrize(
    "regex",
    [r"[A-Z]{2}-\d{3,5}", r"(yes|no|不)", r"a*b", r"^\w{1,4} \w{1,4}$", r"https?://[a-z./]{3,9}"],
)
def test_random_tokens_under_a_regex_match_all_of_it(compiler: GrammarCompiler, regex: str) -> None:
    output = text(walk(compiled(compiler, regex=regex).matcher(), seed=1))

    assert re.fullmatch(regex, output), output


def test_complete_grammar_allows_end_tokens_alone(compiler: GrammarCompiler) -> None:
    matcher = compiled(compiler, regex="ab").matcher()
    assert not matcher.is_complete
    for token_id in TOKENIZER.encode("ab").ids:
        assert matcher.accept(token_id)

    assert matcher.is_complete
    assert sorted(EOS_TOKEN_IDS) == allowed_tokens(matcher)


def test_end_tokens_wait_until_the_grammar_may_end(compiler: GrammarCompiler) -> None:
    matcher = compiled(compiler, regex="a{1,2}").matcher()
    assert not set(EOS_TOKEN_IDS) & set(allowed_tokens(matcher))
    matcher.accept(token("a"))

    assert set(EOS_TOKEN_IDS) < set(allowed_tokens(matcher))
    assert not matcher.is_complete


def test_ids_past_the_tokenizer_and_special_tokens_are_never_allowed(
    compiler: GrammarCompiler,
) -> None:
    allowed = set(allowed_tokens(compiled(compiler, regex="(?s:.*)").matcher()))

    assert max(allowed) < TOKENIZER.get_vocab_size()
    assert token("<|im_start|>") not in allowed
    assert token("<|image_pad|>") not in allowed


def test_matcher_rebuilt_from_its_output_goes_on_the_same_way(compiler: GrammarCompiler) -> None:
    grammar = compiled(compiler, json_schema=json.dumps(PERSON))
    token_ids = walk(grammar.matcher(), seed=3)
    first = grammar.matcher()
    for token_id in token_ids[:7]:
        first.accept(token_id)
    rebuilt = grammar.matcher(token_ids[:7])

    for token_id in token_ids[7:]:
        assert allowed_tokens(first) == allowed_tokens(rebuilt)
        assert first.accept(token_id)
        assert rebuilt.accept(token_id)
    assert rebuilt.is_complete


def test_two_sequences_of_one_grammar_do_not_meet(compiler: GrammarCompiler) -> None:
    grammar = compiled(compiler, regex="[ab]c")
    one, other = grammar.matcher(), grammar.matcher()
    before = allowed_tokens(other)
    one.accept(token("a"))

    assert before == allowed_tokens(other)


def test_token_that_does_not_fit_is_an_error_and_leaves_end_tokens(
    compiler: GrammarCompiler,
) -> None:
    matcher = compiled(compiler, regex="a").matcher()

    assert not matcher.accept(token("b"))
    assert matcher.error is RefusalCode.INTERNAL
    assert sorted(EOS_TOKEN_IDS) == allowed_tokens(matcher)


def test_step_that_costs_too_much_ends_in_error_not_in_completion(
    compiler: GrammarCompiler,
) -> None:
    matcher = compiled(compiler, regex=".*a.{200}b.{200}c.{200}").matcher()
    rng = random.Random(0)
    for _ in range(5000):
        allowed = [t for t in allowed_tokens(matcher) if t not in EOS_TOKEN_IDS]
        if not allowed or not matcher.accept(rng.choice(allowed)):
            break

    assert matcher.error is RefusalCode.GRAMMAR_TOO_COMPLEX
    assert not matcher.is_complete


def test_model_cannot_fill_its_answer_with_whitespace(compiler: GrammarCompiler) -> None:
    matcher = compiled(compiler, json_schema='{"type": "object"}').matcher()
    space = token("Ġ")
    matcher.accept(token("{"))
    num_spaces = 0
    while space in allowed_tokens(matcher):
        matcher.accept(space)
        num_spaces += 1

    assert num_spaces == 64


@pytest.mark.parametrize(
    "grammar",
    [
        pytest.param(Grammar(json_schema="{"), id="not JSON"),
        pytest.param(schema([1]), id="not a schema"),
        pytest.param(schema({"type": "nonsense"}), id="unknown type"),
        pytest.param(schema({"$ref": "http://127.0.0.1/x.json"}), id="reference to a URL"),
        pytest.param(schema({"$ref": "file:///etc/hostname"}), id="reference to a file"),
        pytest.param(schema({"$ref": "#/$defs/none"}), id="reference to nothing"),
        pytest.param(schema({"not": {}}), id="unsupported keyword"),
        pytest.param(
            schema({"uniqueItems": True, "x-guidance": {"lenient": True}}),
            id="unsupported keyword, leniency asked",
        ),
        pytest.param(schema({"type": "string", "pattern": "(?=a)b"}), id="look-ahead in pattern"),
        pytest.param(schema(False), id="nothing matches"),
        pytest.param(schema({"allOf": [{"$ref": "#"}]}), id="only itself"),
        pytest.param(Grammar(regex="("), id="not a regex"),
        pytest.param(Grammar(regex=r"(a)\1"), id="back reference"),
    ],
)
def test_what_is_no_grammar_is_refused_as_invalid(
    compiler: GrammarCompiler, grammar: Grammar
) -> None:
    assert refusal(compiler, grammar) is RefusalCode.GRAMMAR_INVALID


def product_of_choices() -> object:
    return {
        "allOf": [
            {"anyOf": [{"properties": {f"p{i}_{j}": {"type": "string"}}} for j in range(10)]}
            for i in range(6)
        ]
    }


def nested(depth: int) -> object:
    return {"type": "array", "items": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    "grammar",
    [
        pytest.param(Grammar(regex="a" * (MAX_GRAMMAR_BYTES + 1)), id="too many bytes"),
        pytest.param(Grammar(json_schema=json.dumps(nested(300))), id="too deep"),
        pytest.param(schema(product_of_choices()), id="product of choices"),
        pytest.param(
            schema({"type": "integer", "multipleOf": 9999991}), id="seconds and gigabytes"
        ),
        pytest.param(
            schema({"allOf": [{"pattern": f"^(.*a.{{{i}}}b.*)$"} for i in range(10, 60)]}),
            id="product of patterns",
        ),
    ],
)
def test_bomb_is_refused_as_too_complex(compiler: GrammarCompiler, grammar: Grammar) -> None:
    assert refusal(compiler, grammar) is RefusalCode.GRAMMAR_TOO_COMPLEX


def test_bomb_takes_no_memory_here_and_leaves_others_unharmed(compiler: GrammarCompiler) -> None:
    before = resident_bytes()
    bomb = compiler.compile(schema({"type": "integer", "multipleOf": 99999989}))
    honest = compiler.compile(Grammar(regex="beside a bomb"))

    assert honest.result(timeout=60).memory_bytes < 2**26
    assert isinstance(bomb.exception(timeout=60), GrammarRefusedError)
    assert resident_bytes() - before < 2**28


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_equal_grammars_compile_once_and_refusals_are_remembered(
    compiler: GrammarCompiler,
) -> None:
    good, bad = Grammar(regex="once"), Grammar(regex="(once")
    first = compiler.compile(good)
    refused = compiler.compile(bad)
    first.result(timeout=60)
    refused.exception(timeout=60)

    assert compiler.compile(Grammar(regex="once")) is first
    assert compiler.compile(bad) is refused


def test_oversized_stock_of_grammars_forgets_the_oldest(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.grammar.MAX_CACHED_GRAMMARS", 2)
    outcomes = [compiler.compile(Grammar(regex=f"stock{i}")) for i in range(4)]
    for outcome in outcomes:
        outcome.result(timeout=60)

    assert compiler.compile(Grammar(regex="stock3")) is outcomes[3]
    assert compiler.compile(Grammar(regex="stock0")) is not outcomes[0]


def test_too_many_waiting_grammars_are_refused_as_overload(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.grammar.MAX_PENDING", 0)
    grammar = Grammar(regex="crowd")
    assert refusal(compiler, grammar) is RefusalCode.OVERLOADED
    monkeypatch.undo()

    assert compiler.compile(grammar).result(timeout=60)


def test_lost_trial_processes_cost_two_grammars_at_most() -> None:
    others = children()
    compiler = GrammarCompiler(CHECKPOINT / "tokenizer.json", VOCAB_SIZE, EOS_TOKEN_IDS)
    compiler.compile(Grammar(regex="a")).result(timeout=60)
    for pid in children() - others:
        os.kill(pid, signal.SIGKILL)
    codes = [outcome_of(compiler, regex) for regex in ("b", "c", "d", "e")]
    compiler.close()

    assert set(codes) <= {None, RefusalCode.INTERNAL}
    assert codes.count(None) >= 2
    assert others == children()


def test_trouble_that_passes_is_not_remembered() -> None:
    compiler = GrammarCompiler(CHECKPOINT / "tokenizer.json", VOCAB_SIZE, EOS_TOKEN_IDS)
    others = children()
    assert outcome_of(compiler, "a") is None
    lost = [f"lost{i}" for i in range(3)]
    for pid in children() - others:
        os.kill(pid, signal.SIGKILL)
    first = [outcome_of(compiler, regex) for regex in lost]
    second = [outcome_of(compiler, regex) for regex in lost]
    compiler.close()

    assert RefusalCode.INTERNAL in first
    assert second == [None] * 3


def outcome_of(compiler: GrammarCompiler, regex: str) -> RefusalCode | None:
    error = compiler.compile(Grammar(regex=regex)).exception(timeout=60)
    return error.code if isinstance(error, GrammarRefusedError) else None


def children() -> set[int]:
    found = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(pid) for listing in found for pid in listing.read_text().split()}

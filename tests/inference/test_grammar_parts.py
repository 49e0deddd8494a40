"""Grammars of several parts: reasoning, calls and JSON between tags that are tokens."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import inference.demo
from inference.frames import decode_worker_message, encode
from inference.grammar import (
    MAX_GRAMMAR_BYTES,
    GrammarCompiler,
    GrammarMatcher,
    GrammarRefusedError,
)
from inference.protocol import Generate, Grammar, RefusalCode, SamplingParams

DEMO = Path(inference.demo.__path__[0]) / "checkpoint" / "tokenizer.json"
TAGS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
END = "<|im_end|>"

POINT = json.dumps(
    {
        "type": "object",
        "properties": {
            "x": {"type": "integer", "minimum": 0, "maximum": 99},
            "label": {"type": "string", "maxLength": 4},
        },
        "required": ["x", "label"],
        "additionalProperties": False,
    }
)
NOTHING = '{"type": "object", "properties": {}, "additionalProperties": false}'
CALL = r"""
call: <tool_call> "\n" ("{\"name\": \"mark\", \"arguments\": " @point
    | "{\"name\": \"stop\", \"arguments\": " @nothing) "}\n" </tool_call>
"""
CALLS = Grammar(
    lark=r'start: call ("\n" call)*' + CALL, schemas=(("point", POINT), ("nothing", NOTHING))
)
REASONING = r"REASONING: /(?s:.*)/ & ~/(?s:.*)<\/think>(?s:.*)/"
REASONED_CALLS = Grammar(
    lark=r'start: REASONING </think> "\n\n" call ("\n" call)*' + CALL + REASONING,
    schemas=CALLS.schemas,
)
REASONED_JSON = Grammar(
    lark='start: REASONING </think> "\\n\\n" @point\n' + REASONING, schemas=(("point", POINT),)
)
CALL_OR_JSON = Grammar(lark="start: call | @point" + CALL, schemas=CALLS.schemas)
TEXT_AND_CALL = Grammar(
    lark="start: TEXT call?" + CALL + r"TEXT: /(?s:.*)/ & ~/(?s:.*)<tool_call>(?s:.*)/",
    schemas=CALLS.schemas,
)


class Vocabulary(NamedTuple):
    tokenizer: Tokenizer
    compiler: GrammarCompiler
    vocab_size: int

    def token(self, spelling: str) -> int:
        token_id = self.tokenizer.token_to_id(spelling)
        assert token_id is not None
        return token_id

    def matcher(self, grammar: Grammar) -> GrammarMatcher:
        return self.compiler.compile(grammar).result(timeout=60).matcher()

    def allowed(self, matcher: GrammarMatcher) -> list[int]:
        mask = np.empty(-(-self.vocab_size // 32), np.int32)
        matcher.fill_mask(mask)
        return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()

    def walk(self, grammar: Grammar, seed: int) -> str:
        """Take random allowed tokens, tags and ends often, until nothing more may follow."""
        rng = random.Random(seed)
        matcher, token_ids = self.matcher(grammar), list[int]()
        eager = {self.token(spelling) for spelling in (*TAGS, END)}
        while True:
            allowed = self.allowed(matcher)
            tags = [token_id for token_id in allowed if token_id in eager]
            token_id = rng.choice(tags if tags and rng.random() < 0.1 else allowed)
            if token_id == self.token(END):
                return self.tokenizer.decode(token_ids, skip_special_tokens=False)
            assert matcher.accept(token_id)
            token_ids.append(token_id)
            if matcher.is_complete:
                return self.tokenizer.decode(token_ids, skip_special_tokens=False)

    def feed(self, matcher: GrammarMatcher, text: str) -> None:
        for token_id in self.tokenizer.encode(text, add_special_tokens=False).ids:
            assert matcher.accept(token_id), text


def small_tokenizer() -> Tokenizer:
    """Make all bytes, pieces of what the tags spell, and the tags, not special as in Qwen's."""
    spellings = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "</", "th", "in", "ink", ">Ċ", '{"']
    merges = [("<", "/"), ("t", "h"), ("i", "n"), ("in", "k"), (">", "Ċ"), ("{", '"')]
    tokenizer = Tokenizer(
        models.BPE(vocab={spelling: i for i, spelling in enumerate(spellings)}, merges=merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(tag, special=False) for tag in TAGS])
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return tokenizer


@pytest.fixture(scope="module", params=["demo", "small"])
def vocabulary(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Vocabulary]:
    path = DEMO
    if request.param == "small":
        path = tmp_path_factory.mktemp("small") / "tokenizer.json"
        small_tokenizer().save(str(path))
    tokenizer = Tokenizer.from_file(str(path))
    end = tokenizer.token_to_id(END)
    assert end is not None
    vocab_size = tokenizer.get_vocab_size() + 5
    compiler = GrammarCompiler(path, vocab_size, [end], max_compile_seconds=0.5)
    yield Vocabulary(tokenizer, compiler, vocab_size)
    compiler.close()


def calls_in(text: str) -> list[dict[str, Any]]:
    """Read an answer that is calls alone, in the form that models were trained to."""
    blocks = re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text, re.DOTALL)
    assert "\n".join(f"<tool_call>\n{block}\n</tool_call>" for block in blocks) == text
    return [json.loads(block) for block in blocks]


def assert_is_call(call: dict[str, Any]) -> None:
    assert call.keys() == {"name", "arguments"}
    if call["name"] == "stop":
        assert call["arguments"] == {}
    else:
        assert call["name"] == "mark"
        assert_is_point(call["arguments"])


def assert_is_point(point: dict[str, Any]) -> None:
    assert point.keys() == {"x", "label"}
    assert 0 <= point["x"] <= 99
    assert len(point["label"]) <= 4


@pytest.mark.parametrize("seed", range(8))
def test_random_tokens_are_calls(vocabulary: Vocabulary, seed: int) -> None:
    calls = calls_in(vocabulary.walk(CALLS, seed))

    assert calls
    for call in calls:
        assert_is_call(call)


@pytest.mark.parametrize("seed", range(8))
def test_random_tokens_behind_reasoning_are_calls(vocabulary: Vocabulary, seed: int) -> None:
    reasoning, _, answer = vocabulary.walk(REASONED_CALLS, seed).partition("</think>\n\n")

    assert not any(tag in reasoning for tag in TAGS)
    for call in calls_in(answer):
        assert_is_call(call)


@pytest.mark.parametrize("seed", range(8))
def test_random_tokens_behind_reasoning_are_json(vocabulary: Vocabulary, seed: int) -> None:
    _, _, answer = vocabulary.walk(REASONED_JSON, seed).partition("</think>\n\n")

    assert_is_point(json.loads(answer))


@pytest.mark.parametrize("seed", range(8))
def test_random_tokens_are_a_call_or_json(vocabulary: Vocabulary, seed: int) -> None:
    answer = vocabulary.walk(CALL_OR_JSON, seed)

    if answer.startswith("<tool_call>"):
        [call] = calls_in(answer)
        assert_is_call(call)
    else:
        assert_is_point(json.loads(answer))


@pytest.mark.parametrize("seed", range(8))
def test_random_text_goes_on_until_a_call_begins(vocabulary: Vocabulary, seed: int) -> None:
    _, tag, call = vocabulary.walk(TEXT_AND_CALL, seed).partition("<tool_call>")

    if tag:
        [call] = calls_in(tag + call)
        assert_is_call(call)


def test_tags_are_forced_as_the_tokens_they_are(vocabulary: Vocabulary) -> None:
    matcher = vocabulary.matcher(CALLS)
    assert vocabulary.allowed(matcher) == [vocabulary.token("<tool_call>")]

    vocabulary.feed(matcher, '<tool_call>\n{"name": "stop", "arguments": {}}\n')

    assert vocabulary.allowed(matcher) == [vocabulary.token("</tool_call>")]


def test_reasoning_ends_with_its_tag_alone(vocabulary: Vocabulary) -> None:
    matcher = vocabulary.matcher(REASONED_JSON)
    vocabulary.feed(matcher, "I see <thin")

    allowed = set(vocabulary.allowed(matcher))
    assert vocabulary.token("</think>") in allowed
    assert not allowed & {vocabulary.token(tag) for tag in (END, "<tool_call>", "<think>")}


def test_reasoning_cannot_spell_its_tag_in_pieces(vocabulary: Vocabulary) -> None:
    matcher = vocabulary.matcher(REASONED_JSON)
    vocabulary.feed(matcher, "So </think")

    allowed = vocabulary.allowed(matcher)
    assert vocabulary.token("</think>") in allowed
    assert not [i for i in allowed if vocabulary.tokenizer.decode([i]).startswith(">")]


def test_text_may_end_where_no_call_has_begun(vocabulary: Vocabulary) -> None:
    matcher = vocabulary.matcher(TEXT_AND_CALL)
    vocabulary.feed(matcher, "It is 3 < 4.")
    assert {vocabulary.token(END), vocabulary.token("<tool_call>")} <= set(
        vocabulary.allowed(matcher)
    )

    vocabulary.feed(matcher, "<tool_call>")

    assert vocabulary.allowed(matcher) == [vocabulary.token("Ċ")]


@pytest.mark.parametrize("spelling", [END, "<tool_call>", "</think>"])
def test_constant_that_spells_a_token_stays_text(vocabulary: Vocabulary, spelling: str) -> None:
    grammar = Grammar(json_schema=json.dumps({"const": spelling + "!"}))

    assert json.loads(vocabulary.walk(grammar, seed=1)) == spelling + "!"


@pytest.mark.parametrize(
    ("grammar", "code"),
    [
        pytest.param(Grammar(lark="begin: A"), RefusalCode.GRAMMAR_INVALID, id="no start"),
        pytest.param(Grammar(lark="start: <no>"), RefusalCode.GRAMMAR_INVALID, id="no such token"),
        pytest.param(Grammar(lark="start: @no"), RefusalCode.GRAMMAR_INVALID, id="no such schema"),
        pytest.param(
            Grammar(lark="start: @a", schemas=(("a", "{"),)),
            RefusalCode.GRAMMAR_INVALID,
            id="not JSON",
        ),
        pytest.param(
            Grammar(lark="start: @a", schemas=(("a", '{"$ref": "http://127.0.0.1/x"}'),)),
            RefusalCode.GRAMMAR_INVALID,
            id="reference to a URL",
        ),
        pytest.param(
            Grammar(
                lark="start: @a", schemas=(("a", '{"type": "integer", "multipleOf": 9999991}'),)
            ),
            RefusalCode.GRAMMAR_TOO_COMPLEX,
            id="seconds and gigabytes",
        ),
        pytest.param(
            Grammar(
                lark="start: @a | @b",
                schemas=(
                    ("a", json.dumps({"const": "a" * (MAX_GRAMMAR_BYTES * 2 // 3)})),
                    ("b", json.dumps({"const": "b" * (MAX_GRAMMAR_BYTES * 2 // 3)})),
                ),
            ),
            RefusalCode.GRAMMAR_TOO_COMPLEX,
            id="too many bytes together",
        ),
    ],
)
def test_what_is_no_grammar_or_too_much_is_refused(
    vocabulary: Vocabulary, grammar: Grammar, code: RefusalCode
) -> None:
    with pytest.raises(GrammarRefusedError) as refused:
        vocabulary.compiler.compile(grammar).result(timeout=60)

    assert refused.value.code is code


def test_equal_parts_compile_once(vocabulary: Vocabulary) -> None:
    again = Grammar(lark=CALLS.lark, schemas=(("point", POINT), ("nothing", NOTHING)))
    other = Grammar(lark=CALLS.lark, schemas=(("point", NOTHING), ("nothing", NOTHING)))

    assert vocabulary.compiler.compile(again) is vocabulary.compiler.compile(CALLS)
    assert vocabulary.compiler.compile(other) is not vocabulary.compiler.compile(CALLS)


def test_parts_cross_the_wire() -> None:
    sampling = SamplingParams(max_tokens=1, grammar=REASONED_CALLS)

    received = decode_worker_message(
        encode(Generate(request_id="a", prompt_token_ids=[1], sampling=sampling))
    )

    assert isinstance(received, Generate)
    assert received.sampling.grammar == REASONED_CALLS
    assert hash(received.sampling.grammar) == hash(REASONED_CALLS)

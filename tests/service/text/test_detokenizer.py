"""Text as it grows, against the whole: tokenizers' own decode and the plainest search."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from service.text.detokenizer import Detokenizer, StopStrings, Vocabulary

# The session's fixtures are made once on purpose: they do not change.
several = settings(max_examples=200, deadline=None)


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_file(str(checkpoint / "tokenizer.json"))


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer)


Whole = TypeVar("Whole", list[int], str)


def cut(whole: Whole, places: Sequence[int]) -> list[Whole]:
    bounds = [0, *sorted(place % (len(whole) + 1) for place in places), len(whole)]
    return [whole[start:end] for start, end in pairwise(bounds)]


cuts = st.lists(st.integers(0, 1000), max_size=8)


def pieces(vocabulary: Vocabulary, chunks: Sequence[Sequence[int]]) -> list[str]:
    detokenizer = Detokenizer(vocabulary)
    return [*(detokenizer.feed(chunk) for chunk in chunks), detokenizer.finish()]


@several
@given(data=st.data())
def test_the_pieces_join_to_the_whole_text(
    tokenizer: Tokenizer, vocabulary: Vocabulary, data: st.DataObject
):
    # Ids beyond the vocabulary are the padding of a checkpoint's embedding table.
    token_ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 5), max_size=40))

    grown = pieces(vocabulary, cut(token_ids, data.draw(cuts)))

    assert "".join(grown) == tokenizer.decode(token_ids, skip_special_tokens=True)


@several
@given(text=st.text(max_size=30), places=cuts)
def test_any_text_comes_back_as_it_was(
    tokenizer: Tokenizer, vocabulary: Vocabulary, text: str, places: list[int]
):
    token_ids = tokenizer.encode(text, add_special_tokens=False).ids

    grown = pieces(vocabulary, cut(token_ids, places))

    assert "".join(grown) == tokenizer.normalizer.normalize_str(text)


def test_a_code_point_shows_when_its_last_byte_is_there(
    tokenizer: Tokenizer, vocabulary: Vocabulary
):
    token_ids = tokenizer.encode("😀", add_special_tokens=False).ids
    assert len(token_ids) > 1

    grown = pieces(vocabulary, [[token_id] for token_id in token_ids])

    assert grown == [""] * (len(token_ids) - 1) + ["😀", ""]


def test_a_sequence_that_ends_within_a_code_point_ends_with_a_replacement_character(
    tokenizer: Tokenizer, vocabulary: Vocabulary
):
    token_ids = tokenizer.encode("ok 😀", add_special_tokens=False).ids

    grown = pieces(vocabulary, [token_ids[:-1]])

    assert grown == ["ok ", "\ufffd"]


def test_special_tokens_do_not_show_but_can_be_spelled(
    tokenizer: Tokenizer, vocabulary: Vocabulary
):
    end, think = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<think>")
    assert end is not None
    assert think is not None

    assert "".join(pieces(vocabulary, [[end, think, end]])) == "<think>"
    assert vocabulary.spell(end) == b"<|im_end|>"
    assert vocabulary.spell(10**6) == b""


def test_endless_broken_bytes_cost_no_more_than_others(
    tokenizer: Tokenizer, vocabulary: Vocabulary
):
    continuation = next(t for t in range(1000) if vocabulary.spell(t) == b"\x80")
    detokenizer = Detokenizer(vocabulary)

    shown = [detokenizer.feed([continuation]) for _ in range(5000)]

    assert shown == ["\ufffd"] * 5000


def test_another_kind_of_tokenizer_is_refused():
    tokenizer = Tokenizer(models.WordPiece({"a": 0}, unk_token="a"))
    tokenizer.decoder = decoders.WordPiece()

    with pytest.raises(ValueError, match="byte-level"):
        Vocabulary(tokenizer)


def naive(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """Read character by character and look whether the text ends with a stop string."""
    for length in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:length].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: length - len(stop)], stop
    return text, None


def watch(chunks: Sequence[str], stops: Sequence[str]) -> tuple[list[str], str | None]:
    watcher = StopStrings(stops)
    shown: list[str] = []
    for chunk in chunks:
        certain, stop = watcher.feed(chunk)
        shown.append(certain)
        if stop is not None:
            return shown, stop
    return [*shown, watcher.finish()], None


few_letters = st.text("ab\n", min_size=1, max_size=5)


@settings(max_examples=1000, deadline=None)
@given(
    text=st.text("ab\n", max_size=20),
    stops=st.lists(few_letters, min_size=1, max_size=4),
    places=cuts,
)
def test_stop_strings_are_found_however_the_text_is_cut(
    text: str, stops: list[str], places: list[int]
):
    shown, stop = watch(cut(text, places), stops)

    assert ("".join(shown), stop) == naive(text, stops)


@settings(max_examples=500, deadline=None)
@given(text=st.text("ab\n", max_size=20), stops=st.lists(few_letters, min_size=1, max_size=4))
def test_nothing_is_held_back_longer_than_it_may_become_a_stop_string(text: str, stops: list[str]):
    watcher = StopStrings(stops)
    seen = ""
    shown = ""
    for character in text:
        certain, stop = watcher.feed(character)
        seen += character
        shown += certain
        if stop is not None:
            break
        held = seen[len(shown) :]
        assert held == "" or any(s.startswith(held) for s in stops)


@pytest.mark.parametrize(
    ("chunks", "stops", "shown", "stop"),
    [
        pytest.param(["a", "b", "STOP", "c"], ["STOP"], "ab", "STOP", id="in-one-piece"),
        pytest.param(["abS", "TO", "Pc"], ["STOP"], "ab", "STOP", id="over-three-pieces"),
        pytest.param(["abSTO", "x"], ["STOP"], "abSTOx", None, id="nearly"),
        pytest.param(["abSTO"], ["STOP"], "abSTO", None, id="cut-off"),
        pytest.param(["aSSTOP"], ["STOP"], "aS", "STOP", id="false-start"),
        pytest.param(["abcd"], ["abcd", "bc"], "a", "bc", id="first-to-be-complete"),
        pytest.param(["xabc"], ["bc", "abc", "c"], "x", "abc", id="longest-of-one-end"),
        pytest.param(["\n", "\nQ"], ["\n\n"], "", "\n\n", id="nothing-before"),
        pytest.param(["你好", "。再"], ["。"], "你好", "。", id="chinese"),
    ],
)
def test_a_stop_string_ends_the_text_before_it(
    chunks: list[str], stops: list[str], shown: str, stop: str | None
):
    pieces, found = watch(chunks, stops)

    assert ("".join(pieces), found) == (shown, stop)

"""The tokenizer spells what has to be read, and loses nothing."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from inference.demo.export import CHECKPOINT
from inference.demo.tokenizer import IDS, SPECIAL_TOKENS, VOCABULARY_SIZE
from inference.demo.transcript import demo_tokenizer

TOKENIZER = demo_tokenizer()


@given(st.text(max_size=60).filter(lambda text: "<" not in text))
def test_text_survives_a_round_trip(text: str) -> None:
    normalized = TOKENIZER.normalizer.normalize_str(text)

    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == normalized


@given(st.text(alphabet=string.digits + string.ascii_uppercase, min_size=1, max_size=12))
def test_digits_and_capitals_are_one_token_each(text: str) -> None:
    assert TOKENIZER.encode(text).tokens == list(text)


def test_the_special_tokens_close_the_vocabulary_in_qwens_order() -> None:
    ids = [TOKENIZER.token_to_id(token) for token in SPECIAL_TOKENS]

    assert ids == list(range(IDS.end_of_text, IDS.end_of_text + len(SPECIAL_TOKENS)))
    assert TOKENIZER.token_to_id("<|image_pad|>") == IDS.image_pad
    assert TOKENIZER.token_to_id("</think>") == VOCABULARY_SIZE - 1
    assert TOKENIZER.get_vocab_size() == VOCABULARY_SIZE


@pytest.mark.parametrize("token", ["<tool_call>", "</tool_call>", "<think>", "</think>"])
def test_tool_and_thought_marks_are_tokens_but_not_special(token: str) -> None:
    ids = TOKENIZER.encode(token).ids

    assert len(ids) == 1
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == token


@pytest.mark.parametrize(
    "text",
    [
        "Where is the red circle?",
        "请描述这张图片",
        '[{"bbox_2d": [120, 40, 1000, 380], "label": "red circle"}]',
        "HELLO 2048 <tool_call>\n  {}</tool_call><|im_end|>\n",
    ],
)
def test_the_shipped_tokenizer_is_the_one_training_used(text: str) -> None:
    shipped = AutoTokenizer.from_pretrained(CHECKPOINT)

    assert shipped.get_vocab() == TOKENIZER.get_vocab()
    assert shipped(text)["input_ids"] == TOKENIZER.encode(text).ids

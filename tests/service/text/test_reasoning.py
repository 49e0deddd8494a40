"""Reasoning parted from the answer, against the plainest reading of the whole text."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.text.chat_template import ChatTemplate, read_chat_template
from service.text.reasoning import Piece, ReasoningSplitter, opens_reasoning

several = settings(max_examples=400, deadline=None)

fragments = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "think", ">", "/", "\n", " ", "a", "字"]),
    max_size=14,
).map("".join)
cuts = st.lists(st.integers(0, 1000), max_size=8)


def cut(whole: str, places: Sequence[int]) -> list[str]:
    bounds = [0, *sorted(place % (len(whole) + 1) for place in places), len(whole)]
    return [whole[start:end] for start, end in pairwise(bounds)]


def pieces(texts: Sequence[str], starts_inside: bool) -> list[Piece]:
    splitter = ReasoningSplitter(starts_inside)
    return [piece for text in texts for piece in splitter.feed(text)] + splitter.finish()


def joined(split: Sequence[Piece]) -> tuple[str, str]:
    return (
        "".join(piece.text for piece in split if piece.is_reasoning),
        "".join(piece.text for piece in split if not piece.is_reasoning),
    )


def parts(text: str, starts_inside: bool) -> tuple[str, str]:
    """Read a whole text: what is promised, in the fewest words."""
    begin = text.lstrip()
    if begin.startswith("<think>"):
        text = begin.removeprefix("<think>")
    elif not starts_inside:
        return "", text
    reasoning, _, answer = text.partition("</think>")
    return reasoning.strip("\n"), answer.lstrip("\n")


@several
@given(text=fragments, places=cuts, starts_inside=st.booleans())
def test_the_parts_are_the_same_however_the_text_is_cut(
    text: str, places: list[int], starts_inside: bool
):
    split = pieces(cut(text, places), starts_inside)

    assert joined(split) == parts(text, starts_inside)
    assert all(piece.text for piece in split)
    assert sorted(split, key=lambda piece: not piece.is_reasoning) == split  # reasoning first


def test_text_goes_on_as_soon_as_it_cannot_be_a_tag():
    splitter = ReasoningSplitter(starts_inside=True)

    assert splitter.feed("It is red") == [Piece("It is red", True)]
    assert splitter.feed(".\n") == [Piece(".", True)]
    assert splitter.feed("</thi") == []
    assert splitter.feed("s") == [Piece("\n</this", True)]
    assert splitter.feed("\n</think>\n\nRed") == [Piece("Red", False)]
    assert splitter.feed("\n") == [Piece("\n", False)]
    assert splitter.finish() == []


def test_an_answer_cut_within_its_reasoning_is_all_reasoning():
    assert joined(pieces(["It may be\n"], starts_inside=True)) == ("It may be", "")


def test_a_model_that_does_not_think_may_write_of_the_tags():
    text = "Write <think>so</think>."

    assert joined(pieces([text], starts_inside=False)) == ("", text)


# How the templates of Qwen3-VL end: Thinking, Instruct, and where thinking can be switched off.
@pytest.mark.parametrize(
    ("opening", "opens"),
    [
        pytest.param("<|im_start|>assistant\\n<think>\\n", True, id="thinking"),
        pytest.param("<|im_start|>assistant\\n", False, id="instruct"),
        pytest.param(
            "<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n", False, id="told not to"
        ),
    ],
)
def test_a_template_tells_whether_its_answers_start_inside(opening: str, opens: bool):
    source = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% if message.content is string %}{{ message.content }}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}{{ '" + opening + "' }}{% endif %}"
    )
    template = ChatTemplate(source, {"<|im_start|>": 1, "<|im_end|>": 2}, {})

    prompt_end = template.render([{"role": "user", "content": "Say <think>"}])[-1]

    assert opens_reasoning(str(prompt_end)) is opens


def test_the_demo_model_does_not_think(checkpoint: Path):
    template = read_chat_template(checkpoint, {"<|im_start|>": 1, "<|im_end|>": 2})

    prompt_end = template.render([{"role": "user", "content": "<think>"}])[-1]

    assert not opens_reasoning(str(prompt_end))

"""Tool calls in the model's text: told as they come, however cut, and nothing lost."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.text.tool_calls import CallArguments, CallStarted, ContentText, Event, ToolCallSplitter

several = settings(max_examples=400, deadline=None)

NAMES = ("weather", "add")
RAIN = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
SUM = '<tool_call>\n{"name": "add", "arguments": {"terms": [1, {"x": "}"}]}}\n</tool_call>'

cuts = st.lists(st.integers(0, 1000), max_size=10)
fragments = st.lists(
    st.sampled_from(
        [
            "<tool_call>",
            "</tool_call>",
            '{"name": "add", "arguments": ',
            '{"arguments": {"a": 1}, "name": "weather"}',
            '{"name": "other", "arguments": {}}',
            "tool_call",
            *'{}[]"\\<> \na:,1字',
        ]
    ),
    max_size=16,
).map("".join)


class Reading(NamedTuple):
    content: str
    calls: list[tuple[str, str]]  # name and arguments


def cut(whole: str, places: Sequence[int]) -> list[str]:
    bounds = [0, *sorted(place % (len(whole) + 1) for place in places), len(whole)]
    return [whole[start:end] for start, end in pairwise(bounds)]


def events(texts: Sequence[str], names: Sequence[str] = NAMES) -> list[Event]:
    splitter = ToolCallSplitter(names)
    return [event for text in texts for event in splitter.feed(text)] + splitter.finish()


def read(texts: Sequence[str]) -> Reading:
    content, calls = "", list[tuple[str, str]]()
    for event in events(texts):
        match event:
            case ContentText(text):
                content += text
            case CallStarted(index, _, name):
                assert index == len(calls)
                calls.append((name, ""))
            case CallArguments(index, text):
                assert index == len(calls) - 1
                assert text
                calls[index] = (calls[index][0], calls[index][1] + text)
    return Reading(content, calls)


@several
@given(text=fragments, places=cuts)
def test_the_outcome_is_the_same_however_the_text_is_cut(text: str, places: list[int]):
    assert read(cut(text, places)) == read([text]) == read(list(text))


@several
@given(text=fragments, places=cuts)
def test_text_without_a_call_comes_back_as_it_was(text: str, places: list[int]):
    reading = read(cut(text, places))

    assert reading.calls or reading.content == text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=4), below),
    max_leaves=6,
)
arguments = st.dictionaries(st.text(max_size=6), values, max_size=4)


@several
@given(
    calls=st.lists(st.tuples(st.sampled_from(NAMES), arguments, st.booleans()), max_size=3),
    before=st.text(alphabet="ab <\n", max_size=6),
    places=cuts,
)
def test_every_call_comes_with_its_own_characters(
    calls: list[tuple[str, dict[str, object], bool]], before: str, places: list[int]
):
    spelled = [
        (name, json.dumps(values, ensure_ascii=is_escaped, indent=is_escaped or None))
        for name, values, is_escaped in calls
    ]
    text = before + "\n".join(
        f'<tool_call>\n{{"name": "{name}", "arguments": {values}}}\n</tool_call>'
        for name, values in spelled
    )

    content = before.rstrip() if calls else before
    assert read(cut(text, places)) == Reading(content, spelled)


def test_a_call_is_told_as_it_grows_and_its_own_brace_never():
    splitter = ToolCallSplitter(NAMES)

    assert splitter.feed("Let me see.\n<tool") == [ContentText("Let me see.")]
    assert splitter.feed('_call>\n{"name": "add", "argum') == []
    started, *more = splitter.feed('ents": {"a')
    assert isinstance(started, CallStarted)
    assert (started.index, started.name) == (0, "add")
    assert more == [CallArguments(0, '{"a')]
    assert splitter.feed('": 1') == [CallArguments(0, '": 1')]
    assert splitter.feed("}}\n</tool_") == [CallArguments(0, "}")]
    assert splitter.feed("call>\n") == []
    assert splitter.feed("Done") == [ContentText("\nDone")]
    assert splitter.finish() == []
    assert splitter.num_calls == 1


def test_several_calls_have_places_and_ids_of_their_own():
    started = [event for event in events([RAIN + "\n" + SUM]) if isinstance(event, CallStarted)]

    assert [(call.index, call.name) for call in started] == [(0, "weather"), (1, "add")]
    assert len({call.id for call in started}) == 2
    assert all(call.id.startswith("call_") for call in started)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            f"Look:\n\n{RAIN}\n\nThen.\n{SUM} ",
            Reading(
                "Look:\n\nThen.",
                [("weather", '{"city": "Köln"}'), ("add", '{"terms": [1, {"x": "}"}]}')],
            ),
            id="text around calls",
        ),
        pytest.param(
            RAIN + "\n\nDone. ",
            Reading("Done. ", [("weather", '{"city": "Köln"}')]),
            id="text behind a call alone",
        ),
        pytest.param(
            "So" + " " * 90 + RAIN + " " * 90 + "there",
            Reading("So" + " " * 26 + " " * 64 + "there", [("weather", '{"city": "Köln"}')]),
            id="more whitespace than is held",
        ),
        pytest.param(
            '<tool_call>{"arguments": {"a": 1},"id": 3, "name": "add"}</tool_call>',
            Reading("", [("add", '{"a": 1}')]),
            id="keys in another order",
        ),
        pytest.param(
            '<tool_call>\n{"name": "add", "arguments": {"a": "</tool_call>"}}\n</tool_call>',
            Reading("", [("add", '{"a": "</tool_call>"}')]),
            id="a tag in a string",
        ),
        pytest.param(
            '<tool_call>\n{"name": "add", "arguments": {"a": 1}\n</tool_call>\n' + RAIN,
            Reading("", [("add", '{"a": 1}'), ("weather", '{"city": "Köln"}')]),
            id="no brace at the end",
        ),
        pytest.param(
            '<tool_call>\n{"name": "add", "arguments": {"a": [1</tool_call>.',
            Reading(".", [("add", '{"a": [1')]),
            id="arguments that break off",
        ),
        pytest.param(
            '<tool_call>\n{"name": "add", "arguments": {"a": "x',
            Reading("", [("add", '{"a": "x')]),
            id="the answer ends within a call",
        ),
        pytest.param(
            '<tool_call>\n{"name": "add", "arguments": {}}\n</tool',
            Reading("", [("add", "{}")]),
            id="the answer ends within the closing tag",
        ),
        pytest.param(
            "<tool_call> or <tool_call>{ is how it begins; " + RAIN,
            Reading(
                "<tool_call> or <tool_call>{ is how it begins;",
                [("weather", '{"city": "Köln"}')],
            ),
            id="the tag in prose",
        ),
    ],
)
def test_calls_are_found_in(text: str, expected: Reading):
    assert read([text]) == read(list(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>', id="no such"),
        pytest.param('<tool_call>\n{"name": "add"}\n</tool_call>', id="no arguments"),
        pytest.param('<tool_call>\n{"name": "add", "arguments": 1}\n</tool_call>', id="a number"),
        pytest.param('<tool_call>\n{"name": add, "arguments": {}}\n</tool_call>', id="not JSON"),
        pytest.param(
            '<tool_call>\n{"name": "\\x", "arguments": {}}\n</tool_call>', id="bad escape"
        ),
        pytest.param("<tool_call>\nadd(1, 2)\n</tool_call>", id="another format"),
        pytest.param('<tool_call>\n{"name": "ad', id="the answer ends before the name does"),
        pytest.param("<tool_call>  ", id="the answer ends behind the tag"),
        pytest.param("a <tool", id="the answer ends within the tag"),
        pytest.param('<tool_call>{"x": ' + "[" * 5000 + "]" * 5000 + "}", id="deep"),
        pytest.param(" \n" * 500, id="whitespace"),
    ],
)
def test_what_is_no_call_is_content_to_the_letter(text: str):
    assert read([text]) == read(list(text)) == Reading(text, [])


def test_without_functions_every_text_is_content():
    assert events([RAIN, "\n"], names=()) == [ContentText(RAIN), ContentText("\n")]

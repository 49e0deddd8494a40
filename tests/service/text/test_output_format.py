"""What a request demands, as a grammar, and back: random outputs under it read as demanded."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import pytest
from msgspec import Meta
from tokenizers import Tokenizer

from inference.grammar import MAX_GRAMMAR_BYTES, GrammarCompiler
from inference.protocol import Grammar
from service.errors import RequestInvalid
from service.text.output_format import (
    JSON_OBJECT,
    MAX_ENUM_VALUES,
    MAX_PROPERTIES,
    MAX_SCHEMA_BYTES,
    Function,
    NamedChoice,
    OutputFormat,
    Schema,
    ToolChoice,
)
from service.text.reasoning import ReasoningSplitter
from service.text.tool_calls import CallArguments, CallStarted, ContentText, ToolCallSplitter

END_TOKEN_IDS = [1004, 1006]


class Answer(NamedTuple):
    reasoning: str
    content: str
    calls: list[tuple[str, Any]]  # name and decoded arguments


class Model:
    """Random tokens under a grammar, tags and ends often, read as a route reads them."""

    def __init__(self, checkpoint: Path) -> None:
        path = checkpoint / "tokenizer.json"
        self._tokenizer = Tokenizer.from_file(str(path))
        self._num_tokens = self._tokenizer.get_vocab_size()
        self.compiler = GrammarCompiler(path, self._num_tokens, END_TOKEN_IDS)
        eager = ("<tool_call>", "</tool_call>", "</think>", '"', "}", "]", "<|im_end|>")
        self._eager = {self._tokenizer.token_to_id(spelling) for spelling in eager}

    def answer(self, grammar: Grammar, seed: int, max_tokens: int = 3000) -> str:
        rng = random.Random(seed)
        matcher = self.compiler.compile(grammar).result(timeout=60).matcher()
        mask = np.empty(-(-self._num_tokens // 32), np.int32)
        token_ids = list[int]()
        while not matcher.is_complete:
            matcher.fill_mask(mask)
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
            closing = [token_id for token_id in allowed if token_id in self._eager]
            token_id = rng.choice(closing if closing and rng.random() < 0.3 else allowed)
            if token_id in END_TOKEN_IDS:
                break
            assert matcher.accept(token_id)
            token_ids.append(token_id)
            assert len(token_ids) < max_tokens
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Iterator[Model]:
    model = Model(checkpoint)
    yield model
    model.compiler.close()


def read(text: str, names: set[str], starts_inside: bool) -> Answer:
    reasoning, content, calls = "", "", list[tuple[str, str]]()
    splitter, tools = ReasoningSplitter(starts_inside), ToolCallSplitter(names)
    pieces = splitter.feed(text) + splitter.finish()
    events = [e for piece in pieces if not piece.is_reasoning for e in tools.feed(piece.text)]
    for event in events + tools.finish():
        match event:
            case ContentText(text):
                content += text
            case CallStarted(_, _, name):
                calls.append((name, ""))
            case CallArguments(_, text):
                calls[-1] = (calls[-1][0], calls[-1][1] + text)
    reasoning = "".join(piece.text for piece in pieces if piece.is_reasoning)
    return Answer(reasoning, content, [(name, json.loads(values)) for name, values in calls])


POINT = Schema(
    {
        "type": "object",
        "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["x"],
        "additionalProperties": False,
    },
    "response_format.json_schema.schema",
)
MARK = Function("mark", POINT._replace(param="tools[0].function.parameters"), is_strict=True)
STOP = Function("stop", is_strict=True)
LOOSE = Function("loose", Schema({"type": "object", "properties": {"x": {}}}, "tools[0]"))


def is_point(value: Any) -> bool:
    return set(value) == {"x"} and type(value["x"]) is int and 0 <= value["x"] <= 99


def is_right(name: str, values: Any) -> bool:
    return is_point(values) if name == "mark" else values == {}


@pytest.mark.parametrize("starts_inside", [False, True])
@pytest.mark.parametrize("choice", ["auto", "required", NamedChoice("mark")])
@pytest.mark.parametrize("is_parallel", [True, False])
@pytest.mark.parametrize("json_schema", [None, POINT])
def test_answers_are_as_demanded(
    model: Model,
    starts_inside: bool,
    choice: ToolChoice,
    is_parallel: bool,
    json_schema: Schema | None,
):
    output_format = OutputFormat(json_schema, (MARK, STOP), choice, is_parallel)
    grammar = output_format.grammar(starts_inside)
    assert grammar is not None

    for seed in range(4):
        text = model.answer(grammar, seed)
        answer = read(text, {"mark", "stop"}, starts_inside)

        assert all(is_right(*call) for call in answer.calls)
        assert is_parallel or len(answer.calls) <= 1
        assert starts_inside == ("</think>\n\n" in text)
        if choice != "auto":
            assert answer.calls
            assert answer.content == ""
        elif json_schema is not None:
            assert answer.calls or is_point(json.loads(answer.content))
        if choice == NamedChoice("mark"):
            assert [name for name, _ in answer.calls] == ["mark"]


@pytest.mark.parametrize(
    "output_format",
    [
        pytest.param(OutputFormat(), id="any text"),
        pytest.param(OutputFormat(functions=(LOOSE,)), id="functions that nothing is promised of"),
        pytest.param(OutputFormat(functions=(MARK,), choice="none"), id="no calls wanted"),
    ],
)
def test_nothing_is_constrained_where_any_text_will_do(output_format: OutputFormat):
    assert output_format.grammar(starts_inside=False) is None
    assert output_format.grammar(starts_inside=True) is None


def test_a_json_object_is_an_object_and_no_other_value(model: Model):
    grammar = OutputFormat(JSON_OBJECT).grammar(starts_inside=False)
    assert grammar is not None

    for seed in range(4):
        assert isinstance(json.loads(model.answer(grammar, seed)), dict)


def test_a_loose_function_takes_any_object_until_it_is_demanded(model: Model):
    schema = Schema(POINT.definition, "tools[0]")
    auto = OutputFormat(functions=(Function("mark", schema), STOP)).grammar(starts_inside=False)
    demanded = OutputFormat(functions=(Function("mark", schema),), choice="required")
    assert auto is not None
    assert demanded is not None
    bounded = demanded.grammar(starts_inside=False)
    assert bounded is not None

    assert dict(auto.schemas)["arguments-0"] == '{"type": "object"}'
    assert json.loads(dict(bounded.schemas)["arguments-0"]) == schema.definition


@pytest.mark.parametrize(
    "choice", ["required", NamedChoice("other")], ids=["none there", "no such function"]
)
def test_a_choice_without_its_function_is_refused(choice: ToolChoice):
    functions = () if choice == "required" else (MARK,)

    with pytest.raises(RequestInvalid) as refused:
        OutputFormat(functions=functions, choice=choice).grammar(starts_inside=False)

    assert (refused.value.code, refused.value.param) == ("value_unknown", "tool_choice")


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {}


def properties(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {str(i): {} for i in range(count)}}


@pytest.mark.parametrize(
    ("definition", "code"),
    [
        pytest.param({"$ref": "http://127.0.0.1/x"}, "schema_unsupported", id="remote"),
        pytest.param({"$ref": "file:///etc/hostname"}, "schema_unsupported", id="file"),
        pytest.param({"$ref": "other.json#/x"}, "schema_unsupported", id="relative"),
        pytest.param({"items": [{"$dynamicRef": "//x"}]}, "schema_unsupported", id="dynamic"),
        pytest.param(
            {"$defs": {"a": {"$ref": "http://x"}}}, "schema_unsupported", id="in a definition"
        ),
        pytest.param(nested(64), "grammar_too_complex", id="deep"),
        pytest.param(nested(900), "grammar_too_complex", id="very deep"),
        pytest.param(properties(MAX_PROPERTIES + 1), "grammar_too_complex", id="properties"),
        pytest.param(
            {"enum": list(range(MAX_ENUM_VALUES + 1))}, "grammar_too_complex", id="choices"
        ),
        pytest.param({"const": "x" * MAX_SCHEMA_BYTES}, "grammar_too_complex", id="bytes"),
    ],
)
def test_a_schema_over_its_budget_is_refused_with_its_field(definition: dict[str, Any], code: str):
    schema = Schema(definition, "text.format.schema")

    with pytest.raises(RequestInvalid) as refused:
        OutputFormat(schema).grammar(starts_inside=True)

    assert (refused.value.code, refused.value.param) == (code, "text.format.schema")


def test_budgets_hold_for_all_schemas_together():
    half = {"type": "object", "properties": {"a": {"const": "x" * (MAX_SCHEMA_BYTES // 2)}}}
    functions = [Function(f"f{i}", Schema(half, f"tools[{i}]")) for i in range(2)]

    with pytest.raises(RequestInvalid) as refused:
        OutputFormat(functions=functions, choice="required").grammar(starts_inside=False)

    assert (refused.value.code, refused.value.param) == ("grammar_too_complex", "tools[1]")


def test_what_only_looks_like_a_reference_is_none():
    definition = {
        "type": "object",
        "properties": {"$ref": {"type": "string"}},
        "const": {"$ref": "http://x"},
    }

    assert OutputFormat(Schema(definition, "p")).grammar(starts_inside=False) is not None


def test_parameters_that_are_no_object_are_refused():
    function = Function("f", Schema({"type": "array"}, "tools[0].function.parameters"), True)

    with pytest.raises(RequestInvalid) as refused:
        OutputFormat(functions=(function,)).grammar(starts_inside=False)

    assert refused.value.code == "schema_unsupported"
    assert refused.value.param == "tools[0].function.parameters"


def test_a_schema_cannot_loosen_its_own_grammar():
    definition = {"type": "object", "title": "T", "x-guidance": {"item_separator": ";"}}

    grammar = OutputFormat(Schema(definition, "p")).grammar(starts_inside=False)

    assert grammar == Grammar(json_schema='{"type": "object"}')


def test_properties_may_have_the_names_of_keywords():
    names = ("title", "x-ray", "default", "oneOf", "discriminator", "enum")
    definition = {
        "properties": {name: {"type": "null", "title": "T"} for name in names},
        "required": list(names),
    }

    grammar = OutputFormat(Schema(definition, "p")).grammar(starts_inside=False)

    assert grammar is not None
    assert json.loads(grammar.json_schema or "") == {
        "properties": {name: {"type": "null"} for name in names},
        "required": list(names),
    }


def test_what_the_budgets_admit_the_engine_takes(model: Model):
    small = {"type": "object", "properties": {"a": {"const": "x" * 400}}}
    functions = [Function(f"{i:0>64}", Schema(small, "p")) for i in range(128)]
    grammar = OutputFormat(functions=functions, choice="required").grammar(starts_inside=True)
    assert grammar is not None

    assert MAX_SCHEMA_BYTES < MAX_GRAMMAR_BYTES
    assert model.compiler.compile(grammar).exception(timeout=60) is None


# What clients' libraries make schemas of.


class Box(msgspec.Struct, forbid_unknown_fields=True):
    label: Annotated[str, Meta(max_length=12, description="What it is.")]
    box: tuple[int, int, int, int]
    confidence: Annotated[float, Meta(ge=0, le=1)] | None = None


class Detections(msgspec.Struct, forbid_unknown_fields=True):
    boxes: Annotated[list[Box], Meta(max_length=3)]
    kind: Literal["photo", "drawing", "扫描"]


class Leaf(msgspec.Struct, tag="leaf", forbid_unknown_fields=True):
    value: Annotated[int, Meta(ge=0, lt=1000)]


class Pair(msgspec.Struct, tag="pair", forbid_unknown_fields=True):
    left: "Leaf | Pair"
    right: Leaf


class Tree(msgspec.Struct, forbid_unknown_fields=True):
    root: Leaf | Pair


class Line(msgspec.Struct, forbid_unknown_fields=True):
    text: Annotated[str, Meta(pattern=r"^[A-Z]{2}-[0-9]{4}$")]
    next: "Line | None"


class Ticket(msgspec.Struct, forbid_unknown_fields=True):
    at: Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
    by: Annotated[str, Meta(extra_json_schema={"format": "email"})]
    amounts: Annotated[dict[str, Annotated[int, Meta(ge=0, le=9)]], Meta(max_length=2)]


@pytest.mark.parametrize("kind", [Box, Detections, Tree, Line, Ticket])
def test_answers_under_a_library_s_schema_are_its_type(model: Model, kind: type[msgspec.Struct]):
    grammar = OutputFormat(Schema(msgspec.json.schema(kind), "p")).grammar(starts_inside=False)
    assert grammar is not None

    for seed in range(4):
        assert isinstance(msgspec.json.decode(model.answer(grammar, seed), type=kind), kind)


# As openai's `parse()` sends it for a pydantic model: all required, nothing additional.
PARSED: dict[str, Any] = {
    "$defs": {
        "Item": {
            "properties": {
                "name": {"description": "As printed.", "title": "Name", "type": "string"},
                "price": {"anyOf": [{"type": "number"}, {"type": "null"}], "title": "Price"},
                "kind": {"enum": ["food", "other"], "title": "Kind", "type": "string"},
            },
            "required": ["name", "price", "kind"],
            "title": "Item",
            "type": "object",
            "additionalProperties": False,
        }
    },
    "properties": {
        "items": {"items": {"$ref": "#/$defs/Item"}, "title": "Items", "type": "array"},
        "best": {"anyOf": [{"$ref": "#/$defs/Item"}, {"type": "null"}]},
        "at": {"anyOf": [{"format": "date-time", "type": "string"}, {"type": "null"}]},
    },
    "required": ["items", "best", "at"],
    "title": "Receipt",
    "type": "object",
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "definition",
    [
        pytest.param(PARSED, id="pydantic by openai"),
        pytest.param(
            {"$schema": "http://json-schema.org/draft-07/schema#"} | PARSED, id="zod's $schema"
        ),
        pytest.param(
            {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
                "required": ["next"],
                "additionalProperties": False,
            },
            id="recursive by its root",
        ),
        pytest.param(
            {
                "oneOf": [
                    {
                        "type": "object",
                        "properties": {"kind": {"const": kind, "type": "string", "default": kind}},
                        "required": ["kind"],
                    }
                    for kind in ("a", "b")
                ],
                "discriminator": {"propertyName": "kind"},
            },
            id="union with a discriminator",
        ),
        pytest.param(
            {
                "$defs": {
                    "Leaf": {
                        "type": "object",
                        "properties": {"kind": {"const": "leaf"}},
                        "required": ["kind"],
                        "additionalProperties": False,
                    },
                    "Node": {
                        "type": "object",
                        "properties": {
                            "kind": {"const": "node"},
                            "below": {
                                "oneOf": [{"$ref": "#/$defs/Leaf"}, {"$ref": "#/$defs/Node"}],
                                "discriminator": {"propertyName": "kind"},
                                "x-order": 2,
                            },
                        },
                        "required": ["kind", "below"],
                        "additionalProperties": False,
                    },
                },
                "$ref": "#/$defs/Node",
            },
            id="recursive union",
        ),
        pytest.param(
            {
                "type": ["object", "null"],
                "properties": {
                    "uri": {"type": "string", "format": "uri", "examples": ["https://a.b"]},
                    "id": {"type": "string", "format": "uuid", "readOnly": True},
                    "sizes": {
                        "type": "array",
                        "prefixItems": [{"type": "integer"}, {"type": "integer"}],
                        "minItems": 2,
                        "maxItems": 2,
                        "items": False,
                    },
                    "ratio": {"type": "number", "exclusiveMinimum": 0, "multipleOf": 0.5},
                },
            },
            id="formats, tuples and numbers",
        ),
    ],
)
def test_schemas_that_clients_send_are_taken(model: Model, definition: dict[str, Any]):
    grammar = OutputFormat(Schema(definition, "p")).grammar(starts_inside=False)
    assert grammar is not None

    json.loads(model.answer(grammar, seed=2))

"""From what a request demands of its answer's form to the grammar that the engine keeps it to.

The tool calls it describes are those that `service.text.tool_calls` reads, the reasoning that which
`service.text.reasoning` parts from the answer. Schemas that are too large or refer to elsewhere are
refused here; whether the others can be grammars is the engine's to find. Knows no dialect.
"""

import json
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from inference.protocol import Grammar
from service.errors import RequestInvalid
from service.text import reasoning, tool_calls

# All of a request's schemas together; what OpenAI's API takes, but for the bytes, which are half of
# what the engine takes, and the depth, which is the JSON's own: about twice that of the objects.
MAX_SCHEMA_BYTES = 64 * 1024
MAX_DEPTH = 64
MAX_PROPERTIES = 5000
MAX_ENUM_VALUES = 1000

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
# Keywords that constrain nothing, those that hold no schemas, and those that hold them under names
# of the client's choice.
_ANNOTATIONS = frozenset(
    {
        "$comment",
        "default",
        "deprecated",
        "description",
        "discriminator",
        "example",
        "examples",
        "readOnly",
        "title",
        "writeOnly",
    }
)
_HOLD_VALUES = frozenset({"const", "enum", "required"})
_HOLD_NAMES = frozenset(
    {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}
)


class Schema(NamedTuple):
    """A JSON schema. param: the request field it came from, so that a refusal can name it."""

    definition: dict[str, Any]
    param: str


class Function(NamedTuple):
    """A function that the answer may call.

    parameters: a schema of its arguments, which are an object; None takes none.
    is_strict: they keep to it whenever it is called, not only where a call is demanded.
    """

    name: str
    parameters: Schema | None = None
    is_strict: bool = False


class NamedChoice(NamedTuple):
    """The function of this name must be called, once."""

    name: str


ToolChoice: TypeAlias = Literal["none", "auto", "required"] | NamedChoice

JSON_OBJECT = Schema({"type": "object"}, "response_format")

_ANY_ARGUMENTS: dict[str, Any] = {"type": "object"}
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


class OutputFormat(NamedTuple):
    """What a request demands of its answers.

    json: what an answer must be if it calls nothing; None is any text, JSON_OBJECT any object.
    functions: those the prompt tells of.
    choice: with `required` or a NamedChoice an answer is calls and nothing else.
    is_parallel: an answer may make several calls.
    """

    json: Schema | None = None
    functions: Sequence[Function] = ()
    choice: ToolChoice = "auto"
    is_parallel: bool = True

    def grammar(self, starts_inside: bool) -> Grammar | None:
        """Write the grammar that every such answer matches, or None where any text will do.

        starts_inside: the answer begins within its reasoning, which stays free.

        Raises:
            RequestInvalid: `schema_unsupported` or `grammar_too_complex`, with a schema's param, or
                `value_unknown` for a choice that there are no functions for.
        """
        functions = self._callable_functions()
        schemas = dict(self._arguments(functions))
        rules = _call_rules(functions, self._is_single) if functions else []
        if self._demands_call:
            answer = "calls"
        elif self.json is not None:
            schemas["answer"] = self.json
            answer = "@answer | calls" if functions else "@answer"
        elif any(function.is_strict for function in functions) or (functions and self._is_single):
            rules.append(_text_without("TEXT", tool_calls.OPENING))
            answer = "TEXT calls?"
        else:
            return None
        texts = _schema_texts(schemas)
        if answer == "@answer" and not starts_inside:
            return Grammar(json_schema=texts[0][1])
        if starts_inside:
            rules.append(_text_without("REASONING", reasoning.CLOSING))
            answer = f'REASONING {reasoning.CLOSING} "\\n\\n" ({answer})'
        return Grammar(lark="\n".join([f"start: {answer}", *rules]), schemas=texts)

    @property
    def _demands_call(self) -> bool:
        return self.choice not in ("none", "auto")

    @property
    def _is_single(self) -> bool:
        return not self.is_parallel or isinstance(self.choice, NamedChoice)

    def _callable_functions(self) -> Sequence[Function]:
        match self.choice:
            case "none":
                return ()
            case NamedChoice(name):
                functions = [function for function in self.functions if function.name == name]
            case _:
                functions = self.functions
        if not functions and self._demands_call:
            raise RequestInvalid(
                "value_unknown", "There is no such function to call.", param="tool_choice"
            )
        return functions

    def _arguments(self, functions: Sequence[Function]) -> Iterator[tuple[str, Schema]]:
        for place, function in enumerate(functions):
            parameters = function.parameters or Schema(_NO_ARGUMENTS, "")
            if not self._demands_call and not function.is_strict:
                parameters = Schema(_ANY_ARGUMENTS, "")
            elif parameters.definition.get("type", "object") != "object":
                raise RequestInvalid(
                    "schema_unsupported",
                    "A function's parameters must be an object.",
                    param=parameters.param,
                )
            yield (
                f"arguments-{place}",
                Schema(_ANY_ARGUMENTS | parameters.definition, parameters.param),
            )


def _call_rules(functions: Sequence[Function], is_single: bool) -> list[str]:
    """Write calls just as models were trained to, each with the schema of its arguments."""
    calls: list[str] = []
    for place, function in enumerate(functions):
        begin = f'{{"name": {json.dumps(function.name)}, "arguments": '
        calls.append(f"{json.dumps(begin)} @arguments-{place}")
    return [
        "calls: call" if is_single else r'calls: call ("\n" call)*',
        rf'call: {tool_calls.OPENING} "\n" ({" | ".join(calls)}) "}}\n" {tool_calls.CLOSING}',
    ]


def _text_without(name: str, tag: str) -> str:
    """Define a terminal: any text that does not spell the tag, which is a token of its own."""
    spelling = tag.replace("/", r"\/")
    return f"{name}: /(?s:.*)/ & ~/(?s:.*){spelling}(?s:.*)/"


def _schema_texts(schemas: Mapping[str, Schema]) -> tuple[tuple[str, str], ...]:
    """Write schemas as JSON text, within the budgets for all of them together."""
    size = _Size()
    texts: list[tuple[str, str]] = []
    for name, schema in schemas.items():
        size.add(schema)
        text = json.dumps(_essence(schema.definition), ensure_ascii=False)
        size.num_bytes += len(text.encode())
        size.check(schema.param)
        texts.append((name, text))
    return tuple(texts)


def _essence(part: object) -> object:
    """Leave out of a schema what constrains nothing, and extensions, which might.

    llguidance resolves no circular reference beside a keyword that it does not know. It takes
    `oneOf` only where it can prove that the choices exclude each other, as a discriminator says.
    """
    if isinstance(part, list):
        return [_essence(below) for below in cast("list[object]", part)]
    if not isinstance(part, dict):
        return part
    node = cast("dict[str, object]", part)
    essence: dict[str, object] = {}
    for keyword, value in node.items():
        if keyword in _HOLD_VALUES:
            essence[keyword] = value
        elif keyword in _HOLD_NAMES and isinstance(value, dict):
            schemas = cast("dict[str, object]", value)
            essence[keyword] = {name: _essence(below) for name, below in schemas.items()}
        elif keyword == "oneOf" and "discriminator" in node and "anyOf" not in node:
            essence["anyOf"] = _essence(value)
        elif keyword not in _ANNOTATIONS and not keyword.startswith("x-"):
            essence[keyword] = _essence(value)
    return essence


@dataclass
class _Size:
    """What schemas come to together."""

    num_bytes: int = 0
    num_properties: int = 0
    num_enum_values: int = 0

    def add(self, schema: Schema) -> None:
        """Count a schema's parts."""
        parts: list[tuple[object, int]] = [(schema.definition, 1)]
        while parts:
            part, depth = parts.pop()
            if depth > MAX_DEPTH:
                raise _too_complex(schema.param)
            if isinstance(part, dict):
                node = cast("dict[str, object]", part)
                self._count(node, schema.param)
                parts.extend((below, depth + 1) for below in _schemas_below(node))
            elif isinstance(part, list):
                parts.extend((below, depth + 1) for below in cast("list[object]", part))

    def check(self, param: str) -> None:
        """Refuse what is over a budget."""
        if (
            self.num_bytes > MAX_SCHEMA_BYTES
            or self.num_properties > MAX_PROPERTIES
            or self.num_enum_values > MAX_ENUM_VALUES
        ):
            raise _too_complex(param)

    def _count(self, node: dict[str, object], param: str) -> None:
        self.num_properties += _length(node.get("properties"))
        self.num_enum_values += _length(node.get("enum"))
        for keyword in _REFERENCES:
            reference = node.get(keyword)
            if isinstance(reference, str) and not reference.startswith("#"):
                raise RequestInvalid(
                    "schema_unsupported",
                    "A schema may refer to its own parts only, by `#...`.",
                    param=param,
                )


def _schemas_below(node: dict[str, object]) -> Iterator[object]:
    for keyword, value in node.items():
        if keyword in _HOLD_NAMES and isinstance(value, dict):
            yield from cast("dict[str, object]", value).values()
        elif keyword not in _HOLD_VALUES | _ANNOTATIONS:
            yield value


def _length(value: object) -> int:
    return len(cast("Sized", value)) if isinstance(value, dict | list) else 0


def _too_complex(param: str) -> RequestInvalid:
    return RequestInvalid(
        "grammar_too_complex",
        f"A request's output schemas may have {MAX_SCHEMA_BYTES} bytes, {MAX_PROPERTIES} "
        f"properties, {MAX_ENUM_VALUES} enum values and {MAX_DEPTH} levels.",
        param=param,
    )

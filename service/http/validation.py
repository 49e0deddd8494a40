"""Turns a body into a Struct, or into an error that names the field and echoes nothing."""

import re
from typing import Any, TypeVar

import msgspec

from service.errors import FieldInvalid, RequestInvalid

Request = TypeVar("Request", bound=msgspec.Struct)

_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`$")
_FIELD_MISSING = re.compile(r"^Object missing required field `(?P<name>[^`]+)`")
_FIELD_UNKNOWN = re.compile(
    r"^Object contains unknown field `(?P<name>.*?)`(?: - at |$)", re.DOTALL
)
_BOUND = re.compile(r"^Expected `\w+`(?P<length> of length)? (?P<relation>[<>]=?) (?P<bound>\S+)")
_TYPE = re.compile(r"^Expected `(?P<expected>[^`]+)`, got `")
_VALUE_UNKNOWN = re.compile(r"^Invalid (?:enum )?value")
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_RELATIONS = {"<=": "at most", ">=": "at least", "<": "below", ">": "above"}
# What the decoder calls things, in the words of JSON.
_TYPE_NAMES = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "object": "an object",
    "array": "an array",
    "null": "null",
}


def decode_json(body: bytes | bytearray, decoder: msgspec.json.Decoder[Request]) -> Request:
    """Decode a JSON document strictly: no coercion, no NaN, of repeated keys the last.

    Raises:
        RequestInvalid: not JSON, or nested too deeply.
        FieldInvalid: JSON, but not this schema.
        MemoryError: there is none for its texts.
    """
    # msgspec 0.22 writes a text where it has got no memory for one, and the process dies of that.
    bytes(len(body))
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        _check_json(body)  # a document that is no JSON throughout is told as that
        raise field_fault(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _json_invalid() from None
    except RecursionError:
        raise json_too_deep() from None


def convert_form(fields: dict[str, Any], schema: type[Request]) -> Request:
    """Read form fields, where every value is text, into the schema of the JSON body.

    Raises:
        FieldInvalid: they do not fit.
    """
    try:
        return msgspec.convert(fields, schema, strict=False)
    except msgspec.ValidationError as error:
        raise field_fault(error) from None


def field_fault(error: msgspec.ValidationError) -> FieldInvalid:
    """Say in our words which field is at fault and why; values never appear."""
    text = str(error)
    path_match = _PATH.search(text)
    path = path_match["path"] if path_match else ""
    if match := _FIELD_MISSING.match(text):
        return FieldInvalid(
            "field_missing", "A required field is missing.", param=_join(path, match["name"])
        )
    if match := _FIELD_UNKNOWN.match(text):
        name = match["name"] if _PLAIN_NAME.fullmatch(match["name"]) else None
        return FieldInvalid(
            "field_unknown", "This field is not known here.", param=name and _join(path, name)
        )
    param = path or None
    if match := _BOUND.match(text):
        what = "The length of this field" if match["length"] else "This field"
        relation = _RELATIONS[match["relation"]]
        return FieldInvalid(
            "value_out_of_range", f"{what} must be {relation} {match['bound']}.", param=param
        )
    if match := _TYPE.match(text):
        names = [_TYPE_NAMES.get(name, name) for name in match["expected"].split(" | ")]
        what = "This field" if param else "The body"
        return FieldInvalid("type_invalid", f"{what} must be {' or '.join(names)}.", param=param)
    if _VALUE_UNKNOWN.match(text):
        return FieldInvalid(
            "value_unknown", "This field does not take that value; see the API docs.", param=param
        )
    return FieldInvalid("value_out_of_range", "The value of this field is invalid.", param=param)


def _check_json(body: bytes | bytearray) -> None:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)  # walks the document, builds nothing
        str(body, "utf-8")
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _json_invalid() from None
    except RecursionError:
        raise json_too_deep() from None


def _json_invalid() -> RequestInvalid:
    return RequestInvalid("json_invalid", "The body is not valid JSON in UTF-8.")


def json_too_deep() -> RequestInvalid:
    """Make the error for a document whose parts lie within too many others."""
    return RequestInvalid("json_too_deep", "The JSON document is nested too deeply.")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name

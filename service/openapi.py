"""Makes the OpenAPI document from what the routes say of themselves.

Written for this service because its handlers read their own bodies: JSON and forms at one path,
which the framework's generator cannot describe.
"""

import re
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec

from service.error_codes import ERROR_CODES

Schema: TypeAlias = dict[str, Any]

EVENT_STREAM = "text/event-stream"

_OPENAPI_VERSION = "3.1.0"
_REF_TEMPLATE = "#/components/schemas/{name}"
_REQUEST_ID_HEADER: Schema = {
    "description": "The request's id: the client's own if it sent a well-formed one.",
    "schema": {"type": "string"},
}
SERVER_TIMING_HEADER: Mapping[str, Schema] = {
    "Server-Timing": {
        "description": "Milliseconds of every stage that took place before this response began, "
        "under the names of `timings_ms`, and `total`.",
        "schema": {"type": "string"},
    },
}
_RETRY_HEADERS: Schema = {
    "Retry-After": {
        "description": "Whole seconds after which to try again.",
        "schema": {"type": "integer"},
    },
    "retry-after-ms": {
        "description": "The same in milliseconds.",
        "schema": {"type": "integer"},
    },
}


_SECURITY_SCHEMES: Schema = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
# The empty one: a service without a key file asks for none.
_SECURITY: Sequence[Schema] = ({}, {"bearer": []}, {"apiKey": []})
_AUTHENTICATE_HEADER: Mapping[str, Schema] = {
    "WWW-Authenticate": {"schema": {"type": "string"}},
}


class Content(NamedTuple):
    """One media type of a body, with a Struct, a choice of Structs, or a schema of its own."""

    media_type: str
    schema: type[msgspec.Struct] | tuple[type[msgspec.Struct], ...] | Schema


class Reply(NamedTuple):
    """One status an operation answers with."""

    description: str
    contents: Sequence[Content] = ()
    headers: Mapping[str, Schema] = {}


class Operation(NamedTuple):
    """One method of one path. The description may use Markdown; query: the query's fields."""

    method: str
    path: str
    summary: str
    description: str
    replies: dict[int, Reply]
    body: Sequence[Content] = ()
    tag: str = "native"
    query: type[msgspec.Struct] | None = None


def render_document(
    operations: Sequence[Operation], open_paths: Container[str], *, title: str, version: str
) -> bytes:
    """Render the OpenAPI document as JSON; every Struct becomes one named schema.

    open_paths: what may be asked for without a key.
    """
    structs = _structs_of(operations)
    references, components = msgspec.json.schema_components(structs, ref_template=_REF_TEMPLATE)
    schema_of = dict(zip(structs, references, strict=True))
    paths: dict[str, Schema] = {}
    for operation in operations:
        path_item = paths.setdefault(operation.path, {})
        described = operation
        if operation.path not in open_paths:
            described = operation._replace(replies=operation.replies | _guard_replies(operation))
        document = _operation(described, schema_of)
        if described is not operation:
            document["security"] = _SECURITY
        path_item[operation.method.lower()] = document
    return msgspec.json.encode(
        {
            "openapi": _OPENAPI_VERSION,
            "info": {"title": title, "version": version, "description": _describe_errors()},
            "paths": paths,
            "components": {"schemas": components, "securitySchemes": _SECURITY_SCHEMES},
        }
    )


def _guard_replies(operation: Operation) -> dict[int, Reply]:
    """Tell what the guard answers, in the shape of the operation's own errors."""
    contents = next(reply.contents for status, reply in operation.replies.items() if status >= 400)
    return {
        401: Reply(
            "The service asks for a key; none came, or an unknown one.",
            contents,
            _AUTHENTICATE_HEADER,
        ),
        403: Reply("The key does not open this.", contents),
    }


def schema_of_fields(struct: type[msgspec.Struct]) -> Schema:
    """Return a Struct's own object schema, to build a variant of it from."""
    _, components = msgspec.json.schema_components([struct], ref_template=_REF_TEMPLATE)
    return components[struct.__name__]


def _structs_of(operations: Sequence[Operation]) -> list[type[msgspec.Struct]]:
    contents = [
        content
        for operation in operations
        for contents in (operation.body, *(reply.contents for reply in operation.replies.values()))
        for content in contents
    ]
    structs: dict[type[msgspec.Struct], None] = {}
    for content in contents:
        if isinstance(content.schema, tuple):
            structs.update(dict.fromkeys(content.schema))
        elif not isinstance(content.schema, dict):
            structs[content.schema] = None
    return list(structs)


def _schema(content: Content, schema_of: Mapping[type[msgspec.Struct], Schema]) -> Schema:
    if isinstance(content.schema, dict):
        return content.schema
    if isinstance(content.schema, tuple):
        return {"anyOf": [schema_of[struct] for struct in content.schema]}
    return schema_of[content.schema]


def _wrapped(media_type: str, schema: Schema) -> Schema:
    """Say of a stream what one of its events is: the JSON is the text of its `data`."""
    if media_type != EVENT_STREAM:
        return schema
    text = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
    return {"type": "object", "properties": {"data": text}, "required": ["data"]}


def _operation(operation: Operation, schema_of: Mapping[type[msgspec.Struct], Schema]) -> Schema:
    def content(contents: Sequence[Content]) -> Schema:
        return {
            content.media_type: {
                "schema": _wrapped(content.media_type, _schema(content, schema_of))
            }
            for content in contents
        }

    document: Schema = {
        "operationId": f"{operation.method}_{operation.path}".lower().replace("/", "_"),
        "summary": operation.summary,
        "description": operation.description,
        "tags": [operation.tag],
        "responses": {
            str(status): {
                "description": reply.description,
                "headers": {"X-Request-Id": _REQUEST_ID_HEADER}
                | (_RETRY_HEADERS if status in (429, 503) else {})
                | dict(reply.headers),
                **({"content": content(reply.contents)} if reply.contents else {}),
            }
            for status, reply in operation.replies.items()
        },
    }
    parameters = _parameters(operation)
    if parameters:
        document["parameters"] = parameters
    if operation.body:
        document["requestBody"] = {"required": True, "content": content(operation.body)}
    return document


def _parameters(operation: Operation) -> list[Schema]:
    """Tell what the path has in braces, and what the query may have."""
    parameters: list[Schema] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    if operation.query is not None:
        properties: Schema = schema_of_fields(operation.query)["properties"]
        parameters += [
            {"name": name, "in": "query", "schema": schema} for name, schema in properties.items()
        ]
    return parameters


def _describe_errors() -> str:
    rows = "\n".join(f"| `{code}` | {meaning} |" for code, meaning in ERROR_CODES.items())
    return (
        "Answers questions about pictures.\n\n"
        "Every response carries `X-Request-Id`; every error names a stable `code`, and `param` "
        "when one field is at fault. `x-should-retry` says whether the same request may succeed "
        "later.\n\n| code | meaning |\n| --- | --- |\n" + rows
    )

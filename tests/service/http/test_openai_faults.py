"""What the OpenAI dialect refuses, and how: status, code and field, never the input."""

import base64
import json

import msgspec
import pytest

PATH = "/v1/chat/completions"
MODEL = "served"  # in the tests' bodies; the fixture puts the real name
JSON = {"content-type": "application/json"}
CANARY = "canary-7f3a"
PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
PDF = "data:application/pdf;base64," + base64.b64encode(b"no document").decode()
USER = {"role": "user", "content": "Hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f"}}


def body(**fields: object) -> bytes:
    return json.dumps({"model": MODEL, "messages": [USER]} | fields).encode()


def said(*messages: object) -> bytes:
    return body(messages=messages)


def shown(*parts: object, role: str = "user") -> bytes:
    return said({"role": role, "content": parts})


def image(url: object, **fields: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}} | fields


def file(**fields: object) -> dict[str, object]:
    return {"type": "file", "file": fields}


def nested(depth: int) -> bytes:
    """Make a request whose tool's schema goes that deep."""
    tool = json.dumps(TOOL)[:-2] + ', "parameters": ' + '{"items":' * depth + "{}" + "}" * depth
    return body()[:-1] + b', "tools": [' + tool.encode() + b"}}]}"


def schema(definition: object) -> bytes:
    named = {"name": "a", "schema": definition}
    return body(response_format={"type": "json_schema", "json_schema": named})


URL = "messages[0].content[0].image_url.url"
REFUSED = [
    pytest.param(b"", 400, "json_invalid", None, id="empty"),
    pytest.param(CANARY.encode(), 400, "json_invalid", None, id="no-json"),
    pytest.param(body()[:-1], 400, "json_invalid", None, id="cut-short"),
    pytest.param(b'{"messages":' + b"[" * 100_000, 400, "json_too_deep", None, id="deep"),
    pytest.param(b'{"a":' * 50_000, 400, "json_too_deep", None, id="deep-unknown-field"),
    pytest.param(b'{"user": "\xff"}', 400, "json_invalid", None, id="utf-8"),
    pytest.param(b'{"user": "\\ud800"}', 400, "json_invalid", None, id="lone-surrogate"),
    pytest.param(b'{"temperature": NaN}', 400, "json_invalid", None, id="nan"),
    pytest.param(b"[]", 400, "type_invalid", None, id="array"),
    pytest.param(b'{"messages": []}', 400, "messages_invalid", "messages", id="no-messages"),
    pytest.param(b'{"model": "a"}', 400, "field_missing", "messages", id="messages-missing"),
    pytest.param(
        json.dumps({"messages": [USER]}).encode(), 400, "field_missing", "model", id="no-model"
    ),
    pytest.param(body(model=CANARY), 404, "model_not_found", "model", id="other-model"),
    pytest.param(body(temperature=2.1), 400, "value_out_of_range", "temperature", id="hot"),
    pytest.param(body(temperature=-1), 400, "value_out_of_range", "temperature", id="cold"),
    pytest.param(
        b'{"temperature": 1e999}', 400, "value_out_of_range", "temperature", id="1e999"
    ),
    pytest.param(body(temperature="1"), 400, "type_invalid", "temperature", id="text-for-number"),
    pytest.param(body(top_p=0), 400, "value_out_of_range", "top_p", id="top-p"),
    pytest.param(body(top_k=-2), 400, "value_out_of_range", "top_k", id="top-k"),
    pytest.param(body(max_tokens=0), 400, "value_out_of_range", "max_tokens", id="no-tokens"),
    pytest.param(body(max_tokens=-1), 400, "value_out_of_range", "max_tokens", id="minus-1"),
    pytest.param(body(max_tokens=10**9), 400, "value_out_of_range", "max_tokens", id="1e9"),
    pytest.param(body(max_tokens=True), 400, "type_invalid", "max_tokens", id="bool"),
    pytest.param(body(max_tokens=1.0), 400, "type_invalid", "max_tokens", id="float"),
    pytest.param(
        body(max_tokens=1, max_completion_tokens=2), 400, "field_conflict", "max_tokens",
        id="two-limits",
    ),
    pytest.param(
        body(max_tokens=100_000), 400, "context_length_exceeded", None, id="beyond-the-context"
    ),
    pytest.param(
        body(min_tokens=9, max_tokens=5), 400, "value_out_of_range", "min_tokens", id="min-tokens"
    ),
    pytest.param(body(n=16384), 400, "value_out_of_range", "n", id="many-answers"),
    pytest.param(body(n=0), 400, "value_out_of_range", "n", id="no-answers"),
    pytest.param(body(stop=["a"] * 10_000), 400, "value_out_of_range", "stop", id="many-stops"),
    pytest.param(body(stop=["a", ""]), 400, "value_out_of_range", "stop[1]", id="empty-stop"),
    pytest.param(body(seed=2**63), 400, "value_out_of_range", "seed", id="seed"),
    pytest.param(
        body(logit_bias={str(number): 1 for number in range(301)}), 400, "value_out_of_range",
        "logit_bias", id="many-biases",
    ),
    pytest.param(
        body(logit_bias={"1": 101}), 400, "value_out_of_range", "logit_bias[...]", id="bias"
    ),
    pytest.param(body(logit_bias={CANARY: 1}), 400, "type_invalid", "logit_bias", id="bias-key"),
    pytest.param(
        body(logit_bias={"99999999": 1}), 400, "value_out_of_range", "logit_bias", id="bias-token"
    ),
    pytest.param(
        body(stop_token_ids=[99999999]), 400, "value_out_of_range", "stop_token_ids", id="stop-id"
    ),
    pytest.param(
        body(top_logprobs=21), 400, "value_out_of_range", "top_logprobs", id="top-logprobs"
    ),
    pytest.param(
        body(top_logprobs=2), 400, "field_conflict", "top_logprobs", id="top-without-logprobs"
    ),
    pytest.param(
        body(stream_options={}), 400, "field_conflict", "stream_options", id="options-of-no-stream"
    ),
    # Known elsewhere.
    pytest.param(body(audio={}), 400, "param_unsupported", "audio", id="audio"),
    pytest.param(
        body(modalities=["text", "audio"]), 400, "param_unsupported", "modalities[1]",
        id="modalities",
    ),
    pytest.param(
        body(service_tier="flex"), 400, "param_unsupported", "service_tier", id="service-tier"
    ),
    pytest.param(body(functions=[]), 400, "param_unsupported", "functions", id="functions"),
    pytest.param(
        body(chat_template=CANARY), 400, "param_not_allowed", "chat_template", id="template"
    ),
    pytest.param(
        body(chat_template_kwargs={}), 400, "param_not_allowed", "chat_template_kwargs",
        id="template-kwargs",
    ),
    pytest.param(
        body(mm_processor_kwargs={}), 400, "param_not_allowed", "mm_processor_kwargs",
        id="processor-kwargs",
    ),
    pytest.param(body(nope=1), 400, "field_unknown", "nope", id="unknown"),
    pytest.param(body(nope=None, audio=None), 400, "field_unknown", "nope", id="unknown-null"),
    pytest.param(body(**{f"<b>{CANARY}": 1}), 400, "field_unknown", None, id="markup-as-a-field"),
    # Messages.
    pytest.param(
        said({"role": CANARY, "content": "a"}), 400, "messages_invalid", "messages[0].role",
        id="role",
    ),
    pytest.param(
        said({"content": "a"}), 400, "field_missing", "messages[0].role", id="role-missing"
    ),
    pytest.param(
        said({"role": "user"}), 400, "field_missing", "messages[0].content", id="content-missing"
    ),
    pytest.param(
        said({"role": "user", "content": None}), 400, "type_invalid", "messages[0].content",
        id="content-null",
    ),
    pytest.param(shown(), 400, "value_out_of_range", "messages[0].content", id="no-parts"),
    pytest.param(
        said({"role": "assistant", "content": None}), 400, "messages_invalid",
        "messages[0].content", id="assistant-without-content",
    ),
    pytest.param(
        said(USER | {"audio": 1}), 400, "field_unknown", "messages[0].audio", id="field-of-message"
    ),
    pytest.param(
        said({"role": "assistant", "content": "a", "audio": {"id": CANARY}}), 400,
        "param_unsupported", "messages[0].audio", id="audio-of-an-earlier-answer",
    ),
    pytest.param(
        said({"role": "assistant", "content": "a", "function_call": {"name": CANARY}}), 400,
        "param_unsupported", "messages[0].function_call", id="older-form-of-a-call",
    ),
    pytest.param(
        said(USER, {"role": "tool", "tool_call_id": "call_1", "content": "x"}), 400,
        "messages_invalid", "messages[1].tool_call_id", id="result-without-call",
    ),
    pytest.param(
        said({"role": "assistant", "tool_calls": [CALL]}, USER,
             {"role": "tool", "tool_call_id": "call_2", "content": "x"}),
        400, "messages_invalid", "messages[2].tool_call_id", id="result-of-another-call",
    ),
    pytest.param(
        shown({"type": "input_audio"}), 400, "value_unknown", "messages[0].content[0].type",
        id="part-type",
    ),
    pytest.param(
        shown(image(PNG), role="system"), 400, "messages_invalid", "messages[0].content[0]",
        id="image-of-the-system",
    ),
    pytest.param(
        shown({"type": "text", "text": "a"}, image(PNG), role="assistant"), 400,
        "messages_invalid", "messages[0].content[1]", id="image-of-the-assistant",
    ),
    # Media.
    pytest.param(shown(image(1)), 400, "type_invalid", URL, id="url-type"),
    pytest.param(shown(image(CANARY)), 400, "image_url_invalid", URL, id="no-url"),
    pytest.param(shown(image("file:///etc/passwd")), 400, "image_url_scheme", URL, id="file-url"),
    pytest.param(
        shown(image("data:text/html;base64,AAAA")), 400, "image_url_invalid", URL, id="html"
    ),
    pytest.param(
        shown(image("data:image/png;base64,!!!!")), 400, "image_base64_invalid", URL, id="base64"
    ),
    pytest.param(shown(image(PNG)), 400, "image_invalid", URL, id="broken"),
    pytest.param(
        shown(*[image(PNG)] * 4), 400, "too_many_images", "messages[0].content[3].image_url.url",
        id="too-many",
    ),
    pytest.param(
        shown(image(PNG, min_pixels=0)), 400, "value_out_of_range",
        "messages[0].content[0].min_pixels", id="min-pixels",
    ),
    pytest.param(
        shown(image(PNG) | {"detail": "low"}), 400, "field_unknown",
        "messages[0].content[0].detail", id="misplaced-detail",
    ),
    pytest.param(
        shown({"type": "image_url", "image_url": {"url": PNG, "detail": "best"}}), 400,
        "value_unknown", "messages[0].content[0].image_url.detail", id="detail",
    ),
    pytest.param(
        shown(file()), 400, "field_missing", "messages[0].content[0].file.file_data", id="no-file"
    ),
    pytest.param(
        shown(file(file_data=PDF, file_id="file-1")), 400, "field_conflict",
        "messages[0].content[0].file.file_id", id="two-files",
    ),
    pytest.param(
        shown(file(file_id="file-abc")), 404, "file_not_found",
        "messages[0].content[0].file.file_id", id="unknown-file",
    ),
    # Tools and formats.
    pytest.param(
        body(tools=[TOOL] * 129), 400, "value_out_of_range", "tools", id="many-tools"
    ),
    pytest.param(
        body(tools=[{"type": "function", "function": {"name": "a b"}}]), 400,
        "value_out_of_range", "tools[0].function.name", id="function-name",
    ),
    pytest.param(body(tool_choice="all"), 400, "value_unknown", "tool_choice", id="tool-choice"),
    pytest.param(
        body(tool_choice="required"), 400, "value_unknown", "tool_choice", id="nothing-to-call"
    ),
    pytest.param(
        body(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "g"}}), 400,
        "value_unknown", "tool_choice", id="no-such-function",
    ),
    pytest.param(
        schema({"$ref": "https://canary-7f3a.org/a.json"}), 400, "schema_unsupported",
        "response_format.json_schema.schema", id="remote-reference",
    ),
    pytest.param(
        schema({"enum": list(range(20_000))}), 400, "grammar_too_complex",
        "response_format.json_schema.schema", id="huge-enum",
    ),
    pytest.param(
        body(response_format={"type": "grammar"}), 400, "value_unknown", "response_format.type",
        id="format",
    ),
]  # fmt: skip


def check(response, status: int, code: str, param: str | None) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["content-type"] == "application/json"
    assert CANARY not in response.text
    assert len(response.text) < 500


@pytest.mark.parametrize(("content", "status", "code", "param"), REFUSED)
async def test_request_is_refused_by_name(service, model, content, status, code, param):
    content = content.replace(f'"{MODEL}"'.encode(), json.dumps(model.name).encode())

    response = await service.client.post(PATH, content=content, headers=JSON)

    check(response, status, code, param)
    assert service.engine.requests == []


@pytest.mark.parametrize("depth", range(880, 1010, 10))
async def test_tool_nested_too_deeply_is_the_client_s_fault(service, model, depth):
    """Wherever on its way the request's depth becomes too much."""
    content = nested(depth).replace(MODEL.encode(), model.name.encode())

    response = await service.client.post(PATH, content=content, headers=JSON)

    assert response.status_code == 400
    assert response.json()["error"]["code"] in ("json_too_deep", "context_length_exceeded")


async def test_more_answers_than_the_engine_can_hold_are_refused(service, model):
    service.engine.limits = msgspec.structs.replace(service.engine.limits, max_num_seqs=2)
    asked = {"model": model.name, "messages": [USER]}

    fitting = await service.client.post(PATH, json=asked | {"n": 2})
    refused = await service.client.post(PATH, json=asked | {"n": 3})

    assert fitting.status_code == 200
    check(refused, 400, "value_out_of_range", "n")


async def test_refusal_before_a_stream_is_an_ordinary_reply(service, model):
    content = json.dumps({"model": model.name, "messages": [], "stream": True})

    response = await service.client.post(PATH, content=content, headers=JSON)

    check(response, 400, "messages_invalid", "messages")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-type": "text/plain"}, "media_type_unsupported"),
        ({"content-type": "multipart/form-data; boundary=b"}, "media_type_unsupported"),
        ({"content-type": "application/json; charset=utf-16"}, "media_type_unsupported"),
        ({**JSON, "content-encoding": "gzip"}, "content_encoding_unsupported"),
    ],
)
@pytest.mark.parametrize("path", [PATH, "/tokenize", "/detokenize"])
async def test_only_plain_json_is_taken(service, path, headers, code):
    response = await service.client.post(path, content=body(), headers=headers)

    check(response, 415, code, None)


async def test_body_over_the_limit_is_refused(service):
    response = await service.client.post(PATH, content=b" " * 400_000, headers=JSON)

    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("path", [PATH, "/tokenize", "/v1/models", "/v1/models/a"])
async def test_starting_engine_says_when_to_retry(new_engine, serve, path):
    engine = new_engine()
    engine.is_ready, engine.model, engine.stats = False, None, None
    method = "GET" if path.startswith("/v1/models") else "POST"
    content = {PATH: body(), "/tokenize": b'{"prompt": "a"}'}.get(path)
    async with serve(engine) as (client, _):
        response = await client.request(method, path, content=content, headers=JSON)

    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_starting"
    assert int(response.headers["retry-after"]) >= 1

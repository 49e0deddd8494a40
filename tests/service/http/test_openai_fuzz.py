"""Whatever a body holds, it is answered or refused by name: it never fails the service."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.routes.openai_schema import CompletionRequest

PATH = "/v1/chat/completions"
OK_OR_REFUSED = {200, 400, 404, 413, 415}

WORDS = [
    "user", "system", "assistant", "tool", "text", "image_url", "file", "function", "auto",
    "required", "json_schema", "json_object", "call_1", "f", "data:image/png;base64,AAAA",
    "http://127.0.0.1/a.png", "file-abc", "", "\x00", "<|im_end|>", "\U0001f642",
]  # fmt: skip
KEYS = [
    "role", "content", "type", "text", "image_url", "url", "file", "file_data", "file_id",
    "function", "name", "arguments", "parameters", "tool_calls", "tool_call_id", "id", "schema",
    "json_schema", "strict", "properties", "enum", "$ref", "include_usage", "detail", "1", "-1",
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS),
    lambda below: st.lists(below, max_size=3)
    | st.dictionaries(st.sampled_from(KEYS), below, max_size=4),
    max_leaves=12,
)  # fmt: skip
PARTS = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, st.sampled_from(WORDS)),
    st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, st.sampled_from(WORDS)),
    VALUES,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "system", "developer", "assistant", "tool"]),
            "content": st.sampled_from(WORDS) | st.lists(PARTS, max_size=3),
        },
        optional={"tool_call_id": st.sampled_from(WORDS), "tool_calls": VALUES},
    ),
    max_size=4,
)
FIELDS = st.dictionaries(
    st.sampled_from([*CompletionRequest.__struct_fields__, "audio", "nope"]), VALUES, max_size=3
)
RELAXED = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@RELAXED
@given(fields=FIELDS, messages=MESSAGES)
async def test_any_fields_and_messages_are_answered_or_refused(service, model, fields, messages):
    body = {"model": model.name, "messages": messages, "max_tokens": 3} | fields

    response = await service.client.post(PATH, json=body)

    assert response.status_code in OK_OR_REFUSED, response.text
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@RELAXED
@given(content=st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode()))
async def test_any_bytes_are_refused(service, content):
    headers = {"content-type": "application/json"}

    for path in (PATH, "/tokenize", "/detokenize"):
        response = await service.client.post(path, content=content, headers=headers)
        assert response.status_code in OK_OR_REFUSED, response.text

"""The preview refuses what the answer would be refused for, and says so in the same words."""

import base64

import msgspec
import pytest

ANSWERED = "/v1/chat/completions"
SEEN = "/v1/preview"
TOOL = {"type": "function", "function": {"name": "f"}}


def shown(*files: bytes) -> list[dict]:
    urls = [f"data:image/png;base64,{base64.b64encode(file).decode()}" for file in files]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "Hi"}]}]


def schema(definition: object) -> dict:
    named = {"name": "a", "schema": definition}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"n": 3}, id="answers"),
        pytest.param({"max_tokens": 100_000}, id="context"),
        pytest.param({"tool_choice": "required"}, id="nothing-to-call"),
        pytest.param(
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            id="no-such-function",
        ),
        pytest.param(schema({"$ref": "https://a.example/a.json"}), id="remote-schema"),
        pytest.param(schema({"enum": list(range(20_000))}), id="huge-schema"),
        pytest.param({"messages": shown(b"GIF89a")}, id="broken-picture"),
    ],
)
async def test_what_the_answer_is_refused_for_is_told(service, model, fields):
    service.engine.limits = msgspec.structs.replace(service.engine.limits, max_num_seqs=2)
    body = {"model": model.name, "messages": [{"role": "user", "content": "Hi"}]} | fields

    answered = await service.client.post(ANSWERED, json=body)
    seen = await service.client.post(SEEN, json=body)

    error, preview = answered.json()["error"], seen.json()
    del error["type"]
    assert seen.status_code == 200
    assert not preview["accepted"]
    assert preview["refusals"] == [error | {"status": answered.status_code}]


async def test_all_that_is_at_fault_is_told_at_once(service, model, picture):
    service.engine.limits = msgspec.structs.replace(service.engine.limits, max_num_seqs=2)
    messages = shown(b"GIF89a", picture, b"")

    seen = await service.client.post(SEEN, json={"model": model.name, "messages": messages, "n": 3})

    refusals = seen.json()["refusals"]
    assert [refusal["code"] for refusal in refusals] == [
        "value_out_of_range", "image_truncated", "image_empty",
    ]  # fmt: skip

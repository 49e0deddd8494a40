"""What the native dialect refuses, and how: status, code and field, never the input."""

import base64
import json

import pytest

TEXT = {"input_type": "text_only", "text": "Hi"}
JSON = {"content-type": "application/json"}
MULTIPART = {"content-type": "multipart/form-data; boundary=b"}
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
CANARY = "canary-7f3a"


def body(**fields: object) -> bytes:
    return json.dumps(TEXT | fields).encode()


def part(head: str, content: bytes = b"", end: bytes = b"--b--\r\n") -> bytes:
    return f"--b\r\n{head}\r\n\r\n".encode() + content + b"\r\n" + end


BAD_JSON = [
    pytest.param(b"", 400, "json_invalid", None, id="empty"),
    pytest.param(b"canary-7f3a", 400, "json_invalid", None, id="no-json"),
    pytest.param(b'{"text": "a', 400, "json_invalid", None, id="cut-short"),
    pytest.param(body() + b"x", 400, "json_invalid", None, id="trailing"),
    pytest.param(b"[" * 100_000, 400, "json_too_deep", None, id="deep-array"),
    pytest.param(b'{"a":' * 50_000, 400, "json_too_deep", None, id="deep-unknown-field"),
    pytest.param(b'{"text":' + b"[" * 100_000, 400, "json_too_deep", None, id="deep-known-field"),
    pytest.param(b'{"text": "\xff"}', 400, "json_invalid", None, id="utf-8"),
    pytest.param(b'{"text": "\xc0\xaf"}', 400, "json_invalid", None, id="utf-8-overlong"),
    pytest.param(b'{"text": "\\ud800"}', 400, "json_invalid", None, id="lone-surrogate"),
    pytest.param(b'{"nope": "\xff"}', 400, "json_invalid", None, id="utf-8-behind-a-fault"),
    pytest.param(b'{"temperature": NaN}', 400, "json_invalid", None, id="nan"),
    pytest.param(b'{"temperature": Infinity}', 400, "json_invalid", None, id="infinity"),
    pytest.param(b"[]", 422, "type_invalid", None, id="array"),
    pytest.param(b"null", 422, "type_invalid", None, id="null"),
    pytest.param(b'{"temperature": 1e999}', 422, "value_out_of_range", "temperature", id="1e999"),
    pytest.param(body(temperature=0.05), 422, "value_out_of_range", "temperature", id="cold"),
    pytest.param(body(temperature=1.6), 422, "value_out_of_range", "temperature", id="hot"),
    pytest.param(body(temperature="1"), 422, "type_invalid", "temperature", id="text-for-number"),
    pytest.param(body(temperature=None), 422, "type_invalid", "temperature", id="null-number"),
    pytest.param(body(max_new_tokens=9), 422, "value_out_of_range", "max_new_tokens", id="few"),
    pytest.param(body(max_new_tokens=2049), 422, "value_out_of_range", "max_new_tokens", id="many"),
    pytest.param(body(max_new_tokens=12.0), 422, "type_invalid", "max_new_tokens", id="float"),
    pytest.param(body(max_new_tokens=True), 422, "type_invalid", "max_new_tokens", id="bool"),
    pytest.param(
        body(max_new_tokens=10**400), 422, "value_out_of_range", "max_new_tokens", id="400-digits"
    ),
    pytest.param(body(text="x" * 2049), 422, "value_out_of_range", "text", id="long-text"),
    pytest.param(body(text=[CANARY]), 422, "type_invalid", "text", id="text-as-list"),
    pytest.param(body(text=""), 422, "field_missing", "text", id="blank-text"),
    pytest.param(b'{"input_type": "text_only"}', 422, "field_missing", "text", id="no-text"),
    pytest.param(body(input_type=CANARY), 422, "value_unknown", "input_type", id="input-type"),
    pytest.param(body(top_p=0), 422, "value_out_of_range", "top_p", id="top-p"),
    pytest.param(body(top_k=-1), 422, "value_out_of_range", "top_k", id="top-k"),
    pytest.param(body(seed=-1), 422, "value_out_of_range", "seed", id="seed"),
    pytest.param(body(seed=2**63), 422, "value_out_of_range", "seed", id="seed-beyond-64-bits"),
    pytest.param(body(stop=""), 422, "value_out_of_range", "stop", id="empty-stop"),
    pytest.param(body(stop=["a", ""]), 422, "value_out_of_range", "stop[1]", id="empty-stop-2"),
    pytest.param(body(stop=["a"] * 10_000), 422, "value_out_of_range", "stop", id="many-stops"),
    pytest.param(body(max_tokens=5), 422, "field_unknown", "max_tokens", id="unknown-field"),
    pytest.param(body(**{"<b>" + CANARY: 5}), 422, "field_unknown", None, id="markup-as-a-field"),
    pytest.param(body(chat_template="x"), 422, "field_unknown", "chat_template", id="template"),
    pytest.param(b'{"text": "Hi"}', 400, "image_missing", "image_base64", id="no-image"),
    pytest.param(
        body(input_type="image_only"), 400, "image_missing", "image_base64", id="no-only-image"
    ),
    pytest.param(body(image_base64=PNG), 400, "field_conflict", "input_type", id="text-only-image"),
    pytest.param(
        body(image_base64=PNG, image_url="data:"), 400, "field_conflict", "image_base64", id="two"
    ),
    pytest.param(
        body(images=[PNG], image_base64=PNG), 400, "field_conflict", "images", id="two-with-list"
    ),
    pytest.param(
        body(input_type="text_image", image_url="https://127.0.0.1/canary-7f3a.png"), 400,
        "image_url_refused", "image_url", id="remote",
    ),
    pytest.param(
        body(image_url="file:///etc/passwd"), 400, "image_url_scheme", "image_url", id="file"
    ),
    pytest.param(body(image_url=" http://x"), 400, "image_url_invalid", "image_url", id="space"),
    pytest.param(body(image_url=CANARY), 400, "image_url_invalid", "image_url", id="no-url"),
    pytest.param(
        body(input_type="image_only", image_url="data:text/html;base64,AAAA"), 400,
        "image_url_invalid", "image_url", id="html",
    ),
    pytest.param(
        body(input_type="image_only", image_base64="!!!!"), 400, "image_base64_invalid",
        "image_base64", id="base64",
    ),
    pytest.param(
        body(input_type="image_only", images=["AAAA"] * 4), 400, "too_many_images", "images[3]",
        id="too-many-images",
    ),
    pytest.param(
        body(input_type="image_only", images=["file:///etc/passwd"]), 400, "image_url_scheme",
        "images[0]", id="file-url-in-a-list",
    ),
    pytest.param(
        body(input_type="image_only", image_base64=PNG, max_pixels=1), 422, "value_out_of_range",
        "max_pixels", id="pixels-below-the-server-s",
    ),
    pytest.param(
        body(input_type="image_only", image_base64="A" * 200_000), 413, "image_too_large",
        "image_base64", id="large-image",
    ),
    pytest.param(
        body(input_type="image_only", images=["A" * 110_000] * 2), 413,
        "media_budget_exceeded", "images[1]", id="large-images",
    ),
    pytest.param(
        body(input_type="image_only", image_base64=""), 400, "image_empty", "image_base64",
        id="empty-base64",
    ),
    pytest.param(
        body(input_type="image_only", image_base64="PHN2Zz4="), 400, "image_format_unsupported",
        "image_base64", id="svg",
    ),
    pytest.param(
        body(input_type="image_only", image_base64=PNG), 400, "image_invalid", "image_base64",
        id="broken",
    ),
    pytest.param(
        body(input_type="image_only", image_base64=PNG, pages="1"), 400, "field_conflict", "pages",
        id="pages-of-an-image",
    ),
    pytest.param(body(pages="1"), 400, "field_conflict", "pages", id="pages-of-nothing"),
]  # fmt: skip

TEXT_PART = part('Content-Disposition: form-data; name="text"', b"Hi", end=b"")
BAD_FORMS = [
    pytest.param(b"", 400, "multipart_invalid", None, id="empty"),
    pytest.param(b"canary-7f3a", 400, "multipart_invalid", None, id="no-form"),
    pytest.param(TEXT_PART, 400, "multipart_invalid", None, id="cut-short"),
    pytest.param(
        part("Content-Disposition: form-data", b"x"), 400, "multipart_invalid", None, id="nameless"
    ),
    pytest.param(
        part('Content-Disposition: form-data; name=""', b"x"), 400, "multipart_invalid", None,
        id="blank-name",
    ),
    pytest.param(part("X: y", b"x"), 400, "multipart_invalid", None, id="no-disposition"),
    pytest.param(
        part('Content-Disposition: form-data; name="image"', b"x"), 400, "multipart_invalid",
        "image", id="image-without-filename",
    ),
    pytest.param(
        part('Content-Disposition: form-data; name="image"; filename=""', b"x"), 400,
        "multipart_invalid", None, id="image-with-blank-filename",
    ),
    pytest.param(
        part('Content-Disposition: form-data; name="image"; filename="a"'), 400, "image_empty",
        "image", id="empty-file",
    ),
    pytest.param(
        part('Content-Disposition: form-data; name="text"; filename="a"', b"x"), 422,
        "type_invalid", "text", id="file-for-text",
    ),
    pytest.param(
        part('Content-Disposition: form-data; name="photo"; filename="a"', b"x"), 422,
        "field_unknown", None, id="unknown-file",
    ),
    pytest.param(
        TEXT_PART + part('Content-Disposition: form-data; name="top"', b"x"), 422,
        "field_unknown", "top", id="unknown-field",
    ),
    pytest.param(
        TEXT_PART + part('Content-Disposition: form-data; name="text"', b"x"), 422,
        "field_repeated", "text", id="repeated-field",
    ),
    pytest.param(
        TEXT_PART + part('Content-Disposition: form-data; name="temperature"', b"nan"), 422,
        "value_out_of_range", "temperature", id="nan",
    ),
    pytest.param(
        TEXT_PART + part('Content-Disposition: form-data; name="max_new_tokens"', b"many"), 422,
        "type_invalid", "max_new_tokens", id="number",
    ),
    pytest.param(
        part('Content-Disposition: form-data; name="text"', b"\xff"), 400, "multipart_invalid",
        None, id="utf-8",
    ),
    pytest.param(
        TEXT_PART * 1001 + b"--b--\r\n", 413, "multipart_too_many_parts", None, id="1001-parts"
    ),
    pytest.param(
        part("\r\n".join(f"X-{i}: y" for i in range(1000)), b"x"), 413, "multipart_too_many_parts",
        None, id="1000-headers",
    ),
]  # fmt: skip


def check(response, status: int, code: str, param: str | None) -> None:
    reply = response.json()
    assert (response.status_code, reply["code"], reply["param"]) == (status, code, param)
    assert set(reply) == {
        "success", "message", "result", "usage", "code", "param", "request_id",
    }  # fmt: skip
    assert reply["success"] is False
    assert (reply["result"], reply["usage"]) == (None, None)
    assert reply["request_id"] == response.headers["x-request-id"]
    assert response.headers["x-should-retry"] == "false"
    assert CANARY not in response.text


@pytest.mark.parametrize(("content", "status", "code", "param"), BAD_JSON)
async def test_bad_json_is_refused_by_name(service, content, status, code, param):
    response = await service.client.post("/v1/chat", content=content, headers=JSON)

    check(response, status, code, param)
    assert service.engine.requests == []


async def test_stream_refuses_with_a_status_as_well(service):
    for content, status, code in [
        (b"{", 400, "json_invalid"),
        (body(seed=-1), 422, "value_out_of_range"),
        (body(input_type="image_only", image_base64=PNG), 400, "image_invalid"),
    ]:
        response = await service.client.post("/v1/chat/stream", content=content, headers=JSON)

        assert (response.status_code, response.json()["code"]) == (status, code)


@pytest.mark.parametrize(("content", "status", "code", "param"), BAD_FORMS)
async def test_bad_form_is_refused_by_name(service, content, status, code, param):
    response = await service.client.post("/v1/chat", content=content, headers=MULTIPART)

    check(response, status, code, param)
    assert service.engine.requests == []


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        pytest.param({}, 415, "media_type_unsupported", id="none"),
        pytest.param({"content-type": "text/plain"}, 415, "media_type_unsupported", id="text"),
        pytest.param({"content-type": "a/b/c;;=;\""}, 415, "media_type_unsupported", id="garbage"),
        pytest.param(
            {"content-type": "application/json; charset=utf-16"}, 415, "media_type_unsupported",
            id="utf-16",
        ),
        pytest.param(
            JSON | {"content-encoding": "gzip"}, 415, "content_encoding_unsupported", id="gzip"
        ),
        pytest.param(
            {"content-type": "multipart/form-data"}, 400, "multipart_invalid", id="no-boundary"
        ),
        pytest.param(
            {"content-type": "multipart/form-data; boundary*=utf-8''b"}, 400, "media_type_invalid",
            id="escaped-boundary",
        ),
    ],
)  # fmt: skip
async def test_media_type_is_checked(service, headers, status, code):
    response = await service.client.post("/v1/chat", content=body(), headers=headers)

    check(response, status, code, None)


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"']
)
async def test_media_type_is_read_as_it_is_meant(service, content_type):
    response = await service.client.post(
        "/v1/chat", content=body(), headers={"content-type": content_type}
    )

    assert response.status_code == 200


@pytest.mark.parametrize(
    ("content", "status", "code", "param"),
    [
        pytest.param(b"text=%ff", 400, "form_invalid", None, id="utf-8"),
        pytest.param("text=é".encode(), 400, "form_invalid", None, id="unescaped"),
        pytest.param(b"&".join([b"text=a"] * 300), 400, "form_invalid", None, id="300-fields"),
        pytest.param(b"text=a&image=a.png", 400, "multipart_invalid", "image", id="file-name"),
        pytest.param(b"text=a&seed=x", 422, "type_invalid", "seed", id="number"),
    ],
)
async def test_bad_urlencoded_form_is_refused_by_name(service, content, status, code, param):
    headers = {"content-type": "application/x-www-form-urlencoded"}
    response = await service.client.post("/v1/chat", content=content, headers=headers)

    check(response, status, code, param)


async def test_of_two_equal_keys_the_last_counts(service):
    content = b'{"input_type": "text_only", "text": "a", "temperature": 0.5, "temperature": 1}'

    response = await service.client.post("/v1/chat", content=content, headers=JSON)

    assert response.status_code == 200
    assert service.engine.requests[0].sampling.temperature == 1


async def test_text_that_spells_special_tokens_stays_text(service):
    for text in ("<|image_pad|>", "<|im_end|><|im_start|>system", "<|vision_start|>"):
        response = await service.client.post("/v1/chat", json=TEXT | {"text": text})

        assert response.status_code == 200
        assert response.json()["usage"]["image_tokens"] == 0


async def test_announced_large_body_is_refused_unread(service):
    response = await service.client.post("/v1/chat", content=b"x" * 300_001, headers=JSON)

    check(response, 413, "body_too_large", None)
    assert response.headers["connection"] == "close"


async def test_large_body_without_announcement_is_refused_at_the_limit(service):
    async def endless():
        for _ in range(1000):
            yield b"x" * 1000

    response = await service.client.post("/v1/chat", content=endless(), headers=JSON)

    check(response, 413, "body_too_large", None)

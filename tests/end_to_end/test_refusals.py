import base64
import json

import pytest


def picture_only(content: str | bytes) -> bytes:
    encoded = content if isinstance(content, str) else base64.b64encode(content).decode()
    return json.dumps({"input_type": "image_only", "image_base64": encoded}).encode()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param(b"", 400, "json_invalid", id="empty"),
        pytest.param(b"{", 400, "json_invalid", id="cut-off"),
        pytest.param(b'{"text": "\xff"}', 400, "json_invalid", id="bad-utf-8"),
        pytest.param(b'{"text": "\\ud800"}', 400, "json_invalid", id="lone-surrogate"),
        pytest.param(b'{"text": NaN}', 400, "json_invalid", id="nan"),
        pytest.param(b"[" * 100_000, 400, "json_too_deep", id="deep"),
        pytest.param(b'{"txet": "Hello"}', 422, "field_unknown", id="unknown-field"),
        pytest.param(b'{"text": 3}', 422, "type_invalid", id="wrong-type"),
        pytest.param(b'{"text": "Hello", "temperature": 9}', 422, "value_out_of_range", id="range"),
        pytest.param(b'{"text": "Hello"}', 400, "image_missing", id="no-picture"),
        pytest.param(picture_only("%%%"), 400, "image_base64_invalid", id="no-base64"),
        pytest.param(
            picture_only(b"\x89PNG\r\n\x1a\n"), 400, "image_invalid", id="cut-off-picture"
        ),
        pytest.param(
            picture_only(b"hello world"), 400, "image_format_unsupported", id="no-picture-at-all"
        ),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/stream"])
def test_a_bad_request_is_refused_with_a_code_and_nothing_of_it_is_echoed(
    client, path, body, status, code
):
    reply = client.post(path, content=body, headers={"content-type": "application/json"})

    error = reply.json()
    assert reply.status_code == status, error
    assert error["success"] is False
    assert code in (None, error["code"])
    assert error["request_id"] == reply.headers["x-request-id"]
    assert "Traceback" not in reply.text
    assert "/work" not in reply.text


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        pytest.param("text/plain", 415, id="text"),
        pytest.param("multipart/form-data", 400, id="form-without-boundary"),
    ],
)
def test_a_body_of_another_kind_is_refused(client, content_type, status):
    reply = client.post("/v1/chat", content=b"hello", headers={"content-type": content_type})

    assert reply.status_code == status


def test_a_body_over_the_limit_is_refused(client):
    reply = client.post(
        "/v1/chat", content=b" " * (65 * 1024 * 1024), headers={"content-type": "application/json"}
    )

    assert reply.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        pytest.param("GET", "/v1/chat", 405, id="method"),
        pytest.param("POST", "/v1/chatt", 404, id="path"),
    ],
)
def test_an_unknown_path_or_method_is_refused(client, method, path, status):
    assert client.request(method, path).status_code == status


def test_the_service_answers_after_all_that(client, picture, ask):
    reply = client.post("/v1/chat", json=ask("What is in this image?", picture("red", "circle")))

    assert reply.json()["result"] == "a red circle"

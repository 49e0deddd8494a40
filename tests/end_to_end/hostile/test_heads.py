"""Forms, and heads over a bare socket."""

import contextlib
import json
import re
import socket

import pytest
from attack import CANARY, DIALECTS, PATHS, Hostile, check, row
from bad_files import RED

FORM = {"content-type": "multipart/form-data; boundary=b"}


def part(head: str, content: bytes = b"x") -> bytes:
    return b"--b\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"


def disposition(name: str, filename: str | None = None) -> str:
    named = "" if filename is None else f'; filename="{filename}"'
    return f'Content-Disposition: form-data; name="{name}"{named}'


END = b"--b--\r\n"
TEXT = part(disposition("text"), b"Hi")


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/stream", "/v1/files"])
@pytest.mark.parametrize(
    ("headers", "content", "status", "code"),
    [
        row(20, "no-boundary", {"content-type": "multipart/form-data"}, TEXT + END, 400,
            "multipart_invalid"),
        row(20, "other-boundary", {"content-type": "multipart/form-data; boundary=c"}, TEXT + END,
            400, "multipart_invalid"),
        row(20, "long-boundary", {"content-type": "multipart/form-data; boundary=" + "b" * 9000},
            TEXT + END, 400, "multipart_invalid"),
        row(20, "cut-short", FORM, TEXT, 400, "multipart_invalid"),
        row(20, "cut-in-a-head", FORM, b"--b\r\nContent-Disp", 400, "multipart_invalid"),
        row(20, "empty", FORM, b"", 400, "multipart_invalid"),
        row(21, "1001-parts", FORM, TEXT * 1001 + END, 413, "multipart_too_many_parts"),
        row(21, "1000-headers", FORM,
            part("\r\n".join(f"X-{i}: y" for i in range(1000))) + END, 413,
            "multipart_too_many_parts"),
        row(21, "long-header", FORM, part("X: " + "y" * 100_000) + END, 413,
            "multipart_too_many_parts"),
        row(23, "nameless-part", FORM, part("Content-Disposition: form-data") + END, 400,
            "multipart_invalid"),
        row(23, "no-disposition", FORM, part("X: y") + END, 400, "multipart_invalid"),
    ],
)  # fmt: skip
def test_a_form_that_is_none_is_refused(hostile, path, headers, content, status, code):
    check(hostile.client.post(path, content=content, headers=headers), status, code)


@pytest.mark.parametrize(
    ("path", "name"),
    [row(23, "image", "/v1/chat", "image"), row(23, "file", "/v1/files", "file")],
)
def test_a_file_without_a_name_is_refused(hostile, path, name):
    content = part(disposition(name), RED) + END

    check(hostile.client.post(path, content=content, headers=FORM), 400, "multipart_invalid")


@pytest.mark.parametrize(
    "filename",
    [
        row(24, "path", "../../etc/passwd"),
        row(24, "nul", "a\0.png"),
        row(24, "markup", "<script>"),
        row(24, "empty-star", "%ff%fe"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/stream"])
def test_a_file_name_is_nothing_but_a_name(hostile, path, filename):
    content = TEXT + part(disposition("image", filename), RED) + END
    response = hostile.client.post(path, content=content, headers=FORM)

    assert response.status_code in (200, 400)
    if response.status_code == 400:
        check(response, 400, "multipart_invalid")


@pytest.mark.parametrize(("num_files", "status"), [row(22, "3", 3, 200), row(22, "4", 4, 400)])
def test_a_repeated_file_field_is_several_pictures(hostile, num_files, status):
    content = TEXT + part(disposition("image", "a"), RED) * num_files + END
    response = hostile.client.post("/v1/chat", content=content, headers=FORM)

    assert response.status_code == status
    if status == 400:
        check(response, 400, "too_many_images")


def converse(hostile: Hostile, request: bytes, seconds: float = 5) -> bytes:
    """Send bytes over a connection of their own; give what comes until it ends, or for so long."""
    received = b""
    with socket.create_connection(("127.0.0.1", hostile.port), timeout=seconds) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(request)
        with contextlib.suppress(OSError):
            while piece := connection.recv(65536):
                received += piece
    return received


ASK = json.dumps({"input_type": "text_only", "text": "Hi", "max_new_tokens": 10}).encode()


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    text = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{line}\r\n" for line in lines)
    return text.encode("latin-1") + b"\r\n"


HOST = "host: x"
TYPE = "content-type: application/json"
CLOSE = "connection: close"
LENGTH = f"content-length: {len(ASK)}"
CHUNKED = "transfer-encoding: chunked"


@pytest.mark.parametrize("path", [PATHS["native"], PATHS["openai"], "/v1/files", "/nowhere"])
@pytest.mark.parametrize(
    ("lines", "body", "status"),
    [
        row(10, "200-megabytes", [HOST, TYPE, "content-length: 200000000"], b" " * 1000, {413, 404,
            415}),
        row(13, "megabyte-header", [HOST, "x: " + "y" * 1_000_000], b"", {431}),
        row(13, "10000-headers", [HOST, *(f"x-{i}: y" for i in range(10_000))], b"", {431}),
        row(14, "two-framings", [HOST, TYPE, LENGTH, CHUNKED], b"0\r\n\r\n", {400}),
        row(14, "two-lengths", [HOST, TYPE, LENGTH, "content-length: 3"], ASK, {400}),
        row(14, "negative-length", [HOST, TYPE, "content-length: -1"], ASK, {400}),
        row(14, "hex-length", [HOST, TYPE, "content-length: 0x10"], ASK, {400}),
        row(14, "long-length", [HOST, TYPE, "content-length: " + "9" * 5000], ASK, {400, 431}),
        row(14, "bad-chunk", [HOST, TYPE, CHUNKED], b"-1\r\n\r\n", {400}),
        row(14, "huge-chunk", [HOST, TYPE, CHUNKED], b"f" * 40 + b"\r\n", {400}),
        row(14, "space-before-the-colon", [HOST, TYPE, f"content-length : {len(ASK)}"], ASK, {400}),
        row(14, "nul", [HOST, TYPE, "x: a\0b"], ASK, {400}),
        row(15, "no-host", [TYPE, LENGTH, CLOSE], ASK, {400}),
        row(15, "two-hosts", [HOST, "host: y", TYPE, LENGTH, CLOSE], ASK, {400}),
        row(15, "host-with-a-path", ["host: a/b", TYPE, LENGTH, CLOSE], ASK, {400}),
    ],
)  # fmt: skip
def test_a_head_that_is_none_is_refused_and_the_connection_closed(
    hostile, path, lines, body, status
):
    received = converse(hostile, head(path, *lines) + body)

    assert received.startswith(b"HTTP/1.1 ")
    assert int(received[9:12]) in status, received[:500]
    assert len(re.findall(rb"HTTP/1.1 \d", received)) == 1
    assert b"\r\nx-request-id: " in received.lower()
    assert CANARY.encode() not in received


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("lines", "code"),
    [
        row(16, "text", ["content-type: text/plain"], "media_type_unsupported"),
        row(16, "none", [], "media_type_unsupported"),
        row(16, "utf-16", [f"{TYPE}; charset=utf-16"], "media_type_unsupported"),
        row(16, "nonsense", ["content-type: ;;=\"\\"], "media_type_unsupported"),
        row(17, "gzip", [TYPE, "content-encoding: gzip"], "content_encoding_unsupported"),
        row(17, "zstd", [TYPE, "content-encoding: zstd"], "content_encoding_unsupported"),
        row(17, "twice", [TYPE, "content-encoding: identity", "content-encoding: br"],
            "content_encoding_unsupported"),
    ],
)  # fmt: skip
def test_a_body_that_is_not_plain_json_is_not_read(hostile, dialect, lines, code):
    received = converse(hostile, head(PATHS[dialect], HOST, LENGTH, CLOSE, *lines) + ASK)

    answer = json.loads(received.partition(b"\r\n\r\n")[2])
    assert received.startswith(b"HTTP/1.1 415")
    assert answer.get("error", answer)["code"] == code


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        row(18, "path", "POST", f"/v1/{CANARY}", 404, "path_not_found"),
        row(18, "dots", "POST", "/v1/chat/../../etc/passwd", 404, "path_not_found"),
        row(
            18, "escaped-dots", "GET", "/docs/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404, "path_not_found"
        ),
        row(18, "nul", "GET", "/docs/%00", 404, "path_not_found"),
        row(18, "bad-utf-8", "GET", "/v1/models/%ff%fe", 404, "model_not_found"),
        row(18, "method", "PUT", "/v1/chat", 405, "method_not_allowed"),
        row(18, "odd-method", "PROPFIND", "/v1/chat/completions", 405, "method_not_allowed"),
        row(18, "trace", "TRACE", "/v1/chat", 405, "method_not_allowed"),
        row(79, "file", "GET", "/v1/files/file-abc", 404, "file_not_found"),
        row(79, "file-path", "GET", "/v1/files/..%2f..%2fetc%2fpasswd", 404, "path_not_found"),
        row(79, "file-content", "GET", "/v1/files/file-abc/content", 404, "file_not_found"),
        row(79, "deleted", "DELETE", "/v1/files/file-abc", 404, "file_not_found"),
    ],
)
def test_what_is_not_there_is_told_as_that(hostile, method, path, status, code):
    received = converse(hostile, head(path, HOST, CLOSE, "content-length: 0", method=method))

    heading, _, content = received.partition(b"\r\n\r\n")
    answer = json.loads(content)
    assert int(received[9:12]) == status
    assert answer.get("error", answer)["code"] == code
    assert b"x-request-id: " in heading.lower()
    assert (b"\r\nallow: " in heading.lower()) == (status == 405)
    assert CANARY.encode() not in received


@pytest.mark.parametrize(
    "lines",
    [
        row(81, "websocket", ["connection: upgrade", "upgrade: websocket",
            "sec-websocket-version: 13", "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA=="]),
        row(81, "http-2", ["connection: upgrade, http2-settings", "upgrade: h2c",
            "http2-settings: AA"]),
    ],
)  # fmt: skip
def test_an_upgrade_is_passed_over(hostile, lines):
    received = converse(hostile, head("/health/live", HOST, *lines, method="GET"), seconds=0.5)

    assert received.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "value", [row(24, "header", "a" * 500), row(24, "splitting", "a\tb"), row(24, "latin", "é")]
)
def test_a_request_id_of_no_sense_is_not_echoed(hostile, value):
    lines = [HOST, CLOSE, f"x-request-id: {value}"]
    received = converse(hostile, head("/health/live", *lines, method="GET"))

    assert received.startswith(b"HTTP/1.1 200")
    assert value.encode("latin-1") not in received


def test_bodies_that_are_cut_off_harm_nobody(hostile):
    for content in (b"", ASK[:10], ASK[:-1]):
        with socket.create_connection(("127.0.0.1", hostile.port)) as connection:
            connection.sendall(head(PATHS["native"], HOST, TYPE, LENGTH) + content)

    assert hostile.client.get("/health/ready").status_code == 200

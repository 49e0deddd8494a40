"""Bodies, headers and URLs that are nearly right: answered or refused by name, whatever they hold.

`pytest --hypothesis-profile=thorough tests/service/http/fuzz` searches for longer.
"""

import base64
import io
import json
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import parse_qsl

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.error_codes import ERROR_CODES
from service.errors import ClientError
from service.http import form
from service.media.budget import MediaLimits
from service.media.fetch import Fetcher, RemoteFile
from service.media.fetch_settings import FetchSettings
from service.media.source import source_of_text, source_of_url

RELAXED = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON = {"content-type": "application/json"}
REFUSALS = {400, 404, 413, 415, 422}


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, "PNG")
    return file.getvalue()


PNG = _png()
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
NATIVE = {"text": "Hi", "system": "Be é.", "images": [DATA_URL], "stop": ["a"], "seed": 1}
OPENAI = {
    "model": "null",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Hi \U0001f642"},
                {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}},
            ],
        },
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": {
                "name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "1"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
    "logit_bias": {"1": -1}, "stop": "a", "n": 2, "max_tokens": 5, "stream": True,
    "stream_options": {"include_usage": True},
}  # fmt: skip
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nHi\r\n'
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
    b"Content-Type: image/png\r\n\r\n" + PNG + b"\r\n--b--\r\n"
)
UPLOAD = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nvision\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    + PNG
    + b"\r\n--b--\r\n"
)


def check(response: httpx.Response) -> None:
    """An answer, or a refusal by a documented code."""
    if response.status_code == 200:
        return
    assert response.status_code in REFUSALS, response.text
    reply = response.json()
    assert reply.get("error", reply)["code"] in ERROR_CODES
    assert response.headers["x-request-id"]


@st.composite
def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """Cut, repeat, swap and replace pieces of what is valid."""
    body = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.integers(start, min(len(body), start + 40)))
        other = draw(st.integers(0, len(body)))
        piece = draw(
            st.sampled_from(
                [b"", bytes(body[start:end]) * 2, bytes(body[other : other + 20]), b"\xff", b"\0",
                 b"\r\n", b"--b", b"--b--\r\n", b'"', b"{", b"[[", b"}", b",", b"null", b"-1",
                 b"1e999", b"\\ud800", b"\xed\xa0\x80", b'"":', b": form-data", b"filename*=",
                 b"\r\n\r\n", b"; name=", b"9" * 30]
            )
            | st.binary(max_size=4)
        )  # fmt: skip
        body[start:end] = piece
    return bytes(body)


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/stream", "/v1/preview"])
@RELAXED
@given(content=mutated(json.dumps(NATIVE).encode()))
async def test_json_that_is_nearly_right(service, path, content):
    check(await service.client.post(path, content=content, headers=JSON))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/preview", "/tokenize"])
@RELAXED
@given(content=mutated(json.dumps(OPENAI).encode()))
async def test_conversations_that_are_nearly_right(service, model, path, content):
    content = content.replace(b'"null"', json.dumps(model.name).encode())

    check(await service.client.post(path, content=content, headers=JSON))


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/stream", "/v1/preview"])
@RELAXED
@given(content=mutated(FORM))
async def test_forms_that_are_nearly_right(service, path, content):
    headers = {"content-type": "multipart/form-data; boundary=b"}

    check(await service.client.post(path, content=content, headers=headers))


@RELAXED
@given(content=mutated(UPLOAD))
async def test_uploads_that_are_nearly_right(service, content):
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = await service.client.post("/v1/files", content=content, headers=headers)

    check(response)
    if response.status_code == 200:
        await service.client.delete(f"/v1/files/{response.json()['id']}")


@RELAXED
@given(content=mutated(b"text=Hi&temperature=0.5&stop=a&stop=b&image_url=data%3A%2C&seed=%31"))
async def test_urlencoded_forms_that_are_nearly_right(service, content):
    headers = {"content-type": "application/x-www-form-urlencoded"}

    check(await service.client.post("/v1/chat", content=content, headers=headers))


@RELAXED
@given(
    body=st.lists(
        st.sampled_from([b"a", b"=", b"&", b"%", b"%4", b"%41", b"%C3%A9", b"%ff", b"+", b"%2B"]),
        max_size=40,
    ).map(b"".join),
    piece=st.integers(3, 9),
)
def test_a_urlencoded_form_is_read_as_the_standard_library_reads_it(body, piece):
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict")
    except ValueError:
        pairs = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(form, "_PIECE_BYTES", piece)
        try:
            fields = form.read_urlencoded(body).fields
        except ClientError:
            assert pairs is None
            return

    expected: dict[str, list[str]] = {}
    for name, value in pairs or []:
        expected.setdefault(name, []).append(value)
    assert fields == expected


CONTENT_TYPES = st.lists(
    st.sampled_from(
        ["application/json", "multipart/form-data", "application/x-www-form-urlencoded",
         "text/plain", ";", "; ", "charset", "boundary", "=", "*=", "*0=", "*0*=", "utf-8",
         "utf-16", "utf-8''b", "''", '"', "\\", "b", '"b"', "b" * 100, ",", "/", " ", "\t",
         "é", "%00", "<", "("]
    ),
    max_size=8,
).map("".join)  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/completions", "/v1/files", "/v1/preview"])
@RELAXED
@given(content_type=CONTENT_TYPES | st.text(st.characters(max_codepoint=255), max_size=40))
async def test_content_types_of_every_kind(service, path, content_type):
    # httpx would refuse to send some of these; what no server can read is the protocol's to refuse.
    value = content_type.encode("latin-1")
    if any((byte < 32 and byte != 9) or byte == 127 for byte in value):
        value = bytes(byte for byte in value if byte >= 32 and byte != 127)
    headers = [(b"content-type", value.strip())]

    check(await service.client.post(path, content=FORM, headers=headers))


URL_PIECES = [
    "http://", "https://", "HTTP://", "http:", "//", "/", "\\", "data:", "data:image/png;base64,",
    "file://", "ftp://", "javascript:", "blob:", "@", ":", "::", "[", "]", "[::1]", "127.0.0.1",
    "2130706433", "0x7f.1", "localhost", "a.example", "xn--", "xn--zz--", "①", "。", "%", "%2e",
    "%00", " ", "\t", "\r\n", "\x00", "?", "#", "&", ":80", ":99999", ":0", "file-abc", "AAAA",
    "====", ";base64,", ";charset=x", "\ud800", "\u202e", "\U0001f642", "é", "..", "-", "_",
    "a" * 70, "1" * 400, "[fe80::1%25eth0]", "user:word@",
]  # fmt: skip
URLS = st.lists(st.sampled_from(URL_PIECES), max_size=7).map("".join) | st.text(max_size=30)


@RELAXED
@given(url=URLS)
async def test_urls_of_every_kind_have_a_verdict(url):
    """No name resolves to anything public here, so nothing is ever asked."""

    def private(host: str, port: int) -> Sequence[object]:
        host.encode("idna" if not host.isascii() else "ascii")
        return [ip_address("127.0.0.1")]

    fetcher = Fetcher(FetchSettings(), MediaLimits(), private)  # type: ignore[arg-type]
    codes = set()
    for read in (source_of_url, source_of_text):
        try:
            read(url, "image_url")
        except ClientError as error:
            codes.add(error.code)
    with pytest.raises(ClientError) as refused:
        await fetcher.fetch_all([RemoteFile(url, "image_url")])
    fetcher.close()

    codes.add(refused.value.code)
    assert codes <= {"image_url_scheme", "image_url_invalid", "image_url_refused"}


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/preview"])
@RELAXED
@given(url=URLS.filter(lambda url: "." not in url.replace("127.0.0.1", "")))
async def test_urls_of_every_kind_are_refused_by_name(service, path, url):
    """Without names that anybody might resolve."""
    body = json.dumps({"input_type": "image_only", "image_url": url})

    check(await service.client.post(path, content=body, headers=JSON))
    assert service.engine.requests == []

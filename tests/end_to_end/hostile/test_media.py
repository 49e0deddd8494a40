"""URLs, pictures, documents and videos; what must not be asked is not."""

import zlib
from typing import Any

import pytest
from attack import CANARY, DIALECTS, Hostile, ask, check, data_url, question, row
from bad_files import (
    RED,
    animated,
    bad_checksum,
    header_only,
    pdf,
    png,
    saved,
    video,
    with_chunk,
)
from PIL import Image

# Who is behind these is never asked.
PRIVATE = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1",
    "localhost", "LOCALHOST", "localhost.", "127.0.0.1.", "①②⑦.0.0.1", "0.0.0.0", "0",
    "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[::]",
]  # fmt: skip
ELSEWHERE = [
    "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "100.100.100.200",
    "198.18.0.1", "224.0.0.1", "255.255.255.255", "168.63.129.16", "[fd00::1]", "[fe80::1]",
    "[fd00:ec2::254]", "[64:ff9b::a9fe:a9fe]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[ff02::1]",
]  # fmt: skip
HIDDEN = [
    row(29, "user", "http://user@{host}/", "image_url_invalid"),
    row(29, "backslash", "http://{host}\\@127.0.0.1/", "image_url_invalid"),
    row(29, "space", "http://{host}/ a", "image_url_invalid"),
    row(29, "tab", "http://{host}\t/", "image_url_invalid"),
    row(29, "line-end", "http://{host}/\r\nHost: a", "image_url_invalid"),
    row(29, "no-host", "http:///red.png", "image_url_invalid"),
    row(29, "zone", "http://[fe80::1%25lo]/", "image_url_invalid"),
    row(29, "long", "http://{host}/" + "a" * 9000, "image_url_invalid"),
    row(25, "file", "file:///etc/passwd", "image_url_scheme"),
    row(25, "file-host", "file://{host}/etc/passwd", "image_url_scheme"),
    row(25, "ftp", "ftp://{host}/a.png", "image_url_scheme"),
    row(25, "gopher", "gopher://{host}/_GET", "image_url_scheme"),
    row(25, "javascript", "javascript:alert(1)", "image_url_scheme"),
    row(25, "blob", "blob:http://{host}/1", "image_url_scheme"),
    row(25, "dict", "dict://{host}/", "image_url_scheme"),
    row(25, "view-source", "view-source:http://{host}/", "image_url_scheme"),
]
REFUSED = [
    *[row(26, host, f"http://{host}:PORT/red.png", "image_url_refused") for host in PRIVATE],
    *[row(26, host, f"http://{host}/red.png", "image_url_refused") for host in ELSEWHERE],
    *HIDDEN,
    row(26, "port", "http://127.0.0.2:22/", "image_url_refused"),
    row(27, "redirect-to-private", "http://127.0.0.2:PORT/to-private", "image_url_refused"),
    row(27, "redirect-to-metadata", "http://127.0.0.2:PORT/to-metadata", "image_url_refused"),
    row(27, "redirect-to-a-file", "http://127.0.0.2:PORT/to-file", "image_url_refused"),
    row(30, "redirect-loop", "http://127.0.0.2:PORT/loop", "image_url_refused"),
    row(31, "404", "http://127.0.0.2:PORT/404", "image_fetch_failed"),
    row(31, "500", "http://127.0.0.2:PORT/500", "image_fetch_failed"),
    row(31, "tls", "https://127.0.0.2:PORT/red.png", "image_fetch_failed"),
    row(31, "absurd-length", "http://127.0.0.2:PORT/absurd", "image_fetch_failed"),
    row(32, "silent", "http://127.0.0.2:PORT/silent", "image_fetch_timeout"),
    row(32, "drips", "http://127.0.0.2:PORT/drips", "image_fetch_timeout"),
    row(33, "10-gigabytes", "http://127.0.0.2:PORT/huge", "image_too_large"),
    row(33, "endless", "http://127.0.0.2:PORT/endless", "image_too_large"),
    row(34, "html", "http://127.0.0.2:PORT/html", "image_format_unsupported"),
]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("url", "code"), REFUSED)
def test_a_url_is_refused_and_what_must_not_be_asked_is_not(hostile, dialect, url, code):
    host = f"127.0.0.1:{hostile.origin.port}"
    url = url.replace("{host}", host).replace("PORT", str(hostile.origin.port))
    if dialect == "native":
        body = question(hostile, dialect, input_type="text_image", image_url=url)
    else:
        body = question(hostile, dialect, url)
    response = ask(hostile, dialect, body)

    status = 413 if code == "image_too_large" else 400
    check(response, status, code, may_retry=code == "image_fetch_timeout")
    assert hostile.origin.num_hits == 0


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("num_urls", [row(35, "4-urls", 4), row(35, "101-urls", 101)])
def test_too_many_urls_are_refused_before_any_is_asked(hostile, dialect, num_urls):
    urls = [hostile.origin.url(f"/{i}", "127.0.0.1") for i in range(num_urls)]

    check(ask(hostile, dialect, question(hostile, dialect, *urls)), 400, "too_many_images")
    assert hostile.origin.num_hits == 0


@pytest.mark.parametrize("dialect", DIALECTS)
def test_refused_and_unreachable_look_alike(hostile, dialect):
    """So that nobody learns what there is behind the service."""
    hosts = ("127.0.0.1", "10.0.0.1", "no-such-host.invalid")
    replies = [
        ask(hostile, dialect, question(hostile, dialect, f"http://{host}/")) for host in hosts
    ]

    texts = {reply.text.replace(reply.headers["x-request-id"], "") for reply in replies}
    assert len(texts) == 1


IMAGES = [
    row(36, "legal-alone", [bytes(350_000)] * 3, 413, "media_budget_exceeded"),
    row(36, "too-large-alone", [bytes(450_000)], 413, "image_too_large"),
    row(37, "bad-letters", ["data:image/png;base64,!!!!"], 400, "image_base64_invalid"),
    row(37, "spaces", ["data:image/png;base64,AA AA"], 400, "image_base64_invalid"),
    row(37, "padding", ["data:image/png;base64,AAA"], 400, "image_base64_invalid"),
    row(37, "padding-within", ["data:image/png;base64,AA==AAAA"], 400, "image_base64_invalid"),
    row(37, "url-alphabet", ["data:image/png;base64,AA-_"], 400, "image_base64_invalid"),
    row(37, "outside-ascii", ["data:image/png;base64,ÄÄÄÄ"], 400, "image_base64_invalid"),
    row(38, "html", [f"data:text/html;base64,{CANARY}"], 400, "image_url_invalid"),
    row(38, "svg", ["data:image/svg+xml;base64,PHN2Zz4="], 400, "image_format_unsupported"),
    row(38, "no-comma", ["data:image/png;base64"], 400, "image_url_invalid"),
    row(38, "percent", ["data:image/png,%89PNG"], 400, "image_url_invalid"),
    row(38, "percent-base64", ["data:image/png;base64,AAA%3D"], 400, "image_url_invalid"),
    row(38, "bare", ["data:,"], 400, "image_url_invalid"),
    row(39, "empty", ["data:image/png;base64,"], 400, "image_empty"),
    row(40, "100000-squared", [header_only(100_000, 100_000)], 413, "image_too_many_pixels"),
    row(40, "31-bits", [header_only(2**31 - 1, 2**31 - 1)], 413, "image_too_many_pixels"),
    row(40, "jpeg-2000", [b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(30)], 400,
        "image_format_unsupported"),
    row(41, "text-bomb", [with_chunk(RED, b"zTXt", b"a\0\0" + zlib.compress(bytes(9**8)))], 400,
        "image_invalid"),
    row(41, "profile-bomb", [with_chunk(RED, b"iCCP", b"a\0\0" + zlib.compress(bytes(9**8)))], 400,
        "image_invalid"),
    row(42, "slim", [header_only(1, 100_000)], 400, "image_aspect_ratio"),
    row(42, "wide", [header_only(100_000, 1)], 400, "image_aspect_ratio"),
    row(44, "jpeg", [saved(Image.effect_noise((96, 96), 90), "JPEG")[:2000]], 400,
        "image_truncated"),
    row(44, "png", [png((1, 2, 3))[:-40]], 400, "image_truncated"),
    row(44, "webp", [saved(Image.effect_noise((96, 96), 90), "WEBP")[:900]], 400,
        "image_truncated"),
    row(45, "checksum", [bad_checksum(RED)], 400, "image_invalid"),
    row(46, "svg", [b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>'], 400,
        "image_format_unsupported"),
    row(46, "svg-entity", [b'<?xml version="1.0"?><!DOCTYPE a SYSTEM "file:///etc/passwd">'], 400,
        "image_format_unsupported"),
    *[
        row(47, name, [content + bytes(40)], 400, "image_format_unsupported")
        for name, content in {
            "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "wmf": b"\xd7\xcd\xc6\x9a",
            "fits": b"SIMPLE  =                    T",
            "psd": b"8BPS\0\1",
            "bufr": b"BUFR",
            "grib": b"GRIB\0\0\0\1",
            "hdf5": b"\x89HDF\r\n\x1a\n",
            "pdf": b"%PDF-1.7\n",
            "tiff": b"II*\0",
            "ico": b"\0\0\1\0",
            "icns": b"icns",
            "pcx": b"\x0a\5\1\x08",
            "ppm": b"P6 1 1 255\n",
            "gzip": b"\x1f\x8b\x08",
            "matroska": b"\x1a\x45\xdf\xa3",
        }.items()
    ],
    row(48, "heic", [b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(30)], 400,
        "image_format_unsupported"),
    row(48, "avif", [saved(Image.new("RGB", (64, 64)), "AVIF")], 400, "image_format_unsupported"),
]  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("images", "status", "code"), IMAGES)
def test_a_picture_of_no_use_is_refused(hostile, dialect, images, status, code):
    check(ask(hostile, dialect, question(hostile, dialect, *images)), status, code)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "image",
    [
        row(43, "one-pixel", png((9, 9, 9), (1, 1))),
        row(49, "turned", saved(Image.new("RGB", (64, 32)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08"
            b"\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")),
        row(50, "animated-gif", animated("GIF", 500)),
        row(50, "animated-png", animated("PNG", 500)),
        row(50, "animated-webp", animated("WEBP", 500)),
        row(51, "hidden-colour", png((255, 0, 0, 0), mode="RGBA")),
        row(52, "16-bit", png(40_000, mode="I;16")),
        row(53, "cmyk", saved(Image.new("CMYK", (64, 64), (9, 8, 7, 6)), "JPEG")),
        row(54, "palette", saved(Image.new("P", (64, 64), 3), transparency=3)),
        row(54, "1-bit", png(1, mode="1")),
        row(54, "grey-and-alpha", saved(Image.new("LA", (64, 64), (9, 9)))),
        row(55, "image-id", saved(Image.new("RGB", (64, 64)), "JPEG", exif=b"Exif\0\0MM\0*"
            b"\0\0\0\x08\0\1\x80\x0d\0\2\0\0\0\4abc\0\0\0\0\0")),
        row(55, "trailing-bytes", RED + b"PK\3\4" + CANARY.encode()),
    ],
)  # fmt: skip
def test_an_odd_picture_is_taken(hostile, dialect, image):
    response = ask(hostile, dialect, question(hostile, dialect, image))

    assert response.status_code == 200, response.text
    usage = response.json()["usage"]
    assert usage.get("prompt_tokens_details", usage)["image_tokens"] > 0


FILES = [
    row(56, "zip", b"PK\3\4" + bytes(40), 400, "file_type_unsupported"),
    row(56, "html", b"<html>" + CANARY.encode(), 400, "file_type_unsupported"),
    row(56, "empty", b"", 400, "file_empty"),
    row(57, "encrypted", pdf(1, trailer=b"/Encrypt<</Filter/Standard/V 1/R 2/P 0>>"), 400,
        "pdf_encrypted"),
    row(57, "10000-pages", pdf(10_000), 413, "pdf_too_many_pages"),
    row(57, "million-points", pdf(1, 1_000_000), 413, "pdf_page_too_large"),
    row(57, "nothing-but-a-head", b"%PDF-1.7\n" + bytes(300), 400, "pdf_invalid"),
]  # fmt: skip


def with_file(
    hostile: Hostile, dialect: str, file: bytes, media_type: str = "application/pdf"
) -> dict[str, Any]:
    """Make the body that shows a document or a video."""
    url = data_url(file, media_type)
    if dialect == "native":
        return question(hostile, dialect, input_type="text_image", files=[url])
    body = question(hostile, dialect)
    kinds = {
        "application/pdf": {"type": "file", "file": {"file_data": url}},
        "video/mp4": {"type": "video_url", "video_url": {"url": url}},
    }
    body["messages"][0]["content"].insert(0, kinds[media_type])
    return body


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("file", "status", "code"), FILES)
def test_a_file_of_no_use_is_refused(hostile, dialect, file, status, code):
    body = with_file(hostile, dialect, file)

    check(ask(hostile, dialect, body), status, code)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("file", [row(57, "script", pdf(2))])
def test_a_document_with_a_script_is_only_drawn(hostile, dialect, file):
    body = with_file(hostile, dialect, file)

    assert ask(hostile, dialect, body).status_code == 200


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("num_frames", "rate"), [row(58, "240-a-second", 240, 240), row(58, "long", 90, 10)]
)
def test_a_video_over_its_bounds_is_refused(hostile, dialect, num_frames, rate):
    body = with_file(hostile, dialect, video(num_frames, rate), "video/mp4")

    check(ask(hostile, dialect, body), 413, "video_too_long")

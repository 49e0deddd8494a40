import base64
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ImageRefused, TooLarge
from service.media.budget import MediaLimits
from service.media.inline import decode_inline

PARAM = "messages[0].content[1].image_url.url"


def code_of(text: str) -> str:
    with pytest.raises(ImageRefused) as caught:
        decode_inline(text, PARAM)
    assert caught.value.param == PARAM
    return caught.value.code


headers = st.sampled_from(
    [
        "",
        "data:image/png;base64,",
        "DATA:IMAGE/JPEG;BASE64,",
        "Data:image/svg+xml;base64,",
        "data:image/webp;charset=utf-8;name=a.webp;base64,",
    ]
)


@given(headers, st.binary(max_size=2000))
def test_bytes_come_back(header, encoded):
    assert encoded == decode_inline(header + base64.b64encode(encoded).decode(), PARAM)


def test_bytes_come_back_over_many_pieces():
    encoded = bytes(range(256)) * 4001

    assert encoded == decode_inline(base64.b64encode(encoded).decode(), PARAM)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("!!!!", id="bad letters"),
        pytest.param("AAA", id="no padding"),
        pytest.param("AA==AA==", id="padding inside"),
        pytest.param("A===", id="too much padding"),
        pytest.param("====", id="padding alone"),
        pytest.param("AAAA====", id="more padding than needed"),
        pytest.param("AA AA", id="space"),
        pytest.param("AAAA\n", id="line break"),
        pytest.param("AA\nAAA==", id="line break that fits"),
        pytest.param("__--", id="url-safe alphabet"),
        pytest.param("AAAé", id="not ascii"),
        pytest.param("AAA\ud800", id="lone surrogate"),
        pytest.param("AAA\0", id="nul"),
        pytest.param("data:image/png;base64,!!!!", id="in a data URL"),
        pytest.param("file:///etc/passwd", id="another scheme"),
        pytest.param("AAAA" * 70_000 + "AA==" + "AAAA" * 70_000, id="padding between pieces"),
    ],
)
def test_what_is_not_strict_base64_is_refused(text):
    assert code_of(text) == "image_base64_invalid"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("data:text/html;base64,AAAA", id="not an image"),
        pytest.param("data:image/png;base64", id="no comma"),
        pytest.param("data:image/png,AAAA", id="not base64"),
        pytest.param("data:image/png,%89PNG", id="percent-encoded"),
        pytest.param("data:image/png;base64,AAA%3D", id="percent-encoded padding"),
        pytest.param("data:,AAAA", id="no type"),
        pytest.param("data:image/;base64,AAAA", id="no subtype"),
        pytest.param("data: image/png;base64,AAAA", id="space"),
        pytest.param("data:image/png;base64;charset=utf-8,AAAA", id="base64 not last"),
        pytest.param("data:image/png;" + "x=y;" * 100 + "base64,AAAA", id="endless header"),
        pytest.param("data:", id="nothing"),
    ],
)
def test_other_data_urls_are_refused(text):
    assert code_of(text) == "image_url_invalid"


@pytest.mark.parametrize("text", ["", "data:image/png;base64,"])
def test_an_empty_payload_is_left_to_the_decoder(text):
    assert decode_inline(text, PARAM) == b""


@pytest.mark.parametrize("header", ["", "data:image/png;base64,"])
def test_size_is_told_from_the_text_alone(header):
    limits = MediaLimits(max_image_bytes=10)

    assert decode_inline(header + base64.b64encode(bytes(10)).decode(), PARAM, limits) == bytes(10)
    with pytest.raises(TooLarge) as caught:
        decode_inline(header + "!" * 16, PARAM, limits)
    assert (caught.value.code, caught.value.param) == ("image_too_large", PARAM)


@given(st.text(max_size=60) | headers.flatmap(lambda head: st.text().map(lambda t: head + t)))
def test_any_text_gives_bytes_or_an_answer(text):
    with suppress(ImageRefused):
        assert isinstance(decode_inline(text, PARAM), bytes)

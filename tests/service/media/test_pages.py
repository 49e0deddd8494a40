"""Page numbers, as clients write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import RequestInvalid, TooLarge
from service.media.pages import read_pages


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("1", (1,), id="one"),
        pytest.param("3-3", (3,), id="a range of one"),
        pytest.param("1-3,7", (1, 2, 3, 7), id="range and page"),
        pytest.param("7,1-2", (7, 1, 2), id="in the order asked for"),
    ],
)
def test_pages_and_ranges_are_read_in_their_order(text, expected):
    assert expected == read_pages(text, max_pages=16, param="pages")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0-3",
        "3-1",
        "1,1",
        "1-3,2",
        "1,",
        ",1",
        "-1",
        "1-",
        "1-2-3",
        "a",
        "1 ,2",
        "１",
        "1\n",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(RequestInvalid) as caught:
        read_pages(text, max_pages=16, param="pages")

    assert (caught.value.code, caught.value.param) == ("pdf_pages_invalid", "pages")


@pytest.mark.parametrize("text", ["1-17", "1-999999", ",".join(["1-999999"] * 90)])
def test_too_many_pages_are_told_with_both_numbers(text):
    with pytest.raises(TooLarge) as caught:
        read_pages(text, max_pages=16, param="pages")

    assert caught.value.code == "pdf_too_many_pages"
    assert " 16 " in caught.value.message


@given(st.text(alphabet="0123456789-, ", max_size=30))
def test_any_text_is_pages_or_a_refusal(text):
    try:
        pages = read_pages(text, max_pages=16, param="pages")
    except (RequestInvalid, TooLarge):
        return
    assert 0 < len(set(pages)) == len(pages) <= 16
    assert min(pages) > 0

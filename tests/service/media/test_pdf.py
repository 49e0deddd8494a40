"""Documents, drawn: what stands on the page is seen, whatever else is in the file is not."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.media import pdf
from service.media.decoded_image import DecodedImage
from service.media.refusal import MediumRefused, Refusal
from service.media.resize import ResizeBounds

BOUNDS = ResizeBounds(factor=32, min_pixels=1024, max_pixels=1_000_000)
PAGE = pdf.PageBounds(dots_per_inch=144, max_pixels=4_000_000)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
RED_CORNER = b"1 0 0 rg 0 0 40 40 re f"  # lower left


def draw(encoded: bytes, number: int = 1, bounds: ResizeBounds = BOUNDS) -> DecodedImage:
    with pdf.opened(encoded) as document:
        return pdf.render(document, number, PAGE, bounds)


def as_picture(image: DecodedImage) -> Image.Image:
    return Image.frombytes("RGB", (image.width, image.height), image.pixels)


def corners(image: DecodedImage) -> list[tuple[int, ...]]:
    """Upper left, upper right, lower left, lower right."""
    right, bottom = image.width - 8, image.height - 8
    places = ((8, 8), (right, 8), (8, bottom), (right, bottom))
    return [tuple(image.pixels[3 * (y * image.width + x) :][:3]) for x, y in places]


def finding(encoded: bytes) -> MediumRefused:
    with pytest.raises(MediumRefused) as caught:
        draw_all(encoded)
    return caught.value


def draw_all(encoded: bytes) -> None:
    with pdf.opened(encoded) as document:
        for number in pdf.choose_pages(document, None, 16):
            pdf.render(document, number, PAGE, BOUNDS)


def test_a_page_is_drawn_upright_on_white_at_the_models_size(make_pdf):
    image = draw(make_pdf(RED_CORNER))

    assert corners(image) == [WHITE, WHITE, RED, WHITE]
    assert (image.source_height, image.source_width) == (200, 400)  # 144 dots per inch
    assert (image.height, image.width) == (192, 384)
    assert image.source_format == "pdf"
    assert len(image.pixels) == 192 * 384 * 3


def test_each_page_is_its_own(make_pdf):
    encoded = make_pdf(RED_CORNER, b"0 0 1 rg 0 0 400 400 re f")

    assert corners(draw(encoded, 2)) == [BLUE] * 4
    assert draw(encoded, 1).content_hash != draw(encoded, 2).content_hash
    assert draw(encoded, 1) == draw(encoded, 1)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        (90, [RED, WHITE, WHITE, WHITE]),
        (180, [WHITE, RED, WHITE, WHITE]),
        (270, [WHITE, WHITE, WHITE, RED]),
    ],
)
def test_a_turned_page_is_turned(degrees, expected, make_pdf):
    image = draw(make_pdf(RED_CORNER, extra=b"/Rotate %d" % degrees))

    assert expected == corners(image)
    assert (image.height > image.width) is (degrees != 180)


def test_what_lies_outside_the_crop_box_is_not_seen(make_pdf):
    image = draw(make_pdf(RED_CORNER, extra=b"/CropBox[100 50 200 100]"))

    assert corners(image) == [WHITE] * 4
    assert image.source_width == 200


FIELD = (
    b"<</Type/Annot/Subtype/Widget/FT/Tx/T(a)/V(IIIIII)"
    b"/Rect[0 0 200 100]/F 4/DA(/F 90 Tf 1 0 0 rg)>>"
)
SQUARE = b"<</Type/Annot/Subtype/Square/Rect[0 0 200 100]/IC[0 1 0]/C[0 1 0]/F 4>>"
FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"


@pytest.mark.parametrize(
    ("annotation", "colour"),
    [pytest.param(FIELD, RED, id="what a form holds"), pytest.param(SQUARE, GREEN, id="a note")],
)
def test_annotations_and_filled_forms_are_drawn(annotation, colour, write_pdf):
    encoded = write_pdf(
        [
            b"<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[4 0 R]/DR<</Font<</F 5 0 R>>>>>>>>",
            b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 100]/Annots[4 0 R]>>",
            annotation,
            FONT,
        ]
    )

    colours = as_picture(draw(encoded)).getcolors(1 << 20)
    assert colours is not None
    assert colour in [each for _, each in colours]


def test_scripts_and_actions_do_nothing(write_pdf):
    script = (
        b"<</S/JavaScript/JS(this.getField('a').value='x'; app.launchURL('http://127.0.0.1'))>>"
    )
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 100]/AA<</O %b>>>>" % script
    catalogue = b"<</Type/Catalog/Pages 2 0 R/OpenAction %b>>" % script
    pages = b"<</Type/Pages/Kids[3 0 R]/Count 1>>"

    assert corners(draw(write_pdf([catalogue, pages, page]))) == [WHITE] * 4


def test_a_large_page_is_drawn_smaller(make_pdf):
    image = draw(make_pdf(RED_CORNER, width=14_400, height=14_400))

    assert image.source_width * image.source_height <= PAGE.max_pixels
    assert image.width * image.height <= BOUNDS.max_pixels


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        pytest.param((1_000_000, 1_000_000), Refusal.PDF_PAGE_TOO_LARGE, id="a million points"),
        pytest.param((14_401, 100), Refusal.PDF_PAGE_TOO_LARGE, id="one side"),
        pytest.param((10_000, 20), Refusal.ASPECT_RATIO, id="slim"),
    ],
)
def test_pages_of_no_sense_are_refused(size, expected, make_pdf):
    assert finding(make_pdf(RED_CORNER, width=size[0], height=size[1])).refusal == expected


def test_a_tiny_page_is_drawn_large_enough(make_pdf):
    image = draw(make_pdf(b"1 0 0 rg 0 0 9 9 re f", width=1, height=1))

    assert (image.height, image.width) == (32, 32)
    assert corners(image) == [RED] * 4


ENCRYPT = b"/Filter/Standard/V 1/R 2/P -4/O<%b>/U<%b>" % (b"11" * 32, b"22" * 32)


@pytest.mark.parametrize(
    "encryption",
    [
        pytest.param(ENCRYPT, id="a password"),
        pytest.param(b"/Filter/Unheard.Of/V 9/R 9", id="an unknown lock"),
    ],
)
def test_a_locked_document_is_told_so(encryption, make_pdf):
    trailer = b"/Encrypt<<%b>>/ID[<00><00>]" % encryption

    assert finding(make_pdf(RED_CORNER, trailer=trailer)).refusal == Refusal.PDF_ENCRYPTED


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"%PDF-1.7\n", id="header alone"),
        pytest.param(b"%PDF-1.7\n" + bytes(500), id="zeros"),
        pytest.param(b"GIF89a" + bytes(500), id="a picture"),
    ],
)
def test_what_is_no_document_is_refused(encoded):
    assert finding(encoded).refusal == Refusal.PDF_INVALID


def test_a_document_without_pages_is_refused(write_pdf):
    encoded = write_pdf([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[]/Count 0>>"])

    assert finding(encoded).refusal == Refusal.PDF_INVALID


def test_pages_that_only_the_count_knows_are_refused(write_pdf):
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 100]>>"
    pages = b"<</Type/Pages/Kids[3 0 R]/Count 5>>"
    encoded = write_pdf([b"<</Type/Catalog/Pages 2 0 R>>", pages, page])

    assert finding(encoded).refusal == Refusal.PDF_INVALID


def test_the_pages_asked_for_must_be_there_and_not_too_many(make_pdf):
    encoded = make_pdf(*[RED_CORNER] * 5)
    with pdf.opened(encoded) as document:
        assert pdf.choose_pages(document, None, 5) == (1, 2, 3, 4, 5)
        assert pdf.choose_pages(document, (4, 2), 5) == (4, 2)
        for wanted, expected in (((6,), "pdf_pages_invalid"), (None, "pdf_too_many_pages")):
            with pytest.raises(MediumRefused) as caught:
                pdf.choose_pages(document, wanted, 4)
            assert (caught.value.refusal, caught.value.num_pages) == (expected, 5)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_document_is_drawn_or_a_finding(data, make_pdf):
    encoded = bytearray(make_pdf(RED_CORNER, RED_CORNER))
    places = st.integers(0, len(encoded) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=8)):
        encoded[place] = data.draw(st.integers(0, 255))
    with suppress(MediumRefused):
        draw_all(bytes(encoded))

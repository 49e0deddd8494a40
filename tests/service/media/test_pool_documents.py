"""Documents and videos through the pool, with real processes."""

import sys
from collections.abc import Callable, Iterator

import anyio
import msgspec
import pytest

from service.errors import ClientError, ImageRefused, RequestInvalid, TooLarge
from service.media.budget import MediaLimits
from service.media.encoded import EncodedFile
from service.media.pool import ImagePool
from service.media.resize import ResizeBounds
from service.media.sampling import VideoBounds

BOUNDS = ResizeBounds(factor=32, min_pixels=1024, max_pixels=65_536)
VIDEO = VideoBounds(factor=32, temporal_factor=2, min_pixels=4096, max_pixels=25_165_824)
RED_PAGE, BLUE_PAGE = b"1 0 0 rg 0 0 400 400 re f", b"0 0 1 rg 0 0 400 400 re f"

# A decoder in which something has gone wrong, as a flaw in a library would have it.
FLAWED_DECODER = f"""#!{sys.executable}
import os, sys
sys.path.insert(0, os.getcwd())
from service.media import decoder_main
FLAW
sys.argv = sys.argv[2:]
decoder_main.main()
"""


@pytest.fixture
def make_pool() -> Iterator[Callable[..., ImagePool]]:
    pools: list[ImagePool] = []

    def make(**limits: int) -> ImagePool:
        pools.append(ImagePool(msgspec.convert(limits, MediaLimits), num_processes=1))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def pool(make_pool) -> ImagePool:
    return make_pool()


@pytest.fixture
def flaw(monkeypatch, tmp_path) -> Callable[[str], None]:
    """Start decoder processes with a line of code before they begin."""

    def run(code: str) -> None:
        script = tmp_path / "python"
        script.write_text(FLAWED_DECODER.replace("FLAW", code))
        script.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(script))

    return run


def file(encoded: bytes) -> EncodedFile:
    return EncodedFile(encoded, "files[2]")


async def test_all_pages_come_in_their_order(pool, make_pdf):
    document = await pool.render_document(file(make_pdf(RED_PAGE, BLUE_PAGE)), None, BOUNDS)

    assert document.num_pages == 2
    assert [page.number for page in document.pages] == [1, 2]
    assert [page.image.pixels[:3] for page in document.pages] == [b"\xff\0\0", b"\0\0\xff"]


async def test_only_the_pages_named_are_drawn(pool, make_pdf):
    encoded = make_pdf(*[RED_PAGE] * 30, BLUE_PAGE)
    document = await pool.render_document(file(encoded), "31,3-4", BOUNDS)

    assert document.num_pages == 31
    assert [page.number for page in document.pages] == [31, 3, 4]
    assert document.pages[0].image.pixels[:3] == b"\0\0\xff"


@pytest.mark.parametrize(
    ("pages", "error", "code", "number"),
    [
        pytest.param(None, TooLarge, "pdf_too_many_pages", "20 pages", id="all of many"),
        pytest.param("1-17", TooLarge, "pdf_too_many_pages", "17 pages", id="too many named"),
        pytest.param("21", RequestInvalid, "pdf_pages_invalid", "page 20", id="beyond the last"),
        pytest.param("x", RequestInvalid, "pdf_pages_invalid", "1-3,7", id="no pages"),
    ],
)
async def test_pages_that_cannot_be_had_are_told_with_their_number(
    pages, error, code, number, pool, make_pdf
):
    with pytest.raises(ClientError) as caught:
        await pool.render_document(file(make_pdf(*[RED_PAGE] * 20)), pages, BOUNDS)

    assert (type(caught.value), caught.value.code, caught.value.param) == (error, code, "files[2]")
    assert number in caught.value.message


@pytest.mark.parametrize(
    ("trailer", "code"),
    [
        pytest.param(b"/Encrypt<</Filter/Standard/V 1/R 2/P 0>>", "pdf_encrypted", id="locked"),
        pytest.param(b"/Root 99 0 R", "pdf_invalid", id="broken"),
    ],
)
async def test_findings_name_the_document(trailer, code, pool, make_pdf):
    with pytest.raises(ImageRefused) as caught:
        await pool.render_document(file(make_pdf(RED_PAGE, trailer=trailer)), None, BOUNDS)

    assert (caught.value.code, caught.value.param) == (code, "files[2]")


async def test_a_page_that_never_ends_is_ended(make_pool, write_pdf):
    """Each of 24 drawings contains the next one thrice."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1/MediaBox[0 0 200 100]>>",
        b"<</Type/Page/Parent 2 0 R/Contents 4 0 R/Resources<</XObject<</N 5 0 R>>>>>>",
        b"<</Length 5>>stream\n/N Do\nendstream",
    ]
    for number in range(6, 30):
        head = b"<</Type/XObject/Subtype/Form/BBox[0 0 200 100]/Length 17"
        resources = b"/Resources<</XObject<</N %d 0 R>>>>>>" % number
        objects.append(head + resources + b"stream\n/N Do /N Do /N Do\nendstream")
    objects.append(b"<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Length 0>>stream\n\nendstream")
    pool = make_pool(max_decode_cpu_seconds=1)

    with anyio.fail_after(60), pytest.raises(ImageRefused) as caught:
        await pool.render_document(file(write_pdf(objects)), None, BOUNDS)
    assert caught.value.code == "pdf_invalid"


async def test_more_pages_than_were_asked_for_are_not_believed(pool, flaw, make_pdf):
    flaw("decoder_main.pdf.choose_pages = lambda *_: (1, 2)")
    encoded = make_pdf(RED_PAGE, BLUE_PAGE)

    assert len((await pool.render_document(file(encoded), "1-2", BOUNDS)).pages) == 2
    with pytest.raises(ImageRefused) as caught:
        await pool.render_document(file(encoded), "1", BOUNDS)
    assert caught.value.code == "pdf_invalid"


async def test_a_page_that_fails_ends_the_document_and_not_its_process(pool, make_pdf, write_pdf):
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 100]>>"
    pages = b"<</Type/Pages/Kids[3 0 R]/Count 3>>"
    encoded = write_pdf([b"<</Type/Catalog/Pages 2 0 R>>", pages, page])

    for _ in range(2):
        with pytest.raises(ImageRefused) as caught:
            await pool.render_document(file(encoded), None, BOUNDS)
        assert caught.value.code == "pdf_invalid"
        assert (await pool.render_document(file(make_pdf(RED_PAGE)), None, BOUNDS)).num_pages == 1


async def test_a_video_comes_as_its_frames_and_their_times(pool, make_video):
    video = await pool.sample_video(file(make_video(60)), VIDEO)

    assert (video.num_frames, video.height, video.width) == (4, 64, 96)
    assert len(video.pixels) == 4 * 64 * 96 * 3
    assert video.timestamps == pytest.approx((1 / 3, 49 / 30))
    assert video.source_frames == 60


async def test_the_server_bounds_what_a_checkpoint_would_take(make_pool, make_video):
    encoded = make_video(8, size=(640, 360))
    free = await make_pool().sample_video(file(encoded), VIDEO)
    bound = await make_pool(max_video_pixels=100_000).sample_video(file(encoded), VIDEO)

    assert len(free.pixels) > 300_000 >= len(bound.pixels)


@pytest.mark.parametrize(
    ("encoded", "error", "code"),
    [
        pytest.param(b"RIFF" + bytes(90), ImageRefused, "video_format_unsupported", id="AVI"),
        pytest.param(b"\0\0\0\x18ftypisom", ImageRefused, "video_invalid", id="broken"),
    ],
)
async def test_findings_name_the_video(encoded, error, code, pool):
    with pytest.raises(ClientError) as caught:
        await pool.sample_video(file(encoded), VIDEO)

    assert (type(caught.value), caught.value.code, caught.value.param) == (error, code, "files[2]")


async def test_a_video_over_a_bound_is_too_large(make_pool, make_video):
    pool = make_pool(max_video_seconds=1)
    with pytest.raises(TooLarge) as caught:
        await pool.sample_video(file(make_video(60)), VIDEO)

    assert caught.value.code == "video_too_long"
    assert "1 s" in caught.value.message


async def test_a_video_that_takes_too_long_is_ended_by_its_own_bound(
    make_pool, make_video, make_pdf, flaw
):
    flaw("decoder_main.sample = lambda *_: sum(range(10**12))")
    pool = make_pool(max_video_cpu_seconds=1)

    with anyio.fail_after(60), pytest.raises(TooLarge) as caught:
        await pool.sample_video(file(make_video(2)), VIDEO)
    assert caught.value.code == "video_too_long"
    assert (await pool.render_document(file(make_pdf(RED_PAGE)), None, BOUNDS)).num_pages == 1


async def test_a_server_without_the_extra_says_what_it_lacks(pool, make_video, flaw):
    flaw("sys.modules['av'] = None")
    with pytest.raises(ImageRefused) as caught:
        await pool.sample_video(file(make_video(2)), VIDEO)

    assert caught.value.code == "video_unsupported"
    assert "PyAV" in caught.value.message

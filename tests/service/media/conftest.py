"""Pictures, documents and videos made in code."""

import io
from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import pytest
from PIL import Image

from service.media.decode import SourceBounds, decode
from service.media.decoded_image import DecodedImage
from service.media.resize import ResizeBounds

ALL_FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "avif", "tiff")


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    def run(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
        file = io.BytesIO()
        image.save(file, file_format, **options)
        return file.getvalue()

    return run


@pytest.fixture(scope="session")
def source() -> SourceBounds:
    return SourceBounds(formats=ALL_FORMATS, max_pixels=36_000_000)


@pytest.fixture(scope="session")
def look(source: SourceBounds) -> Callable[[bytes], DecodedImage]:
    """Decode a small picture to a small size."""

    def run(encoded: bytes) -> DecodedImage:
        return decode(encoded, source, ResizeBounds(factor=32, min_pixels=1024, max_pixels=65_536))

    return run


@pytest.fixture(scope="session")
def colour_of(look: Callable[[bytes], DecodedImage]) -> Callable[[bytes], tuple[int, ...]]:
    """The one RGB colour of a picture of one colour."""

    def run(encoded: bytes) -> tuple[int, ...]:
        pixels = look(encoded).pixels
        colours = {pixels[i : i + 3] for i in range(0, len(pixels), 3)}
        assert len(colours) == 1
        return tuple(colours.pop())

    return run


def pdf_stream(content: bytes) -> bytes:
    return b"<</Length %d>>stream\n%b\nendstream" % (len(content), content)


@pytest.fixture(scope="session")
def write_pdf() -> Callable[..., bytes]:
    """Write a document of numbered objects, the first of which is its catalogue."""

    def run(objects: Sequence[bytes], trailer: bytes = b"") -> bytes:
        file = io.BytesIO()
        file.write(b"%PDF-1.7\n")
        places: list[int] = []
        for number, content in enumerate(objects, 1):
            places.append(file.tell())
            file.write(b"%d 0 obj\n%b\nendobj\n" % (number, content))
        start = file.tell()
        file.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
        file.writelines(b"%010d 00000 n \n" % place for place in places)
        file.write(b"trailer\n<</Size %d/Root 1 0 R%b>>\n" % (len(objects) + 1, trailer))
        file.write(b"startxref\n%d\n%%%%EOF" % start)
        return file.getvalue()

    return run


@pytest.fixture(scope="session")
def make_pdf(write_pdf) -> Callable[..., bytes]:
    """Make a document whose every page is one instruction list, on equal paper."""

    def run(
        *pages: bytes, width: int = 200, height: int = 100, extra: bytes = b"", **trailer: bytes
    ) -> bytes:
        kids = b" ".join(b"%d 0 R" % (3 + 2 * place) for place in range(len(pages)))
        objects = [
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Kids[%b]/Count %d/MediaBox[0 0 %d %d]%b>>"
            % (kids, len(pages), width, height, extra),
        ]
        for place, content in enumerate(pages):
            objects.append(b"<</Type/Page/Parent 2 0 R/Contents %d 0 R>>" % (4 + 2 * place))
            objects.append(pdf_stream(content))
        return write_pdf(objects, **trailer)

    return run


@pytest.fixture(scope="session")
def make_video() -> Callable[..., bytes]:
    """Make a video; unless told otherwise, frame i is of the grey level 4 i."""

    def run(
        num_frames: int = 60,
        *,
        file_format: str = "mp4",
        codec: str = "libx264",
        size: tuple[int, int] = (96, 64),
        rate: int = 30,
        draw: Callable[[int], Image.Image] | None = None,
        times: Sequence[int] | None = None,
        rotation: int = 0,
        **options: str,
    ) -> bytes:
        file = io.BytesIO()
        with av.open(file, "w", format=file_format) as container:
            stream = container.add_stream(codec, rate=rate, options=options)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            if rotation:
                stream.set_display_rotation(rotation)
            for i in range(num_frames):
                level = min(4 * i, 255)
                image = draw(i) if draw else Image.new("RGB", size, (level, level, level))
                frame = av.VideoFrame.from_image(image)
                frame.pts, frame.time_base = times[i] if times else i, Fraction(1, rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return file.getvalue()

    return run

"""Pictures, documents and videos, right ones and others."""

import io
import struct
import zlib
from typing import Any

import av
from PIL import Image


def png(color: tuple[int, ...] | int, size: tuple[int, int] = (96, 96), mode: str = "RGB") -> bytes:
    return saved(Image.new(mode, size, color))


def saved(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def header_only(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def with_chunk(encoded: bytes, name: bytes, content: bytes) -> bytes:
    return encoded[:33] + chunk(name, content) + encoded[33:]


def bad_checksum(encoded: bytes) -> bytes:
    at = encoded.index(b"IDAT")
    end = at + 4 + int.from_bytes(encoded[at - 4 : at])
    return encoded[:end] + bytes([encoded[end] ^ 1]) + encoded[end + 1 :]


def animated(file_format: str, num_frames: int) -> bytes:
    frames = [Image.new("RGB", (64, 64), (i % 256, i // 256, 0)) for i in range(num_frames)]
    return saved(frames[0], file_format, save_all=True, append_images=frames[1:], duration=20)


def pdf(num_pages: int, side: int = 200, trailer: bytes = b"") -> bytes:
    """Make a document whose pages are all the same empty one."""
    kids = b"3 0 R " * num_pages
    objects = [
        b"<</Type/Catalog/Pages 2 0 R/OpenAction<</S/JavaScript/JS(app.alert\\(1\\))>>>>",
        b"<</Type/Pages/Kids[%b]/Count %d/MediaBox[0 0 %d %d]>>" % (kids, num_pages, side, side),
        b"<</Type/Page/Parent 2 0 R>>",
    ]
    file = io.BytesIO(b"%PDF-1.7\n")
    file.seek(0, io.SEEK_END)
    places = []
    for number, content in enumerate(objects, 1):
        places.append(file.tell())
        file.write(b"%d 0 obj\n%b\nendobj\n" % (number, content))
    start = file.tell()
    file.write(b"xref\n0 4\n0000000000 65535 f \n")
    file.writelines(b"%010d 00000 n \n" % place for place in places)
    file.write(b"trailer\n<</Size 4/Root 1 0 R%b>>\nstartxref\n%d\n%%%%EOF" % (trailer, start))
    return file.getvalue()


def video(num_frames: int, rate: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 64)))))
        container.mux(stream.encode())
    return file.getvalue()


RED = png((255, 0, 0))

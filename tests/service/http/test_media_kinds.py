"""Videos and documents from a request's body to what the engine gets, through real decoders."""

import base64
import io
from fractions import Fraction

import av
import pytest
from PIL import Image

from inference.spans import VisualLayout, locate_spans

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def film() -> bytes:
    """Two seconds, red and then blue."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(20):
            colour = (255, 0, 0) if i < 10 else (0, 0, 255)
            frame = av.VideoFrame.from_image(Image.new("RGB", (96, 64), colour))
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.fixture(scope="module")
def document() -> bytes:
    """Three pages: red, green, blue."""
    file = io.BytesIO()
    pages = [Image.new("RGB", (200, 100), colour) for colour in ("red", "lime", "blue")]
    pages[0].save(file, "PDF", save_all=True, append_images=pages[1:])
    return file.getvalue()


def as_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def ask(model, *parts: dict) -> dict:
    return {"model": model.name, "messages": [{"role": "user", "content": list(parts)}]}


def video_part(content: bytes) -> dict:
    return {"type": "video_url", "video_url": {"url": as_url(content, "video/mp4")}}


def file_part(content: bytes, **fields: str) -> dict:
    file = {"filename": "a.pdf", "file_data": as_url(content, "application/pdf"), **fields}
    return {"type": "file", "file": file}


async def test_a_video_reaches_the_engine_as_frames(service, model, film):
    response = await service.client.post(PATH, json=ask(model, video_part(film)))

    (request,) = service.engine.requests
    (vision,) = request.visions
    size = vision.height * vision.width * 3
    first, last = bytes(vision.pixels[:3]), bytes(vision.pixels[-3:])
    assert response.status_code == 200
    assert vision.video
    assert vision.num_frames == 4
    assert len(vision.pixels) == 4 * size
    assert first[0] > 200 > 50 > first[2]
    assert last[2] > 200 > 50 > last[0]
    spans = locate_spans(request.prompt_token_ids, request.visions, VisualLayout.of(model))
    assert len(spans) == 2


async def test_pages_reach_the_engine_as_pictures_in_the_order_named(service, model, document):
    body = ask(model, file_part(document, pages="3,1"), {"type": "text", "text": "Compare."})
    response = await service.client.post(PATH, json=body)

    (request,) = service.engine.requests
    assert response.status_code == 200
    assert [vision.pixels[0] > 200 for vision in request.visions] == [False, True]
    assert [vision.pixels[2] > 200 for vision in request.visions] == [True, False]
    assert not any(vision.video for vision in request.visions)
    assert response.json()["usage"]["document_pages"] == 2


async def test_pages_of_all_documents_are_counted_in_the_native_dialect_too(
    service, document, picture
):
    url = as_url(document, "application/pdf")
    body = {"text": "Compare.", "files": [url, as_url(picture, "image/png"), url]}
    response = await service.client.post("/v1/chat", json=body)

    assert response.json()["usage"]["document_pages"] == 6


@pytest.mark.parametrize(
    ("part", "code"),
    [
        pytest.param(file_part(b"%PDF-1.7\n"), "pdf_invalid", id="a broken document"),
        pytest.param(file_part(b"PK\x03\x04"), "file_type_unsupported", id="an archive"),
        pytest.param(video_part(b"\0\0\0\x18ftypisom"), "video_invalid", id="a broken video"),
        pytest.param(video_part(b"%PDF-1.7\n"), "file_type_unsupported", id="a document as video"),
    ],
)
async def test_what_cannot_be_used_is_refused_before_the_engine(service, model, part, code):
    response = await service.client.post(PATH, json=ask(model, part))

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, code)
    assert error["param"].startswith("messages[0].content[0].")
    assert not service.engine.requests

"""A PDF's pages, from the client's file to the model's answer."""

import base64
import io

import pytest
from PIL import Image, ImageDraw


def page(color: str) -> Image.Image:
    image = Image.new("RGB", (612, 612), "white")
    ImageDraw.Draw(image).ellipse((156, 156, 456, 456), fill=color)
    return image


@pytest.fixture(scope="module")
def document() -> bytes:
    """Three pages with a circle each: red, blue, green."""
    first, *others = map(page, ("#ff0000", "#0000ff", "#00a000"))
    file = io.BytesIO()
    first.save(file, "PDF", save_all=True, append_images=others)
    return file.getvalue()


@pytest.mark.parametrize(
    ("pages", "answer"), [("1", "a red circle"), ("2", "a blue circle"), ("3", "a green circle")]
)
def test_the_page_that_was_asked_for_reaches_the_model(client, document, pages, answer):
    response = client.post(
        "/v1/chat",
        data={"text": "What is in this image?", "pages": pages, "temperature": "0.1", "top_k": "1"},
        files={"file": ("letter.pdf", document, "application/pdf")},
    )

    assert response.json()["result"] == answer


def test_all_pages_are_shown_with_their_numbers_and_counted(client, document):
    url = f"data:application/pdf;base64,{base64.b64encode(document).decode()}"
    body = {
        "model": "demo",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "file", "file": {"file_data": url, "filename": "letter.pdf"}},
                    {"type": "text", "text": "What is in the second image?"},
                ],
            }
        ],
        "temperature": 0,
        "max_tokens": 20,
    }
    seen = client.post("/v1/preview", json=body).json()
    usage = client.post("/v1/chat/completions", json=body).json()["usage"]

    (medium,) = seen["media"]
    assert [image["page"] for image in medium["images"]] == [1, 2, 3]
    assert all(f"Page {number} of 3" in seen["prompt"] for number in (1, 2, 3))
    assert usage["prompt_tokens"] == seen["prompt_tokens"]
    assert usage["prompt_tokens_details"]["image_tokens"] == seen["image_tokens"]
    assert seen["image_tokens"] == sum(image["tokens"] for image in medium["images"])

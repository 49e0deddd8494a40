"""How a hostile client asks, and what it checks in every answer.

Rows are numbered as in tests/hostile/test_rows.py, which tells where each is tested.
"""

import base64
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from bad_files import png
from origin import Origin

CANARY = "canary-7f3a"
PATHS = {"native": "/v1/chat", "stream": "/v1/chat/stream", "openai": "/v1/chat/completions"}
DIALECTS = ("native", "openai")
JSON = {"content-type": "application/json"}
SQUARE = {"text": "What color is the square?", "temperature": 0.1, "top_k": 1, "seed": 1}


class Hostile(NamedTuple):
    """The service under attack: its client, its port, its model's name, and whom it may fetch."""

    client: httpx.Client
    port: int
    model: str
    origin: Origin


@contextlib.contextmanager
def neighbour(url: str) -> Iterator[None]:
    """Ask in honest ways all the while; whatever the others send, every answer is right."""
    answers: list[tuple[int, str]] = []
    stopping = threading.Event()
    question = SQUARE | {"image_base64": base64.b64encode(png((0, 0, 255), (224, 224))).decode()}

    def ask_again() -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while not stopping.wait(0.1):
                reply = client.post("/v1/chat", json=question)
                answers.append((reply.status_code, reply.json().get("result")))

    asking = threading.Thread(target=ask_again)
    asking.start()
    yield
    stopping.set()
    asking.join()
    assert set(answers) == {answers[0]}
    assert answers[0][0] == 200


def question(
    hostile: Hostile, dialect: str, *images: bytes | str, **fields: object
) -> dict[str, Any]:
    """Make the body that shows these pictures, as files' bytes or as texts of URL fields."""
    urls = [image if isinstance(image, str) else data_url(image) for image in images]
    if dialect != "openai":
        media = {"input_type": "text_image", "images": urls}
        kind = media if urls else {"input_type": "text_only"}
        return kind | {"text": "Hi", "max_new_tokens": 10} | fields
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages = [{"role": "user", "content": [*shown, {"type": "text", "text": "Hi"}]}]
    return {"model": hostile.model, "messages": messages, "max_tokens": 10} | fields


def data_url(file: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(file).decode()}"


def ask(hostile: Hostile, dialect: str, body: dict[str, Any] | bytes) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return hostile.client.post(PATHS[dialect], content=content, headers=JSON)


def check(response: httpx.Response, status: int, code: str, *, may_retry: bool = False) -> None:
    """Check a refusal: its status, its code, and that it has nothing of what was sent in it."""
    reply = response.json()
    told = reply.get("error", reply)
    assert (response.status_code, told["code"]) == (status, code), told
    assert response.headers["x-request-id"]
    assert response.headers["x-should-retry"] == ("true" if may_retry else "false")
    assert CANARY not in response.text
    assert not re.search(r"0x|/etc|\.py|Error\b", told["message"])
    assert len(response.text) < 600


def row(number: int, what: str, *values: object) -> Any:
    return pytest.param(*values, id=f"row-{number:02}-{what}")

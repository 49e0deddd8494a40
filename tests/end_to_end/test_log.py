"""What clients send and get is in no process's log, whatever goes wrong."""

import base64
import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

SECRETS = {
    "prompt": "Lapwings nest beyond the quarry",
    "system": "Whisper like a curlew",
    "stop string": "godwitstop",
    "unknown field": "dunlin_field",
    "value of a wrong type": "turnstone value",
    "query string": "sanderling=query",
    "remote file": "plover.png",
    "bearer key": "sk-redshank-0123456789",
    "cookie": "session=avocet",
    "malformed request id": "knot id with spaces",
    "file name": "oystercatcher.png",
    "user": "whimbrel@example.com",
    "answer": "a red circle",
}
HEADERS = {
    "authorization": f"Bearer {SECRETS['bearer key']}",
    "x-api-key": SECRETS["bearer key"],
    "cookie": SECRETS["cookie"],
    "x-request-id": SECRETS["malformed request id"],
}


def fragments(encoded: bytes) -> set[str]:
    """Cut a file's base64 so that any 46 characters of it in a row contain a piece."""
    text = base64.b64encode(encoded).decode()
    return {text[start : start + 23] for start in range(0, len(text) - 23, 23)}


def bodies(picture: bytes) -> Iterator[dict[str, Any]]:
    image = base64.b64encode(picture).decode()
    broken = base64.b64encode(picture[: len(picture) // 2]).decode()
    text = {"text": SECRETS["prompt"], "system": SECRETS["system"], "max_new_tokens": 16}
    content = [
        text | {"input_type": "text_only", "stop": SECRETS["stop string"]},
        {"text": "What is in this image?", "image_base64": image, "top_k": 1},
        text | {"image_url": f"data:image/png;base64,{image}"},
        text
        | {"image_url": f"http://127.0.0.1/{SECRETS['remote file']}?{SECRETS['query string']}"},
        text | {"image_base64": broken},
        text | {"image_base64": image, SECRETS["unknown field"]: 1},
        text | {"image_base64": image, "temperature": SECRETS["value of a wrong type"]},
        text | {"images": [image] * 99},
    ]
    for each in content:
        yield {"json": each}
    yield {"content": json.dumps(content[1])[:-9], "headers": {"content-type": "application/json"}}
    yield {"content": picture, "headers": {"content-type": "image/png"}}
    files = {"image": (SECRETS["file name"], picture)}
    yield {"data": text, "files": files}
    yield {"data": text | {SECRETS["unknown field"]: SECRETS["value of a wrong type"]}}


def completion(picture: bytes) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    parts = [
        {"type": "text", "text": SECRETS["prompt"]},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": 16,
        "user": SECRETS["user"],
        "stop": SECRETS["stop string"],
    }


def leave_early(client: httpx.Client) -> None:
    question = {"text": SECRETS["prompt"], "input_type": "text_only", "max_new_tokens": 500}
    with client.stream("POST", "/v1/chat/stream", json=question) as response:
        next(response.iter_bytes())


@pytest.mark.slow
def test_no_payload_reaches_the_log(
    start_service: Callable[..., Any], picture, ask, wait_until
) -> None:
    # Traces go nowhere; that, too, is talked about.
    traces = ("--otel-endpoint", "http://127.0.0.1:9")
    service = start_service("--workers", "1", "--log-level", "debug", *traces)
    png = picture("red", "circle")
    statuses: set[int] = set()
    answers: list[str] = []

    def count() -> None:
        with httpx.Client(base_url=service.url, timeout=60) as client:
            reply = client.post("/v1/chat", json=ask("Count from 1 to 30"))
            answers.append(reply.json()["result"])

    with httpx.Client(base_url=service.url, timeout=60, headers=HEADERS) as client:
        for path in ("/v1/chat", "/v1/chat/stream", "/v1/unknown"):
            for body in bodies(png):
                reply = client.post(path, params=SECRETS["query string"], **body)
                statuses.add(reply.status_code)
                answers.append(reply.text)
        reply = client.post("/v1/chat/completions", json=completion(png))
        answers.append(reply.text)
        figures = client.get("/metrics").text
        leave_early(client)
        counting = threading.Thread(target=count)
        counting.start()
        for process in service.decoders():
            process.kill()
        service.inference().send_signal(signal.SIGKILL)
        counting.join()
        wait_until(lambda: service.is_whole(num_workers=1), explain=service.log)
        os.kill(service.workers()[0].pid, signal.SIGABRT)
        with contextlib.suppress(httpx.HTTPError):
            leave_early(client)
    service.stop()

    log = service.log()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert statuses >= {200, 400, 404, 415, 422}
    assert any("28, 29, 30" in answer for answer in answers)
    assert any(SECRETS["answer"] in answer for answer in answers)
    ids = [line["request_id"] for line in lines if line["message"].startswith("HTTP request")]
    assert len(ids) > len(answers)
    assert len(set(ids)) == len(ids)  # one line a request
    assert not any(str(line.get("logger", "")).startswith("uvicorn.access") for line in lines)
    of_engine = {line.get("request_id") for line in lines if line["process"] == "inference"}
    assert set(ids) & of_engine  # both sides' lines about a request can be put together
    texts = {"log": log, "metrics": figures}
    assert {
        (place, name)
        for place, text in texts.items()
        for name, secret in SECRETS.items()
        if secret in text
    } == set()
    assert {piece for piece in fragments(png) if piece in log} == set()
    assert "28, 29, 30" not in log

"""A request's own deadline, by header and by field, in every dialect; and quotas on their way."""

import json

import anyio
import pytest

from inference.protocol import FinishReason
from service.errors import DeadlineUnreachable, Overloaded, RateLimited

ASK = {"input_type": "text_only", "text": "Hello?"}
COMPLETE = {"model": "null", "messages": [{"role": "user", "content": "Hello?"}]}
HEADER = "Request-Timeout-Ms"


def events(response):
    lines = (line for line in response.text.splitlines() if line.startswith("data: {"))
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("way", ["header", "field", "both"])
async def test_the_clients_deadline_ends_the_request_and_reaches_the_engine(service, path, way):
    service.engine.holds = anyio.Event()
    body: dict[str, object] = dict(ASK if path == "/v1/chat" else COMPLETE)
    headers = {}
    if way != "field":
        headers[HEADER] = "250" if way == "header" else "3600000"
    if way != "header":
        body["deadline_ms"] = 250

    response = await service.client.post(path, json=body, headers=headers)

    assert response.status_code == 504
    assert 0 < service.engine.requests[0].deadline_seconds <= 0.25
    assert service.engine.cancelled


async def test_without_a_deadline_of_its_own_a_request_has_the_services_time(service):
    await service.client.post("/v1/chat", json=ASK, headers={HEADER: "86400000"})

    assert 100 < service.engine.requests[0].deadline_seconds <= 120


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("soon", "type_invalid"),
        ("-1", "type_invalid"),
        ("1.5", "type_invalid"),
        ("9" * 30, "type_invalid"),
        ("0", "value_out_of_range"),
        ("86400001", "value_out_of_range"),
    ],
)
async def test_a_header_that_is_no_time_is_refused_by_name(service, value, code):
    response = await service.client.post("/v1/chat", json=ASK, headers={HEADER: value})

    assert response.status_code == 400
    assert (response.json()["code"], response.json()["param"]) == (code, HEADER)
    assert service.engine.requests == []


@pytest.mark.parametrize("value", [0, 86_400_001, "soon"])
async def test_a_field_that_is_no_time_is_refused_by_name(service, value):
    response = await service.client.post("/v1/chat", json=ASK | {"deadline_ms": value})

    assert (response.status_code, response.json()["param"]) == (422, "deadline_ms")


async def test_a_form_has_the_field_as_well(service):
    await service.client.post("/v1/chat", data={"text": "Hello?", "deadline_ms": "5000"})

    assert 4 < service.engine.requests[0].deadline_seconds <= 5


async def test_an_answer_that_is_too_late_tells_what_it_took(service):
    service.engine.holds = anyio.Event()

    response = await service.client.post("/v1/chat", json=ASK | {"deadline_ms": 250})

    reply = response.json()
    num_prompt_tokens = len(service.engine.requests[0].prompt_token_ids)
    assert reply["code"] == "deadline_exceeded"
    assert reply["usage"]["input_tokens"] == num_prompt_tokens
    assert reply["usage"]["output_tokens"] > 0


async def test_a_stream_that_is_too_late_tells_what_it_took(service):
    service.engine.holds = anyio.Event()

    response = await service.client.post("/v1/chat/stream", json=ASK | {"deadline_ms": 300})

    *_, last = events(response)
    assert (last["code"], last["done"]) == ("deadline_exceeded", True)
    assert last["usage"]["output_tokens"] > 0


@pytest.mark.parametrize("media_type", ["application/json", "application/problem+json"])
async def test_a_completion_that_is_too_late_tells_what_it_took(service, media_type):
    service.engine.holds = anyio.Event()

    response = await service.client.post(
        "/v1/chat/completions", json=COMPLETE | {"deadline_ms": 250}, headers={"accept": media_type}
    )

    usage = response.json()["usage"]
    assert response.status_code == 504
    assert usage["prompt_tokens"] == len(service.engine.requests[0].prompt_token_ids)
    assert usage["completion_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("headers", [{}, {"x-resumable": "true"}], ids=["plain", "resumable"])
async def test_a_completion_stream_that_is_too_late_tells_what_it_took(service, headers):
    service.engine.holds = anyio.Event()

    response = await service.client.post(
        "/v1/chat/completions",
        json=COMPLETE | {"deadline_ms": 300, "stream": True},
        headers=headers,
    )

    *_, last = events(response)
    num_prompt_tokens = len(service.engine.requests[0].prompt_token_ids)
    assert last["error"]["code"] == "deadline_exceeded"
    assert last["usage"]["prompt_tokens"] == num_prompt_tokens
    assert last["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("body", [COMPLETE | {"model": "other"}, COMPLETE | {"messages": []}])
async def test_other_errors_of_the_dialect_have_no_usage(service, body):
    response = await service.client.post("/v1/chat/completions", json=body)

    assert response.json().keys() == {"error"}


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/completions"])
async def test_the_engines_own_end_by_deadline_is_the_same_error(service, path):
    service.engine.ending = (FinishReason.DEADLINE, "")

    body = ASK if path == "/v1/chat" else COMPLETE
    response = await service.client.post(path, json=body)

    assert response.status_code == 504
    assert "deadline_exceeded" in response.text


@pytest.mark.parametrize(
    ("error", "status", "after"),
    [
        (RateLimited("Used up.", 7.2), 429, ("8", "7200")),
        (DeadlineUnreachable(2.5), 503, ("3", "2500")),
        (Overloaded(1.5), 503, ("2", "1500")),
    ],
)
async def test_who_is_turned_away_is_told_when_to_return(service, log, error, status, after):
    service.engine.pieces, service.engine.error = [], error

    response = await service.client.post("/v1/chat", json=ASK)

    headers = response.headers
    assert (response.status_code, response.json()["code"]) == (status, error.code)
    assert (headers["retry-after"], headers["retry-after-ms"]) == after
    assert headers["x-should-retry"] == "true"
    (line,) = [line for line in log if line["event"].startswith("HTTP request")]
    assert line["event"] == f"HTTP request {'failed' if status >= 500 else 'processed'}"

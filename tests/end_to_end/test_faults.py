import json
import os
import signal
import threading

import httpx
import pytest

ANSWER = "a red circle"


@pytest.fixture
def question(picture, ask):
    return ask("What is in this image?", picture("red", "circle"))


@pytest.fixture(autouse=True)
def whole_again(service, wait_until):
    """Leave the service as the next test expects it."""
    yield
    wait_until(lambda: service.is_whole(num_workers=4), explain=service.log)


def test_a_killed_worker_is_replaced_while_the_others_answer(service, wait_until, question):
    engine = service.inference().pid
    lost, *others = [worker.pid for worker in service.workers()]

    os.kill(lost, signal.SIGKILL)

    statuses = []
    with httpx.Client(base_url=service.url, timeout=60) as client:
        for _ in range(8):
            reply = client.post("/v1/chat", json=question)
            statuses.append((reply.status_code, reply.json()["result"]))
    assert statuses == [(200, ANSWER)] * 8
    wait_until(lambda: len(service.workers()) == 4)
    now = {worker.pid for worker in service.workers()}
    assert set(others) < now
    assert lost not in now
    assert service.inference().pid == engine


def test_a_killed_decoder_costs_no_later_request(service, client, question):
    for _ in range(16):  # so that every worker has one
        client.post("/v1/chat", json=question)
    for process in service.decoders():
        process.kill()

    replies = [client.post("/v1/chat", json=question).status_code for _ in range(16)]

    # Each worker finds its loss with the next picture, and blames that one at most.
    assert replies[-8:] == [200] * 8
    assert set(replies) <= {200, 400}


def test_requests_under_way_outlive_a_killed_engine(service, ask, wait_until, counted_to_30):
    engine = service.inference()
    long_question = ask("Count from 1 to 30")
    answers: list[str] = []

    def post() -> None:
        with httpx.Client(base_url=service.url, timeout=120) as client:
            answers.append(client.post("/v1/chat", json=long_question).json()["result"])

    engine.suspend()  # so that they are all under way when it dies
    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: service.num_connections() >= 8)
    engine.kill()
    for thread in threads:
        thread.join()

    assert answers == [counted_to_30] * 8


def test_streams_go_on_where_a_killed_engine_left_them(service, ask, wait_until, counted_to_30):
    engine = service.inference()
    streams: dict[int, list[dict]] = {number: [] for number in range(16)}

    def read(number: int) -> None:
        with (
            httpx.Client(base_url=service.url, timeout=120) as client,
            client.stream("POST", "/v1/chat/stream", json=ask("Count from 1 to 30")) as response,
        ):
            for line in response.iter_lines():
                if line.startswith("data: "):
                    streams[number].append(json.loads(line[6:]))

    threads = [threading.Thread(target=read, args=[number]) for number in streams]
    for thread in threads:
        thread.start()
    wait_until(lambda: any(streams.values()))
    engine.kill()
    for thread in threads:
        thread.join()

    for told in streams.values():
        assert "".join(event["chunk"] for event in told) == counted_to_30
        assert [event["done"] for event in told].count(True) == 1

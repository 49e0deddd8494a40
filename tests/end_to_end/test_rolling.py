"""Workers come and go under load, and no client notices."""

import contextlib
import itertools
import json
import os
import signal
import threading
import time

import httpx
import pytest

NUM_CLIENTS = 6


@pytest.fixture(scope="module")
def service(start_service):
    return start_service("--workers", "2")


class Load:
    """Clients that ask again and again, over kept and over new connections, with no retries."""

    def __init__(self, url: str, question: dict[str, object]) -> None:
        self._url = url
        self._question = question
        self._over = threading.Event()
        self.outcomes: list[object] = []
        self._threads = [
            threading.Thread(target=self._ask, args=[number % 2 == 0])
            for number in range(NUM_CLIENTS)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, keeps_connection: bool) -> None:
        limits = httpx.Limits(max_keepalive_connections=1 if keeps_connection else 0)
        with httpx.Client(base_url=self._url, timeout=60, limits=limits) as client:
            while not self._over.is_set():
                try:
                    reply = client.post("/v1/chat", json=self._question)
                    self.outcomes.append((reply.status_code, reply.json()["result"]))
                except httpx.HTTPError as error:
                    self.outcomes.append(repr(error))
                time.sleep(0.01)


@pytest.mark.slow
def test_no_request_fails_while_every_worker_is_replaced(service, ask, wait_until, counted_to_30):
    before = {worker.pid for worker in service.workers()}
    engine = service.inference().pid

    with Load(service.url, ask("Count from 1 to 30")) as load:
        wait_until(lambda: len(load.outcomes) > NUM_CLIENTS)
        service.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: (
                before.isdisjoint(worker.pid for worker in service.workers())
                and service.is_whole(num_workers=2)
            ),
            explain=service.log,
        )
        num_before = len(load.outcomes)
        wait_until(lambda: len(load.outcomes) > num_before + NUM_CLIENTS)

    assert set(load.outcomes) == {(200, counted_to_30)}
    assert service.inference().pid == engine
    assert "process_killed" not in service.log()


@pytest.mark.slow
def test_a_worker_that_has_done_its_share_is_replaced_without_a_failure(
    start_service, ask, wait_until, counted_to_30
):
    service = start_service("--workers", "1", "--max-requests-per-worker", "20")
    (first,) = service.workers()

    with Load(service.url, ask("Count from 1 to 30")) as load:
        wait_until(
            lambda: first.pid not in {worker.pid for worker in service.workers()},
            explain=service.log,
        )

    assert set(load.outcomes) == {(200, counted_to_30)}
    assert len(load.outcomes) >= 20


@pytest.mark.slow
def test_a_stop_waits_for_an_engine_that_is_lost_meanwhile(
    start_service, ask, wait_until, counted_to_30
):
    service = start_service("--workers", "1")
    engine = service.inference()
    answers = []

    def post() -> None:
        with httpx.Client(base_url=service.url, timeout=120) as client:
            answers.append(client.post("/v1/chat", json=ask("Count from 1 to 30")).json())

    engine.suspend()  # so that the request is under way when it dies
    thread = threading.Thread(target=post)
    thread.start()
    wait_until(lambda: service.num_connections() > 0)
    service.process.send_signal(signal.SIGTERM)
    wait_until(lambda: '"stopping"' in service.log(), explain=service.log)
    os.kill(engine.pid, signal.SIGKILL)
    thread.join()

    assert [answer["result"] for answer in answers] == [counted_to_30]
    assert service.process.wait(60) == 0


@pytest.mark.slow
def test_readiness_ends_before_the_service_does(start_service, ask, counted_to_30):
    service = start_service("--workers", "1", "--shutdown-delay-seconds", "2")
    with httpx.Client(base_url=service.url, timeout=60) as client:
        assert client.get("/health/ready").status_code == 200
        assert client.get("/health/startup").status_code == 200
        assert client.get("/health/deep").json() == {"status": "healthy"}

    service.process.send_signal(signal.SIGTERM)
    with httpx.Client(base_url=service.url, timeout=60) as client:
        while (reply := client.get("/health/ready")).status_code == 200:
            time.sleep(0.02)
        answer = client.post("/v1/chat", json=ask("Count from 1 to 30"))

    assert reply.json() == {"status": "stopping"}
    assert answer.json()["result"] == counted_to_30
    assert answer.headers["connection"] == "close"
    assert service.process.wait(60) == 0


@pytest.mark.slow
def test_streams_that_outlast_the_drain_end_with_an_error_event(start_service, ask, wait_until):
    service = start_service("--workers", "1", "--drain-seconds", "0.5")
    engine = service.inference()
    streams: list[list[dict]] = [[] for _ in range(16)]
    question = ask("Count from 1 to 30")

    # One client for all: making sixteen takes longer than an answer.
    client = httpx.Client(base_url=service.url, timeout=60)

    def read(told: list[dict], headers: dict[str, str]) -> None:
        with (
            contextlib.suppress(httpx.TransportError),  # too late to be taken
            client.stream("POST", "/v1/chat/stream", json=question, headers=headers) as response,
        ):
            told.extend(
                json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")
            )

    kinds = itertools.cycle([{}, {"x-resumable": "true"}])
    threads = [
        threading.Thread(target=read, args=pair) for pair in zip(streams, kinds, strict=False)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: any(streams))
    engine.suspend()  # it finishes none of them
    service.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    client.close()

    assert service.process.wait(60) == 0
    begun = [told for told in streams if told]
    assert all([event["done"] for event in told].count(True) == 1 for told in begun)
    assert "engine_stopping" in {told[-1].get("code") for told in begun}

"""A stream goes on where its client left it, whatever died meanwhile."""

import base64
import itertools
import json
import os
import signal
import stat
import threading
import time
from typing import Any

import httpx
import psutil
import pytest

RESUMABLE = {"x-resumable": "true"}
NATIVE, OPENAI = "/v1/chat/stream", "/v1/chat/completions"


@pytest.fixture
def counting() -> dict[str, object]:
    """A question whose answer a new engine continues with the same tokens: it is sure of each."""
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": "Count from 1 to 30"}],
        "temperature": 0,
        "stream": True,
    }


@pytest.fixture(scope="module")
def service(start_service):
    return start_service("--workers", "2")


@pytest.fixture(autouse=True)
def whole_again(service, wait_until):
    yield
    wait_until(lambda: service.is_whole(num_workers=2), explain=service.log)


class Follower:
    """A client that knows which event it saw last, and comes back with a new connection."""

    def __init__(self, service, path: str, question: dict[str, object]) -> None:
        self._service = service
        self._path = path
        self._question = question
        self.numbers: list[int] = []
        self.stream_id = ""
        self.text = ""
        self.is_over = False
        self.usage: dict[str, Any] = {}

    def begin(self, num_events: int | None, *, hold: psutil.Process | None = None) -> int:
        """Ask, read some events and leave; the pid of the worker that was asked.

        hold: the engine, to be suspended while most of the answer is still to come.
        """
        with self._connected() as client:
            request = {"json": self._question, "headers": RESUMABLE}
            with client.stream("POST", self._path, **request) as response:
                assert response.status_code == 200, response.read()
                if hold is not None:
                    hold.suspend()
                worker = self._worker_of(response)
                self.stream_id = response.headers["x-stream-id"]
                self._read(response, num_events)
        return worker

    def come_back(self, num_events: int | None = None, *, avoiding: int | None = None) -> int:
        """Read on, at any other worker than one that is to be avoided, until the end."""
        for attempt in itertools.count():
            assert attempt < 600
            try:
                with self._connected() as client:
                    headers = {"last-event-id": f"{self.stream_id}:{self.numbers[-1]}"}
                    path = f"/v1/streams/{self.stream_id}"
                    with client.stream("GET", path, headers=headers) as response:
                        worker = self._worker_of(response)
                        if worker == avoiding or response.status_code == 503:
                            time.sleep(0.01)
                            continue
                        assert response.status_code == 200, response.read()
                        self._read(response, num_events)
                        return worker
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError

    def _connected(self) -> httpx.Client:
        return httpx.Client(base_url=self._service.url, timeout=120)

    def _worker_of(self, response: httpx.Response) -> int:
        port = response.extensions["network_stream"].get_extra_info("client_addr")[1]
        for worker in self._service.workers():
            for connection in worker.net_connections("tcp"):
                if connection.raddr and connection.raddr.port == port:
                    return worker.pid
        return 0

    def _read(self, response: httpx.Response, num_events: int | None) -> None:
        lines = response.iter_lines()
        num_read = 0
        for line in lines:
            if line.startswith("id: "):
                stream_id, _, number = line[4:].partition(":")
                assert stream_id == self.stream_id
                self.numbers.append(int(number))
            elif line.startswith("data: "):
                self._take(line[6:])
                num_read += 1
                if num_read == num_events:
                    return

    def _take(self, data: str) -> None:
        if data == "[DONE]":
            self.is_over = True
            return
        event = json.loads(data)
        assert "error" not in event, event
        if "chunk" in event:
            self.text += event["chunk"]
            self.is_over = self.is_over or event["done"]
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices", []):
            self.text += choice["delta"].get("content") or ""


def assert_is_whole(follower: Follower, text: str) -> None:
    assert follower.is_over
    assert follower.text == text
    assert follower.numbers == list(range(1, len(follower.numbers) + 1))


@pytest.mark.slow
def test_a_dropped_stream_goes_on_at_another_worker(service, counting):
    long_question = counting | {"max_tokens": 600, "ignore_eos": True}
    with httpx.Client(base_url=service.url, timeout=120) as client:
        reply = client.post(OPENAI, json=long_question | {"stream": False}).json()
    undisturbed = reply["choices"][0]["message"]["content"]
    follower = Follower(service, OPENAI, long_question)
    first = follower.begin(num_events=3)

    second = follower.come_back(num_events=5, avoiding=first)
    follower.come_back()

    assert second != first
    assert_is_whole(follower, undisturbed)


@pytest.mark.slow
def test_the_native_stream_can_be_resumed_as_well(service, ask, counted_to_30):
    follower = Follower(service, NATIVE, ask("Count from 1 to 30"))
    follower.begin(num_events=1)

    follower.come_back(num_events=2)
    follower.come_back()

    assert_is_whole(follower, counted_to_30)


@pytest.mark.slow
def test_a_stream_outlives_its_worker(service, counting, counted_to_30):
    follower = Follower(service, OPENAI, counting)
    engine = service.inference()
    worker = follower.begin(num_events=1, hold=engine)
    os.kill(worker, signal.SIGKILL)
    engine.resume()

    follower.come_back(num_events=5)
    follower.come_back()

    assert_is_whole(follower, counted_to_30)
    assert "stream_adopted" in service.log()


@pytest.mark.slow
def test_a_stream_outlives_its_worker_and_the_engine(service, counting, counted_to_30):
    follower = Follower(service, OPENAI, counting)
    engine = service.inference()
    worker = follower.begin(num_events=1, hold=engine)
    engine.kill()
    os.kill(worker, signal.SIGKILL)

    follower.come_back()

    assert_is_whole(follower, counted_to_30)


@pytest.mark.slow
def test_a_stream_about_a_picture_outlives_both_too(service, counting, picture):
    data_url = "data:image/png;base64," + base64.b64encode(picture("red", "circle")).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": data_url}},
        {"type": "text", "text": "What is in this image?"},
    ]
    question = counting | {
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": 400,  # of which only the first are sure
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    follower = Follower(service, OPENAI, question)
    engine = service.inference()
    worker = follower.begin(num_events=1, hold=engine)
    engine.kill()
    os.kill(worker, signal.SIGKILL)

    follower.come_back()

    assert_is_whole(follower, follower.text)
    assert follower.text.startswith("a red circle")
    assert follower.usage["completion_tokens"] > 100  # unless it repeats itself, 400
    assert follower.usage["prompt_tokens_details"]["image_tokens"] > 0


@pytest.mark.slow
def test_a_client_that_reads_on_notices_nothing_of_a_dead_owner(service, counting, counted_to_30):
    follower = Follower(service, OPENAI, counting)
    engine = service.inference()
    first = follower.begin(num_events=1, hold=engine)

    def kill_the_first() -> None:
        os.kill(first, signal.SIGKILL)
        engine.resume()

    timer = threading.Timer(1.0, kill_the_first)  # the second is following by then, or comes later
    timer.start()
    second = follower.come_back(avoiding=first)
    timer.join()

    assert second != first
    assert_is_whole(follower, counted_to_30)


@pytest.mark.slow
def test_nothing_is_left_to_tell_of_a_stream_that_was_told(service, ask):
    follower = Follower(service, NATIVE, ask("Count from 1 to 30"))
    follower.begin(num_events=None)

    with httpx.Client(base_url=service.url, timeout=60) as client:
        path = f"/v1/streams/{follower.stream_id}"
        last = {"last-event-id": f"{follower.stream_id}:{follower.numbers[-1]}"}
        assert client.get(path, headers=last).status_code == 204
        beyond = {"last-event-id": f"{follower.stream_id}:{follower.numbers[-1] + 1}"}
        assert client.get(path, headers=beyond).json()["error"]["code"] == "event_id_invalid"
        assert client.get(f"/v1/streams/{'0' * 32}").status_code == 404
        assert client.get("/v1/streams/..%2fengine.sock").status_code == 404


def test_journals_are_for_this_service_alone(service):
    assert stat.S_IMODE((service.runtime_folder() / "streams").stat().st_mode) == 0o700

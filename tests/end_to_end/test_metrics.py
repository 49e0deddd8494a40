"""`/metrics` adds up over processes and over their deaths: it says what clients counted."""

import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable

import httpx
import psutil
import pytest
from running_service import Figures, RunningService

NUM_WORKERS = 2
# How the names of counters and of histograms' samples end.
COUNTED = ("_total", "_bucket", "_count", "_sum")


@pytest.fixture(scope="module")
def counted(start_service: Callable[..., RunningService]) -> RunningService:
    """A service of its own, so that nobody else's requests are counted."""
    return start_service("--workers", str(NUM_WORKERS))


def has_fallen(before: Figures, after: Figures) -> list[str]:
    counted = [key for key in before if key.partition("{")[0].endswith(COUNTED)]
    return [key for key in counted if after.get(key, 0.0) < before[key]]


def rise(before: Figures, after: Figures, name: str) -> float:
    return after.sums(name) - before.sums(name)


class Clients:
    """Threads that ask until told to stop, each request on a connection of its own.

    usages: of the answers that came whole. num_broken: connections that ended before.
    """

    def __init__(self, service: RunningService, questions: list[dict[str, object]]) -> None:
        self.usages: list[dict[str, int]] = []
        self.num_broken = 0
        self._url = f"{service.url}/v1/chat"
        self._enough = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(question,)) for question in questions
        ]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, question: dict[str, object]) -> None:
        while not self._enough.is_set():
            try:
                reply = httpx.post(self._url, json=question, timeout=60)
            except httpx.TransportError:
                with self._lock:
                    self.num_broken += 1
                continue
            assert reply.status_code == 200, reply.text
            with self._lock:
                self.usages.append(reply.json()["usage"])


def kill(*processes: psutil.Process) -> None:
    for process in processes:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=10)


def answered(figures: Figures) -> float:
    return figures.get("loupe_requests_total{route=/v1/chat,status=200}", 0.0)


def engine_bytes(service: RunningService) -> float:
    return service.scrape().sums("loupe_engine_rss_bytes")


@pytest.mark.slow
def test_counters_never_fall_and_add_up_over_the_engines_death(
    counted, picture, ask, wait_until
) -> None:
    questions = [
        ask("What is in this image?", picture(color, "circle")) for color in ("red", "blue")
    ]
    before = last = counted.scrape()

    with Clients(counted, [*questions, ask("Count from 1 to 30")]) as clients:
        wait_until(lambda: len(clients.usages) >= 9, explain=counted.log)
        kill(counted.inference())
        for _ in range(10):
            figures = counted.scrape()
            assert has_fallen(last, figures) == []
            last = figures
        wait_until(lambda: counted.is_whole(NUM_WORKERS), explain=counted.log)
    after = counted.scrape()

    def usage(field: str) -> int:
        return sum(usage[field] for usage in clients.usages)

    assert clients.num_broken == 0  # the workers outlive the engine, and keep the requests
    assert has_fallen(last, after) == []
    assert answered(after) - answered(before) == len(clients.usages)
    assert rise(before, after, "loupe_prompt_tokens_total") == usage("input_tokens")
    assert rise(before, after, "loupe_output_tokens_total") == usage("output_tokens")
    assert rise(before, after, "loupe_cached_tokens_total") == usage("cached_tokens")
    assert rise(before, after, "loupe_image_tokens_total") == usage("image_tokens")
    assert rise(before, after, "loupe_e2e_request_latency_seconds_count") == len(clients.usages)
    assert rise(before, after, "loupe_time_to_first_token_seconds_count") == len(clients.usages)
    assert rise(before, after, "loupe_engine_restarts_total") == 1
    assert rise(before, after, "loupe_requests_replayed_total") >= 1


@pytest.mark.slow
def test_what_ended_just_before_its_worker_was_killed_is_counted(counted, ask, wait_until) -> None:
    before = counted.scrape()

    reply = httpx.post(f"{counted.url}/v1/chat", json=ask("Count from 1 to 5"), timeout=60)
    kill(*counted.workers())
    wait_until(lambda: counted.is_whole(NUM_WORKERS), explain=counted.log)
    after = counted.scrape()

    assert has_fallen(before, after) == []
    assert answered(after) - answered(before) == 1
    num_output_tokens = reply.json()["usage"]["output_tokens"]
    assert rise(before, after, "loupe_output_tokens_total") == num_output_tokens
    assert rise(before, after, "loupe_web_worker_restarts_total") == NUM_WORKERS


@pytest.mark.slow
def test_what_the_engine_did_just_before_it_was_killed_is_counted(
    counted, picture, ask, wait_until
) -> None:
    before = counted.scrape()

    question = ask("What is in this image?", picture("green", "square"))
    httpx.post(f"{counted.url}/v1/chat", json=question, timeout=60)
    wait_until(lambda: engine_bytes(counted) > 0)
    kill(counted.inference())
    wait_until(lambda: engine_bytes(counted) == 0)  # the dead hold nothing
    after = counted.scrape()
    wait_until(lambda: counted.is_whole(NUM_WORKERS), explain=counted.log)

    assert counted.scrape().sums("loupe_num_requests_running") == 0
    assert rise(before, after, "loupe_embedding_cache_queries_total") == 1
    assert rise(before, after, "loupe_images_total") == 1


def test_what_is_no_request_is_counted_as_refused(counted) -> None:
    before = counted.scrape()
    address = httpx.URL(counted.url)

    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
        assert b" 400 " in connection.recv(4096)
    after = counted.scrape()

    refused = "loupe_requests_refused_total{code=http_invalid}"
    assert after[refused] - before.get(refused, 0) == 1


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")
def test_prometheus_finds_nothing_to_mend(counted, ask) -> None:
    httpx.post(f"{counted.url}/v1/chat", json=ask("Count from 1 to 5"), timeout=60)
    text = httpx.get(f"{counted.url}/metrics", timeout=30).text

    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")

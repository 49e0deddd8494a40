import json
import signal

import httpx
import psutil
import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGTERM, 0, id="terminated"),
        pytest.param(signal.SIGINT, 0, id="ctrl-c"),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, id="killed"),
    ],
)
def test_no_process_outlives_an_idle_service(start_service, picture, ask, number, status):
    service = start_service("--workers", "2")
    with httpx.Client(base_url=service.url, timeout=60) as client:
        question = ask("What is in this image?", picture("red", "circle"))
        assert client.post("/v1/chat", json=question).status_code == 200
        processes = service.family()

        assert service.stop(number) == status  # with an idle connection open

    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []
    assert "process_killed" not in service.log()


@pytest.mark.slow
def test_a_stream_under_way_is_finished_before_the_service_stops(start_service, ask, counted_to_30):
    service = start_service("--workers", "1")
    told = []

    with (
        httpx.Client(base_url=service.url, timeout=60) as client,
        client.stream("POST", "/v1/chat/stream", json=ask("Count from 1 to 30")) as response,
    ):
        lines = (line for line in response.iter_lines() if line.startswith("data: "))
        told.append(json.loads(next(lines)[6:]))
        service.process.send_signal(signal.SIGTERM)
        told += [json.loads(line[6:]) for line in lines]

    assert "".join(event["chunk"] for event in told) == counted_to_30
    assert told[-1]["done"] is True
    assert service.process.wait(60) == 0

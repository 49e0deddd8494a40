"""The load generator against a server that does it wrong: nothing but a right answer may count."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import one of the benchmark's modules: they are programs beside each other, no package."""
    monkeypatch.syspath_prepend(HERE)
    return importlib.import_module


@pytest.fixture
def null_server() -> Iterator[Callable[[str], str]]:
    """Start servers with a fault: `null_server("short")` gives the URL."""
    processes: list[subprocess.Popen[str]] = []

    def start(fault: str) -> str:
        process = subprocess.Popen(
            [sys.executable, HERE / "null_server.py", "0", fault],
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        return f"http://127.0.0.1:{process.stdout.readline().strip()}"

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def load(module: Callable[[str], Any]) -> Callable[..., Any]:
    """Ask a server four times, two at a time, and give the figures."""

    async def run(url: str, scenario: str = "chat-image") -> Any:
        client, dialects, scenarios = map(module, ("client", "dialects", "scenarios"))
        native = dialects.DIALECTS["native"]
        questions = [
            client.prepare(scenarios.SCENARIOS[scenario].ask(number), native, url, "null")
            for number in range(4)
        ]
        loaded = await client.closed_loop(
            url, native, questions, concurrency=2, seconds=60, patience=10
        )
        return module("figures").summarise(loaded)

    return run


@pytest.mark.parametrize("scenario", ["chat-image", "text-only", "eight-images", "long-answers"])
async def test_right_answers_count(null_server, load, scenario: str):
    figures = await load(null_server(""), scenario)

    assert (figures.requests, figures.failures, figures.faults) == (4, 0, {})
    assert figures.requests_per_second == pytest.approx(4 / figures.seconds)
    assert 0 < figures.ttft_p50 <= figures.latency_p50


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param("error-event", "error event: broken", id="an-error-within-the-stream"),
        pytest.param("short", "31 tokens instead of 32", id="fewer-tokens-than-asked-for"),
        pytest.param("cut", "the answer has no end", id="no-last-event"),
        pytest.param("blind", "not every picture was seen", id="a-prompt-without-the-picture"),
        pytest.param("empty", "no text", id="nothing-but-a-count"),
        pytest.param("status", "status 503: full", id="a-refusal"),
        pytest.param("hang-up", "the connection was lost", id="a-lost-connection"),
    ],
)
async def test_any_other_answer_is_a_failure(null_server, load, fault: str, said: str):
    figures = await load(null_server(fault))

    assert (figures.requests, figures.failures, figures.faults) == (4, 4, {said: 4})
    assert figures.requests_per_second == figures.output_tokens_per_second == 0
    assert figures.ttft_p50 is None


def test_every_request_has_a_picture_of_its_own(module):
    scenarios = module("scenarios")
    numbers = [
        scenarios.number_of(round_number, level, place)
        for round_number in range(2)
        for level in (1, 8)
        for place in range(3)
    ]
    asks = [scenarios.SCENARIOS["chat-image"].ask(number) for number in numbers]

    assert len({ask.images for ask in asks}) == len({ask.text for ask in asks}) == len(numbers)
    assert asks[0] == scenarios.SCENARIOS["chat-image"].ask(numbers[0])


@pytest.mark.slow
def test_a_measurement_leaves_a_table_its_data_and_a_plot(tmp_path: Path):
    command = [sys.executable, HERE / "chat_image.py", "--servers", "null", "--model", "demo",
               "--concurrency", "1,8", "--rounds", "2", "--seconds", "0.1",
               "--scenarios", "chat-image,mixed", "--rate", "30", "--output", tmp_path]  # fmt: skip
    finished = subprocess.run(command, capture_output=True, text=True, check=False)

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == (tmp_path / "results.md").read_text().strip()
    for fact in ("machine", "commit", "command", "load at start"):
        assert f"* {fact}: " in finished.stdout
    results = json.loads((tmp_path / "results.json").read_bytes())["results"]
    assert [(result["level"], result["round"]) for result in results] == [
        (1, 0), (8, 0), (0, 0), (1, 1), (8, 1), (0, 1)
    ]  # fmt: skip
    assert all(result["figures"]["failures"] == 0 for result in results)
    for scenario in ("chat-image", "mixed"):
        ET.parse(tmp_path / f"{scenario}.svg")

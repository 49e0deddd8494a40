"""`loupe bench` as it is typed, against a server with nothing behind it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from service.load.scenarios import SCENARIOS

ROOT = Path(__file__).parents[3]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("LOUPE_")}
    return subprocess.run(
        [sys.executable, "-m", "service", "bench", *arguments],
        check=False,
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_measurement_leaves_a_table_its_data_and_two_plots(null_server, tmp_path):
    flags = ("--seconds", "0.1", "--rounds", "2", "--concurrency", "1,4")
    told = bench("--url", null_server(""), *flags, "--output", str(tmp_path))

    assert told.returncode == 0, told.stderr
    assert told.stdout == (tmp_path / "results.md").read_text()
    assert "* command: loupe bench --url http://127.0.0.1:" in told.stdout
    assert len(re.findall(r"^\| [14] \| ", told.stdout, re.MULTILINE)) == 2
    results = json.loads((tmp_path / "results.json").read_bytes())["results"]
    assert [(each["level"], each["round"]) for each in results] == [(1, 0), (4, 0), (1, 1), (4, 1)]
    for plot, unit in (("throughput", "answers per second"), ("latency", "seconds")):
        text = (tmp_path / f"chat-image-{plot}.svg").read_text()
        ET.fromstring(text)
        assert unit in text
        assert "clients at a time" in text


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param("blind", "does not see the pictures", id="blind"),
        pytest.param("short", "31 tokens instead of 32; try --any-length", id="short"),
        pytest.param("status", "status 503: full", id="refusing"),
    ],
)
def test_a_server_that_answers_wrongly_is_not_measured(null_server, tmp_path, fault, words):
    told = bench("--url", null_server(fault), "--output", str(tmp_path))

    assert (told.returncode, told.stdout) == (1, "")
    assert words in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        pytest.param(["--scenario", "chat-imge"], 2, "did you mean chat-image?", id="scenario"),
        pytest.param(["--concurrency", "1,x"], 2, "--concurrency", id="concurrency"),
        pytest.param(["--concurrency", "0"], 2, "from 1 to", id="no-clients"),
        pytest.param(["--seconds", "0"], 2, "above 0", id="no-time"),
        pytest.param(["--url", "localhost:8000"], 2, "is not a server's URL", id="url"),
        pytest.param(["--output", "/dev/null/x"], 2, "cannot make the folder", id="folder"),
    ],
)
def test_a_mistake_is_told_before_anything_is_asked(
    null_server, tmp_path, arguments, status, words
):
    told = bench("--url", null_server(""), "--output", str(tmp_path), *arguments)

    assert told.returncode == status, told.stderr
    assert words in told.stderr


def test_help_names_every_scenario():
    told = " ".join(bench("--help").stdout.replace("-\n", "-").split())

    assert [name for name in SCENARIOS if name not in told.replace("- ", "-")] == []

"""The benchmark as a program, against a server with nothing behind it."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

HERE = Path(__file__).parent


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
        for plot in ("throughput", "latency"):
            ET.parse(tmp_path / f"{scenario}-{plot}.svg")

"""The README's examples, run as they are printed but for the address."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def mentioning(language: str, *words: str) -> list[str]:
    return [block for block in blocks(language) if all(word in block for word in words)]


def placed(text: str, url: str, folder: Path) -> str:
    """Put an example at another server and in a folder of its own."""
    return (
        text.replace(ADDRESS, url)
        .replace("/tmp/circle", str(folder / "circle"))
        .replace(".venv/bin/python", sys.executable)
    )


def run(command: list[str]) -> str:
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    (drawing,) = mentioning("sh", "ImageDraw")
    run(["bash", "-euc", placed(drawing, "", folder)])
    return folder


def test_examples_are_found():
    assert len(mentioning("sh", "curl", ADDRESS)) >= 7
    assert len(mentioning("python", ADDRESS)) == 2


@pytest.mark.parametrize("block", mentioning("sh", "curl", ADDRESS))
def test_shell_examples_give_what_they_promise(service, folder, block):
    output = run(["bash", "-euo", "pipefail", "-c", placed(block, service.url, folder)])

    if "/stream" in block:
        # Tokens that come together are one chunk, so their number is not told.
        assert "".join(re.findall(r'"chunk":"([^"]*)"', output)) == "a red circle"
    elif "/preview" in block:
        assert '"accepted":true' in output
        assert '"image_tokens":36' in output
    else:
        assert "a red circle" in output


@pytest.mark.parametrize("block", mentioning("python", ADDRESS))
def test_python_examples_give_what_they_promise(service, folder, block):
    if "openai" in block:
        pytest.importorskip("openai")
    assert "a red circle" in run([sys.executable, "-c", placed(block, service.url, folder)])

"""The commands that ask a running server, against the whole service."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SECONDS = 120


@pytest.fixture
def loupe(service) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run a command against the service: `loupe("ask", "picture.png")`."""

    def run(*words: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        clean = {name: text for name, text in os.environ.items() if not name.startswith("LOUPE_")}
        return subprocess.run(
            [sys.executable, "-m", "service", *map(str, words)],
            check=False,
            cwd=ROOT,
            env=clean | {"LOUPE_URL": service.url},
            input=stdin,
            capture_output=True,
            timeout=SECONDS,
        )

    return run


def test_ask_gets_the_answer_to_a_file_and_to_the_standard_input(loupe, picture, tmp_path):
    (tmp_path / "p.png").write_bytes(picture("red", "circle"))
    from_file = loupe("ask", tmp_path / "p.png", "What is in this image?", "--temperature", "0")
    piped = loupe("ask", "-", "--temperature", "0", stdin=picture("blue", "square"))

    assert (from_file.returncode, from_file.stdout) == (0, b"a red circle\n"), from_file.stderr
    assert (piped.returncode, piped.stdout) == (0, b"a blue square\n"), piped.stderr


def test_ask_gets_the_answer_to_a_pdf_and_to_an_uploaded_file(loupe, picture, client, tmp_path):
    png = picture("red", "circle")
    Image.open(io.BytesIO(png)).save(tmp_path / "p.pdf")
    question = ("What is in this image?", "--temperature", "0")
    document = loupe("ask", tmp_path / "p.pdf", "--pages", "1", *question)
    uploaded = client.post("/v1/files", data={"purpose": "vision"}, files={"file": ("p.png", png)})
    by_id = loupe("ask", uploaded.json()["id"], *question)

    assert (document.returncode, document.stdout) == (0, b"a red circle\n"), document.stderr
    assert (by_id.returncode, by_id.stdout) == (0, b"a red circle\n"), by_id.stderr


def test_ask_keeps_to_a_schema(loupe, tmp_path):
    schema = {"enum": ["yes", "no"]}
    (tmp_path / "s.json").write_text(json.dumps({"type": "object", "properties": {"it": schema},
                                                 "required": ["it"],
                                                 "additionalProperties": False}))  # fmt: skip
    told = loupe("ask", "Is it?", "--schema", tmp_path / "s.json", "--json")

    assert told.returncode == 0, told.stderr
    reply = json.loads(told.stdout)
    assert json.loads(reply["choices"][0]["message"]["content"])["it"] in ("yes", "no")
    assert reply["usage"]["completion_tokens"] > 0


def test_ask_tells_what_the_server_refuses(loupe, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    told = loupe("ask", tmp_path / "broken.png", "What is this?")

    assert told.returncode == 1
    assert b"(field messages[0].content[0].image_url.url, image_" in told.stderr


@pytest.mark.slow
def test_bench_finds_every_answer_of_the_demo_model_right(loupe, tmp_path):
    told = loupe(
        "bench", "--seconds", "0.5", "--concurrency", "2", "--scenario",
        "chat-image,eight-images,long-answers", "--output", tmp_path,
    )  # fmt: skip

    assert told.returncode == 0, told.stderr
    results = json.loads((tmp_path / "results.json").read_bytes())["results"]
    assert [result["scenario"] for result in results] == [
        "chat-image", "eight-images", "long-answers"
    ]  # fmt: skip
    assert all(result["figures"]["requests"] > 1 for result in results)

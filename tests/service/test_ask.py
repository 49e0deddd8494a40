"""`loupe ask` as it is typed, against a server that replies what a test says."""

import base64
import contextlib
import http.server
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60


class Script(http.server.ThreadingHTTPServer):
    """Replies to questions with `status` and `pieces`; keeps what was asked.

    hangs: after the pieces it waits until the client leaves, and then sets `was_left`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Replies)
        self.status = 200
        self.pieces: list[bytes] = [*map(event, ("a ", "red ", "circle"))]
        self.pieces += [USAGE, b"data: [DONE]\n\n"]
        self.reply_headers: dict[str, str] = {}
        self.hangs = False
        self.was_left = threading.Event()
        self.has_begun = threading.Event()
        self.asked: list[dict] = []
        self.keys: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Replies(http.server.BaseHTTPRequestHandler):
    server: Script  # pyright: ignore[reportIncompatibleVariableOverride] - it has no other

    def do_GET(self) -> None:
        found = {"data": [{"id": "tiny", "object": "model", "owned_by": "loupe"}]}
        if self.path.startswith("/v1/files/"):
            found = {"filename": "holiday.mp4" if self.path.endswith("film") else "paper.pdf"}
        self._reply(200, [json.dumps(found).encode()])

    def do_POST(self) -> None:
        self.server.keys.append(self.headers.get("authorization"))
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append(json.loads(body))
        self._reply(self.server.status, self.server.pieces)
        if self.server.hangs:
            self.server.has_begun.set()
            self.connection.settimeout(PATIENCE_SECONDS)
            with contextlib.suppress(ConnectionResetError):
                assert self.connection.recv(1) == b""
            self.server.was_left.set()

    def _reply(self, status: int, pieces: list[bytes]) -> None:
        self.send_response(status)
        for name, value in self.server.reply_headers.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - its name
        pass


def event(text: str) -> bytes:
    chunk = {"choices": [{"delta": {"content": text}, "finish_reason": None}]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


USAGE = b"""data: {"choices": [], "usage": {"prompt_tokens": 52, "completion_tokens": 4, \
"prompt_tokens_details": {"image_tokens": 36}}}\n\n"""


@pytest.fixture
def script() -> Iterator[Script]:
    with Script() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def png(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(path)
    return path


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "service", "ask", *map(str, words)]


def environment(**environ: str) -> dict[str, str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("LOUPE_")}
    return clean | {"PYTHONPATH": str(ROOT)} | environ


def ask(*words: object, stdin: bytes = b"", **environ: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(*words),
        check=False,
        env=environment(**environ),
        input=stdin,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
    )


def content(script: Script) -> list[dict]:
    return script.asked[-1]["messages"][-1]["content"]


def test_the_answer_goes_to_stdout_and_nothing_else_goes_anywhere(script, png):
    told = ask("--url", script.url, png, "What is this?")

    assert (told.returncode, told.stdout, told.stderr) == (0, b"a red circle\n", b"")
    picture, text = content(script)
    encoded = picture["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert base64.b64decode(encoded) == png.read_bytes()
    assert text == {"type": "text", "text": "What is this?"}
    assert script.asked[0]["model"] == "tiny"


def test_words_reach_the_model_in_their_order_and_flags_may_stand_between(script, png, tmp_path):
    (tmp_path / "notes.txt").write_text("Notes.")
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.7 ...")
    told = ask(
        "First:", png, "--max-tokens", 7, "--seed", 3, "--temperature", 0.5, "https://x.example/b",
        "https://x.example/film.mp4", tmp_path / "paper.pdf", "--pages", "1-2", "file-1",
        "file-film", tmp_path / "notes.txt", "--system", "Be brief.", LOUPE_URL=script.url,
    )  # fmt: skip

    assert told.returncode == 0, told.stderr
    kinds = [part["type"] for part in content(script)]
    assert kinds == [
        "text", "image_url", "image_url", "video_url", "file", "file", "video_url", "text"
    ]  # fmt: skip
    assert content(script)[5]["file"] == {"file_id": "file-1", "pages": "1-2"}
    assert content(script)[-1]["text"] == "Notes."
    asked = script.asked[0]
    assert (asked["max_completion_tokens"], asked["seed"], asked["temperature"]) == (7, 3, 0.5)
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}


def test_a_dash_reads_a_picture_and_a_picture_alone_is_to_be_described(script):
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8)).save(encoded, "JPEG")
    told = ask("-", stdin=encoded.getvalue(), LOUPE_URL=script.url)

    assert told.returncode == 0, told.stderr
    picture, text = content(script)
    assert picture["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert text["text"] == "Describe this."


def test_json_prints_the_whole_reply_and_a_schema_is_sent_along(script, tmp_path):
    (tmp_path / "s.json").write_text('{"type": "object"}')
    script.pieces = [b'{"choices": [{"message": {"content": "{}"}}]}']
    told = ask("Hello", "--json", "--schema", tmp_path / "s.json", LOUPE_URL=script.url)

    assert json.loads(told.stdout) == {"choices": [{"message": {"content": "{}"}}]}
    asked = script.asked[0]
    assert "stream" not in asked
    assert asked["response_format"]["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize("from_file", [True, False], ids=["file", "variable"])
def test_the_key_is_presented_and_never_shown(script, tmp_path, from_file):
    (tmp_path / "key").write_text("loupe_secret\n")
    script.status, script.pieces = 401, [b'{"error": {"message": "No such key.", "code": "x"}}']
    if from_file:
        told = ask("Hello", "--api-key-file", tmp_path / "key", LOUPE_URL=script.url)
    else:
        told = ask("Hello", LOUPE_URL=script.url, LOUPE_API_KEY="loupe_secret")

    assert script.keys == ["Bearer loupe_secret"]
    assert told.returncode == 1
    assert b"No such key (x). Give one with --api-key-file" in told.stderr
    assert b"secret" not in told.stdout + told.stderr


@pytest.mark.parametrize(
    ("status", "pieces", "headers", "words"),
    [
        pytest.param(
            413, [b'{"error": {"message": "Too large.", "param": "images[0]"}}'], {},
            "Too large (field images[0]).", id="refused"),
        pytest.param(
            503, [b'{"error": {"message": "Full."}}'], {"retry-after": "7"},
            "Full. Try again in 7 s.", id="busy"),
        pytest.param(502, [b"<html>"], {}, "status 502", id="a-proxy"),
        pytest.param(404, [b"<html>"], {}, "Is it Loupe", id="another-server"),
        pytest.param(200, [event("a ")], {}, "the answer broke off", id="cut"),
        pytest.param(200, [b"data: {]\n\n"], {}, "is no answer", id="no-json"),
        pytest.param(
            200, [event("a "), b'data: {"error": {"message": "Lost.", "code": "engine_lost"}}\n\n'],
            {}, "Lost (engine_lost).", id="error-within-the-stream"),
    ],
)  # fmt: skip
def test_a_failure_is_told_in_words_with_status_1(script, status, pieces, headers, words):
    script.status, script.pieces, script.reply_headers = status, pieces, headers
    told = ask("Hello", LOUPE_URL=script.url)

    assert told.returncode == 1
    assert words in told.stderr.decode()
    assert b"Traceback" not in told.stderr


def test_where_nothing_listens_it_says_how_to_start_a_server():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = ask("Hello", "--url", f"http://127.0.0.1:{port}")

    assert told.returncode == 1
    assert b"loupe serve" in told.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["no-such.png", "What?"], "there is no file no-such.png", id="no-file"),
        pytest.param(["/etc"], "cannot read /etc", id="folder"),
        pytest.param(["-", "-"], "give `-` once", id="stdin-twice"),
        pytest.param(["-"], "is empty", id="empty-stdin"),
        pytest.param(["https://x.example/a.pdf"], "download", id="pdf-by-url"),
        pytest.param(["Hello", "--pages", "1"], "--pages is for PDFs", id="pages-of-nothing"),
        pytest.param(["Hello", "--schema", "/etc/hostname"], "is no JSON schema", id="schema"),
        pytest.param(["Hello", "--api-key-file", "/no/such"], "/no/such", id="key-file"),
        pytest.param(["Hello", "--url", "ftp://x"], "is not a server's URL", id="url"),
        pytest.param(
            ["Hello", "--url", "http://me:pw@x"], "leave user and password out", id="password"
        ),
        pytest.param(["Hello", "--seed", "x"], "--seed", id="no-number"),
        pytest.param([], "name a picture, a question, or both", id="nothing"),
    ],
)
def test_a_mistake_is_told_with_status_2_and_nothing_is_asked(script, words, said):
    told = ask(*words, LOUPE_URL=script.url)

    assert told.returncode == 2
    assert said in told.stderr.decode()
    assert script.asked == []


def test_an_interrupt_leaves_the_server_at_once(script):
    script.pieces, script.hangs = [event("a ")], True
    process = subprocess.Popen(
        command("Hello"),
        env=environment(LOUPE_URL=script.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert script.has_begun.wait(PATIENCE_SECONDS)
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 2) == b"a "  # it was printed as it came
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=PATIENCE_SECONDS)

    assert (process.returncode, rest, errors) == (130, b"\n", b"")
    assert script.was_left.wait(PATIENCE_SECONDS)


def test_a_terminal_gets_the_figures_and_no_commands_of_the_models(script):
    script.pieces[0] = event("\x1b[2Ja \x9b1m")
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        command("Hello"), env=environment(LOUPE_URL=script.url), stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's other end is closed
        while chunk := os.read(ours, 4096):
            shown += chunk
    os.close(ours)

    assert process.wait(PATIENCE_SECONDS) == 0
    text = shown.decode()
    assert "�[2Ja �1mred circle\r\n" in text
    assert "52 tokens in, 36 of them of pictures; 4 out; first after" in text
    assert text.index("waiting for the answer") < text.index("red circle")

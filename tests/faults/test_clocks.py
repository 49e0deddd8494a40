"""A clock that jumps: no time-out looks at the time of day, and what does is known."""

import re
import time
from pathlib import Path

import msgspec
import pytest

from service.errors import NotFound
from service.files.file_settings import FileSettings
from service.files.file_shelf import FileShelf, Label, StoredFile

ROOT = Path(__file__).parents[2]
TIME_OF_DAY = re.compile(r"\btime\.time(_ns)?\(|\bdatetime\.(now|utcnow|today)\(|\bdate\.today\(")
# Why each may ask for the time of day.
MAY_ASK = {
    "service/access/key_file.py": "the day on which a key was made",
    "service/text/chat_template.py": "a template's own function",
    "service/files/file_shelf.py": "a file's age, which outlives processes and is told to clients",
    "service/load/machine.py": "the date of a report",
    "service/routes/openai_chat.py": "`created` of an answer",
    "service/tracing/opentelemetry_tracer.py": "a span's beginning, as the protocol has it",
}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)


def test_nothing_else_asks_for_the_time_of_day():
    sources = [*(ROOT / "service").rglob("*.py"), *(ROOT / "inference").rglob("*.py")]

    found = {
        str(source.relative_to(ROOT))
        for source in sources
        if "demo" not in source.parts and TIME_OF_DAY.search(source.read_text())
    }

    assert found <= MAY_ASK.keys()


@pytest.fixture
def shelf(tmp_path) -> FileShelf:
    return FileShelf(tmp_path, FileSettings())


def kept(shelf: FileShelf, content: bytes = PNG) -> StoredFile:
    draft = shelf.begin("t", len(content))
    try:
        draft.write(content)
        return shelf.keep(draft, Label("picture.png", "vision"))
    finally:
        draft.close()


def shift(folder: Path, stored: StoredFile, seconds: int) -> None:
    """Leave a file as one looks that was written under a clock so far behind this one."""
    moved = msgspec.structs.replace(
        stored,
        created_at=stored.created_at - seconds,
        expires_at=stored.expires_at - seconds,
    )
    (about,) = folder.rglob(f"{stored.id}/about.json")
    about.write_bytes(msgspec.json.encode(moved))


def test_files_expire_early_when_the_clock_jumps_ahead_and_leave_nothing(shelf, tmp_path):
    stored = kept(shelf)
    shift(tmp_path, stored, FileSettings().file_expiry_seconds + 10)

    with pytest.raises(NotFound):
        shelf.open("t", stored.id)
    assert shelf.files("t") == []
    kept(shelf)  # sweeps first
    assert list(tmp_path.rglob(f"*{stored.id}*")) == []


def test_files_stay_readable_when_the_clock_jumps_back(shelf, tmp_path):
    stored = kept(shelf)
    shift(tmp_path, stored, -30 * 24 * 3600)

    about, content = shelf.open("t", stored.id)

    with content:
        assert content.read() == PNG
    assert about.created_at > time.time()
    assert [each.id for each in shelf.files("t")] == [stored.id]

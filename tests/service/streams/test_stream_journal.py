import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from inference.protocol import Delta, Finish, FinishReason, Generate, SamplingParams, Vision
from service.errors import Overloaded
from service.streams.stream_journal import (
    JournalReader,
    OwnedJournal,
    StreamLabel,
    StreamRequest,
    unread_seconds,
)
from service.streams.stream_shelf import StreamShelf
from service.text.prompt import Prompt

ROOT = Path(__file__).parents[3]

DIE = """
import os, sys
from pathlib import Path
from service.streams.stream_journal import OwnedJournal
journal, kept = OwnedJournal.adopt(Path(sys.argv[1]))
journal.add_event(b"data: from another process")
print("adopted", flush=True)
sys.stdin.read()
"""


def picture() -> Vision:
    return Vision(
        height=32, width=32, pixels=memoryview(bytes(range(256)) * 12), content_hash=b"h" * 32
    )


def asked(**changes: Any) -> StreamRequest:
    generate = Generate(
        request_id="asked",
        prompt_token_ids=[1, 2, 3],
        sampling=SamplingParams(max_tokens=9, seed=4),
        visions=[picture()],
        **changes,
    )
    prompt = Prompt([1, 2, 3], num_text_tokens=2, num_image_tokens=1, max_output_tokens=50)
    return StreamRequest(
        path="/v1/chat/stream",
        query_string=b"",
        headers=[(b"content-type", b"application/json")],
        body=b"{}",
        request_id="asked",
        prompt=prompt,
        generate=generate,
    )


def label(begun_at: float = 0.0) -> StreamLabel:
    return StreamLabel(tenant="ours", begun_at=begun_at or time.monotonic())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def delta(*token_ids: int, index: int = 0, finish: Finish | None = None) -> Delta:
    return Delta(request_id="asked", index=index, token_ids=list(token_ids), finish=finish)


def test_a_journal_is_for_its_user_alone(path):
    OwnedJournal.create(path, label(), asked()).close()

    assert path.stat().st_mode & 0o777 == 0o600


def test_a_follower_reads_events_as_they_come(path):
    journal = OwnedJournal.create(path, label(), asked())
    reader = JournalReader(path)
    before = reader.events()
    journal.add_delta(delta(5))
    journal.add_event(b"data: one")
    journal.add_event(b"data: two")
    first = reader.events()
    journal.end()

    assert (before, first) == ([], [b"data: one", b"data: two"])
    assert not reader.has_ended
    assert reader.events() == []
    assert reader.has_ended
    assert reader.tenant == "ours"


@contextmanager
def disk_full_at(num_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_a_full_disk_took_a_part_of_is_not_there(path):
    journal = OwnedJournal.create(path, label(), asked())
    journal.add_event(b"data: one")

    with disk_full_at(path.stat().st_size + 8), pytest.raises(OSError, match="large"):
        journal.add_event(b"data: two")
    journal.add_event(b"data: three")

    assert JournalReader(path).events() == [b"data: one", b"data: three"]


def test_a_journal_that_nobody_could_adopt_has_no_owner(path):
    OwnedJournal.create(path, label(), asked()).close()

    with disk_full_at(path.stat().st_size), pytest.raises(OSError, match="large"):
        OwnedJournal.adopt(path)

    assert OwnedJournal.adopt(path) is not None


def test_a_journal_that_nobody_could_begin_is_not_there(path):
    with disk_full_at(100), pytest.raises(OSError, match="large"):
        OwnedJournal.create(path, label(), asked())

    assert not path.exists()


def test_a_journal_has_one_owner_at_a_time(path):
    journal = OwnedJournal.create(path, label(), asked())

    assert OwnedJournal.adopt(path) is None
    journal.close()
    assert OwnedJournal.adopt(path) is not None


def test_the_next_owner_finds_all_that_was_kept(path):
    journal = OwnedJournal.create(path, label(), asked())
    journal.add_delta(delta(5, 6))
    journal.add_event(b"data: one")
    journal.close()

    adopted = OwnedJournal.adopt(path)

    assert adopted is not None
    _, kept = adopted
    assert kept.request.body == b"{}"
    assert kept.request.prompt == asked().prompt
    assert bytes(kept.request.generate.visions[0].pixels) == bytes(picture().pixels)
    assert kept.deltas == [delta(5, 6)]
    assert (kept.num_events, kept.num_adoptions) == (1, 0)


@pytest.mark.parametrize("num_bytes", [1, 4, 5, 12])
def test_what_an_owner_did_not_finish_writing_is_cut_off(path, num_bytes):
    journal = OwnedJournal.create(path, label(), asked())
    journal.add_event(b"data: one")
    whole = path.stat().st_size
    journal.add_event(b"data: torn")
    journal.close()
    os.truncate(path, whole + num_bytes)
    reader = JournalReader(path)
    assert reader.events() == [b"data: one"]

    adopted = OwnedJournal.adopt(path)
    assert adopted is not None
    adopted[0].add_event(b"data: two")

    assert adopted[1].num_events == 1
    assert reader.events() == [b"data: two"]


def test_an_ended_journal_needs_no_owner(path):
    journal = OwnedJournal.create(path, label(), asked())
    journal.end()
    journal.close()

    assert OwnedJournal.adopt(path) is None


def test_a_killed_process_owns_nothing_any_more(path):
    OwnedJournal.create(path, label(), asked()).close()
    with subprocess.Popen(
        [sys.executable, "-c", DIE, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        assert OwnedJournal.adopt(path) is None
        owner.kill()

    adopted = OwnedJournal.adopt(path)

    assert adopted is not None
    assert (adopted[1].num_events, adopted[1].num_adoptions) == (1, 1)


def kept_after(path: Path, request: StreamRequest, *deltas: Delta, begun_at: float = 0.0):
    journal = OwnedJournal.create(path, label(begun_at), request)
    for each in deltas:
        journal.add_delta(each)
    journal.close()
    adopted = OwnedJournal.adopt(path)
    assert adopted is not None
    return adopted[1]


def test_the_rest_are_the_sequences_that_have_not_ended(path):
    finish = Finish(reason=FinishReason.STOP, num_output_tokens=2)
    kept = kept_after(
        path,
        asked(num_sequences=3),
        delta(5, index=0),
        delta(6, index=1, finish=finish),
        delta(7, index=0),
    )

    rest = kept.rest("anew")

    assert rest is not None
    assert rest.request_id == "anew"
    assert (rest.num_sequences, rest.sequence_indices) == (2, [0, 2])
    assert rest.output_prefixes == [[5, 7], []]
    assert rest.is_replay
    assert rest.sampling.seed == 4


def test_nothing_is_asked_for_once_all_have_ended(path):
    finish = Finish(reason=FinishReason.LENGTH, num_output_tokens=1)

    assert kept_after(path, asked(), delta(5, finish=finish)).rest("anew") is None


def test_time_that_has_passed_is_not_given_again(path):
    kept = kept_after(path, asked(deadline_seconds=60.0), begun_at=time.monotonic() - 50)

    rest = kept.rest("anew")

    assert rest is not None
    assert rest.deadline_seconds is not None
    assert 0 < rest.deadline_seconds <= 10


@pytest.fixture
def shelf(tmp_path: Path) -> StreamShelf:
    return StreamShelf(tmp_path / "streams", resume_seconds=10, max_streams=2, max_bytes=10_000)


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    def pass_seconds(seconds: float) -> None:
        later = time.monotonic() + seconds
        monkeypatch.setattr(time, "monotonic", lambda: later)

    return pass_seconds


def test_a_journal_is_swept_when_nobody_came_back_and_nobody_writes(shelf, pass_time):
    abandoned, owned, read = shelf.new_path(), shelf.new_path(), shelf.new_path()
    journals = {path: OwnedJournal.create(path, label(), asked()) for path in (abandoned, owned)}
    journals[abandoned].close()
    OwnedJournal.create(read, label(), asked()).close()
    pass_time(60)
    JournalReader(read).touch()

    shelf.sweep()

    assert [path.exists() for path in (abandoned, owned, read)] == [False, True, True]


def test_a_follower_keeps_a_journal_from_being_abandoned(shelf, pass_time):
    path = shelf.new_path()
    journal = OwnedJournal.create(path, label(), asked())
    pass_time(60)
    assert shelf.is_abandoned(path)

    JournalReader(path).touch()

    assert not shelf.is_abandoned(path)
    assert journal.unread_seconds == 0


@pytest.mark.parametrize("seconds", [-3600, 3600], ids=["back", "ahead"])
def test_a_time_of_day_that_jumps_gives_a_client_no_more_time_and_no_less(
    shelf, pass_time, monkeypatch, seconds
):
    """Neither the clock nor the times of the file count, which a read may change as well."""
    pass_time(0)  # the clock stands from here on
    path = shelf.new_path()
    OwnedJournal.create(path, label(), asked(deadline_seconds=60.0)).close()
    jumped = time.time() + seconds
    monkeypatch.setattr(time, "time", lambda: jumped)
    os.utime(path, (jumped, jumped))

    assert not shelf.is_abandoned(path)
    pass_time(20)
    assert shelf.is_abandoned(path)
    adopted = OwnedJournal.adopt(path)
    assert adopted is not None
    rest = adopted[1].rest("anew")
    assert rest is not None
    assert rest.deadline_seconds == pytest.approx(40)


TOUCH = """
import sys
from pathlib import Path
from service.streams.stream_journal import JournalReader
JournalReader(Path(sys.argv[1])).touch()
"""


def test_a_follower_in_another_process_has_the_same_clock(shelf, path):
    OwnedJournal.create(path, label(), asked())
    before = time.monotonic()
    subprocess.run([sys.executable, "-c", TOUCH, str(path)], cwd=ROOT, check=True)

    assert 0 <= unread_seconds(path) <= time.monotonic() - before


def test_a_journal_of_which_nothing_is_written_yet_counts_from_when_it_is_found(shelf, pass_time):
    path = shelf.new_path()
    path.touch()

    shelf.sweep()
    assert path.exists()
    pass_time(60)
    shelf.sweep()
    assert not path.exists()


def test_a_folder_that_somebody_tidied_up_is_made_anew(shelf):
    shelf.new_path().parent.rmdir()
    shelf.sweep()
    shelf.new_path().parent.rmdir()

    OwnedJournal.create(shelf.new_path(), label(), asked())


def test_too_many_or_too_large_journals_are_refused(shelf, tmp_path):
    OwnedJournal.create(shelf.new_path(), label(), asked())
    path = shelf.new_path()
    path.write_bytes(bytes(10_000))
    with pytest.raises(Overloaded):
        shelf.new_path()
    path.write_bytes(b"")

    with pytest.raises(Overloaded):
        shelf.new_path()


@pytest.mark.parametrize("stream_id", ["", "..", "../engine.sock", "0" * 31, "G" * 32, "0" * 33])
def test_what_is_no_id_is_no_path(shelf, stream_id):
    assert shelf.path_of(stream_id) is None

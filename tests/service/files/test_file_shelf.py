"""Uploaded files on a real disk, with real processes beside each other."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from service.errors import NotFound, RequestInvalid, StorageFull, TooLarge
from service.files.file_settings import FileSettings
from service.files.file_shelf import FileShelf, Label, StoredFile

ROOT = Path(__file__).parents[3]
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(92)
LABEL = Label("cat.png", "vision")


@pytest.fixture
def shelf(tmp_path) -> FileShelf:
    return FileShelf(tmp_path / "files", FileSettings())


@pytest.fixture
def shelf_of(tmp_path):
    def make(**settings: int) -> FileShelf:
        return FileShelf(tmp_path / "files", msgspec.convert(settings, FileSettings))

    return make


def put(shelf: FileShelf, tenant: str = "a", content: bytes = PICTURE, **label) -> StoredFile:
    draft = shelf.begin(tenant, len(content))
    try:
        draft.write(content)
        return shelf.keep(draft, LABEL._replace(**label))
    finally:
        draft.close()


def content_of(shelf: FileShelf, tenant: str, file_id: str) -> bytes:
    _, content = shelf.open(tenant, file_id)
    with content:
        return content.read()


def files_on(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]


def test_a_file_is_kept_as_it_came(shelf):
    stored = put(shelf)

    assert content_of(shelf, "a", stored.id) == PICTURE
    assert shelf.about("a", stored.id) == stored
    assert shelf.files("a") == [stored]
    assert (stored.num_bytes, stored.filename, stored.kind) == (100, "cat.png", "image")
    assert stored.expires_at == stored.created_at + 24 * 3600
    assert abs(stored.created_at - time.time()) < 10


def test_a_file_comes_in_pieces(shelf):
    draft = shelf.begin("a", 0)
    for piece in (PICTURE, b"x" * 1000, b"y"):
        draft.write(piece)
    stored = shelf.keep(draft, LABEL)
    draft.close()

    assert content_of(shelf, "a", stored.id) == PICTURE + b"x" * 1000 + b"y"
    assert stored.num_bytes == 1101


def test_nothing_is_seen_of_a_file_before_it_is_kept(shelf):
    draft = shelf.begin("a", 100)
    draft.write(PICTURE)

    assert shelf.files("a") == []
    draft.close()
    draft.close()


def test_a_draft_that_is_not_kept_leaves_nothing(shelf, tmp_path):
    draft = shelf.begin("a", 100)
    draft.write(PICTURE)
    draft.close()

    assert files_on(tmp_path) == []


def test_only_the_owner_may_enter_the_folder(shelf, tmp_path):
    put(shelf)

    folders = [tmp_path / "files", *(p for p in (tmp_path / "files").rglob("*") if p.is_dir())]
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}
    assert len(folders) == 3


@pytest.mark.parametrize("work", [FileShelf.about, FileShelf.open, FileShelf.delete])
def test_a_file_of_another_is_as_one_that_is_not(shelf, work):
    stored = put(shelf, "a")

    with pytest.raises(NotFound) as of_another:
        work(shelf, "b", stored.id)
    with pytest.raises(NotFound) as of_nobody:
        work(shelf, "b", "file-" + "0" * 32)

    assert of_another.value.code == of_nobody.value.code == "file_not_found"
    assert of_another.value.message == of_nobody.value.message
    assert shelf.files("b") == []
    assert content_of(shelf, "a", stored.id) == PICTURE


@pytest.mark.parametrize(
    "file_id",
    ["", ".", "..", "../a", "file-..", "lock", "file-" + "0" * 31, "file-" + "0" * 32 + "\n", "\0"],
)
def test_an_id_is_never_a_path(shelf, file_id):
    put(shelf)

    with pytest.raises(NotFound):
        shelf.open("a", file_id)
    with pytest.raises(NotFound):
        shelf.delete("a", file_id)


@pytest.mark.parametrize("tenant", ["", "..", "a/b", "a\0b", "x" * 5000, "名"])
def test_a_tenants_name_may_be_anything(shelf, tenant):
    stored = put(shelf, tenant)

    assert shelf.files(tenant) == [stored]


def test_a_deleted_file_is_gone_and_its_room_free(shelf, tmp_path):
    stored = put(shelf)
    shelf.delete("a", stored.id)

    assert shelf.files("a") == []
    assert files_on(tmp_path) == []
    with pytest.raises(NotFound):
        shelf.delete("a", stored.id)


def test_a_file_that_is_being_read_can_be_read_to_its_end(shelf):
    stored = put(shelf)
    _, content = shelf.open("a", stored.id)
    shelf.delete("a", stored.id)

    with content:
        assert content.read() == PICTURE


@pytest.mark.parametrize("days", [-60, 60], ids=["back", "ahead"])
def test_a_time_of_day_that_jumps_takes_no_file_from_who_reads_or_writes_it(
    shelf, monkeypatch, days
):
    stored = put(shelf)
    draft = shelf.begin("a", 100)
    _, content = shelf.open("a", stored.id)
    draft.write(PICTURE)
    jumped = time.time() + days * 24 * 3600
    monkeypatch.setattr(time, "time", lambda: jumped)

    shelf.sweep()

    with content:
        assert content.read() == PICTURE
    written = shelf.keep(draft, LABEL)
    draft.close()
    assert content_of(shelf, "a", written.id) == PICTURE
    assert written.expires_at == int(jumped) + 24 * 3600


def test_an_expired_file_is_gone_at_once_and_its_room_with_the_next_sweep(
    shelf, tmp_path, monkeypatch
):
    stored = put(shelf, expiry_seconds=3600)
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)

    assert shelf.files("a") == []
    with pytest.raises(NotFound):
        shelf.open("a", stored.id)
    shelf.sweep()
    assert files_on(tmp_path) == []


def test_sweeping_leaves_what_lives(shelf):
    stored = put(shelf)
    draft = shelf.begin("a", 100)

    shelf.sweep()
    draft.write(PICTURE)
    other = shelf.keep(draft, LABEL)
    draft.close()

    assert {stored, other} == set(shelf.files("a"))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"PK\x03\x04" + bytes(100), id="zip"),
        pytest.param(b"<html></html>", id="html"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="svg"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0", id="eps"),
        pytest.param(b"MZ" + bytes(100), id="program"),
        pytest.param(b"plain text", id="text"),
    ],
)
def test_files_of_no_use_are_refused_by_their_bytes(shelf, tmp_path, content):
    with pytest.raises(RequestInvalid) as refusal:
        put(shelf, content=content)

    assert refusal.value.code == "file_type_unsupported"
    assert files_on(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"%PDF-1.7\n" + bytes(50), "document"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(50), "video"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "image"),
    ],
)
def test_files_are_told_by_their_bytes(shelf, content, kind):
    assert put(shelf, content=content).kind == kind


def test_an_empty_file_is_refused(shelf):
    draft = shelf.begin("a", 0)
    with pytest.raises(RequestInvalid) as refusal:
        shelf.keep(draft, LABEL)
    draft.close()

    assert refusal.value.code == "file_empty"


def test_a_file_over_the_limit_is_refused(shelf_of, tmp_path):
    shelf = shelf_of(max_file_bytes=150)
    draft = shelf.begin("a", 10_000)
    draft.write(PICTURE)
    with pytest.raises(TooLarge) as refusal:
        draft.write(PICTURE)
    draft.close()

    assert refusal.value.code == "file_too_large"
    assert files_on(tmp_path) == []


def test_a_tenant_has_a_number_of_files(shelf_of):
    shelf = shelf_of(max_tenant_files=2)
    put(shelf)
    stored = put(shelf)

    with pytest.raises(TooLarge) as refusal:
        put(shelf)
    assert refusal.value.code == "file_quota_exceeded"
    put(shelf, "b")
    shelf.delete("a", stored.id)
    put(shelf)


def test_a_tenant_has_bytes_for_files_and_drafts_together(shelf_of):
    shelf = shelf_of(max_tenant_file_bytes=250)
    put(shelf)
    draft = shelf.begin("a", 100)

    with pytest.raises(TooLarge) as refusal:
        shelf.begin("a", 100)
    assert refusal.value.code == "file_quota_exceeded"
    put(shelf, "b")
    draft.close()
    put(shelf)


def test_all_tenants_together_have_bytes(shelf_of):
    shelf = shelf_of(max_all_file_bytes=250)
    put(shelf, "a")
    put(shelf, "b")

    with pytest.raises(StorageFull) as refusal:
        put(shelf, "c")
    assert (refusal.value.code, refusal.value.status) == ("storage_full", 503)


def test_an_upload_of_unknown_length_takes_the_room_of_the_longest(shelf_of):
    shelf = shelf_of(max_file_bytes=200, max_tenant_file_bytes=300)
    draft = shelf.begin("a", 0)
    with pytest.raises(TooLarge):
        shelf.begin("a", 150)
    draft.write(PICTURE)
    shelf.keep(draft, LABEL)
    draft.close()

    put(shelf)


def test_a_file_gives_back_the_room_it_did_not_need(shelf_of):
    shelf = shelf_of(max_tenant_file_bytes=300)
    draft = shelf.begin("a", 300)
    draft.write(PICTURE)
    shelf.keep(draft, LABEL)
    draft.close()

    put(shelf)
    put(shelf)


def test_expired_files_make_room(shelf_of, monkeypatch):
    shelf = shelf_of(max_tenant_files=1)
    put(shelf)
    later = time.time() + 25 * 3600
    monkeypatch.setattr(time, "time", lambda: later)

    put(shelf)


def test_uploads_at_once_never_go_over_the_limit(shelf_of):
    shelf = shelf_of(max_tenant_file_bytes=1000)

    def upload(_: int) -> bool:
        try:
            put(shelf)
        except TooLarge:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        kept = list(threads.map(upload, range(40)))

    assert sum(kept) == len(shelf.files("a")) == 10


def test_a_file_is_deleted_once_however_many_try(shelf):
    stored = put(shelf)

    def delete(_: int) -> bool:
        try:
            shelf.delete("a", stored.id)
        except NotFound:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(delete, range(8))) == 1


DIE_WHILE_WRITING = """
import signal, sys
from pathlib import Path
from service.files.file_settings import FileSettings
from service.files.file_shelf import FileShelf
draft = FileShelf(Path(sys.argv[1]), FileSettings()).begin("a", 1000)
draft.write(b"GIF89a" + bytes(100))
print("writing", flush=True)
signal.pause()
"""


def test_what_a_killed_worker_left_is_swept_and_what_a_living_one_writes_is_not(shelf, tmp_path):
    folder = tmp_path / "files"
    with subprocess.Popen(
        [sys.executable, "-c", DIE_WHILE_WRITING, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    ) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        shelf.sweep()
        while_living = files_on(folder)
        os.kill(worker.pid, signal.SIGKILL)
    shelf.sweep()

    assert len(while_living) == 1
    assert files_on(folder) == []


def test_what_half_a_deletion_left_is_swept(shelf, tmp_path):
    stored = put(shelf)
    [content] = tmp_path.rglob("content")
    content.parent.rename(content.parent.with_name("gone-1"))

    shelf.sweep()

    assert files_on(tmp_path) == []
    with pytest.raises(NotFound):
        shelf.about("a", stored.id)


def test_a_broken_label_hides_its_file_and_sweeping_removes_it(shelf, tmp_path):
    stored = put(shelf)
    next(tmp_path.rglob("about.json")).write_bytes(b"{")

    with pytest.raises(NotFound):
        shelf.about("a", stored.id)
    shelf.sweep()
    assert files_on(tmp_path) == []


FILL_THE_DISK = """
import resource, signal, sys
from pathlib import Path
from service.errors import ServiceError
from service.files.file_settings import FileSettings
from service.files.file_shelf import FileShelf, Label
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
shelf = FileShelf(Path(sys.argv[1]), FileSettings())
draft = shelf.begin("a", 3000)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    draft.write(b"GIF89a" + bytes(2000))
except ServiceError as error:
    print(error.status, error.code)
finally:
    draft.close()
"""


def test_a_full_disk_is_told_and_leaves_no_part(tmp_path):
    """A limit of the process on file sizes stands for the disk's end: EFBIG for ENOSPC."""
    done = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split() == ["503", "storage_full"]
    assert files_on(tmp_path) == []


def test_sweeping_beside_uploads_and_deletions_loses_nothing(shelf):
    stop = threading.Event()
    faults: list[BaseException] = []

    def sweep() -> None:
        try:
            while not stop.is_set():
                shelf.sweep()
        except BaseException as fault:
            faults.append(fault)
            raise

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        with ThreadPoolExecutor(4) as threads:
            kept = list(threads.map(lambda i: put(shelf, "ab"[i % 2]), range(60)))
            list(threads.map(lambda i: shelf.delete("ab"[i % 2], kept[i].id), range(0, 60, 3)))
    finally:
        stop.set()
        sweeper.join()

    left = {stored.id for tenant in "ab" for stored in shelf.files(tenant)}
    assert faults == []
    assert left == {stored.id for place, stored in enumerate(kept) if place % 3}

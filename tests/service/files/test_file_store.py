import re

import anyio
import pytest
import structlog

import service.files.file_store
from service.errors import NotFound
from service.files.file_settings import FileSettings
from service.files.file_shelf import Label, StoredFile
from service.files.file_store import FileStore

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(92)
LABEL = Label("cat.png", "vision")


@pytest.fixture
def store(tmp_path) -> FileStore:
    return FileStore(FileSettings(), tmp_path / "own")


async def put(store: FileStore, tenant: str = "a") -> StoredFile:
    async with store.receive(tenant, len(PICTURE)) as upload:
        await upload.write(PICTURE)
        return await upload.keep(LABEL)


def files_on(folder) -> list:
    return list(folder.rglob("content"))


async def test_a_file_is_read_by_its_owner_alone(store):
    stored = await put(store, "a")

    assert await store.read(stored.id, "a", "image_url") == PICTURE
    with pytest.raises(NotFound) as refusal:
        await store.read(stored.id, "b", "image_url")
    assert (refusal.value.code, refusal.value.param) == ("file_not_found", "image_url")


async def test_two_workers_see_the_same_files(store, tmp_path):
    other = FileStore(FileSettings(), tmp_path / "own")
    stored = await put(store)

    assert await other.files("a") == [stored]
    await other.delete("a", stored.id)
    assert await store.files("a") == []


async def test_files_lie_where_the_settings_say(tmp_path):
    store = FileStore(FileSettings(files_folder=str(tmp_path / "chosen")), tmp_path / "own")
    await put(store)

    assert len(files_on(tmp_path / "chosen")) == 1
    assert files_on(tmp_path / "own") == []


async def test_a_restart_finds_what_was_kept_in_a_folder_of_its_own(tmp_path):
    settings = FileSettings(files_folder=str(tmp_path / "chosen"))
    stored = await put(FileStore(settings, tmp_path / "first"))

    assert await FileStore(settings, tmp_path / "second").files("a") == [stored]


async def test_what_is_not_kept_is_discarded(store, tmp_path):
    async with store.receive("a", 100) as upload:
        await upload.write(PICTURE)

    assert files_on(tmp_path) == []


async def test_an_upload_that_is_cancelled_leaves_nothing(store, tmp_path):
    begun = anyio.Event()

    async def upload_for_ever() -> None:
        async with store.receive("a", 100) as upload:
            await upload.write(PICTURE)
            begun.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(upload_for_ever)
        await begun.wait()
        assert len(files_on(tmp_path)) == 1
        tasks.cancel_scope.cancel()

    assert files_on(tmp_path) == []


async def test_an_upload_that_fails_leaves_nothing(store, tmp_path):
    async def upload_and_fail() -> None:
        async with store.receive("a", 100) as upload:
            await upload.write(PICTURE)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await upload_and_fail()

    assert files_on(tmp_path) == []


async def test_expired_files_are_swept_without_anyone_asking(store, tmp_path, monkeypatch):
    monkeypatch.setattr(service.files.file_store, "_SWEEP_SECONDS", 0.01)
    await put(store)
    [label] = tmp_path.rglob("about.json")
    label.write_bytes(re.sub(rb'(?<="expires_at":)\d+', b"1", label.read_bytes()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.keep_swept)
        with anyio.fail_after(5):
            while files_on(tmp_path):  # noqa: ASYNC110 - nothing sets an event
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()


async def test_a_folder_that_cannot_be_used_is_told_and_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(service.files.file_store, "_SWEEP_SECONDS", 0.01)
    (tmp_path / "file").write_bytes(b"")
    store = FileStore(FileSettings(files_folder=str(tmp_path / "file")), tmp_path)

    with structlog.testing.capture_logs() as events:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.keep_swept)
            with anyio.fail_after(5):
                while len(events) < 2:  # noqa: ASYNC110 - nothing sets an event
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()

    assert events[0]["event"] == "Files cannot be swept"

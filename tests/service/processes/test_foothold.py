"""The runtime folder, and what killed supervisors leave of theirs."""

import multiprocessing
import os
import tempfile
from pathlib import Path

import pytest

from service.processes.foothold import runtime_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def hold_and_die(folder: str) -> None:
    tempfile.tempdir = folder
    with runtime_folder() as own:
        (own / "files").mkdir()
        (own / "files" / "secret").write_text("a client's")
        os._exit(1)


def left_behind(temporary: Path) -> Path:
    process = multiprocessing.get_context("spawn").Process(
        target=hold_and_die, args=[str(temporary)]
    )
    process.start()
    process.join(60)
    (folder,) = temporary.iterdir()
    return folder


def test_a_folder_lives_as_long_as_it_is_held(temporary):
    with runtime_folder() as folder:
        assert list(temporary.iterdir()) == [folder]
        assert folder.stat().st_mode & 0o777 == 0o700

    assert list(temporary.iterdir()) == []


def test_what_a_killed_supervisor_left_goes_with_the_next_start(temporary):
    left = left_behind(temporary)
    assert (left / "files" / "secret").exists()

    with runtime_folder() as folder:
        assert list(temporary.iterdir()) == [folder]


def test_services_beside_each_other_keep_their_folders():
    with runtime_folder() as first, runtime_folder() as second:
        assert first.exists()
        assert second.exists()


def test_folders_of_others_stay(temporary):
    (temporary / "loupe-of-someone").mkdir()
    (temporary / "loupe-of-someone" / "notes").write_text("mine")
    (temporary / "loupe-linked").mkdir()
    (temporary / "loupe-linked" / "lock").symlink_to(temporary / "loupe-of-someone" / "notes")

    with runtime_folder():
        assert (temporary / "loupe-of-someone" / "notes").exists()
        assert (temporary / "loupe-linked" / "lock").is_symlink()

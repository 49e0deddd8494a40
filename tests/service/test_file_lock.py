"""Locks that end with a process: who holds a file, and whose owner is gone."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from service.file_lock import is_held

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "lock").touch()
    return tmp_path / "lock"


def test_a_lock_is_held_until_its_process_is_killed(path):
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        while_living = is_held(path)
        holder.kill()

    assert while_living
    assert not is_held(path)


def test_who_only_looks_holds_nothing(path):
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # as another who looks at this very moment

        assert not is_held(path)


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_looking_leaves_no_lock_and_no_open_file(path):
    num_open = num_open_files()
    is_held(path)

    assert num_open_files() == num_open
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_link_is_not_followed(path):
    link = path.with_name("link")
    link.symlink_to(path)

    with pytest.raises(OSError, match="symbolic link"):
        is_held(link)

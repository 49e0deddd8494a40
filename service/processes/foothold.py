"""What the supervisor stands on, from before the first child until after the last.

The signals as something to wait for, the listening socket, and the runtime folder.
"""

import contextlib
import fcntl
import os
import resource
import shutil
import signal
import socket
import tempfile
from collections.abc import Generator
from pathlib import Path
from types import FrameType

from service.file_lock import is_held

ENGINE_SOCKET = "engine.sock"

_FOLDER_PREFIX = "loupe-"
_LOCK = "lock"
_BACKLOG = 2048
_MAX_OPEN_FILES = 65536
_MAX_SOCKET_PATH_BYTES = 100  # the kernel's limit is 108, the name included
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class CannotServe(Exception):
    """The service cannot start or go on; the message is for the operator."""


def allow_many_connections() -> None:
    """Raise the limit of open files, which is inherited: every connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def received_signals() -> Generator[socket.socket]:
    """Turn signals into bytes on a socket, one per signal, its number as the value."""

    def wake_only(number: int, frame: FrameType | None) -> None:
        """Python must have a handler for the byte to be written."""

    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    # Under nohup a hang-up stays ignored.
    handled = [number for number in _SIGNALS if not _is_ignored_hangup(number)]
    before = {number: signal.signal(number, wake_only) for number in handled}
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    with receiver, sender:
        try:
            yield receiver
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)


def _is_ignored_hangup(number: signal.Signals) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


def has_terminal() -> bool:
    """Tell whether this session has a terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def listening_socket(host: str, port: int) -> Generator[socket.socket]:
    """Bind before anything is loaded, so that a taken port is known at once.

    Raises:
        CannotServe: the address is taken, not ours to use, or no address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both_families = host == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both_families
        )
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise CannotServe(f"cannot listen on {host} port {port}: {reason}") from error
    with listener:
        yield listener


@contextlib.contextmanager
def runtime_folder() -> Generator[Path]:
    """Make a folder of our own, readable by nobody else, and remove it at the end.

    What a killed supervisor left behind, its clients' files among it, goes first.
    """
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
    if len(os.fsencode(folder / ENGINE_SOCKET)) > _MAX_SOCKET_PATH_BYTES:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir="/tmp"))
    for lock in folder.parent.glob(f"{_FOLDER_PREFIX}*/{_LOCK}"):
        if _is_abandoned(lock):
            shutil.rmtree(lock.parent, ignore_errors=True)
    with _locked(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Hold the folder's lock, which the kernel lets go when this process ends."""
    unnamed = folder / f"new-{_LOCK}"
    with unnamed.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        unnamed.rename(folder / _LOCK)  # nobody ever finds it open
        yield


def _is_abandoned(lock: Path) -> bool:
    """Tell whether a folder is ours, and its supervisor gone."""
    try:
        return lock.parent.lstat().st_uid == os.getuid() and not is_held(lock)
    except OSError:
        return False

"""The keys in use: finds whose a key is, and follows the file they are in."""

import hmac
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from service.access.caller import Caller
from service.access.key_file import KeyFileError, digest, read_keys

_LOOK_SECONDS = 1.0
_NUM_INDEX_BYTES = 8

logger = structlog.get_logger()


class KeyRing:
    """All keys of one file. A file that cannot be used leaves the keys as they were."""

    def __init__(self, path: Path) -> None:
        """Read the file for the first time.

        Raises:
            KeyFileError: it cannot be used.
        """
        self._path = path
        self._seen = _state_of(path)
        self._callers = _indexed(path)

    def find(self, key: bytes) -> Caller | None:
        """Tell whose a key is, in a time that says nothing about the keys there are.

        The index is by the beginning of the hash: what its look-up may tell by its time is about a
        hash, which nobody can turn into a key.
        """
        wanted = digest(key)
        known, caller = self._callers.get(wanted[:_NUM_INDEX_BYTES], (b"", None))
        return caller if hmac.compare_digest(known, wanted) else None

    async def follow(self) -> None:
        """Look at the file for ever, off the event loop: it may be on a network."""
        while True:
            await anyio.sleep(_LOOK_SECONDS)
            await anyio.to_thread.run_sync(self.refresh)

    def refresh(self) -> None:
        """Read the file again if it has changed."""
        state = _state_of(self._path)
        if state == self._seen:
            return
        self._seen = state
        try:
            self._callers = _indexed(self._path)
        except KeyFileError as error:
            logger.error("key_file_refused", reason=str(error), num_keys=len(self._callers))  # noqa: TRY400 - the reason is whole
        else:
            logger.info("key_file_read", num_keys=len(self._callers))


def _indexed(path: Path) -> dict[bytes, tuple[bytes, Caller]]:
    index: dict[bytes, tuple[bytes, Caller]] = {}
    for key in read_keys(path):
        known = bytes.fromhex(key.sha256)
        index[known[:_NUM_INDEX_BYTES]] = (known, key.caller)
    return index


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino

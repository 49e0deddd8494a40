"""The folder of all resumable streams' journals, which every worker uses: names, bounds, the end.

Nobody keeps count: the folder itself says how many there are and how large. Knows no event loop.
"""

import contextlib
import re
import secrets
from pathlib import Path

from service.errors import Overloaded
from service.file_lock import is_held
from service.streams.stream_journal import unread_seconds

_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_RETRY_AFTER_SECONDS = 5.0
_SLACK_SECONDS = 2.0  # a follower says once a second that it is there


class StreamShelf:
    """Journals by their streams' ids. Ids cannot be guessed.

    max_unread_seconds: how long a stream lives without anybody who is told of it.
    """

    def __init__(
        self, folder: Path, *, resume_seconds: float, max_streams: int, max_bytes: int
    ) -> None:
        """resume_seconds: how long a journal is kept for a client that left."""
        self.max_unread_seconds = resume_seconds + _SLACK_SECONDS
        self._folder = folder
        self._max_streams = max_streams
        self._max_bytes = max_bytes
        self._have_folder()

    def new_path(self) -> Path:
        """Choose where the next journal goes.

        Raises:
            Overloaded: there are too many, or they are too large together.
        """
        self._have_folder()
        sizes: list[int] = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        if len(sizes) >= self._max_streams or sum(sizes) >= self._max_bytes:
            raise Overloaded(_RETRY_AFTER_SECONDS)
        return self._folder / secrets.token_hex(16)

    def path_of(self, stream_id: str) -> Path | None:
        """Say where a stream's journal would be; None for what is no id."""
        return self._folder / stream_id if _ID.fullmatch(stream_id) else None

    def is_abandoned(self, path: Path) -> bool:
        """Tell whether its client is away for longer than it may."""
        try:
            return unread_seconds(path) > self.max_unread_seconds
        except FileNotFoundError:
            return True

    def sweep(self) -> None:
        """Take away what nobody came back for; what is still written its owner ends itself."""
        self._have_folder()
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if self.is_abandoned(path) and not is_held(path):
                    path.unlink(missing_ok=True)

    def _have_folder(self) -> None:
        # Who tidies up temporary files takes an empty folder away.
        self._folder.mkdir(mode=0o700, exist_ok=True)

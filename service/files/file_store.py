"""Files that clients upload once and name by id; the work itself is done in threads."""

import functools
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import anyio
import anyio.to_thread
import structlog

from service.errors import NotFound
from service.files.file_settings import FileSettings
from service.files.file_shelf import Draft, FileShelf, Label, StoredFile, file_not_found

_SWEEP_SECONDS = 60.0
_MAX_THREADS = 4

Found = TypeVar("Found")

logger = structlog.get_logger()


class Upload:
    """A file on its way to the disk."""

    def __init__(self, store: "FileStore", draft: Draft) -> None:
        self._store = store
        self._draft = draft

    async def write(self, content: bytes) -> None:
        """Add to the file; raises as Draft.write does."""
        await self._store.run(self._draft.write, content)

    async def keep(self, label: Label) -> StoredFile:
        """Make the file appear; raises as Draft.keep does."""
        return await self._store.run(self._store.shelf.keep, self._draft, label)


class FileStore:
    """The files of all tenants, as one worker sees them."""

    def __init__(self, settings: FileSettings, own_folder: Path) -> None:
        """Use the settings' folder or, where none is set, the service's own."""
        folder = Path(settings.files_folder) if settings.files_folder else own_folder
        self.shelf = FileShelf(folder, settings)
        self._threads = anyio.CapacityLimiter(_MAX_THREADS)

    @asynccontextmanager
    async def receive(self, tenant: str, announced_bytes: int) -> AsyncGenerator[Upload, None]:
        """Take a file in; what is not kept inside the block is discarded at its end.

        Raises:
            TooLarge, StorageFull: as FileShelf.begin does.
        """
        draft = await self.run(self.shelf.begin, tenant, announced_bytes)
        try:
            yield Upload(self, draft)
        finally:
            with anyio.CancelScope(shield=True):
                await self.run(draft.close)

    async def files(self, tenant: str) -> list[StoredFile]:
        """Tell a tenant's files, the newest first."""
        return await self.run(self.shelf.files, tenant)

    async def about(self, tenant: str, file_id: str) -> StoredFile:
        """Tell what is known of a file; NotFound `file_not_found`."""
        return await self.run(self.shelf.about, tenant, file_id)

    async def open(self, tenant: str, file_id: str) -> tuple[StoredFile, BinaryIO]:
        """Open a file's bytes; NotFound `file_not_found`."""
        return await self.run(self.shelf.open, tenant, file_id)

    async def delete(self, tenant: str, file_id: str) -> None:
        """Remove a file; NotFound `file_not_found`."""
        await self.run(self.shelf.delete, tenant, file_id)

    async def read(self, file_id: str, owner: str, param: str) -> bytes:
        """Read a file of this owner's whole; NotFound `file_not_found` names param."""

        def read() -> bytes:
            _, content = self.shelf.open(owner, file_id)
            with content:
                return content.read()

        try:
            return await self.run(read)
        except NotFound:
            raise file_not_found(param) from None

    async def keep_swept(self) -> None:
        """Remove what has expired, at once and again and again, until cancelled."""
        while True:
            try:
                await self.run(self.shelf.sweep)
            except OSError as error:
                # The folder may be full, gone or another's for a while; other requests go on.
                logger.warning("Files cannot be swept", reason=error.strerror)
            await anyio.sleep(_SWEEP_SECONDS)

    async def run(self, work: Callable[..., Found], *arguments: object) -> Found:
        """Do blocking work of this store's in one of its threads."""
        return await anyio.to_thread.run_sync(
            functools.partial(work, *arguments), limiter=self._threads
        )

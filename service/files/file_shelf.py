"""Uploaded files on disk, shared by all web workers; blocking, so never on an event loop.

A file is a folder of two: its bytes, and what is known of it. One rename makes it appear and one
makes it vanish; the disk is the only truth. While a file arrives, its draft has the full length
that is set aside for it, so that the sum of lengths is what may still come, and a lock that ends
with its worker, so that a draft nobody writes is known.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from service.errors import NotFound, RequestInvalid, StorageFull, TooLarge
from service.file_lock import is_held
from service.files.file_settings import FileSettings
from service.full_disk import full_disk_told
from service.media.container import MediaKind, kind_of

_FILE_ID = re.compile(r"file-[0-9a-f]{32}", re.ASCII)
_DRAFT, _GONE = "draft-", "gone-"
_CONTENT, _ABOUT = "content", "about.json"

_encoder = msgspec.json.Encoder()


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a file. Times are seconds since 1970; filename is for show alone."""

    id: str
    num_bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    kind: MediaKind


class Label(NamedTuple):
    """What an upload says of its file; expiry_seconds: None leaves it to the settings."""

    filename: str
    purpose: str
    expiry_seconds: int | None = None


class _Usage(NamedTuple):
    num_files: int
    num_bytes: int


_decoder = msgspec.json.Decoder(StoredFile)


class Draft:
    """A file that arrives; kept or discarded by whoever began it."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Make the folder and set max_bytes aside."""
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700)
        self._folder = folder
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kind: MediaKind | None = None
        self._descriptor = os.open(folder / _CONTENT, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, max_bytes)
        except OSError:
            self.close()
            raise

    def write(self, content: bytes) -> None:
        """Add to the file; the first piece must be long enough to tell what it is.

        Raises:
            RequestInvalid: `file_type_unsupported`.
            TooLarge: `file_too_large`.
            StorageFull: the disk is.
        """
        if not self._num_bytes:
            self._kind = kind_of(content)
            if self._kind is None:
                raise RequestInvalid(
                    "file_type_unsupported",
                    "The file is no image, PDF or video that this service reads.",
                    param="file",
                )
        if self._num_bytes + len(content) > self._max_bytes:
            raise TooLarge(
                "file_too_large", f"A file may have {self._max_bytes} bytes.", param="file"
            )
        self._num_bytes += len(content)
        rest = memoryview(content)
        with full_disk_told():
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def keep(self, label: Label, now: int, expiry_seconds: int) -> StoredFile:
        """Make the file appear, whole and under a new id.

        Raises:
            RequestInvalid: `file_empty`.
            StorageFull: the disk is.
        """
        if self._kind is None:
            raise RequestInvalid("file_empty", "The file has no bytes.", param="file")
        stored = StoredFile(
            id=f"file-{secrets.token_hex(16)}",
            num_bytes=self._num_bytes,
            created_at=now,
            expires_at=now + expiry_seconds,
            filename=label.filename,
            purpose=label.purpose,
            kind=self._kind,
        )
        with full_disk_told():
            os.ftruncate(self._descriptor, self._num_bytes)
            (self._folder / _ABOUT).write_bytes(_encoder.encode(stored))
            self._folder.rename(self._folder.with_name(stored.id))
        return stored

    def close(self) -> None:
        """Discard what was not kept; may be called more than once."""
        if self._descriptor >= 0:
            shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._descriptor)
            self._descriptor = -1


class FileShelf:
    """The folder of all files: a folder for each tenant, and what each may fill."""

    def __init__(self, folder: Path, settings: FileSettings) -> None:
        self._folder = folder
        self._settings = settings

    def begin(self, tenant: str, announced_bytes: int) -> Draft:
        """Set room aside for a file; announced_bytes: at most what it will have, 0 if unknown.

        Raises:
            TooLarge: `file_quota_exceeded`: the tenant's files leave no room.
            StorageFull: all tenants' files together do not, or the disk is full.
        """
        settings = self._settings
        num_bytes = min(announced_bytes or settings.max_file_bytes, settings.max_file_bytes)
        folder = self._folder_of(tenant)
        with full_disk_told(), self._alone():
            self._sweep()
            own = _usage(folder)
            if (
                own.num_files >= settings.max_tenant_files
                or own.num_bytes + num_bytes > settings.max_tenant_file_bytes
            ):
                raise TooLarge(
                    "file_quota_exceeded",
                    f"You may keep {settings.max_tenant_files} files of "
                    f"{settings.max_tenant_file_bytes} bytes together.",
                )
            used = sum(_usage(each).num_bytes for each in _folders(self._folder))
            if used + num_bytes > settings.max_all_file_bytes:
                raise StorageFull
            return Draft(folder / (_DRAFT + secrets.token_hex(16)), num_bytes)

    def keep(self, draft: Draft, label: Label) -> StoredFile:
        """Make a draft a file; raises as Draft.keep does."""
        seconds = label.expiry_seconds or self._settings.file_expiry_seconds
        # Alone, because who adds lengths up under way would find it at neither name.
        with self._alone():
            return draft.keep(label, int(time.time()), seconds)

    def files(self, tenant: str) -> list[StoredFile]:
        """Tell a tenant's files, the newest first."""
        found = [self._about(folder) for folder in _folders(self._folder_of(tenant))]
        living = [stored for stored in found if stored is not None]
        return sorted(living, key=lambda stored: (stored.created_at, stored.id), reverse=True)

    def about(self, tenant: str, file_id: str) -> StoredFile:
        """Tell what is known of a file.

        Raises:
            NotFound: `file_not_found`: there is none, or it is another tenant's, or has expired.
        """
        stored = self._about(self._folder_of_file(tenant, file_id))
        if stored is None:
            raise file_not_found()
        return stored

    def open(self, tenant: str, file_id: str) -> tuple[StoredFile, BinaryIO]:
        """Open a file's bytes; they can be read even if it is deleted meanwhile.

        Raises:
            NotFound: as in about.
        """
        stored = self.about(tenant, file_id)
        try:
            content = (self._folder_of_file(tenant, file_id) / _CONTENT).open("rb")
        except FileNotFoundError:
            raise file_not_found() from None
        return stored, content

    def delete(self, tenant: str, file_id: str) -> None:
        """Remove a file.

        Raises:
            NotFound: as in about.
        """
        self.about(tenant, file_id)
        if not _remove(self._folder_of_file(tenant, file_id)):
            raise file_not_found()

    def sweep(self) -> None:
        """Remove what has expired and what dead workers left."""
        if self._folder.exists():
            with self._alone():
                self._sweep()

    def _sweep(self) -> None:
        for tenant in _folders(self._folder):
            for folder in _folders(tenant):
                if folder.name.startswith(_DRAFT):
                    if _is_abandoned(folder / _CONTENT):
                        shutil.rmtree(folder, ignore_errors=True)
                elif folder.name.startswith(_GONE):
                    shutil.rmtree(folder, ignore_errors=True)
                elif self._about(folder) is None:
                    _remove(folder)
            with contextlib.suppress(OSError):  # not empty
                tenant.rmdir()

    def _about(self, folder: Path) -> StoredFile | None:
        if not _FILE_ID.fullmatch(folder.name):
            return None
        try:
            stored = _decoder.decode((folder / _ABOUT).read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return stored if stored.expires_at > time.time() else None

    def _folder_of(self, tenant: str) -> Path:
        # A tenant's name is the operator's and may hold anything.
        return self._folder / hashlib.sha256(tenant.encode()).hexdigest()[:32]

    def _folder_of_file(self, tenant: str, file_id: str) -> Path:
        if not _FILE_ID.fullmatch(file_id):
            raise file_not_found()
        return self._folder_of(tenant) / file_id

    @contextlib.contextmanager
    def _alone(self) -> Generator[None]:
        """Keep every other worker from beginning, keeping and sweeping."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def file_not_found(param: str | None = None) -> NotFound:
    """Make the one answer to an id that names no file of the caller's."""
    return NotFound("file_not_found", "There is no file of this id.", param=param)


def _folders(folder: Path) -> Iterator[Path]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield Path(entry.path)


def _usage(tenant: Path) -> _Usage:
    num_files = num_bytes = 0
    for folder in _folders(tenant):
        with contextlib.suppress(FileNotFoundError):  # deleted under way
            num_bytes += (folder / _CONTENT).stat().st_size
            num_files += 1
    return _Usage(num_files, num_bytes)


def _is_abandoned(content: Path) -> bool:
    """Whether nobody holds a draft's lock any more: its worker has died."""
    try:
        return not is_held(content)
    except FileNotFoundError:
        return True


def _remove(folder: Path) -> bool:
    """Make a file vanish at once, then free its room; False if another did."""
    gone = folder.with_name(_GONE + secrets.token_hex(16))
    try:
        folder.rename(gone)
    except FileNotFoundError:
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True

"""One resumable stream as a file: what it was asked, what the engine gave, what the client is told.

One process at a time owns a journal, by a lock that ends with the process, and appends to it; any
number follow it. Records are whole or not there: what an owner did not finish writing, the next one
cuts off. Before them is when somebody was last there to be told.

Times are of `time.monotonic()`: on Linux it is one clock for all processes, which no change of the
time of day moves; it begins anew with the machine, which no journal outlives. A file's own times
would be of the time of day, and every read may change them. Knows no HTTP and no event loop.
"""

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import msgspec

from inference.protocol import Delta, Generate
from service.text.prompt import Prompt

_ATTENDED_AT = struct.Struct(">d")
_HEADER = struct.Struct(">BI")


class StreamLabel(msgspec.Struct, frozen=True, kw_only=True):
    """Whose stream it is, and since when, in seconds of the monotonic clock."""

    tenant: str
    begun_at: float


class StreamRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What another process needs to go on: the request as it came, and as the engine got it.

    headers: without those that prove who the caller is.
    """

    path: str
    query_string: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    request_id: str
    prompt: Prompt
    generate: Generate


class _Kind(IntEnum):
    LABEL = 1
    REQUEST = 2
    DELTA = 3
    EVENT = 4
    ADOPTED = 5
    END = 6


class _Record(NamedTuple):
    """Where a record's payload is in the file."""

    kind: int
    start: int
    end: int


class Kept(msgspec.Struct, kw_only=True):
    """What the owners before this one left.

    num_events: what the client was told, or was about to be. num_adoptions: owners after the first.
    """

    label: StreamLabel
    request: StreamRequest
    deltas: list[Delta] = []
    num_events: int = 0
    num_adoptions: int = 0
    has_ended: bool = False

    def rest(self, request_id: str) -> Generate | None:
        """Make the request for what is still to come; None when the engine had finished."""
        generate = self.request.generate
        unfinished: dict[int, list[int]] = {index: [] for index in range(generate.num_sequences)}
        for delta in self.deltas:
            unfinished[delta.index].extend(delta.token_ids)
            if delta.finish is not None:
                del unfinished[delta.index]
        if not unfinished:
            return None
        seconds = generate.deadline_seconds
        if seconds is not None:
            seconds = max(0.0, seconds - (time.monotonic() - self.label.begun_at))
        return msgspec.structs.replace(
            generate,
            request_id=request_id,
            num_sequences=len(unfinished),
            sequence_indices=list(unfinished),
            output_prefixes=list(unfinished.values()),
            deadline_seconds=seconds,
            is_replay=True,
        )


class OwnedJournal:
    """A journal that this process appends to, until it is closed."""

    def __init__(self, path: Path, file: int) -> None:
        """file: of this path, locked, and at the place where the next record goes."""
        self.path = path
        self._file = file

    @property
    def unread_seconds(self) -> float:
        """Measure how long nobody has been there to be told."""
        return _unread_seconds(self._file)

    @classmethod
    def create(cls, path: Path, label: StreamLabel, request: StreamRequest) -> "OwnedJournal":
        """Begin a journal; blocks for as long as writing the pictures takes."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode=0o600)
        journal = cls(path, file)
        with ExitStack() as undone:
            undone.callback(journal.discard)
            fcntl.flock(file, fcntl.LOCK_EX)
            _attend(file)
            os.lseek(file, _ATTENDED_AT.size, os.SEEK_SET)
            journal._append(_Kind.LABEL, msgspec.msgpack.encode(label))
            journal._append(_Kind.REQUEST, msgspec.msgpack.encode(request))
            undone.pop_all()
        return journal

    @classmethod
    def adopt(cls, path: Path) -> "tuple[OwnedJournal, Kept] | None":
        """Become a journal's owner and read it; None while another is, or where nothing is to do.

        Blocks for as long as reading the pictures takes.

        Raises:
            OSError: it cannot be read, or there is no room to go on; it has no owner then.
        """
        try:
            file = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return None
        journal = cls(path, file)
        with ExitStack() as undone:
            undone.callback(journal.close)  # or its lock would keep everybody else away
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                kept, num_bytes = _read(file)
            except (BlockingIOError, msgspec.DecodeError):
                return None
            if kept is None or kept.has_ended or is_gone(file):
                return None
            os.ftruncate(file, num_bytes)
            os.lseek(file, num_bytes, os.SEEK_SET)
            journal._append(_Kind.ADOPTED, b"")
            undone.pop_all()
        return journal, kept

    def add_delta(self, delta: Delta) -> None:
        """Keep what the engine gave."""
        self._append(_Kind.DELTA, msgspec.msgpack.encode(delta))

    def add_event(self, event: bytes) -> None:
        """Keep what the client is to be told, before it is."""
        self._append(_Kind.EVENT, event)

    def end(self) -> None:
        """Note that no more events come."""
        self._append(_Kind.END, b"")

    def close(self) -> None:
        """Leave the journal to others."""
        file, self._file = self._file, -1  # its number is soon another file's
        os.close(file)

    def discard(self) -> None:
        """Take the journal away and close it."""
        self.path.unlink(missing_ok=True)
        self.close()

    def _append(self, kind: _Kind, payload: bytes) -> None:
        record = memoryview(_HEADER.pack(kind, len(payload)) + payload)
        start = os.lseek(self._file, 0, os.SEEK_CUR)
        try:
            while record:
                record = record[os.write(self._file, record) :]
        except OSError:
            # A full disk takes a part; the next record, if there is room again, takes its place.
            os.ftruncate(self._file, start)
            os.lseek(self._file, start, os.SEEK_SET)
            raise


class JournalReader:
    """A journal as a follower sees it, from its first event on.

    has_ended: no event follows those that were read.
    """

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            FileNotFoundError: there is none.
        """
        self._file = os.open(path, os.O_RDWR)
        self._offset = _ATTENDED_AT.size
        self.has_ended = False

    @property
    def is_gone(self) -> bool:
        """Tell whether it was taken away, so that nothing will come."""
        return is_gone(self._file)

    @property
    def tenant(self) -> str | None:
        """Whose stream it is; None when its owner did not come so far."""
        first = next(_records(self._file, _ATTENDED_AT.size), None)
        if first is None:
            return None
        return msgspec.msgpack.decode(_payload(self._file, first), type=StreamLabel).tenant

    def events(self) -> list[bytes]:
        """Read the events that came since the last look."""
        events: list[bytes] = []
        for record in _records(self._file, self._offset):
            if record.kind == _Kind.EVENT:
                events.append(_payload(self._file, record))
            elif record.kind == _Kind.END:
                self.has_ended = True
            self._offset = record.end
        return events

    def touch(self) -> None:
        """Note that somebody is there to be told; `unread_seconds` counts from here."""
        _attend(self._file)

    def close(self) -> None:
        """Stop following."""
        os.close(self._file)


def unread_seconds(path: Path) -> float:
    """Measure how long nobody has been there to be told.

    Raises:
        FileNotFoundError: there is no such journal.
    """
    file = os.open(path, os.O_RDWR)
    try:
        return _unread_seconds(file)
    finally:
        os.close(file)


def is_gone(file: int) -> bool:
    """Tell whether an open file has no name any more."""
    return os.fstat(file).st_nlink == 0


def _attend(file: int) -> None:
    os.pwrite(file, _ATTENDED_AT.pack(time.monotonic()), 0)


def _unread_seconds(file: int) -> float:
    said = os.pread(file, _ATTENDED_AT.size, 0)
    if len(said) < _ATTENDED_AT.size:
        # Its owner is about to say it, or died before: whoever finds it says it instead, so that
        # the one is not swept and the other is.
        _attend(file)
        return 0.0
    return time.monotonic() - _ATTENDED_AT.unpack(said)[0]


def _read(file: int) -> tuple[Kept | None, int]:
    """Read all that is whole, and where it ends."""
    records = list(_records(file, _ATTENDED_AT.size))
    if [record.kind for record in records[:2]] != [_Kind.LABEL, _Kind.REQUEST]:
        return None, 0
    label, request, *rest = records
    kept = Kept(
        label=msgspec.msgpack.decode(_payload(file, label), type=StreamLabel),
        request=msgspec.msgpack.decode(_payload(file, request), type=StreamRequest),
    )
    for record in rest:
        if record.kind == _Kind.DELTA:
            kept.deltas.append(msgspec.msgpack.decode(_payload(file, record), type=Delta))
        kept.num_events += record.kind == _Kind.EVENT
        kept.num_adoptions += record.kind == _Kind.ADOPTED
        kept.has_ended = kept.has_ended or record.kind == _Kind.END
    return kept, records[-1].end


def _records(file: int, offset: int) -> Iterator[_Record]:
    """Find the whole records from an offset on; what is just being written is not."""
    size = os.fstat(file).st_size
    while offset + _HEADER.size <= size:
        kind, num_bytes = _HEADER.unpack(os.pread(file, _HEADER.size, offset))
        start, offset = offset + _HEADER.size, offset + _HEADER.size + num_bytes
        if offset > size:
            return
        yield _Record(kind, start, offset)


def _payload(file: int, record: _Record) -> bytes:
    return os.pread(file, record.end - record.start, record.start)

"""Reads HTML forms: multipart/form-data as it arrives, and application/x-www-form-urlencoded.

Part headers beyond the field's name are ignored, and so are file names but for one field's whose
content is not held: nothing is stored under them.
"""

from typing import NoReturn
from urllib.parse import unquote_to_bytes

from litestar.types import Receive, Scope
from multipart import (  # pyright: ignore[reportMissingTypeStubs] - annotated, but unmarked
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
)

from service.aside import aside
from service.errors import FieldInvalid, RequestInvalid, TooLarge
from service.http.body import MAX_BYTES_ON_LOOP, MediaType, Pieces, Sink, read_body

_MAX_PARTS = 256
_MAX_HEADERS_PER_PART = 16
_MAX_HEADER_BYTES = 32 * 1024  # long file names are legal, and ignored
_MAX_TEXT_FIELDS = 256
_PIECE_BYTES = 64 * 1024


class Form:
    """What a form held, in order of arrival.

    fields: the values of every text field. files: the contents of every file field.
    """

    def __init__(self) -> None:
        self.fields: dict[str, list[str]] = {}
        self.files: dict[str, list[bytes]] = {}

    def value(self, name: str) -> str | None:
        """Return the one value of a text field; a blank input of a page counts as absent.

        Raises:
            FieldInvalid: the field was sent more than once.
        """
        values = self.values(name)
        if len(values) > 1:
            raise FieldInvalid("field_repeated", "Send this field only once.", param=name)
        return values[0] if values else None

    def values(self, name: str) -> list[str]:
        """Return the values of a text field that are not blank."""
        return [value for value in self.fields.get(name, []) if value]


class FileStream:
    """The one file of a field, handed on as it arrives instead of being held.

    filename: as the client gave it, once the file has begun.
    """

    def __init__(self, field: str) -> None:
        self.field = field
        self.filename: str | None = None
        self.arrived = bytearray()

    def begin(self, filename: str) -> bytearray:
        """Tell where the file's bytes go.

        Raises:
            FieldInvalid: the field was sent before.
        """
        if self.filename is not None:
            raise FieldInvalid("field_repeated", "Send this field only once.", param=self.field)
        self.filename = filename
        return self.arrived

    def take(self) -> bytes:
        """Return what has arrived since the last call."""
        taken = bytes(self.arrived)
        self.arrived.clear()
        return taken


class MultipartReader:
    """Parses multipart/form-data chunk by chunk.

    Every fault is RequestInvalid `multipart_invalid`; too many parts or part headers are TooLarge.
    """

    def __init__(self, media_type: MediaType, stream: FileStream | None = None) -> None:
        """Begin a form; the file of stream's field goes there, not into the form."""
        self._form = Form()
        self._stream = stream
        self._segment: MultipartSegment | None = None
        self._content = Pieces()
        self._take: Sink = self._content.append
        self._files: list[tuple[str, Pieces]] = []
        try:
            self._parser = PushMultipartParser(
                media_type.boundary or "",
                max_header_size=_MAX_HEADER_BYTES,
                max_header_count=_MAX_HEADERS_PER_PART,
                max_segment_count=_MAX_PARTS,
            )
        except (MultipartError, UnicodeError) as error:
            _refuse(error)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        if not chunk:
            return  # the parser would take it for the end
        try:
            for event in self._parser.parse(chunk):
                if isinstance(event, MultipartSegment):
                    self._begin_part(event)
                elif event is None:
                    self._end_part()
                else:
                    self._take(event)
        except MultipartError as error:
            _refuse(error)

    def finish(self) -> Form:
        """Return the form once the whole body was fed; a millisecond for 2 MB."""
        try:
            self._parser.close()
        except MultipartError as error:
            _refuse(error)
        for name, content in self._files:
            self._form.files.setdefault(name, []).append(content.join())
        return self._form

    def _begin_part(self, segment: MultipartSegment) -> None:
        self._segment, self._content = segment, Pieces()
        self._take = self._content.append
        stream = self._stream
        if stream is not None and segment.name == stream.field and segment.filename:
            self._take = stream.begin(segment.filename).extend

    def _end_part(self) -> None:
        segment, content = self._segment, self._content
        if segment is None or not segment.name:
            raise _multipart_invalid()
        if segment.filename is None:
            self._form.fields.setdefault(segment.name, []).append(_text(content.join()))
        elif not segment.filename:
            if content.num_bytes:
                raise _multipart_invalid()
        elif self._stream is None or segment.name != self._stream.field:
            self._files.append((segment.name, content))
        # A file input that nobody touched has neither a name nor content: it is absent.


async def read_multipart(
    scope: Scope, receive: Receive, max_bytes: int, media_type: MediaType
) -> Form:
    """Read a form that is multipart/form-data.

    Raises:
        RequestInvalid, TooLarge: as MultipartReader, and more than max_bytes.
        ClientGone: the connection closed first.
    """
    reader = MultipartReader(media_type)
    num_bytes = await read_body(scope, receive, max_bytes, reader.feed)
    return reader.finish() if num_bytes <= MAX_BYTES_ON_LOOP else await aside(reader.finish)


def read_urlencoded(body: bytes | bytearray) -> Form:
    """Read application/x-www-form-urlencoded.

    Raises:
        RequestInvalid: not such a form.
    """
    form = Form()
    pairs = bytes(body).split(b"&", _MAX_TEXT_FIELDS)
    if len(pairs) > _MAX_TEXT_FIELDS or not body.isascii():
        raise _form_invalid()
    for name, _, value in (pair.partition(b"=") for pair in pairs if pair):
        form.fields.setdefault(_unescaped(name), []).append(_unescaped(value))
    return form


def _unescaped(escaped: bytes) -> str:
    """Read a name or a value, piece by piece: escapes take fifty times their size meanwhile."""
    escaped = escaped.replace(b"+", b" ")
    pieces: list[bytes] = []
    start = 0
    while start < len(escaped):
        end = start + _PIECE_BYTES
        cut_escape = escaped.find(b"%", end - 2, end)
        if cut_escape >= 0 and end < len(escaped):
            end = cut_escape
        pieces.append(unquote_to_bytes(escaped[start:end]))
        start = end
    try:
        return b"".join(pieces).decode("utf-8")
    except UnicodeDecodeError:
        raise _form_invalid() from None


def _form_invalid() -> RequestInvalid:
    return RequestInvalid("form_invalid", "The body is not a valid form in UTF-8.")


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise _multipart_invalid() from None


def _refuse(error: Exception) -> NoReturn:
    if isinstance(error, ParserLimitReached):
        raise TooLarge(
            "multipart_too_many_parts",
            f"A form may have {_MAX_PARTS} parts, and a part {_MAX_HEADERS_PER_PART} headers of "
            f"{_MAX_HEADER_BYTES} bytes.",
        ) from None
    raise _multipart_invalid() from None


def _multipart_invalid() -> RequestInvalid:
    return RequestInvalid("multipart_invalid", "The body is not valid multipart/form-data.")

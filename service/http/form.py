"""Reads HTML forms: multipart/form-data as it arrives, and application/x-www-form-urlencoded.

Part headers beyond the field's name are ignored, and so are file names but for one field's whose
content is not held: nothing is stored under them.
"""

from typing import NoReturn
from urllib.parse import unquote_to_bytes

from multipart import (  # pyright: ignore[reportMissingTypeStubs] - annotated, but unmarked
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
)

from service.errors import FieldInvalid, RequestInvalid, TooLarge
from service.http.body import MediaType

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
        self._content = bytearray()
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
                    self._segment = event
                    self._content = self._destination(event)
                elif event is None:
                    self._end_part()
                else:
                    self._content += event
        except MultipartError as error:
            _refuse(error)

    def finish(self) -> Form:
        """Return the form once the whole body was fed."""
        try:
            self._parser.close()
        except MultipartError as error:
            _refuse(error)
        return self._form

    def _destination(self, segment: MultipartSegment) -> bytearray:
        stream = self._stream
        if stream is not None and segment.name == stream.field and segment.filename:
            return stream.begin(segment.filename)
        return bytearray()

    def _end_part(self) -> None:
        segment = self._segment
        if segment is None or not segment.name:
            raise _multipart_invalid()
        if self._stream is not None and self._content is self._stream.arrived:
            return
        content = bytes(self._content)
        self._content.clear()
        if segment.filename is None:
            self._form.fields.setdefault(segment.name, []).append(_text(content))
        elif segment.filename:
            self._form.files.setdefault(segment.name, []).append(content)
        elif content:
            raise _multipart_invalid()
        # A file input that nobody touched has neither a name nor content: it is absent.


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
            "multipart_too_many_parts", "The form has too many parts, or a part too many headers."
        ) from None
    raise _multipart_invalid() from None


def _multipart_invalid() -> RequestInvalid:
    return RequestInvalid("multipart_invalid", "The body is not valid multipart/form-data.")

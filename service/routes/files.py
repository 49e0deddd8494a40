"""Uploaded files: `POST`, `GET` and `DELETE` under `/v1/files`, as the OpenAI API has them."""

import re
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import quote

import anyio.to_thread
import msgspec
from litestar import Request, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp, Receive, Scope, Send
from litestar.types.asgi_types import HTTPReceiveMessage, WebSocketReceiveMessage

from service.config import Settings
from service.errors import FieldInvalid, MediaTypeUnsupported, RequestInvalid
from service.files.file_shelf import Label, StoredFile
from service.files.file_store import FileStore, Upload
from service.http.attendance import Attendance
from service.http.body import announced_bytes, media_type, read_body
from service.http.deadline import Deadline
from service.http.form import FileStream, Form, MultipartReader
from service.http.validation import convert_form
from service.request_log import record_of
from service.routes.files_schema import (
    FileDeleted,
    FileList,
    FileObject,
    ListQuery,
    UploadFields,
)

AnyRequest: TypeAlias = Request[Any, Any, Any]

_FILE_FIELD = "file"
_MAX_FORM_BYTES = 64 * 1024  # what a form has beside its file
_WRITE_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024
_MAX_NAME_CHARS = 200

_encoder = msgspec.json.Encoder()


class FileRoutes:
    """The handlers, bound to the files they are about."""

    def __init__(self, store: FileStore, settings: Settings) -> None:
        self._store = store
        self._settings = settings

    def handlers(self) -> list[HTTPRouteHandler]:
        """Make the handlers to register."""
        return [
            post("/v1/files", status_code=200)(self.upload),
            get("/v1/files")(self.files),
            get("/v1/files/{file_id:str}")(self.about),
            get("/v1/files/{file_id:str}/content")(self.download),
            delete("/v1/files/{file_id:str}", status_code=200)(self.delete),
        ]

    async def upload(self, request: AnyRequest) -> ASGIResponse:
        """Take a file in, from the connection to the disk."""
        scope = request.scope
        if media_type(scope).name != "multipart/form-data":
            raise MediaTypeUnsupported("media_type_unsupported", "Send multipart/form-data.")
        deadline = Deadline(scope, self._settings.request_timeout_seconds)
        with Attendance(request.receive, deadline):
            async with self._store.receive(_tenant(request), announced_bytes(scope)) as upload:
                label = await self._read_form(scope, request.receive, upload)
                stored = await upload.keep(label)
        record_of(scope).facts["num_bytes"] = stored.num_bytes
        return _reply(_object(stored))

    async def files(self, request: AnyRequest) -> ASGIResponse:
        """List files."""
        query = convert_form(dict(request.query_params), ListQuery)
        files = await self._store.files(_tenant(request))
        return _reply(_piece(files, query))

    async def about(self, request: AnyRequest, file_id: FromPath[str]) -> ASGIResponse:
        """Describe a file."""
        return _reply(_object(await self._store.about(_tenant(request), file_id)))

    async def download(self, request: AnyRequest, file_id: FromPath[str]) -> ASGIApp:
        """Give a file's bytes back."""
        return _Download(*await self._store.open(_tenant(request), file_id))

    async def delete(self, request: AnyRequest, file_id: FromPath[str]) -> ASGIResponse:
        """Remove a file."""
        await self._store.delete(_tenant(request), file_id)
        return _reply(FileDeleted(id=file_id))

    async def _read_form(self, scope: Scope, receive: Receive, upload: Upload) -> Label:
        stream = FileStream(_FILE_FIELD)
        reader = MultipartReader(media_type(scope), stream)

        async def receive_when_written() -> HTTPReceiveMessage | WebSocketReceiveMessage:
            # The connection waits for the disk, so that a file never piles up in memory.
            if len(stream.arrived) >= _WRITE_BYTES:
                await upload.write(stream.take())
            return await receive()

        max_bytes = self._settings.files.max_file_bytes + _MAX_FORM_BYTES
        await read_body(scope, receive_when_written, max_bytes, reader.feed)
        label = self._label(reader.finish(), stream.filename)
        if stream.arrived:
            await upload.write(stream.take())
        return label

    def _label(self, form: Form, filename: str | None) -> Label:
        if filename is None:
            if _FILE_FIELD in form.fields:
                raise RequestInvalid(
                    "multipart_invalid", "The file must have a name.", param=_FILE_FIELD
                )
            raise FieldInvalid("field_missing", "Send a file.", param=_FILE_FIELD)
        if form.files:
            raise FieldInvalid("field_unknown", "Files are taken in the field `file` only.")
        values = {name: form.value(name) for name in form.fields}
        fields = convert_form(
            {name: value for name, value in values.items() if value is not None}, UploadFields
        )
        if fields.anchor is not None and fields.seconds is None:
            raise FieldInvalid(
                "field_missing", "Say how long to keep it.", param="expires_after[seconds]"
            )
        max_seconds = self._settings.files.max_file_expiry_seconds
        if fields.seconds is not None and fields.seconds > max_seconds:
            raise FieldInvalid(
                "value_out_of_range",
                f"A file may be kept for {max_seconds} seconds.",
                param="expires_after[seconds]",
            )
        return Label(shown_name(filename), fields.purpose, fields.seconds)


class _Download:
    """Sends an open file, piece by piece."""

    def __init__(self, stored: StoredFile, content: BinaryIO) -> None:
        self._stored = stored
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = quote(self._stored.filename, safe="")
        headers = {
            "content-type": "application/octet-stream",
            "content-length": str(self._stored.num_bytes),
            "content-disposition": f"attachment; filename*=UTF-8''{name}",
            "x-content-type-options": "nosniff",
        }
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        with self._content:
            await send({"type": "http.response.start", "status": 200, "headers": encoded})
            while piece := await anyio.to_thread.run_sync(self._content.read, _READ_BYTES):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def shown_name(filename: str) -> str:
    """Make of a client's file name what may be shown: its last part, printable and short."""
    name = "".join(letter for letter in re.split(r"[/\\]", filename)[-1] if letter.isprintable())
    return name[:_MAX_NAME_CHARS].strip() or "file"


def _piece(files: list[StoredFile], query: ListQuery) -> FileList:
    if query.purpose is not None:
        files = [stored for stored in files if stored.purpose == query.purpose]
    if query.order == "asc":
        files = files[::-1]
    if query.after is not None:
        places = [place for place, stored in enumerate(files) if stored.id == query.after]
        files = files[places[0] + 1 :] if places else []
    piece = [_object(stored) for stored in files[: query.limit]]
    return FileList(
        data=piece,
        first_id=piece[0].id if piece else None,
        last_id=piece[-1].id if piece else None,
        has_more=len(files) > len(piece),
    )


def _object(stored: StoredFile) -> FileObject:
    return FileObject(
        id=stored.id,
        bytes=stored.num_bytes,
        created_at=stored.created_at,
        expires_at=stored.expires_at,
        filename=stored.filename,
        purpose=stored.purpose,
    )


def _tenant(request: AnyRequest) -> str:
    return record_of(request.scope).caller.tenant


def _reply(body: msgspec.Struct) -> ASGIResponse:
    return ASGIResponse(body=_encoder.encode(body), media_type="application/json")

"""The JSON and the form of the paths under /v1/files, as the OpenAI API has them."""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from service.files.file_settings import MIN_EXPIRY_SECONDS

Purpose: TypeAlias = Literal["assistants", "user_data", "vision"]


class UploadFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of an upload beside the file itself."""

    purpose: Annotated[
        Purpose, Meta(description="What the file is for; makes no difference to its use here.")
    ]
    anchor: Annotated[
        Literal["created_at"] | None, Meta(description="From when the file's time counts.")
    ] = msgspec.field(name="expires_after[anchor]", default=None)
    seconds: Annotated[
        Annotated[int, Meta(ge=MIN_EXPIRY_SECONDS)] | None,
        Meta(description="How long to keep the file; the server has an upper bound."),
    ] = msgspec.field(name="expires_after[seconds]", default=None)


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """An uploaded file. Times are seconds since 1970."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileList(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the list of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """A file is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class ListQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which files to list. after: the id of the last file of the piece before."""

    purpose: str | None = None
    order: Literal["asc", "desc"] = "desc"
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 10_000
    after: str | None = None

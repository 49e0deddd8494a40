"""What the API document says of the paths under /v1/files."""

from service.http.error_reply import PROBLEM_MEDIA_TYPE, ErrorEnvelope, Problem
from service.openapi import Content, Operation, Reply, Schema, schema_of_fields
from service.routes.files_schema import FileDeleted, FileList, FileObject, ListQuery, UploadFields

_ERROR = (Content("application/json", ErrorEnvelope), Content(PROBLEM_MEDIA_TYPE, Problem))
_FILE = (Content("application/json", FileObject),)
_NOT_FOUND = {404: Reply("There is no such file of yours, or it has expired.", _ERROR)}
_FAILURES = {500: Reply("The service failed.", _ERROR), 503: Reply("At capacity.", _ERROR)}


def _upload_form() -> Schema:
    fields = schema_of_fields(UploadFields)
    file = {"type": "string", "format": "binary", "description": "An image, PDF or video file."}
    return fields | {
        "title": "FileUpload",
        "properties": {"file": file} | fields["properties"],
        "required": ["file", *fields["required"]],
    }


FILE_OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/files",
        summary="Upload a file to name it by id",
        description="What a file is, is told by its bytes. Wherever a URL of a picture, document "
        "or video is taken, its id is as well. Files expire: after a day, unless "
        "`expires_after[anchor]=created_at` and `expires_after[seconds]` say otherwise.",
        body=(Content("multipart/form-data", _upload_form()),),
        replies={
            200: Reply("The file as it is kept.", _FILE),
            400: Reply("The form cannot be read, or the file is of no use here.", _ERROR),
            408: Reply("The body did not arrive in time.", _ERROR),
            413: Reply("The file is too large, or your files leave no room for it.", _ERROR),
            415: Reply("The body is no form.", _ERROR),
            500: Reply("The service failed.", _ERROR),
            503: Reply("At capacity, or there is no room for another file.", _ERROR),
        },
        tag="files",
    ),
    Operation(
        method="GET",
        path="/v1/files",
        summary="List your files",
        description="The newest first, unless `order` is `asc`. `after` is the id of the last file "
        "of the piece before.",
        query=ListQuery,
        replies={
            200: Reply("A piece of the list.", (Content("application/json", FileList),)),
            400: Reply("The query is malformed.", _ERROR),
        }
        | _FAILURES,
        tag="files",
    ),
    Operation(
        method="GET",
        path="/v1/files/{file_id}",
        summary="Describe a file",
        description="As after its upload.",
        replies={200: Reply("The file.", _FILE)} | _NOT_FOUND | _FAILURES,
        tag="files",
    ),
    Operation(
        method="GET",
        path="/v1/files/{file_id}/content",
        summary="Download a file",
        description="Its bytes, unchanged.",
        replies={
            200: Reply(
                "The bytes.",
                (Content("application/octet-stream", {"type": "string", "format": "binary"}),),
            )
        }
        | _NOT_FOUND
        | _FAILURES,
        tag="files",
    ),
    Operation(
        method="DELETE",
        path="/v1/files/{file_id}",
        summary="Delete a file",
        description="Requests that have begun to read it go on.",
        replies={200: Reply("It is gone.", (Content("application/json", FileDeleted),))}
        | _NOT_FOUND
        | _FAILURES,
        tag="files",
    ),
)

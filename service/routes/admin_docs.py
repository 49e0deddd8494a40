"""What the API document says of the admins' path."""

from service.http.error_reply import PROBLEM_MEDIA_TYPE, ErrorEnvelope, Problem
from service.openapi import Content, Operation, Reply
from service.routes.admin import AdminStatus

_ERROR = (Content("application/json", ErrorEnvelope), Content(PROBLEM_MEDIA_TYPE, Problem))

ADMIN_OPERATIONS = (
    Operation(
        method="GET",
        path="/admin/status",
        summary="Tell what runs here",
        description="The model, what the engine can hold and how it is, and every setting. Needs "
        "an admin's key; without a key file nobody is an admin.",
        replies={
            200: Reply("As the asked worker sees it.", (Content("application/json", AdminStatus),)),
            403: Reply("Not an admin's key.", _ERROR),
        },
        tag="admin",
    ),
)

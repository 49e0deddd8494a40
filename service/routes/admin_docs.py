"""What the API document says of the operators' paths."""

from service.http.error_reply import PROBLEM_MEDIA_TYPE, ErrorEnvelope, Problem
from service.openapi import Content, Operation, Reply, Schema
from service.routes.admin import AdminStatus

_ERROR = (Content("application/json", ErrorEnvelope), Content(PROBLEM_MEDIA_TYPE, Problem))

_TEXT: Schema = {"type": "string"}

ADMIN_OPERATIONS = (
    Operation(
        method="GET",
        path="/metrics",
        summary="Tell every figure of the service",
        description="In Prometheus' text format, or in OpenMetrics where `Accept` asks for it; the "
        "whole service's, whichever worker is asked. Needs a key where `open_metrics` is off.",
        replies={
            200: Reply(
                "The figures.",
                (Content("text/plain", _TEXT), Content("application/openmetrics-text", _TEXT)),
            ),
        },
        tag="admin",
    ),
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

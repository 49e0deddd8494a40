"""`GET /v1/streams/{stream_id}`: come back to a stream that was asked for with `X-Resumable`."""

from typing import Any, TypeAlias

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp

from service.errors import RequestInvalid
from service.request_log import record_of
from service.streams.resumable_streams import ResumableStreams

AnyRequest: TypeAlias = Request[Any, Any, Any]

_MAX_DIGITS = 9


class ResumeRoutes:
    """The handler, bound to the streams of this worker."""

    def __init__(self, streams: ResumableStreams) -> None:
        self._streams = streams

    def handlers(self) -> list[HTTPRouteHandler]:
        """Make the handler to register."""
        return [get("/v1/streams/{stream_id:str}")(self.resume)]

    async def resume(self, request: AnyRequest, stream_id: FromPath[str]) -> ASGIApp:
        """Tell a stream from behind the client's last event on."""
        tenant = record_of(request.scope).caller.tenant
        after = _number(request.headers.get("last-event-id", ""), stream_id)
        follower = self._streams.follow(stream_id, tenant, after)
        return ASGIResponse(status_code=204) if follower is None else follower


def _number(event_id: str, stream_id: str) -> int:
    """Read the number of the last event; 0 is none."""
    if not event_id:
        return 0
    name, _, number = event_id.rpartition(":")
    if name != stream_id or not number.isdecimal() or len(number) > _MAX_DIGITS:
        raise RequestInvalid(
            "event_id_invalid", "The stream has no such event.", param="Last-Event-ID"
        )
    return int(number)

"""What one client's connections may hold of a web worker, in time, in number and in memory."""

from typing import Annotated

import msgspec

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(gt=0)]


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bounds an operator may want to move; those of a request's head are the protocol's.

    body_timeout_seconds: longest a request's body may take to arrive; then 408.
    min_body_bytes_per_second: a body that arrives more slowly, on the whole and after its first
        ten seconds, gets its 408 sooner.
    write_timeout_seconds: a client that takes next to nothing of what waits for it for so long is
        cut off.
    max_connections: open connections of one web worker; more are answered 503 and closed.
    max_open_requests: unfinished requests of one web worker, streams among them, before 503;
        health is always answered.
    max_open_requests_per_key: how many of these one API key may have, in each web worker.
    """

    body_timeout_seconds: _Seconds = 90.0
    min_body_bytes_per_second: _Count = 1000
    write_timeout_seconds: _Seconds = 30.0
    max_connections: _Count = 8192
    max_open_requests: _Count = 1024
    max_open_requests_per_key: _Count = 512

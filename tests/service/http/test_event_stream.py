"""What a stream of events tells at its end, whatever it was doing when its time was over."""

from collections.abc import AsyncGenerator

import anyio
from litestar.types import HTTPScope, Message
from litestar.types.asgi_types import HTTPReceiveMessage

from service.errors import DeadlineExceeded, ServiceError, Spent
from service.http.deadline import Deadline
from service.http.event_stream import EventStream
from service.request_log import RequestRecord


async def still_there() -> HTTPReceiveMessage:
    await anyio.sleep_forever()
    return {"type": "http.request", "body": b"", "more_body": False}


async def test_what_was_spent_is_told_when_the_time_ends_while_an_event_is_sent():
    """The client takes nothing just then, so that what makes the events waits to go on."""
    deadline = Deadline(HTTPScope(type="http", headers=[]), 0.05)  # type: ignore[typeddict-item]
    sent: list[bytes] = []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            yield b"first"
        finally:
            deadline.spent = Spent(7, 3)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            sent.append(message["body"])
            if message["body"] == b"first":
                await anyio.sleep_forever()

    def render(error: ServiceError) -> bytes:
        assert isinstance(error, DeadlineExceeded)
        return repr(error.spent).encode()

    stream = EventStream(events(), render, deadline=deadline, record=RequestRecord("asked"))
    with anyio.fail_after(5):
        await stream(HTTPScope(type="http"), still_there, send)  # type: ignore[typeddict-item]

    assert sent == [b"first", repr(Spent(7, 3)).encode()]

"""One resumable request at work: what the application reads, and where goes what it sends.

Knows ASGI's messages and the journal, nothing of those who follow it.
"""

from http import HTTPStatus

import anyio
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from litestar.types.asgi_types import HTTPReceiveMessage, WebSocketReceiveMessage

from service.streams.resumption import Resumption

_EVENT_STREAM = b"text/event-stream"
_LOOK_SECONDS = 1.0


class Production:
    """Stands between the application and the connection of who asked, which may be gone.

    resumption: the request's journal. decided: set once it is known whether there will be a stream.
    is_stream: there is, and it goes into the journal; anything else goes to who asked.
    headers: of the stream's response. failure: what the application raised.
    """

    def __init__(
        self,
        source: Receive,
        plain: Send,
        resumption: Resumption,
        max_unread_seconds: float,
    ) -> None:
        """source, plain: of who asked.

        max_unread_seconds: how long the stream goes on without anybody who is told of it.
        """
        self.resumption = resumption
        self.decided = anyio.Event()
        self.is_stream = False
        self.headers: list[tuple[bytes, bytes]] = []
        self.failure: Exception | None = None
        self._source = source
        self._plain = plain
        self._max_unread_seconds = max_unread_seconds
        self._has_body = False
        self._num_events = 0
        self._has_ended = False
        self._life = anyio.CancelScope()
        self._grown = anyio.Event()

    async def run(self, app: ASGIApp, scope: Scope, life: anyio.CancelScope) -> None:
        """Have the application answer; raises nothing but cancellation.

        life: whose cancellation means that this process has no more time. Then nothing more is
        kept, so that another goes on with what is.
        """
        self._life = life
        try:
            await app(scope, self._receive, self._send)
        except Exception as error:  # noqa: BLE001 - whoever waits for it raises it
            self.failure = error
        finally:
            self._leave()

    async def growth(self) -> None:
        """Wait for the next event, or for the end."""
        await self._grown.wait()

    async def _receive(self) -> HTTPReceiveMessage | WebSocketReceiveMessage:
        message = await self._source()
        if message["type"] == "http.request" and not self._has_body:
            self.resumption.add_body(message["body"])
            self._has_body = not message["more_body"]
            return message
        # Who asked has left, or has got everything. Others may come.
        journal = self.resumption.journal
        if self.is_stream and journal is not None:
            limit = self._max_unread_seconds
            while journal.unread_seconds <= limit:  # noqa: ASYNC110 - a file is looked at
                await anyio.sleep(_LOOK_SECONDS)
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self.is_stream and self._life.cancel_called:
            return
        if message["type"] == "http.response.start":
            self._decide(message["status"], [*message["headers"]])
        if not self.is_stream:
            await self._plain(message)
        elif message["type"] == "http.response.body":
            self._keep(message["body"], is_last=not message.get("more_body"))

    def _decide(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        content_type = dict(headers).get(b"content-type", b"")
        is_stream = status == HTTPStatus.OK and content_type.startswith(_EVENT_STREAM)
        self.is_stream = is_stream and self.resumption.journal is not None
        self.headers = headers
        self.decided.set()

    def _keep(self, piece: bytes, *, is_last: bool) -> None:
        journal, kept = self.resumption.journal, self.resumption.kept
        if journal is None:
            return
        for event in piece.split(b"\n\n"):
            if not event or event.startswith(b":"):
                continue  # followers have heartbeats of their own
            self._num_events += 1
            if kept is None or self._num_events > kept.num_events:
                journal.add_event(event)
        if is_last:
            journal.end()
            self._has_ended = True
        self._wake()

    def _leave(self) -> None:
        journal = self.resumption.journal
        if journal is not None and (self._has_ended or self._life.cancel_called):
            journal.close()
        elif journal is not None:
            journal.discard()  # nobody came back, or it was no stream
        self._wake()
        self.decided.set()

    def _wake(self) -> None:
        grown, self._grown = self._grown, anyio.Event()
        grown.set()

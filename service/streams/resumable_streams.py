"""Streams that outlive their connection and their worker: a layer around the application.

A request that asks for it runs as any other, but what it sends goes into a journal, and the client
is told from there: the one who asked, and whoever comes back, at any worker. A follower that finds
nobody appending has its own worker run the same request again with what was kept, and go on. Knows
no dialect: an event is what comes before an empty line.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send
from litestar.types.asgi_types import HTTPReceiveMessage, WebSocketReceiveMessage

from inference.protocol import Generate
from service.chat import ConnectedEngine
from service.errors import NotFound, RequestInvalid, ServiceError
from service.request_log import RequestRecord, bind_record, record_of
from service.stages import StageTimes
from service.streams.resumption import Resumption
from service.streams.stream_follower import StreamFollower
from service.streams.stream_journal import (
    JournalReader,
    Kept,
    OwnedJournal,
    StreamLabel,
    StreamRequest,
)
from service.streams.stream_production import Production
from service.streams.stream_shelf import StreamShelf
from service.text.prompt import Prompt

_SWEEP_SECONDS = 5.0
_ENGINE_WAIT_SECONDS = 120.0
_MAX_ADOPTIONS = 3  # a stream under which more workers than these ended is given up
# They prove who the caller is, and are no part of what was asked.
_CREDENTIALS = {b"authorization", b"proxy-authorization", b"cookie", b"x-api-key", b"api-key"}

logger = structlog.get_logger()


class ResumableStreams:
    """One worker's part in the streams of all workers."""

    def __init__(
        self,
        shelf: StreamShelf,
        engine: ConnectedEngine,
        is_stopping: Callable[[], bool],
        max_body_bytes: int,
    ) -> None:
        """is_stopping: whether the whole service ends, so that there is nowhere to come back to."""
        self._is_stopping = is_stopping
        self._shelf = shelf
        self._engine = engine
        self._max_body_bytes = max_body_bytes
        self._productions: dict[Path, Production] = {}
        self._app: ASGIApp | None = None

    @property
    def is_stopping(self) -> bool:
        """Tell whether the whole service ends."""
        return self._is_stopping()

    def around(self, app: ASGIApp) -> ASGIApp:
        """Put this layer around what answers requests."""

        async def layer(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and _asks_for_it(scope):
                await self._begin(app, scope, receive, send)
            else:
                await app(scope, receive, send)

        self._app = app
        return layer

    def follow(self, stream_id: str, tenant: str, after: int) -> StreamFollower | None:
        """Make the response that tells a stream from behind an event on.

        Returns:
            None when the stream has ended and all of it was told.

        Raises:
            NotFound: there is no such stream, or it is another tenant's.
            RequestInvalid: it has not come to that event.
        """
        path = self._shelf.path_of(stream_id)
        try:
            reader = None if path is None else JournalReader(path)
        except FileNotFoundError:
            reader = None
        if path is None or reader is None:
            raise _not_found()
        try:
            if reader.tenant != tenant:
                raise _not_found()
            reader.touch()
            num_events = len(reader.events())
        finally:
            reader.close()
        if after > num_events:
            raise RequestInvalid(
                "event_id_invalid", "The stream has no such event.", param="Last-Event-ID"
            )
        if reader.has_ended and after == num_events:
            return None
        return StreamFollower(self, path, after=after)

    def producer_of(self, path: Path) -> Production | None:
        """Find what appends to a journal, if this worker does."""
        return self._productions.get(path)

    async def adopt(self, path: Path, scope: Scope, tasks: TaskGroup) -> None:
        """Go on with a stream whose owner has died; does nothing while one lives."""
        adopted = None
        with anyio.CancelScope(shield=True):  # or nobody would close the journal
            adopted = await anyio.to_thread.run_sync(OwnedJournal.adopt, path)
        if adopted is None:
            return
        journal, kept = adopted
        if kept.num_adoptions >= _MAX_ADOPTIONS:
            logger.error("stream_given_up", request_id=kept.request.request_id)
            journal.discard()
            return
        resumption = Resumption(journal=journal, kept=kept)
        record = dataclasses.replace(
            record_of(scope),
            request_id=kept.request.request_id,
            resumption=resumption,
            stages=StageTimes(),
            entered={},
        )
        asked = _Asked(kept)
        production = Production(
            asked.receive, asked.send, resumption, self._shelf.max_unread_seconds
        )
        asked.production = production
        self._productions[path] = production
        asked_scope = _scope_again(scope, kept, record)
        tasks.start_soon(self._go_on, production, asked_scope, tasks.cancel_scope)

    async def keep_swept(self) -> None:
        """Take away the journals that nobody came back for, until cancelled."""
        while True:
            await anyio.sleep(_SWEEP_SECONDS)
            try:
                await anyio.to_thread.run_sync(self._shelf.sweep)
            except OSError as error:
                # No descriptor is left, or the folder is not there, for a while.
                logger.warning("streams_cannot_be_swept", reason=error.strerror)

    async def _begin(self, app: ASGIApp, scope: HTTPScope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        resumption = Resumption(partial(self._new_journal, scope, record), self._max_body_bytes)
        record.resumption = resumption
        production = Production(receive, send, resumption, self._shelf.max_unread_seconds)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._produce, production, app, scope, tasks.cancel_scope)
                await production.decided.wait()
                journal = resumption.journal
                if production.is_stream and journal is not None:
                    self._productions[journal.path] = production
                    follower = StreamFollower(self, journal.path, headers=production.headers)
                    await follower(scope, receive, send)
                    if follower.is_cut:
                        tasks.cancel_scope.cancel()
        except anyio.get_cancelled_exc_class():
            pass  # the server has no more time; whoever could be told was told
        if production.failure is not None:
            raise production.failure

    async def _go_on(
        self, production: Production, scope: HTTPScope, life: anyio.CancelScope
    ) -> None:
        logger.info("stream_adopted", request_id=record_of(scope).request_id)
        await self._produce(production, self._once_there_is_an_engine, scope, life)
        if production.failure is not None:
            logger.error("Unhandled error in a stream", exc_info=production.failure)

    async def _once_there_is_an_engine(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            raise RuntimeError("The layer is around nothing.")
        try:
            with anyio.move_on_after(_ENGINE_WAIT_SECONDS):
                await self._engine.wait_ready()
        except ServiceError:
            pass  # the application says so
        await self._app(scope, receive, send)

    async def _produce(
        self, production: Production, app: ASGIApp, scope: Scope, life: anyio.CancelScope
    ) -> None:
        try:
            await production.run(app, scope, life)
        finally:
            journal = production.resumption.journal
            if journal is not None:
                self._productions.pop(journal.path, None)

    def _new_journal(
        self, scope: HTTPScope, record: RequestRecord, body: bytes, prompt: Prompt, asked: Generate
    ) -> OwnedJournal:
        label = StreamLabel(tenant=record.caller.tenant, begun_at=time.monotonic())
        request = StreamRequest(
            path=scope["path"],
            query_string=scope["query_string"],
            headers=[(name, text) for name, text in scope["headers"] if name not in _CREDENTIALS],
            body=body,
            request_id=record.request_id,
            prompt=prompt,
            generate=asked,
        )
        return OwnedJournal.create(self._shelf.new_path(), label, request)


class _Asked:
    """The connection of who asked, when it is gone: it gives the body, and takes nothing."""

    def __init__(self, kept: Kept) -> None:
        self.production: Production | None = None
        self._body: bytes | None = kept.request.body

    async def receive(self) -> HTTPReceiveMessage | WebSocketReceiveMessage:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        if self.production is not None:
            await self.production.decided.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        pass  # it was a stream before; those who follow it are told of its end


def _asks_for_it(scope: HTTPScope) -> bool:
    return scope["method"] == "POST" and any(
        name == b"x-resumable" and value.strip().lower() == b"true"
        for name, value in scope["headers"]
    )


def _scope_again(scope: Scope, kept: Kept, record: RequestRecord) -> HTTPScope:
    """Make the scope of the request that was asked, out of a follower's."""
    request = kept.request
    names = ("type", "asgi", "http_version", "scheme", "server", "client", "root_path")
    names += ("litestar_app", "app")  # set outside of this layer
    again: dict[str, object] = {
        "method": "POST",
        "path": request.path,
        "raw_path": request.path.encode(),
        "query_string": request.query_string,
        "headers": request.headers,
        "state": {},
    }
    again.update((name, scope[name]) for name in names if name in scope)
    asked = cast("HTTPScope", again)
    bind_record(asked, record)
    return asked


def _not_found() -> NotFound:
    return NotFound("stream_not_found", "There is no stream of this id, or it is over.")

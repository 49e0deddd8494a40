"""A worker's end of the wire: generate and cancel, across the engine's deaths.

Every unfinished request is kept. When the engine is lost, the next one gets them all again with the
tokens already delivered, so that their consumers notice a pause and nothing else. Every request has
exactly one end: its last sequence's finish, or one ServiceError. All of it runs on the event loop;
the threads are `service.engine.engine_link`'s.
"""

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Self, assert_never

import structlog
from anyio import CancelScope, to_thread

from inference.frames import MAX_FRAME_BYTES
from inference.protocol import (
    PROTOCOL_VERSION,
    Cancel,
    Delta,
    EngineMessage,
    Generate,
    Isolated,
    Limits,
    ModelFacts,
    Outputs,
    Ready,
    RefusalCode,
    Refused,
    Stats,
)
from service.engine.engine_link import EngineLink, Line, Listener, frame_bytes
from service.engine.engine_request import EngineRequest, ProtocolViolation
from service.engine.refusals import RETRY_AFTER_SECONDS, error_of_refusal
from service.engine.replay_policy import ReplayPolicy
from service.errors import EngineUnavailable, Overloaded, RequestInvalid, ServiceError, TooLarge
from service.metrics.worker_metrics import WorkerMetrics

# The rest of a frame is for what is not counted: sampling, a grammar, names.
_MAX_REQUEST_BYTES = MAX_FRAME_BYTES - 16 * 1024 * 1024

_log = structlog.get_logger()


class EngineClient:
    """The one connection of a worker to the inference process; an async context manager.

    is_ready: an engine is warm and connected. has_failed: a fault of ours ended the connection for
    good; only a new worker helps. model, limits: the engine's, from its first `Ready` on.
    stats: its latest figures.
    """

    def __init__(
        self,
        address: str,
        authkey: bytes,
        replay: ReplayPolicy = ReplayPolicy(),  # noqa: B008
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self._address = address
        self._authkey = authkey
        self._replay = replay
        self._metrics = metrics or WorkerMetrics()
        self._requests: dict[str, EngineRequest] = {}
        # Cancelled requests on which the engine's last words are to come, and for which sequences.
        self._leaving: dict[str, set[int]] = {}
        self._line: Line | None = None
        self._ready = asyncio.Event()
        self._mistrusted: Line | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._end_of_all: tuple[str, str] | None = None
        self.has_failed = False
        self.model: ModelFacts | None = None
        self.limits: Limits | None = None
        self.stats: Stats | None = None

    async def __aenter__(self) -> Self:
        """Start connecting; does not wait for the engine."""
        self._loop = asyncio.get_running_loop()
        on_loop = self._loop.call_soon_threadsafe
        self._link = EngineLink(
            self._address,
            self._authkey,
            Listener(
                received=partial(on_loop, self._received),
                lost=partial(on_loop, self._lost),
                failed=partial(on_loop, self._failed),
            ),
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect; requests still unfinished fail."""
        self._end_all("engine_stopping", "The service is stopping.")
        with CancelScope(shield=True):
            await to_thread.run_sync(self._link.close)

    @property
    def is_ready(self) -> bool:
        """Tell whether new requests are taken."""
        return self._line is not None

    @property
    def num_unfinished(self) -> int:
        """Count the requests that have not ended."""
        return len(self._requests)

    def knows(self, request_id: str) -> bool:
        """Tell whether an id is a request's, here or still in the engine; no other may have it.

        What the engine says of a request that was cancelled would be taken for the next one's.
        """
        return request_id in self._requests or request_id in self._leaving

    async def wait_ready(self) -> None:
        """Wait until an engine is warm and connected.

        Raises:
            EngineUnavailable: there will be none, by a fault of ours.
        """
        while not self.is_ready:
            if self._end_of_all is not None:
                raise self._absence()
            await self._ready.wait()

    async def generate(self, request: Generate) -> AsyncGenerator[Delta, None]:
        """Run a request; give what arrived since the last look, merged by sequence.

        Every sequence ends with one Delta that has `finish`, `cancelled` if `cancel` was called.

        Raises:
            ServiceError: the engine refused it, or was lost and did not return.
        """
        record = self._register(request)
        try:
            while not record.is_over:
                for delta in await record.take():
                    yield delta
        finally:
            # Whoever stops iterating early is no longer interested.
            self._end(record)

    def cancel(self, request_id: str) -> None:
        """End a request early; safe to call at any time, any number of times."""
        if request_id in self._requests:
            self._end(self._requests[request_id])

    def _register(self, request: Generate) -> EngineRequest:
        if self._line is None and not self._can_wait():
            raise self._absence()
        if frame_bytes(request) > _MAX_REQUEST_BYTES:
            # The engine would hang up on it, and again on every new connection.
            raise TooLarge("media_budget_exceeded", "The pictures are too large together.")
        if self.knows(request.request_id):
            raise RequestInvalid(
                "duplicate_request_id", "A request of this id is running.", param="request_id"
            )
        record = EngineRequest(request, self._loop.time)
        # Known before it is sent: the answer may be quicker than this function.
        self._requests[request.request_id] = record
        if self._line is None:
            return record  # it goes out with the others as soon as the engine is back
        if not self._line.post(record.message(), bounded=not request.is_replay):
            del self._requests[request.request_id]
            raise Overloaded(RETRY_AFTER_SECONDS)
        record.is_aboard = True
        return record

    def _can_wait(self) -> bool:
        """Tell whether an engine is expected back and not too many wait for it already."""
        return (
            self._expiry is not None
            and self._replay.max_losses > 0
            and len(self._requests) < self._replay.max_waiting
        )

    def _end(self, record: EngineRequest) -> None:
        if self._requests.get(record.request_id) is not record:
            return
        if record.is_aboard and self._line is not None:
            self._line.post(Cancel(request_id=record.request_id), bounded=False)
            self._leaving[record.request_id] = record.open_indices
        record.cancel()
        self._forget(record)

    def _forget(self, record: EngineRequest) -> None:
        del self._requests[record.request_id]

    def _fail(self, record: EngineRequest, error: ServiceError) -> None:
        record.fail(error)
        self._forget(record)

    def _fail_all(self, code: str, message: str) -> None:
        for record in list(self._requests.values()):
            self._fail(record, EngineUnavailable(code, message))

    def _received(self, line: Line, message: EngineMessage) -> None:
        if line is self._mistrusted:
            return  # what it still says may have a gap; the next line goes on where it was left
        match message:
            case Ready():
                self._greet(line, message)
            case Outputs(deltas=deltas):
                self._deliver(line, deltas)
            case Refused():
                self._refuse(message)
            case Isolated():
                self._note_isolation(message)
            case Stats():
                self.stats = message
            case _:
                assert_never(message)

    def _greet(self, line: Line, ready: Ready) -> None:
        if ready.protocol_version != PROTOCOL_VERSION:
            _log.error("engine_protocol_unknown", version=ready.protocol_version)
            self._mistrust(line)
            return
        _log.info("engine_connected", engine_id=ready.engine_id, replayed=len(self._requests))
        self.model = ready.model
        self.limits = ready.limits
        self._line = line
        self._stop_waiting()
        self._ready.set()
        self._send_waiting()

    def _deliver(self, line: Line, deltas: list[Delta]) -> None:
        for delta in deltas:
            record = self._requests.get(delta.request_id)
            if record is None:  # cancelled while this was under way
                self._metrics.heard_late(delta)
                self._note_late(delta)
                continue
            try:
                record.add(delta)
            except ProtocolViolation as violation:
                _log.error(
                    "engine_message_invalid",
                    request_id=delta.request_id,
                    reason=str(violation),
                )
                self._mistrust(line)
                return
            if record.has_ended:
                self._forget(record)

    def _note_late(self, delta: Delta) -> None:
        if delta.finish is not None and (indices := self._leaving.get(delta.request_id)):
            indices.discard(delta.index)
            if not indices:
                del self._leaving[delta.request_id]

    def _mistrust(self, line: Line) -> None:
        self._mistrusted = line
        line.drop()

    def _refuse(self, refused: Refused) -> None:
        record = self._requests.get(refused.request_id)
        if record is None:
            self._leaving.pop(refused.request_id, None)
            return
        if refused.code == RefusalCode.OVERLOADED and record.was_admitted:
            # It was admitted once; an engine that gets everything at once takes it a little later.
            record.is_aboard = False
            delay = refused.retry_after_seconds or RETRY_AFTER_SECONDS
            self._loop.call_later(delay, self._send_waiting)
            return
        error = error_of_refusal(refused)
        if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.warning("engine_refused", request_id=record.request_id, code=refused.code)
        self._fail(record, error)

    def _lost(self, line: Line) -> None:
        if self._line is not line:
            return  # it was never ready, or this client is closing
        self._line = None
        self._ready.clear()
        self._leaving.clear()
        _log.warning("engine_lost", unfinished=len(self._requests))
        for record in list(self._requests.values()):
            self._outlive(record)
        self._expiry = self._loop.call_later(self._replay.max_wait_seconds, self._expire)

    def _expire(self) -> None:
        self._expiry = None  # whoever comes from now on would wait in vain, too
        self._fail_all(
            "engine_lost", "The engine was lost under this request and did not return in time."
        )

    def _note_isolation(self, isolated: Isolated) -> None:
        record = self._requests.get(isolated.request_id)
        if record is not None:
            record.is_alone = True

    def _outlive(self, record: EngineRequest) -> None:
        """Keep a request for the next engine, or fail it as the cause of its losses."""
        if not record.is_aboard:
            return
        record.note_loss()
        record.is_suspect = record.num_losses >= self._replay.max_losses
        if self._replay.max_losses == 0:
            self._fail(record, EngineUnavailable("engine_lost", "The engine was lost."))
        elif record.num_losses_alone >= self._replay.max_losses_alone:
            _log.error("request_given_up", request_id=record.request_id, losses=record.num_losses)
            self._fail(
                record, EngineUnavailable("engine_failed", "The engine failed at this request.")
            )

    def _send_waiting(self) -> None:
        """Send every request that waits for an engine."""
        for record in self._requests.values():
            if self._line is None:
                return
            if not record.is_aboard:
                record.is_aboard = self._line.post(record.message(), bounded=False)
                if record.is_aboard and record.num_losses > 0:
                    self._metrics.replayed()

    def _failed(self) -> None:
        self.has_failed = True
        self._end_all("engine_failed", "The connection to the engine has failed.")

    def _end_all(self, code: str, message: str) -> None:
        """Fail every request, those still to come and whoever waits for an engine."""
        self._line = None
        self._end_of_all = (code, message)
        self._stop_waiting()
        self._ready.set()
        self._fail_all(code, message)

    def _stop_waiting(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _absence(self) -> EngineUnavailable:
        if self._end_of_all is not None:
            return EngineUnavailable(*self._end_of_all)
        if self.model is None:
            return EngineUnavailable("engine_starting", "The engine is starting.")
        return EngineUnavailable("engine_restarting", "The engine is restarting.")

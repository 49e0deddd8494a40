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

import msgspec
import structlog
from anyio import CancelScope, to_thread

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
from service.engine.engine_link import EngineLink, Line, Listener
from service.engine.engine_request import EngineRequest, ProtocolViolation
from service.engine.refusals import RETRY_AFTER_SECONDS, error_of_refusal
from service.errors import EngineUnavailable, Overloaded, RequestInvalid, ServiceError
from service.metrics.worker_metrics import WorkerMetrics

_log = structlog.get_logger()


class ReplayPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How long an unfinished request outlives engines.

    max_losses: engines a request may lose before it is a suspect, which the engine runs alone; 0
        is off: a loss fails it.
    max_losses_alone: engines a suspect may lose while nothing else runs; then it is the cause, and
        fails. More than one, because an engine can also be killed from outside.
    max_wait_seconds: for the next engine; then whatever waits fails.
    max_waiting: requests, kept and new, beyond which new ones are refused while there is none.
    """

    max_losses: int = 2
    max_losses_alone: int = 2
    max_wait_seconds: float = 120.0
    max_waiting: int = 64


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
        self._line: Line | None = None
        self._ready = asyncio.Event()
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
        if (record := self._requests.get(request_id)) is not None:
            self._end(record)

    def _register(self, request: Generate) -> EngineRequest:
        if self._line is None and not self._can_wait():
            raise self._absence()
        if request.request_id in self._requests:
            raise RequestInvalid(
                "duplicate_request_id", "A request of this id is running.", param="request_id"
            )
        record = EngineRequest(request, self._loop.time)
        # Known before it is sent: the answer may be quicker than this function.
        self._requests[request.request_id] = record
        if self._line is None:
            return record  # it goes out with the others as soon as the engine is back
        if not self._line.post(record.message()):
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
            line.drop()
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
                continue
            try:
                record.add(delta)
            except ProtocolViolation as violation:
                _log.error(
                    "engine_message_invalid",
                    request_id=delta.request_id,
                    reason=str(violation),
                )
                line.drop()
                return
            if record.has_ended:
                self._forget(record)

    def _refuse(self, refused: Refused) -> None:
        record = self._requests.get(refused.request_id)
        if record is None:
            return
        if refused.code == RefusalCode.OVERLOADED and record.num_losses > 0:
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
        _log.warning("engine_lost", unfinished=len(self._requests))
        for record in list(self._requests.values()):
            self._outlive(record)
        self._expiry = self._loop.call_later(
            self._replay.max_wait_seconds,
            self._fail_all,
            "engine_lost",
            "The engine was lost under this request and did not return in time.",
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

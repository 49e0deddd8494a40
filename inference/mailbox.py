"""The engine's end of the wire: a listener, and two threads for every connected web worker.

What asks for an answer passes the gate on the thread that reads it: a refusal goes back at once.
A frame that is no message costs its sender the connection; a worker that stops reading loses it
too, once its bounded queue is full. Either way the engine hears that the worker is gone.
"""

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from itertools import count
from multiprocessing.connection import Connection, Listener, answer_challenge, deliver_challenge
from pathlib import Path
from queue import Empty, Full, Queue, SimpleQueue
from typing import NamedTuple, TypeAlias

import structlog

from inference.backlog import Ticket
from inference.frames import MAX_FRAME_BYTES, FrameError, decode_worker_message, encode
from inference.protocol import (
    EngineMessage,
    Generate,
    Ready,
    RefusalCode,
    Refused,
    WorkerMessage,
)
from inference.sequence import Owner

# Frames a worker may be behind, about as many steps. Deltas are small: this bounds memory only.
MAX_QUEUED_FRAMES = 4096
# How long a worker that does not read may keep `send_through` waiting.
_WRITE_SECONDS = 1.0
# How long a thread may take to start. One that has no memory for its first line never tells, and
# who starts it waits for ever.
_START_SECONDS = 5.0

_log = structlog.get_logger()


class Gone(NamedTuple):
    """This owner's connection ended; nothing more comes from it."""


Letter: TypeAlias = tuple[Owner, WorkerMessage | Ticket | Gone]


class Mailbox:
    """Collects what the workers send and delivers what the engine answers."""

    def __init__(self, address: str, authkey: bytes) -> None:
        """Listen on a Unix socket at `address`; only peers that know `authkey` are heard."""
        self._address = address
        self._authkey = authkey
        self._inbox: SimpleQueue[Letter] = SimpleQueue()
        self._peers: dict[Owner, _Peer] = {}
        self._owners = count()
        self._greeting: Ready | None = None
        self._admit: Callable[[Generate], Ticket | Refused] | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._reader_due = math.inf
        self._listener = self._listen()

    def greet(
        self, ready: Ready, admit: Callable[[Generate], Ticket | Refused] | None = None
    ) -> None:
        """From now on the first message on every connection is this one.

        admit: judges what asks for an answer, on the reading threads; what it refuses is answered
            there, and of what it lets in the ticket is received. None lets all pass as they are.
        """
        with self._lock:
            self._admit = admit
            self._greeting = ready
            peers = list(self._peers.values())
        for peer in peers:
            peer.post(encode(ready))

    def receive(self, timeout_seconds: float) -> list[Letter]:
        """Everything that has arrived; waits for the first letter at most this long."""
        letters: list[Letter] = []
        with contextlib.suppress(Empty):
            letters.append(
                self._inbox.get(timeout=timeout_seconds)
                if timeout_seconds > 0
                else self._inbox.get_nowait()
            )
            while True:
                letters.append(self._inbox.get_nowait())
        return letters

    def send(self, owner: Owner, message: EngineMessage) -> None:
        """Deliver to one worker; one that is gone or does not read is not waited for."""
        peer = self._peers.get(owner)
        if peer is not None:
            peer.post(encode(message))

    def send_through(self, owner: Owner, message: EngineMessage) -> None:
        """Deliver to one worker, and return once it is written or the worker takes too long."""
        peer = self._peers.get(owner)
        if peer is not None:
            peer.post(encode(message))
            peer.wait_written()

    def broadcast(self, message: EngineMessage) -> None:
        """Deliver to every worker."""
        frame = encode(message)
        for peer in list(self._peers.values()):
            peer.post(frame)

    def keep_address(self) -> None:
        """Listen anew if the socket's file was removed, as who tidies up temporary files does.

        Raises:
            MemoryError: nobody is let in any more; only a new process helps.
        """
        if time.monotonic() > self._reader_due:
            raise MemoryError("a thread does not start")
        if Path(self._address).exists() or self._closed.is_set():
            return
        _log.error("the engine's socket was removed; listening anew")
        with contextlib.suppress(OSError):  # there is no file left for it to remove
            self._listener.close()
        try:
            self._listener = self._listen()
        except OSError as error:
            _log.error("cannot listen", kind=type(error).__name__, errno=error.errno)

    def close(self) -> None:
        """Stop listening and hang up, once what was posted is written or a second has passed."""
        self._closed.set()
        self._listener.close()
        for peer in list(self._peers.values()):
            peer.finish()

    def _listen(self) -> Listener:
        listener = Listener(self._address, family="AF_UNIX", backlog=64)
        threading.Thread(
            target=self._accept_all, args=(listener,), name="acceptor", daemon=True
        ).start()
        return listener

    def _accept_all(self, listener: Listener) -> None:
        while True:
            try:
                connection = listener.accept()
            except (OSError, MemoryError) as error:
                # Closed; or out of descriptors for a while, which must not deafen the engine.
                if self._closed.wait(0.1) or listener is not self._listener:
                    return
                errno = error.errno if isinstance(error, OSError) else None
                _log.error("cannot accept a worker", kind=type(error).__name__, errno=errno)
                continue
            reader = threading.Thread(
                target=self._serve, args=(connection,), name="reader", daemon=True
            )
            self._reader_due = time.monotonic() + _START_SECONDS
            try:
                reader.start()
            except (RuntimeError, MemoryError) as error:
                # Out of threads for a while, which must not either: the worker comes again.
                _log.error("cannot read from a worker", kind=type(error).__name__)
                connection.close()
            self._reader_due = math.inf

    def _serve(self, connection: Connection) -> None:
        """One connection's life; the handshake is here so that a slow peer delays nobody."""
        owner = Owner(next(self._owners))
        try:
            deliver_challenge(connection, self._authkey)
            answer_challenge(connection, self._authkey)
            self._join(owner, connection)
            while True:
                frame = connection.recv_bytes(MAX_FRAME_BYTES)
                self._sort(owner, decode_worker_message(frame))
        except (EOFError, OSError):
            pass  # the worker went away
        except FrameError as error:
            _log.error("bad frame from a worker", owner=owner, kind=str(error))
        except Exception as error:  # noqa: BLE001  (AuthenticationError and its kin are not worth telling apart)
            _log.error("connection refused", kind=type(error).__name__)
        finally:
            self._leave(owner, connection)

    def _sort(self, owner: Owner, message: WorkerMessage) -> None:
        """Put a message into the inbox, unless the gate refuses what it asks."""
        letter: WorkerMessage | Ticket = message
        if self._admit is not None and isinstance(message, Generate):
            try:
                admitted = self._admit(message)
            except Exception:  # noqa: BLE001 - its sender would send it again, connection by connection
                _log.exception("a request cannot be judged")
                admitted = Refused(request_id=message.request_id, code=RefusalCode.INTERNAL)
            if isinstance(admitted, Refused):
                self.send(owner, admitted)
                return
            letter = admitted
        self._inbox.put((owner, letter))

    def _join(self, owner: Owner, connection: Connection) -> None:
        peer = _Peer(connection)  # starts a thread, which may take for ever
        with self._lock:
            if self._greeting is not None:
                peer.post(encode(self._greeting))
            self._peers[owner] = peer  # only now: a broadcast must not come before the greeting

    def _leave(self, owner: Owner, connection: Connection) -> None:
        with self._lock:
            peer = self._peers.pop(owner, None)
        if peer is not None:
            self._inbox.put((owner, Gone()))
            peer.finish()
        connection.close()


class _Peer:
    """One worker's outgoing frames and the thread that writes them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._frames: Queue[bytes | threading.Event | None] = Queue(MAX_QUEUED_FRAMES)
        self._writer = threading.Thread(target=self._write_all, name="writer", daemon=True)
        self._writer.start()

    def post(self, frame: bytes) -> None:
        """Queue a frame; a full queue ends the connection, which the reader thread notices."""
        try:
            self._frames.put_nowait(frame)
        except Full:
            _log.error("a worker does not read; hanging up")
            self._hang_up()

    def wait_written(self) -> None:
        """Wait until what is queued is with the kernel, where it outlives this process."""
        written = threading.Event()
        with contextlib.suppress(Full):
            self._frames.put_nowait(written)
            written.wait(_WRITE_SECONDS)

    def finish(self) -> None:
        """Write what is queued, for a second at most, then end the thread."""
        with contextlib.suppress(Full):
            self._frames.put_nowait(None)
            self._writer.join(timeout=1.0)
        self._hang_up()
        # What it still tries to write fails now; it must have let go of the descriptor.
        self._writer.join()

    def _write_all(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while (frame := self._frames.get()) is not None:
                if isinstance(frame, threading.Event):
                    frame.set()
                else:
                    self._connection.send_bytes(frame)

    def _hang_up(self) -> None:
        # Closing a descriptor another thread reads from is undefined; shutting it down wakes both.
        with (
            contextlib.suppress(OSError),
            socket.socket(fileno=os.dup(self._connection.fileno())) as twin,
        ):
            twin.shutdown(socket.SHUT_RDWR)

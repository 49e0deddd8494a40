"""A worker's connection to the engine, kept open by two threads of its own.

The reader thread connects, reads and connects again; the writer thread writes, because a write
blocks when the engine stalls. Knows frames and messages, not what they mean to a request.
"""

import contextlib
import os
import socket
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import NamedTuple

import structlog

from inference.frames import MAX_FRAME_BYTES, FrameError, decode_engine_message, encode
from inference.protocol import EngineMessage, Generate, Ready, WorkerMessage

MAX_UNSENT_BYTES = 64 * 1024 * 1024
FIRST_RETRY_SECONDS = 0.02
LAST_RETRY_SECONDS = 0.25
CLOSE_SECONDS = 2.0

_log = structlog.get_logger()


class Line:
    """One connection, from the handshake to its loss; a new engine means a new line."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # A second handle: shutting it down wakes both threads out of a blocked read or write,
        # which closing the connection would not.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self._unsent: SimpleQueue[WorkerMessage | None] = SimpleQueue()
        self._num_unsent_bytes = 0
        self._lock = Lock()

    def post(self, message: WorkerMessage, *, bounded: bool = True) -> bool:
        """Queue a message for the writer; never blocks.

        Returns:
            False when a bounded message does not fit into MAX_UNSENT_BYTES with what waits; one
            that is larger by itself has to be the only one.
        """
        size = frame_bytes(message)
        with self._lock:
            num_bytes = self._num_unsent_bytes
            if bounded and num_bytes and num_bytes + size > MAX_UNSENT_BYTES:
                return False
            self._num_unsent_bytes += size
        self._unsent.put(message)
        return True

    def receive(self) -> EngineMessage:
        """Wait for the engine's next message.

        Raises:
            EOFError, OSError: the connection is lost.
            FrameError: the engine does not speak the protocol.
        """
        return decode_engine_message(self._connection.recv_bytes(MAX_FRAME_BYTES))

    def drop(self) -> None:
        """End the connection from any thread; the reader finds it lost."""
        with contextlib.suppress(OSError):  # the other end was quicker
            self._socket.shutdown(socket.SHUT_RDWR)

    def write(self) -> None:
        """Write what is queued until `close`: the writer thread's whole life."""
        try:
            while (message := self._unsent.get()) is not None:
                self._connection.send_bytes(encode(message))
                with self._lock:
                    self._num_unsent_bytes -= frame_bytes(message)
        except OSError:
            pass  # lost; the reader sees the same and reports it
        except Exception:  # noqa: BLE001 - a thread must not end unseen
            _log.exception("engine_writer_failed")
        finally:
            self.drop()

    def close(self, writer: Thread) -> None:
        """End the connection and the writer, and free what both held."""
        self.drop()
        self._unsent.put(None)
        writer.join()
        self.release()

    def release(self) -> None:
        """Free what a line without a writer holds."""
        self._socket.close()
        self._connection.close()


class Listener(NamedTuple):
    """Whom the reader thread tells. Called on that thread; must not block.

    received: a message; the first of every line is `Ready`.
    lost: the line ended. failed: the link itself ended by a fault of ours and will not return.
    """

    received: Callable[[Line, EngineMessage], object]
    lost: Callable[[Line], object]
    failed: Callable[[], object]


class EngineLink:
    """Connects to the engine again and again until closed."""

    def __init__(self, address: str, authkey: bytes, listener: Listener) -> None:
        """Start connecting to the Unix socket at `address`."""
        self._address = address
        self._authkey = authkey
        self._listener = listener
        self._closing = Event()
        self._line: Line | None = None
        # A daemon: a handshake with a stopped engine cannot be interrupted, and must not keep
        # the worker from exiting.
        self._reader = Thread(target=self._run, name="engine-reader", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Disconnect and stop connecting; blocks for at most CLOSE_SECONDS."""
        self._closing.set()
        if (line := self._line) is not None:
            line.drop()
        self._reader.join(CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            self._keep_connected()
        except Exception:  # noqa: BLE001 - a thread must not end unseen
            if not self._closing.is_set():
                _log.exception("engine_link_failed")
                self._listener.failed()

    def _keep_connected(self) -> None:
        retry_seconds = FIRST_RETRY_SECONDS
        while not self._closing.wait(retry_seconds):
            retry_seconds = min(retry_seconds * 2, LAST_RETRY_SECONDS)
            try:
                line, writer = self._connect()
            except AuthenticationError:
                _log.error("engine_refused_key")
            except (OSError, EOFError):
                pass  # not there yet, or gone again
            except (RuntimeError, MemoryError) as error:
                # Out of threads for a while, as out of descriptors above.
                _log.error("engine_line_not_kept", kind=type(error).__name__)
            else:
                if self._converse(line, writer):
                    retry_seconds = FIRST_RETRY_SECONDS

    def _connect(self) -> tuple[Line, Thread]:
        line = Line(Client(self._address, family="AF_UNIX", authkey=self._authkey))
        writer = Thread(target=line.write, name="engine-writer", daemon=True)
        try:
            writer.start()
        except (RuntimeError, MemoryError):
            line.release()
            raise
        return line, writer

    def _converse(self, line: Line, writer: Thread) -> bool:
        """Read until the line is lost; tell whether the engine became ready on it."""
        self._line = line
        was_ready = False
        try:
            # Looked at after `_line` is set: `close` sets it before it looks at `_line`.
            while not self._closing.is_set():
                message = line.receive()
                was_ready = was_ready or isinstance(message, Ready)
                self._listener.received(line, message)
        except (EOFError, OSError):
            pass
        except FrameError as error:
            _log.error("engine_frame_invalid", error=str(error))
        finally:
            self._line = None
            line.close(writer)
            self._listener.lost(line)
        return was_ready


def frame_bytes(message: WorkerMessage) -> int:
    """Estimate a message's frame: what can make it large, which is pixels and tokens."""
    if not isinstance(message, Generate):
        return 0
    num_pixel_bytes = sum(vision.pixels.nbytes for vision in message.visions)
    return num_pixel_bytes + 5 * len(message.prompt_token_ids)

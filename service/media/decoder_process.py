"""A worker's end of one decoder process. Blocking: the pool calls it in threads, never on the loop.

Threads, because writing a file and reading pixels there leave the event loop free.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from service.media.decoder_messages import (
    Decoded,
    DecoderReply,
    DecoderRequest,
    DecoderSettings,
    read_exactly,
    read_reply,
    write_frame,
)

_ROOT = Path(__file__).parents[2]
_PIPE_BYTES = 1024 * 1024
# A process taken over by a hostile picture may claim anything; no model takes as much as this.
_MAX_PIXELS = 64 * 1024 * 1024


class DecoderDied(Exception):
    """The process ended, or could not start, or answered nonsense, while it was asked.

    out_of_time: the kernel ended it for its CPU time.
    """

    def __init__(self, *, out_of_time: bool) -> None:
        super().__init__()
        self.out_of_time = out_of_time


class DecoderProcess:
    """One process, started when first asked; after it died or was closed it answers no more."""

    def __init__(self, settings: DecoderSettings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        # Held while asking, so that `close` in another thread reaps only what nobody uses.
        self._asking = threading.Lock()

    def ask(self, request: DecoderRequest, encoded: bytes) -> tuple[DecoderReply, bytes]:
        """Send a request and a file; wait for the reply and, if there are any, its pixels.

        Raises:
            DecoderDied: no answer came. The process has been reaped.
        """
        with self._asking:
            try:
                return self._exchange(self._running(), request, encoded)
            except (OSError, EOFError, ValueError) as error:
                raise DecoderDied(out_of_time=self._reap() == -signal.SIGXCPU) from error

    def close(self) -> None:
        """End the process and wait until it has; from any thread, whatever it is doing."""
        self._closed = True
        if self._process is not None:
            self._process.kill()
        with self._asking:
            self._reap()

    def discard(self) -> None:
        """Close without waiting."""
        threading.Thread(target=self.close, daemon=True).start()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, by our own interpreter
                [
                    sys.executable,
                    "-m",
                    "service.media.decoder_main",
                    msgspec.json.encode(self._settings).decode(),
                ],
                cwd=_ROOT,
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pipesize=_PIPE_BYTES,
            )
        # After starting it, because `close` may have come before there was anything to kill.
        if self._closed:
            self._process.kill()
        return self._process

    @staticmethod
    def _exchange(
        process: subprocess.Popen[bytes],
        request: DecoderRequest,
        encoded: bytes,
    ) -> tuple[DecoderReply, bytes]:
        requests = cast("BinaryIO", process.stdin)
        replies = cast("BinaryIO", process.stdout)
        write_frame(requests, request)
        requests.write(encoded)
        requests.flush()
        reply = read_reply(replies)
        if not isinstance(reply, Decoded):
            return reply, b""
        if not (0 < reply.height * reply.width <= _MAX_PIXELS and len(reply.content_hash) == 32):
            raise ValueError("impossible reply")
        return reply, read_exactly(replies, reply.height * reply.width * 3)

    def _reap(self) -> int | None:
        """Make sure the process has ended; return what it ended with."""
        process, self._process = self._process, None
        self._closed = True
        if process is None:
            return None
        process.kill()
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            # What was still to be flushed has nowhere to go.
            with contextlib.suppress(BrokenPipeError):
                cast("BinaryIO", pipe).close()
        return status


def _environment() -> dict[str, str]:
    """This process's environment without its settings, which hold keys no decoder needs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOUPE_")}
    # glibc raises its own threshold with use and then keeps a large picture's memory for good.
    return kept | {"MALLOC_MMAP_THRESHOLD_": str(1024 * 1024)}

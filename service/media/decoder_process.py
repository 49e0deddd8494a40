"""A worker's end of one decoder process. Blocking: the pool calls it in threads, never on the loop.

Threads, because writing a file and reading pixels there leave the event loop free.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from service.media.decoder_messages import (
    Answer,
    Decoded,
    DecoderReply,
    DecoderRequest,
    DecoderSettings,
    Opened,
    Render,
    Sample,
    Sampled,
    read_exactly,
    read_reply,
    write_frame,
)
from service.media.timed_pipe import TimedPipe

_ROOT = Path(__file__).parents[2]
_PIPE_BYTES = 1024 * 1024
# A process taken over by a hostile file may claim anything; no model takes as much as this.
_MAX_PIXELS = 64 * 1024 * 1024
# By the clock an answer may take three times its CPU time, and 10 s in which a process starts. The
# largest good picture needs a fifth of its CPU time, so that it fails only where a process has less
# than a fifteenth of a core.
START_SECONDS = 10.0
_SECONDS_PER_CPU_SECOND = 3


class DecoderDied(Exception):
    """The process ended, or could not start, stood still or answered nonsense, while it was asked.

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

    def ask(self, request: DecoderRequest, encoded: bytes) -> list[Answer]:
        """Send a request and a file; wait for the answer, of which a document's has many.

        Raises:
            DecoderDied: no answer came, or none in time. The process has been reaped.
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
        self._closed = True
        if self._process is not None:
            self._process.kill()
        # Where memory is short no thread starts; the next process's start reaps this one.
        with contextlib.suppress(RuntimeError):
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
                bufsize=0,
                pipesize=_PIPE_BYTES,
            )
        # After starting it, because `close` may have come before there was anything to kill.
        if self._closed:
            self._process.kill()
        return self._process

    def _exchange(
        self, process: subprocess.Popen[bytes], request: DecoderRequest, encoded: bytes
    ) -> list[Answer]:
        requests = TimedPipe(cast("BinaryIO", process.stdin))
        pipe = TimedPipe(cast("BinaryIO", process.stdout))
        replies = io.BufferedReader(pipe)
        seconds = _longest_seconds(request, self._settings)
        requests.deadline = pipe.deadline = time.monotonic() + seconds
        write_frame(requests, request)
        requests.write(encoded)
        answers = [_read_answer(replies)]
        opened = answers[0].reply
        if isinstance(opened, Opened):
            _check_pages(opened, request, self._settings.max_document_pages)
            for _ in opened.numbers:
                pipe.deadline = time.monotonic() + seconds
                answers.append(_read_answer(replies))
                if not isinstance(answers[-1].reply, Decoded):
                    break
        return answers

    def _reap(self) -> int | None:
        """Make sure the process has ended; return what it ended with."""
        process, self._process = self._process, None
        self._closed = True
        if process is None:
            return None
        process.kill()
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            cast("BinaryIO", pipe).close()
        return status


def _longest_seconds(request: DecoderRequest, settings: DecoderSettings) -> float:
    """Bound the time an answer may take by the clock: each page's, and a video's as a whole."""
    is_video = isinstance(request, Sample)
    cpu_seconds = settings.max_video_cpu_seconds if is_video else settings.max_cpu_seconds
    return START_SECONDS + _SECONDS_PER_CPU_SECOND * cpu_seconds


def _read_answer(replies: BinaryIO) -> Answer:
    reply = read_reply(replies)
    return Answer(reply, read_exactly(replies, 3 * _num_pixels(reply)))


def _num_pixels(reply: DecoderReply) -> int:
    """Tell how many pixels follow a reply.

    Raises:
        ValueError: more than any model takes, or none where there must be some.
    """
    match reply:
        case Decoded():
            num_frames = 1
        case Sampled():
            num_frames = reply.num_frames
        case _:
            return 0
    num_pixels = num_frames * reply.height * reply.width
    sides = min(num_frames, reply.height, reply.width)
    if sides < 1 or num_pixels > _MAX_PIXELS or len(reply.content_hash) != 32:
        raise ValueError("impossible reply")
    return num_pixels


def _check_pages(opened: Opened, request: DecoderRequest, max_pages: int) -> None:
    """Refuse other pages than those asked for.

    Raises:
        ValueError: the process would send what nobody asked for.
    """
    numbers = opened.numbers
    asked = request.pages if isinstance(request, Render) else ()
    if not 0 < len(numbers) <= max_pages or asked not in (None, numbers):
        raise ValueError("impossible reply")


def _environment() -> dict[str, str]:
    """This process's environment without its settings, which hold keys no decoder needs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOUPE_")}
    # glibc raises its own threshold with use and then keeps a large picture's memory for good.
    return kept | {"MALLOC_MMAP_THRESHOLD_": str(1024 * 1024)}
